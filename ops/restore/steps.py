"""Making a restored shard fit the others' present: steps, each noted in `local.restores` of that shard.

    fenced       none of its slots is active: nobody's map leads to a write or a read
    reconciled   each key is fenced at a new epoch, above all that there were, or gone to where it is now
    claimed      the index of blocks and the namespaces agree, on all shards
    listed       e-mail addresses and outside identities lead to accounts that are there, and only to those
    jumped       heads, entry ids and counts are above whatever was given out and is lost
    active       the keys that it keeps are active at their new epochs. Point of no return
    published    the directory says so

Nobody but us reaches the shard until the last one; each step may be the last that happens, and the next run
goes on after it. No step is done twice, but `claimed` and `listed`, which find nothing to do again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import LiteralString

from psycopg.types.json import Jsonb

from ops.doctor.ownership import OwnershipRow
from ops.errors import OpsError
from ops.restore.ownership import Reconciled, reconcile
from sharding.directory import Connection, load_map_sync
from sharding.locks import SETUP_LOCK_CLASS, SLOT_LOCK_CLASS
from sharding.shardmap import OwnershipState
from wire import faults
from wire.ids import LOST_IDS, MAX_COUNT, NsId, slot_of, system_ns

LOST_COUNTS = 2**20
"""How far a slot's count jumps: a million accounts made in one slot since the moment restored to."""


class Step(StrEnum):
    """A step that has been done."""

    FENCED = "fenced"
    RECONCILED = "reconciled"
    CLAIMED = "claimed"
    LISTED = "listed"
    JUMPED = "jumped"
    ACTIVE = "active"
    PUBLISHED = "published"


faults.declare(*(f"ops.restore.{step}" for step in Step))
ORDER = list(Step)


class SlotsMissing(OpsError):
    """The moment restored to lies before slots came here, which nobody else owns."""

    code, exit_status = "slots_missing", 4


@dataclass(slots=True)
class Progress:
    """What `local.restores` holds of a restore."""

    done: Step
    original: list[OwnershipRow]
    kept: dict[NsId, int]
    counts: dict[str, int]


@dataclass(slots=True)
class Restored:
    """The restored shard, the others and the directory, and what the steps need of them."""

    restore_id: str
    name: str
    restored_to: str
    conn: Connection
    others: Mapping[str, Connection]
    directory: Connection
    tell: Callable[[str], None]
    public_dsn: str | None = None
    """An address that the directory is to name from now on."""
    counts: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def slot_count(self) -> int:
        """Slots in use."""
        return load_map_sync(self.directory).slot_count

    def load(self) -> Progress | None:
        """How far this restore is; None before its first step."""
        row = self.conn.execute(
            "SELECT step, original, kept, counts FROM local.restores WHERE restore_id = %s", [self.restore_id]
        ).fetchone()
        if row is None:
            return None
        return Progress(
            Step(row[0]),
            [OwnershipRow(NsId(int(k)), epoch, OwnershipState(state)) for k, epoch, state in row[1]],
            {NsId(int(k)): epoch for k, epoch in row[2]},
            row[3],
        )

    def kept(self) -> dict[NsId, int]:
        """The keys that stay here, with their new epochs."""
        progress = self.load()
        assert progress is not None, "the first step comes first"
        return progress.kept

    def note(self, step: Step) -> None:
        """Note a step as done, in the transaction that is open."""
        self.conn.execute(
            "UPDATE local.restores SET step = %s, counts = counts || %s,"
            " finished_at = CASE WHEN %s THEN now() END WHERE restore_id = %s",
            [step.value, Jsonb(self.counts), step is ORDER[-1], self.restore_id],
        )


def run_steps(restored: Restored, work: Mapping[Step, Callable[[Restored], None]]) -> Progress:
    """Do what has not been done; what the restore has come to."""
    progress = restored.load()
    first = 0 if progress is None else ORDER.index(progress.done) + 1
    for step in ORDER[first:]:
        restored.tell(f"{restored.name}: {DOING[step]}")
        work[step](restored)
        faults.fault_point(f"ops.restore.{step}")
    progress = restored.load()
    assert progress is not None
    return progress


DOING: Mapping[Step, str] = {
    Step.FENCED: "fence all that it says to own",
    Step.RECONCILED: "settle with the other shards who owns what, at new epochs",
    Step.CLAIMED: "make the claims of blocks again, from all shards",
    Step.LISTED: "make the index of e-mail addresses fit the accounts",
    Step.JUMPED: "let each namespace jump over what is lost",
    Step.ACTIVE: "let it in (no way back from here)",
    Step.PUBLISHED: "tell the directory",
}


def fence(restored: Restored) -> None:
    """Nothing is active; what was is remembered."""
    conn = restored.conn
    with conn.transaction():
        # A moment amid an earlier restore: what that one found is the state that counts.
        row = conn.execute(
            "SELECT original FROM local.restores WHERE finished_at IS NULL ORDER BY began_at LIMIT 1"
        ).fetchone()
        original = row[0] if row is not None else _ownership_rows(conn)
        conn.execute("UPDATE local.restores SET finished_at = now() WHERE finished_at IS NULL")
        conn.execute("UPDATE local.ownership SET state = 'f' WHERE state = 'a'")
        conn.execute(
            "INSERT INTO local.restores (restore_id, step, restored_to, original, kept, counts)"
            " VALUES (%s, %s, %s, %s, '[]', '{}')",
            [restored.restore_id, Step.FENCED.value, restored.restored_to, Jsonb(original)],
        )


def _ownership_rows(conn: Connection) -> list[tuple[str, int, str]]:
    rows = conn.execute("SELECT ns_id, epoch, state FROM local.ownership ORDER BY ns_id").fetchall()
    return [(str(ns_id), epoch, state) for ns_id, epoch, state in rows]


def read_ownership(conn: Connection) -> list[OwnershipRow]:
    """A shard's rows."""
    return [OwnershipRow(NsId(int(k)), epoch, OwnershipState(s)) for k, epoch, s in _ownership_rows(conn)]


def settle_ownership(restored: Restored) -> None:
    """Write what `reconcile` decides.

    Raises:
        SlotsMissing: nobody has some slots that should be here.
    """
    progress = restored.load()
    assert progress is not None
    shard_map = load_map_sync(restored.directory)
    rows = {name: read_ownership(conn) for name, conn in restored.others.items()}
    decided = reconcile(restored.name, progress.original, rows, shard_map)
    if decided.missing:
        some = ", ".join(str(slot_of(key)) for key in decided.missing[:8])
        raise SlotsMissing(
            f"{len(decided.missing)} slots or namespaces (slots {some}) came to {restored.name} after "
            f"{restored.restored_to}, and nobody else owns them: restore to a later moment"
        )
    _raise_imports(restored, decided)
    restored.counts |= {"kept_keys": len(decided.kept), "gone_keys": len(decided.gone)}
    with restored.conn.transaction(), restored.conn.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO local.ownership (ns_id, epoch, state) VALUES (%s, %s, 'f')"
            " ON CONFLICT (ns_id) DO UPDATE SET epoch = excluded.epoch, state = 'f',"
            " successor = NULL, successor_epoch = NULL",
            list(decided.kept.items()),
        )
        cursor.executemany(
            "UPDATE local.ownership SET state = 'g', successor = %s, successor_epoch = %s WHERE ns_id = %s",
            [(p.shard, p.epoch, key) for key, p in decided.gone.items()],
        )
        restored.conn.execute(
            "UPDATE local.restores SET kept = %s WHERE restore_id = %s",
            [Jsonb([(str(key), epoch) for key, epoch in decided.kept.items()]), restored.restore_id],
        )
        restored.note(Step.RECONCILED)


def _raise_imports(restored: Restored, decided: Reconciled) -> None:
    """Whoever was importing from here must not become active at an epoch of before."""
    for conn in restored.others.values():
        for key, epoch in decided.kept.items():
            with conn.transaction():
                found = conn.execute(
                    "SELECT 1 FROM local.ownership WHERE ns_id = %s AND state = 'i' AND epoch < %s",
                    [key, epoch],
                ).fetchone()
                if found is None:
                    continue
                conn.execute("SELECT pg_advisory_xact_lock(%s, %s)", [SLOT_LOCK_CLASS, slot_of(key)])
                conn.execute(
                    "UPDATE local.ownership SET epoch = %s WHERE ns_id = %s AND state = 'i'", [epoch, key]
                )


# Namespaces below a key that is kept, by their own row or by their slot's: %(kept)s and %(own)s are arrays.
KEPT_NS: LiteralString = (
    "(ns_id = ANY(%(kept)s) OR ((ns_id >> 51) << 51) = ANY(%(kept)s) AND NOT ns_id = ANY(%(elsewhere)s))"
)


def kept_params(restored: Restored) -> dict[str, object]:
    """The parameters of KEPT_NS."""
    kept = restored.kept()
    rows = restored.conn.execute("SELECT ns_id FROM local.ownership WHERE state = 'g'").fetchall()
    return {"kept": list(kept), "elsewhere": [row[0] for row in rows]}


def jump(restored: Restored) -> None:
    """Nothing that was ever given out is given out again; readers and polls learn that something happened."""
    conn, params = restored.conn, {**kept_params(restored), "ids": LOST_IDS, "counts": LOST_COUNTS}
    with conn.transaction():
        jumped = conn.execute(
            "UPDATE ns.namespaces SET lost_ranges = lost_ranges || ARRAY[head, head + %(ids)s],"
            " head = head + %(ids)s, next_entry_id = next_entry_id + %(ids)s WHERE " + KEPT_NS,
            params,
        )
        restored.counts["jumped_namespaces"] = jumped.rowcount
        conn.execute(
            "INSERT INTO ns.outbox (ns_id, jid) SELECT ns_id, head FROM ns.namespaces WHERE "
            + KEPT_NS
            + " ON CONFLICT (ns_id) DO UPDATE SET jid = excluded.jid",
            params,
        )
        # A slot whose first namespace is among what was lost has no row.
        slots = [key for key in restored.kept() if key == system_ns(slot_of(key))]
        conn.execute(
            "INSERT INTO ns.slot_counters (ns_id, next_count) SELECT s, 1 + %s FROM unnest(%s::bigint[]) s"
            " ON CONFLICT (ns_id) DO UPDATE SET next_count = least(slot_counters.next_count + %s, %s)",
            [LOST_COUNTS, slots, LOST_COUNTS, MAX_COUNT],
        )
        conn.execute("DELETE FROM local.leases")
        restored.note(Step.JUMPED)


def let_in(restored: Restored) -> None:
    """Active at the new epochs; whoever comes with the old map is told the new epoch by this very row."""
    with restored.conn.transaction(), restored.conn.cursor() as cursor:
        cursor.executemany(
            "UPDATE local.ownership SET state = 'a' WHERE ns_id = %s AND epoch = %s AND state = 'f'",
            list(restored.kept().items()),
        )
        restored.note(Step.ACTIVE)


def publish(restored: Restored) -> None:
    """The new epochs in the map."""
    directory = restored.directory
    with directory.transaction():
        directory.execute("SELECT pg_advisory_xact_lock(%s, 0)", [SETUP_LOCK_CLASS])
        changed = 0
        for key, epoch in restored.kept().items():
            if key == system_ns(slot_of(key)):
                done = directory.execute(
                    "UPDATE shard_map SET shard = %s, epoch = %s WHERE slot = %s AND epoch < %s",
                    [restored.name, epoch, slot_of(key), epoch],
                )
            else:
                done = directory.execute(
                    "INSERT INTO overrides (ns_id, shard, epoch) VALUES (%s, %s, %s) ON CONFLICT (ns_id)"
                    " DO UPDATE SET shard = excluded.shard, epoch = excluded.epoch"
                    " WHERE overrides.epoch < excluded.epoch",
                    [key, restored.name, epoch],
                )
            changed += done.rowcount
        if restored.public_dsn is not None:
            changed += directory.execute(
                "UPDATE shards SET dsn = %s WHERE name = %s AND dsn <> %s",
                [restored.public_dsn, restored.name, restored.public_dsn],
            ).rowcount
        if changed:
            directory.execute("UPDATE cluster SET map_version = map_version + 1")
    with restored.conn.transaction():
        restored.note(Step.PUBLISHED)
