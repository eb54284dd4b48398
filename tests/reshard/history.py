"""Whether all that was acknowledged is there once, and nothing else, as it was."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import LiteralString

import psycopg
from psycopg import sql

from tests.reshard.load import Note, Reader, Writer, names_of, read_pages
from wire.ids import Jid, NsId, format_rev

_TABLES: LiteralString = (
    "SELECT relname FROM pg_class WHERE relnamespace = 'ns'::regnamespace AND relkind IN ('r', 'p')"
    " AND relname NOT IN ('outbox', 'move_markers') ORDER BY relname"
)
"""All but what comes and goes by itself."""
_DIGEST: LiteralString = (
    "SELECT count(*), md5(string_agg(md5(t::text), '' ORDER BY md5(t::text))) FROM {} t WHERE ns_id = %s"
)
_JOURNAL: LiteralString = (
    "SELECT jid, name, rev_jid FROM ns.server_file_journal WHERE ns_id = %s ORDER BY jid"
)
_UP_TO: LiteralString = (
    "SELECT md5(string_agg(md5(j::text), '' ORDER BY jid)) FROM ns.server_file_journal j"
    " WHERE ns_id = %s AND jid <= %s"
)
_SHOWN = 5


@dataclass(slots=True)
class Findings:
    """What is wrong with a history."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    stale_reads: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether nothing is."""
        return not (self.lost or self.doubled or self.other or self.stale_reads)

    def lines(self) -> list[str]:
        """For people: the first few of each kind."""
        return [
            *(f"lost: {text}" for text in self.lost[:_SHOWN]),
            *(f"doubled: {text}" for text in self.doubled[:_SHOWN]),
            *self.other[:_SHOWN],
            *([f"{self.stale_reads} stale reads"] if self.stale_reads else []),
        ]


@dataclass(frozen=True, slots=True)
class Picture:
    """What must be the same afterwards."""

    digests: Mapping[tuple[NsId, str], tuple[int, str | None]]
    """By namespace and table: how many rows, and the digest of them all."""
    prefixes: Mapping[NsId, tuple[int, str | None]]
    """By namespace: its head then, and the digest of its journal up to there."""


def take_picture(
    owners: Mapping[NsId, psycopg.Connection], still: Iterable[NsId], heads: Mapping[NsId, int]
) -> Picture:
    """Namespaces as their owners have them.

    Args:
        owners: a connection to whoever owns each of them.
        still: those to which nobody writes.
        heads: up to where the journals of the others are looked at.
    """
    digests: dict[tuple[NsId, str], tuple[int, str | None]] = {}
    for ns_id in still:
        for (table,) in owners[ns_id].execute(_TABLES).fetchall():
            query = sql.SQL(_DIGEST).format(sql.Identifier("ns", table))
            row = owners[ns_id].execute(query, [ns_id]).fetchone()
            assert row is not None
            digests[ns_id, table] = (row[0], row[1])
    prefixes: dict[NsId, tuple[int, str | None]] = {}
    for ns_id, head in heads.items():
        row = owners[ns_id].execute(_UP_TO, [ns_id, head]).fetchone()
        assert row is not None
        prefixes[ns_id] = (head, row[0])
    return Picture(digests, prefixes)


def compare_pictures(before: Picture, after: Picture) -> list[str]:
    """What differs."""
    lines = [
        f"{table} of {ns_id} was {old}, is {after.digests.get((ns_id, table))}"
        for (ns_id, table), old in before.digests.items()
        if after.digests.get((ns_id, table)) != old
    ]
    for ns_id, old in before.prefixes.items():
        if after.prefixes.get(ns_id) != old:
            lines.append(f"the journal of {ns_id} up to {old[0]} is another one than before")
    return lines


def judge_journal(writer: Writer, owner: psycopg.Connection, findings: Findings) -> None:
    """Hold a namespace's journal against what was acknowledged: no commit is under way."""
    root = writer.root
    rows = owner.execute(_JOURNAL, [root]).fetchall()
    found = owner.execute("SELECT head FROM ns.namespaces WHERE ns_id = %s", [root]).fetchone()
    head = found[0] if found is not None else 0
    if [row[0] for row in rows] != list(range(1, head + 1)):
        findings.other.append(f"{root}: {len(rows)} journal rows are not 1 to {head}")
    there = Counter(
        (str(name), Note(jid, format_rev(root, Jid(rev)) if rev else None)) for jid, name, rev in rows
    )
    findings.doubled += [f"{root}: {text}" for text in writer.complaints if text.startswith("doubled")]
    findings.other += [f"{root}: {text}" for text in writer.complaints if not text.startswith("doubled")]
    _compare_names(f"journal of {root}", there, Counter(writer.notes.items()), findings)


def judge_told(reader: Reader, findings: Findings) -> None:
    """Hold what a reader was told, from the beginning on, against what was acknowledged."""
    findings.stale_reads += reader.stale_reads
    reader.stale_reads = 0
    acked = Counter((name, note.jid) for name, note in reader.writer.notes.items())
    _compare_names(f"deltas of {reader.writer.root}", reader.told, acked, findings)


async def judge_listing(writer: Writer, findings: Findings) -> None:
    """Hold a listing from the beginning against what was acknowledged."""
    told: Counter[tuple[str, int]] = Counter()
    async for page in read_pages(writer.device, None):
        told.update(names_of(page.entries))
    acked = Counter((name, note.jid) for name, note in writer.notes.items())
    _compare_names(f"listing of {writer.root}", told, acked, findings)


def _compare_names(where: str, there: Counter, acked: Counter, findings: Findings) -> None:  # type: ignore[type-arg]
    """Each acknowledged commit once, at its place; what is there besides was done twice."""
    findings.lost += [f"{where}: {name} as {what}" for name, what in acked - there]
    findings.doubled += [f"{where}: {name} as {what}" for name, what in there - acked]
