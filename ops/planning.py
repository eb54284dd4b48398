"""A plan of moves as commands show it."""

import msgspec

from ops.output import print_table
from sharding.reshard.planner import Plan


class ProposedReport(msgspec.Struct, frozen=True, kw_only=True):
    """One move of a plan."""

    source: str
    target: str
    slots: list[int]
    namespace: str | None
    rows: int
    bytes: int
    expected_s: float
    reason: str


class OutlookReport(msgspec.Struct, frozen=True, kw_only=True):
    """A shard before and after."""

    name: str
    state: str
    weight: int
    fair_slots: float
    slots_before: int
    slots_after: int
    over_fair: float | None
    """What it ends with, as a multiple of its fair share."""
    bytes_before: int
    bytes_after: int


class PlanReport(msgspec.Struct, frozen=True, kw_only=True):
    """A plan as commands show it."""

    moves: list[ProposedReport]
    shards: list[OutlookReport]
    slots: int
    """That move."""
    namespaces: int
    rows: int
    bytes: int
    data_share: float
    """Of all data."""
    expected_s: float
    """One after another."""
    is_exact: bool
    """Whether rows were counted; else those of large tables were estimated."""
    unmet: list[str]
    """Namespaces whose pin no shard in service meets."""


def report_plan(plan: Plan, *, is_exact: bool) -> PlanReport:
    """A plan for people and programs."""
    return PlanReport(
        moves=[
            ProposedReport(
                source=move.source,
                target=move.target,
                slots=list(move.slots),
                namespace=None if move.ns_id is None else str(move.ns_id),
                rows=move.size.rows,
                bytes=move.size.bytes,
                expected_s=round(plan.copy_s(move.size), 1),
                reason=move.reason,
            )
            for move in plan.moves
        ],
        shards=[
            OutlookReport(
                name=shard.name,
                state=shard.state,
                weight=shard.weight,
                fair_slots=round(shard.fair_slots, 2),
                slots_before=shard.slots_before,
                slots_after=shard.slots_after,
                over_fair=None if shard.over_fair is None else round(shard.over_fair, 3),
                bytes_before=shard.size_before.bytes,
                bytes_after=shard.size_after.bytes,
            )
            for shard in plan.shards
        ],
        slots=sum(len(move.slots) for move in plan.moves),
        namespaces=sum(move.ns_id is not None for move in plan.moves),
        rows=plan.moved.rows,
        bytes=plan.moved.bytes,
        data_share=round(plan.moved_share, 4),
        expected_s=round(plan.copy_s(plan.moved), 1),
        is_exact=is_exact,
        unmet=[str(ns_id) for ns_id in plan.unmet],
    )


def print_plan(report: PlanReport) -> None:
    """Print a plan as tables and a line."""
    if report.moves:
        print_table(
            ["from", "to", "what", "rows", "MB", "s", "because"],
            [
                (
                    m.source,
                    m.target,
                    f"namespace {m.namespace}" if m.namespace else f"slots {slot_ranges(m.slots)}",
                    m.rows,
                    _megabytes(m.bytes),
                    m.expected_s,
                    m.reason,
                )
                for m in report.moves
            ],
        )
        print()
    print_table(
        ["shard", "state", "weight", "fair share", "slots", "then", "of fair", "MB", "then"],
        [
            (
                s.name,
                s.state,
                s.weight,
                s.fair_slots,
                s.slots_before,
                s.slots_after,
                s.over_fair,
                _megabytes(s.bytes_before),
                _megabytes(s.bytes_after),
            )
            for s in report.shards
        ],
    )
    print()
    print(summary(report))
    for ns_id in report.unmet:
        print(f"no shard in service meets the pin of namespace {ns_id}: it stays where it is")


def summary(report: PlanReport) -> str:
    """A plan in one line."""
    if not report.moves:
        return "nothing is to be moved"
    about = "" if report.is_exact else "about "
    return (
        f"{len(report.moves)} moves of {report.slots} slots and {report.namespaces} namespaces: {about}"
        f"{report.rows:,} rows, {_megabytes(report.bytes)} MB, {report.data_share:.1%} of the data;"
        f" some {report.expected_s:,.0f} s of copying (`shardctl rebalance` does it)"
    )


def slot_ranges(slots: list[int]) -> str:
    """Ascending numbers in short: 0-3, 7, 9-10."""
    ranges: list[list[int]] = []
    for slot in slots:
        if ranges and ranges[-1][-1] == slot - 1:
            ranges[-1] = [ranges[-1][0], slot]
        else:
            ranges.append([slot])
    return ", ".join("-".join(map(str, ends)) for ends in ranges)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f}"
