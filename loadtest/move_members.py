"""The accounts of `make bench-move`: their devices, the rows that they begin with, and single requests."""

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from loadtest.commands import Cluster
from loadtest.devices import LoadDevice, put_block
from loadtest.move_ledger import Ledger, format_number
from loadtest.move_requests import Asker, Failed
from wire.api import (
    MAX_PAGE_ENTRIES,
    AccessGranted,
    Batch,
    BatchResult,
    CommitFile,
    LinkDevice,
    LinkedDevice,
    ListFolder,
    ListFolderContinue,
    ListFolderResult,
    Metadata,
    Operation,
    RefreshAccess,
    WriteMode,
)
from wire.hashes import block_hash, content_hash
from wire.ids import NsId, Slot, parse_ns_id, slot_of

LIVE_FILES = 200
"""That the load edits in each namespace, one after another."""
CONTENTS = [b"spring", b"summer", b"autumn", b"winter"]
"""Of a file in turn. Four: an edit that follows a lost one is still a change."""
FILES_PER_FOLDER = 500
EDITS = 4
"""Rows of the journal for each file that a namespace begins with."""
SEED_BATCH = 500
SEEDERS = 4
"""Requests under way at once; more wait in line on two cores."""
TOKEN_LIFE_S = 1_800.0
"""Half of what a token lives: then it is renewed."""


@dataclass(slots=True)
class Member:
    """An account's only device, and what it knows of its namespace."""

    ns_id: NsId
    device_id: str
    token: str
    refresh_token: str
    cursor: str = ""
    """How far it has read."""
    ledger: Ledger = field(default_factory=Ledger)
    renewed_s: float = field(default_factory=time.monotonic)

    @property
    def slot(self) -> Slot:
        """The slot that its namespace lies in."""
        return slot_of(self.ns_id)

    def make_batch(self, numbers: range, folder: str, files: int) -> Batch:
        """Commits of these numbers, each an edit of the next one of so many files."""
        return Batch([_edit(number, folder, files) for number in numbers])


def _edit(number: int, folder: str, files: int) -> Operation:
    data = CONTENTS[number // files % len(CONTENTS)]
    name = block_hash(data)
    at = number % files
    return CommitFile(
        path=f"/{folder}/{at // FILES_PER_FOLDER}/{at}.txt",
        blocks=[name.hex()],
        size=len(data),
        content_hash=content_hash([name]).hex(),
        client_modified=format_number(number),
        mode=WriteMode.OVERWRITE,
    )


async def link_members(asker: Asker, blockserver_url: str, codes: Sequence[str]) -> list[Member]:
    """A member for each code, with the contents in its store and a cursor at the journal's beginning."""
    members = []
    for code in codes:
        refresh = secrets.token_hex(16)
        request = LinkDevice(
            code=code, request_id=secrets.token_hex(16), refresh_token=refresh, device_name="bench"
        )
        linked = await asker.ask("/v1/devices/link", request, LinkedDevice)
        ns_id = parse_ns_id(linked.root_ns)
        member = Member(ns_id, linked.device_id, linked.access_token, refresh)
        listing = ListFolder(recursive=True, limit=MAX_PAGE_ENTRIES)
        page = await asker.ask("/v1/files/list_folder", listing, ListFolderResult, token=member.token)
        member.cursor = page.cursor
        members.append(member)
    devices = [LoadDevice(member.token, str(member.ns_id)) for member in members]
    for data in CONTENTS:
        await put_block(blockserver_url, devices, data)
    return members


@dataclass(frozen=True, slots=True)
class Roles:
    """Which members are in slots that move; and of those, which only hold polls."""

    source: str
    target: str
    moving: list[Member]
    quiet: list[Member]
    staying: list[Member]

    @property
    def all(self) -> list[Member]:
        """All of them."""
        return self.moving + self.quiet + self.staying

    @property
    def slots(self) -> list[Slot]:
        """The slots that move, ascending."""
        return sorted({member.slot for member in self.moving + self.quiet})


def choose_roles(cluster: Cluster, members: Sequence[Member], moving_count: int, quiet_count: int) -> Roles:
    """Members of one shard move, some of them without writers; the others stay, on either shard.

    Raises:
        RuntimeError: the members lie so that nobody would move, hold polls or stay.
    """
    placed = [shard for shard, _ in cluster.ctl("map", "show")["slots"]]
    source, target = sorted(set(placed), key=lambda name: -sum(placed[m.slot] == name for m in members))
    slots = sorted({member.slot for member in members if placed[member.slot] == source})
    chosen = set(slots[: moving_count + quiet_count])
    quiet_slots = set(slots[:quiet_count])
    staying = [member for member in members if member.slot not in chosen]
    moving = [m for m in members if m.slot in chosen and m.slot not in quiet_slots]
    quiet = [m for m in members if m.slot in quiet_slots]
    if not moving or not quiet or not staying:
        raise RuntimeError(f"{len(members)} accounts are too few: {len(chosen)} slots of {source} have any")
    return Roles(source, target, moving, quiet, staying)


async def renew(asker: Asker, members: Sequence[Member]) -> None:
    """New tokens for those whose tokens are old.

    Raises:
        Failed: one was not given.
    """
    for member in members:
        if time.monotonic() - member.renewed_s < TOKEN_LIFE_S:
            continue
        following = secrets.token_hex(16)
        request = RefreshAccess(
            device_id=member.device_id,
            refresh_token=member.refresh_token,
            next_refresh_token=following,
        )
        granted = await asker.ask("/v1/devices/refresh", request, AccessGranted)
        member.token, member.refresh_token = granted.access_token, following
        member.renewed_s = time.monotonic()


async def write(asker: Asker, member: Member, batch: Batch, numbers: range, **options: int | str) -> Metadata:
    """Send commits once, and note in the ledger what became of them; the last one's metadata.

    Raises:
        Failed: one was refused, or changed nothing, or came before what had been acknowledged earlier.
    """
    before = member.ledger.head
    try:
        result = await asker.ask(
            "/v1/files/batch",
            batch,
            BatchResult,
            token=member.token,
            **options,  # type: ignore[arg-type]
        )
    except BaseException:
        member.ledger.fail(numbers)
        raise
    found: Metadata | None = None
    for number, verdict in zip(numbers, result.verdicts, strict=True):
        found = verdict.metadata
        if found is None or not verdict.changed or not isinstance(found.jid, int):
            member.ledger.fail(numbers[numbers.index(number) :])
            raise Failed(f"commit {number} of {member.ns_id}: {verdict}")
        member.ledger.acknowledge(number, found.jid)
        if found.jid <= before:
            raise Failed(f"commit {number} of {member.ns_id} is row {found.jid}, though {before} was there")
    assert found is not None
    return found


async def read_on(asker: Asker, member: Member, server: int) -> int:
    """Read from the member's cursor to the end; the jid at which it is then.

    Raises:
        Failed: a page was not had.
    """
    while True:
        page = await asker.ask(
            "/v1/files/list_folder/continue",
            ListFolderContinue(member.cursor),
            ListFolderResult,
            token=member.token,
            server=server,
        )
        member.cursor = page.cursor
        if not page.has_more:
            return page.jid


async def seed(asker: Asker, members: Sequence[Member], rows: int) -> None:
    """Give members so many rows of the journal, all told; a file for every few of them.

    Raises:
        Failed: a batch was refused.
    """
    per_member = -(-rows // len(members))
    files = max(1, per_member // EDITS)
    step = max(1, rows // 10)

    async def fill(server: int) -> None:
        # Each namespace is filled by one alone: whoever waited for another's batch would be put off.
        for member in members[server::SEEDERS]:
            while (lacking := per_member - len(member.ledger)) > 0:
                numbers = member.ledger.begin(min(SEED_BATCH, lacking))
                batch = member.make_batch(numbers, "seed", files)
                await write(asker, member, batch, numbers, server=server)
                done = sum(len(member.ledger) for member in members)
                if done % step < len(numbers):
                    print(f"    {done:,} of {per_member * len(members):,} rows", flush=True)

    async with asyncio.TaskGroup() as group:
        for number in range(SEEDERS):
            group.create_task(fill(number))
