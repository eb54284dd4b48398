"""Devices under Locust: each links, then saves, follows and looks around as docs/load-testing.md says.

`make loadtest` runs it against a cluster of its own. By itself it needs the file that `loadtest.run_load`
writes, named by SHARDBOX_LOAD_FILE: where the servers are, and a link code for each device.
"""

import os
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import gevent  # type: ignore[import-untyped]
import msgspec
from locust import FastHttpUser, between, events, task
from locust.env import Environment

from loadtest.plan import LoadPlan
from wire.api import (
    Batch,
    BatchResult,
    CommitFile,
    Delete,
    LinkDevice,
    LinkedDevice,
    ListFolder,
    ListFolderContinue,
    ListFolderResult,
    Longpoll,
    LongpollResult,
    Metadata,
    Move,
    Operation,
    Tag,
)
from wire.blocks import (
    PACK_CONTENT_TYPE,
    FrameStatus,
    GetPack,
    PutPackResult,
    format_frame_head,
    iter_frames,
)
from wire.hashes import BlockHash, block_hash, content_hash

PLAN_VARIABLE = "SHARDBOX_LOAD_FILE"
SAVE, RENAME, DELETE, LOOK = 6, 1, 1, 2
"""How often of ten times a device does what (docs/load-testing.md)."""
MAX_FILES = 5
"""Saved at once."""
MAX_FILE_BYTES = 100_000
POLL_S = 30
MAX_LOOKS = 10
"""At the end, each while the account's other device may still write."""
ERROR_PAUSE_S = 1.0
"""Before a device polls again after an error, which has been counted."""

T = TypeVar("T")
_codes: list[str] = []
_plan: LoadPlan


@events.init.add_listener  # type: ignore[untyped-decorator]
def _read_plan(environment: Environment, **_: Any) -> None:
    global _plan
    _plan = msgspec.json.decode(Path(os.environ[PLAN_VARIABLE]).read_bytes(), type=LoadPlan)
    _codes[:] = _plan.codes
    environment.host = _plan.metaservers[0]


class Refused(Exception):
    """A request was not answered as it should be; it has been counted as failed."""


class DeviceUser(FastHttpUser):
    """One linked device."""

    wait_time = between(0.5, 2.0)
    network_timeout = POLL_S + 90.0
    connection_timeout = 10.0

    def on_start(self) -> None:
        """Link, read the tree, begin to follow it, and bring the first files along."""
        self.token = ""
        request = LinkDevice(
            code=_codes.pop(),
            request_id=secrets.token_hex(16),
            refresh_token=secrets.token_hex(16),
            device_name="locust",
        )
        self.linked = self.ask("/v1/devices/link", request, LinkedDevice)
        self.token = self.linked.access_token
        self.files: dict[str, str] = {}
        """Path by id of the files that this device has made itself."""
        self.tree: dict[str, Metadata] = {}
        """What following has told, by id."""
        self.take(self.list_whole())
        self.follower = gevent.spawn(self.follow)
        self.save()

    def on_stop(self) -> None:
        """Stop following, and see whether it has told all."""
        self.follower.kill()
        error: Refused | None = None
        try:
            self.compare()
        except Refused as found:
            error = found
        self.environment.events.request.fire(
            request_type="CHECK",
            name="tree compared at the end",
            response_time=0,
            response_length=0,
            exception=error,
            context={},
        )

    # ---- What a device does

    @task(SAVE)
    def save(self) -> None:
        """Write some files: their blocks, then one batch."""
        sizes = [random.randint(1, MAX_FILE_BYTES) for _ in range(random.randint(1, MAX_FILES))]
        blocks = {block_hash(data): data for data in map(random.randbytes, sizes)}
        self.put_blocks(blocks)
        folder = f"/{self.linked.device_id[-6:]}/{random.randint(0, 9)}"
        operations: list[Operation] = [
            file_of(f"{folder}/{secrets.token_hex(6)}.bin", name, len(data)) for name, data in blocks.items()
        ]
        for made in self.write(operations):
            assert isinstance(made.path_display, str)
            self.files[made.id] = made.path_display

    @task(RENAME)
    def rename(self) -> None:
        """Give one of its files another name."""
        if self.files:
            file_id = random.choice(list(self.files))
            to_path = f"{self.files[file_id].removesuffix('.new')}.new"
            moved = self.write([Move(from_path=file_id, to_path=to_path, autorename=True)])
            assert isinstance(moved[0].path_display, str)
            self.files[file_id] = moved[0].path_display

    @task(DELETE)
    def delete(self) -> None:
        """Delete one of its files."""
        if self.files:
            file_id = random.choice(list(self.files))
            del self.files[file_id]
            self.write([Delete(path=file_id)])

    @task(LOOK)
    def look(self) -> None:
        """List the root folder."""
        self.ask("/v1/files/list_folder", ListFolder(), ListFolderResult, name="list_folder of the root")

    def follow(self) -> None:
        """Wait for changes and fetch what they bring, for ever."""
        while True:
            try:
                while self.page.has_more:
                    self.read_on()
                poll = Longpoll(self.page.cursor, POLL_S)
                if self.ask(
                    "/v1/files/list_folder/longpoll", poll, LongpollResult, server=_plan.notifserver
                ).changes:
                    self.read_on()
            except Refused:
                time.sleep(ERROR_PAUSE_S)

    def read_on(self) -> None:
        """The next page, and the blocks of the files in it that others have made."""
        request = ListFolderContinue(self.page.cursor)
        self.take(self.ask("/v1/files/list_folder/continue", request, ListFolderResult))
        wanted = [
            entry for entry in self.page.entries if entry.tag is Tag.FILE and entry.id not in self.files
        ]
        if wanted:
            self.fetch(wanted)

    def take(self, page: ListFolderResult) -> None:
        """Bring the tree up to the page's cursor."""
        self.page = page
        if page.restarted:
            self.tree.clear()
        for entry in page.entries:
            self.tree.pop(entry.id, None)
            if entry.tag is not Tag.DELETED:
                self.tree[entry.id] = entry

    def compare(self) -> None:
        """See that the tree is what a device would get that links now.

        Raises:
            Refused: it is not, though nobody else writes any more; or a request failed.
        """
        for _ in range(MAX_LOOKS):
            while self.page.has_more:
                self.read_on()
            told = dict(self.tree)
            page = self.list_whole()
            found = {entry.id: entry for entry in page.entries}
            while page.has_more:
                page = self.ask(
                    "/v1/files/list_folder/continue", ListFolderContinue(page.cursor), ListFolderResult
                )
                found |= {entry.id: entry for entry in page.entries}
            if told == {name: entry for name, entry in found.items() if entry.tag is not Tag.DELETED}:
                return
            # The account's other device may have written in between.
            self.read_on()
        raise Refused(f"following has told of {len(self.tree)} entries, and a listing does not agree")

    # ---- Requests

    def list_whole(self) -> ListFolderResult:
        """The first page of all that the account has."""
        listing = ListFolder(recursive=True, include_blocks=True)
        return self.ask("/v1/files/list_folder", listing, ListFolderResult)

    def write(self, operations: list[Operation]) -> list[Metadata]:
        """The metadata of what became of each, none refused."""
        headers = {"Idempotency-Key": secrets.token_hex(16)}
        with self.asking("/v1/files/batch", Batch(operations), headers=headers) as answer:
            result = msgspec.json.decode(answer, type=BatchResult)
            refused = [verdict.error for verdict in result.verdicts if verdict.error is not None]
            if refused:
                raise Refused(f"{refused[0].code}: {refused[0].message}")
        return [verdict.metadata for verdict in result.verdicts if verdict.metadata is not None]

    def put_blocks(self, blocks: dict[BlockHash, bytes]) -> None:
        """Send blocks in one pack."""
        pack = b"".join(
            format_frame_head(name, FrameStatus.OK, len(data)) + data for name, data in blocks.items()
        )
        path = f"/v1/blocks/put_pack?ns={self.linked.root_ns}"
        headers = {"Content-Type": PACK_CONTENT_TYPE}
        with self.asking(path, pack, name="put_pack", server=_plan.blockserver, headers=headers) as answer:
            refused = [b.error for b in msgspec.json.decode(answer, type=PutPackResult).blocks if b.error]
            if refused:
                raise Refused(refused[0].message)

    def fetch(self, entries: list[Metadata]) -> None:
        """Get the blocks of files, and check that they are what was asked for."""
        hashes = [block for entry in entries if isinstance(entry.blocks, list) for block in entry.blocks]
        body = GetPack(ns_id=self.linked.root_ns, hashes=hashes)
        with self.asking("/v1/blocks/get_pack", body, server=_plan.blockserver) as answer:
            missing = set(hashes)
            for frame in iter_frames(answer):
                missing.discard(frame.hash.hex())
                if frame.status is not FrameStatus.OK or block_hash(frame.data) != frame.hash:
                    raise Refused(f"a block came as {frame.status.name}")
            if missing:
                raise Refused(f"{len(missing)} blocks did not come")

    def ask(
        self, path: str, body: msgspec.Struct, answer: type[T], *, server: str = "", name: str | None = None
    ) -> T:
        """A decoded answer.

        Raises:
            Refused: it was not 200, or not of this shape.
        """
        with self.asking(path, body, server=server, name=name) as content:
            return msgspec.json.decode(content, type=answer)

    @contextmanager
    def asking(
        self,
        path: str,
        body: msgspec.Struct | bytes,
        *,
        server: str = "",
        name: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Iterator[bytes]:
        """The body of the answer. What goes wrong inside counts as the request's failure.

        Raises:
            Refused: something did.
        """
        sent = {"Content-Type": "application/json"} | (headers or {})
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        with self.client.request(
            "POST",
            (server or random.choice(_plan.metaservers)) + path,
            name=name or path,
            data=data,  # type: ignore[arg-type]  # bytes are sent as they are
            headers=sent,
            catch_response=True,
        ) as response:
            content = response.content or b""
            try:
                if response.status_code != 200:
                    raise Refused(f"{response.status_code} {content[:300]!r}")
                yield content
            except (Refused, msgspec.MsgspecError) as error:
                response.failure(str(error))
                raise Refused(str(error)) from error
            response.success()


def file_of(path: str, block: BlockHash, size: int) -> CommitFile:
    """The operation that makes a file of one block."""
    return CommitFile(
        path=path,
        blocks=[block.hex()],
        size=size,
        content_hash=content_hash([block]).hex(),
        client_modified=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
