"""`shardctl blocks scrub`: the store that the settings name, and a file that says how far it has come."""

import os
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile
from pydantic import ValidationError

from blockserver.services.scrub import Scrubber, ScrubState
from blockserver.settings import StoreSettings
from blockserver.storage.backend import Backend
from blockserver.stores import open_backend
from ops.dev_setup import read_record
from ops.errors import UsageError
from ops.files import locked, write_json
from ops.layout import DevLayout, choose_data_dir

_STORE_VARIABLES = ("SHARDBOX_BLOCK_STORE", "SHARDBOX_BLOCK_DIR", "SHARDBOX_S3_BUCKET")


def find_store(data_dir: Path | None) -> StoreSettings:
    """The store of the environment, as the blockservers are told of it, else the embedded cluster's.

    Raises:
        NoCluster: neither is there.
        UsageError: the environment names no store that could be.
    """
    if data_dir is None and any(name in os.environ for name in _STORE_VARIABLES):
        try:
            return StoreSettings()
        except ValidationError as error:
            raise UsageError("; ".join(str(found["msg"]) for found in error.errors())) from None
    layout = DevLayout(choose_data_dir(data_dir))
    read_record(layout)
    return StoreSettings(block_store="folder", block_dir=layout.blocks)


async def scrub(
    store: StoreSettings, *, rate_bytes: int, state_file: Path | None, metrics_file: Path | None
) -> ScrubState:
    """One pass to its end, or the rest of one that was cut short.

    Raises:
        ClusterBusy: another scrub works with this state file.
        UpstreamUnavailable: the store does not answer; the next run goes on from here.
    """
    with ExitStack() as stack:
        if state_file is not None:
            lock = state_file.with_name(state_file.name + ".lock")
            stack.enter_context(locked(lock, wait=False, what="another scrub"))
        backend: Backend = open_backend(store)
        try:
            state = former = _read_state(state_file)
            async for state in Scrubber(backend, rate_bytes=rate_bytes).iter_states(former):
                if state_file is not None:
                    write_json(state_file, state)
                if metrics_file is not None:
                    _write_metrics(metrics_file, state)
            return state
        finally:
            await backend.close()


def _read_state(path: Path | None) -> ScrubState:
    """Where the last run was cut short; a new pass if there was none, or it had come to its end."""
    if path is not None and path.exists():
        try:
            state = msgspec.json.decode(path.read_bytes(), type=ScrubState)
        except msgspec.MsgspecError:
            raise UsageError(f"{path} is no state of a scrub") from None
        if not state.is_complete:
            return state
    return ScrubState(started_at=datetime.now(UTC).isoformat(timespec="seconds"))


def _write_metrics(path: Path, state: ScrubState) -> None:
    """For the textfile collector of Prometheus' node exporter: a command has no port to be scraped at."""
    registry = CollectorRegistry()
    values = {
        "objects": ("Objects looked at in this pass.", state.object_count),
        "bytes": ("Bytes read in this pass.", state.byte_count),
        "corrupt_objects": ("Objects with other bytes than their name says.", state.corrupt_count),
        "unreadable_objects": ("Objects that the store could not hand out.", state.unreadable_count),
        "is_complete": ("1: the pass has come to its end.", int(state.is_complete)),
        "started_timestamp_seconds": (
            "When the pass began.",
            datetime.fromisoformat(state.started_at).timestamp(),
        ),
    }
    for name, (help_text, value) in values.items():
        Gauge(f"shardbox_scrub_{name}", help_text, registry=registry).set(value)
    write_to_textfile(str(path), registry)
