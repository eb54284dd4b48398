"""What moves have left that no move explains. Pure.

Two looks that find the same remnant are about the same thing: whatever can change in between, such as the
epoch, is part of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from ops.doctor.look import Look
from sharding.reshard.model import RESTING, MoveState
from sharding.reshard.stream import parse_stream_name
from sharding.shardmap import OwnershipState, Placement
from wire.ids import NsId, slot_of, system_ns


class PartKind(StrEnum):
    """A part of a stream; in the order in which they are dropped."""

    SUBSCRIPTION = "subscription"
    SLOT = "replication slot"
    PUBLICATION = "publication"
    ORIGIN = "replication origin"


@dataclass(frozen=True, slots=True)
class StreamPart:
    """A part of a stream that no move has."""

    shard: str
    kind: PartKind
    name: str
    move_id: int | None
    """None: an origin, of which nobody knows whose it was."""

    def __str__(self) -> str:
        """What is wrong, in words."""
        return f"{self.kind} {self.name} belongs to no move"


@dataclass(frozen=True, slots=True)
class Expectation:
    """A key that a shard is to be given, by no move."""

    shard: str
    key: NsId
    epoch: int

    def __str__(self) -> str:
        """What is wrong, in words."""
        return f"{name_of(self.key)} is expected here, and no move brings it"


@dataclass(frozen=True, slots=True)
class Fence:
    """A key that was taken from a shard, by no move, and that another one has."""

    shard: str
    key: NsId
    epoch: int
    owner: Placement

    def __str__(self) -> str:
        """What is wrong, in words."""
        return f"{name_of(self.key)} is fenced here by no move; {self.owner.shard} has it"


@dataclass(frozen=True, slots=True)
class Ownerless:
    """A key that is active nowhere, and fenced on the shard that the map names."""

    shard: str
    key: NsId
    epoch: int
    doubt: str = ""
    """Why it cannot be made active again without a decision."""

    def __str__(self) -> str:
        """What is wrong, in words."""
        doubt = f", and {self.doubt}" if self.doubt else ""
        return f"{name_of(self.key)} is fenced here by no move, and active nowhere{doubt}"


@dataclass(frozen=True, slots=True)
class ForeignRows:
    """Rows of what another shard owns."""

    shard: str
    key: NsId
    owner: str

    def __str__(self) -> str:
        """What is wrong, in words."""
        return f"rows of {name_of(self.key)} are here, which {self.owner} owns, and no move needs them"


@dataclass(frozen=True, slots=True)
class AwayRow:
    """An ownership row that says of a namespace that it is elsewhere, where its slot is elsewhere, too."""

    shard: str
    key: NsId

    def __str__(self) -> str:
        """What is wrong, in words."""
        return f"{name_of(self.key)} has a row here, and neither it nor its slot is here"


@dataclass(frozen=True, slots=True)
class Marker:
    """A marker of a unit that does not move."""

    shard: str
    key: NsId

    def __str__(self) -> str:
        """What is wrong, in words."""
        return f"a marker of {name_of(self.key)}, which does not move, is here"


@dataclass(frozen=True, slots=True)
class Unpublished:
    """What a shard took over, and the map does not say yet."""

    shard: str
    key: NsId
    epoch: int

    def __str__(self) -> str:
        """What is wrong, in words."""
        return f"{name_of(self.key)} is active here at epoch {self.epoch}, which the map does not know"


@dataclass(frozen=True, slots=True)
class Homecoming:
    """A namespace that is placed by itself for no reason: it is not pinned, and where its slot is."""

    shard: str
    key: NsId

    def __str__(self) -> str:
        """What is wrong, in words."""
        return f"{name_of(self.key)} is placed by itself where its slot is, and not pinned"


@dataclass(frozen=True, slots=True)
class LoosePin:
    """A pin that is met where the namespace is, which would go away with its slot all the same."""

    shard: str
    key: NsId

    def __str__(self) -> str:
        """What is wrong, in words."""
        return f"{name_of(self.key)} is pinned, and would leave this shard with its slot"


@dataclass(frozen=True, slots=True)
class Standing:
    """A move that nobody goes on with."""

    move_id: int
    state: MoveState
    detail: str = field(compare=False)

    @property
    def shard(self) -> str:
        """What it is about."""
        return f"move {self.move_id}"

    def __str__(self) -> str:
        """What is wrong, in words."""
        return self.detail


@dataclass(frozen=True, slots=True)
class Due(Standing):
    """One whose old rows may be deleted."""


@dataclass(frozen=True, slots=True)
class Broken(Standing):
    """One that rests, and whose streams do not run."""


Remnant = (
    StreamPart
    | Fence
    | Ownerless
    | Expectation
    | Unpublished
    | ForeignRows
    | AwayRow
    | Marker
    | Homecoming
    | LoosePin
)


def name_of(key: NsId) -> str:
    """A key for people."""
    return f"slot {slot_of(key)}" if key == system_ns(slot_of(key)) else f"namespace {key}"


def find_remnants(look: Look) -> set[Remnant]:
    """All that a look found and no move explains."""
    found: set[Remnant] = set()
    for shard in look.shards:
        found.update(_find_parts(look, shard))
        found.update(_find_rights(look, shard))
        found.update(_find_rows(look, shard))
    found.update(_find_placements(look))
    return found


def find_standing(look: Look) -> set[Standing]:
    """Moves that somebody has to go on with."""
    found: set[Standing] = set()
    for move in look.moves.values():
        if move.move_id in look.changed | look.running:
            continue
        if move.state is MoveState.DELETING:
            if (move.retired_at_s or 0.0) + move.options.quarantine_s <= look.now_s:
                found.add(Due(move.move_id, move.state, "its old rows may be deleted now"))
        elif move.state not in RESTING:
            because = f": {move.error}" if move.error else ""
            found.add(Standing(move.move_id, move.state, f"stands still while {move.state}{because}"))
        elif move.move_id in look.broken:
            found.add(Broken(move.move_id, move.state, look.broken[move.move_id]))
    return found


def _find_parts(look: Look, shard: str) -> Iterator[Remnant]:
    parts = look.shards[shard].parts
    for kind, names in (
        (PartKind.SUBSCRIPTION, parts.subscriptions),
        (PartKind.SLOT, parts.slots),
        (PartKind.PUBLICATION, parts.publications),
    ):
        for name in names:
            parsed = parse_stream_name(look.shard_map.cluster_id, name)
            if parsed is not None and not look.has_stream(parsed[0], shard):
                yield StreamPart(shard, kind, name, parsed[0])
    for name in parts.origins:
        yield StreamPart(shard, PartKind.ORIGIN, name, None)


def _find_rights(look: Look, shard: str) -> Iterator[Remnant]:
    """Ownership rows that only a move has, and those that nobody asks for."""
    for key, row in look.shards[shard].ownership.items():
        if look.is_expected(key, shard):
            continue
        match row.state:
            case OwnershipState.IMPORTING:
                if look.owner(key) not in (None, shard):
                    yield Expectation(shard, key, row.epoch)
            case OwnershipState.FENCED:
                yield from _judge_fence(look, shard, key, row.epoch)
            case OwnershipState.GONE if key != system_ns(slot_of(key)):
                slot_row = look.shards[shard].ownership.get(system_ns(slot_of(key)))
                is_slot_away = slot_row is None or slot_row.state is OwnershipState.GONE
                if is_slot_away and not look.is_near(key, shard):
                    yield AwayRow(shard, key)
            case _:
                pass


def _judge_fence(look: Look, shard: str, key: NsId, epoch: int) -> Iterator[Remnant]:
    active = look.active(key)
    if len(active) == 1 and active[0].epoch >= epoch:
        yield Fence(shard, key, epoch, active[0])
        return
    placed = look.shard_map.placement(key)
    if active or placed is None or placed.shard != shard:
        return  # what is doubled, or lower than a fence, is for people to judge: `ops.doctor.ownership`
    yield Ownerless(shard, key, epoch, _doubt(look, shard, key, epoch))


def _doubt(look: Look, shard: str, key: NsId, epoch: int) -> str:
    """Why a fenced shard may not be the last one that owned a key; "": it was.

    The map is behind by one activation at most, and what was activated is active, or was fenced later. An
    heir that a call-off raised has an epoch above that of its own fence.
    """
    if not look.is_whole:
        return "not every shard answers, so one of them may have it"
    for name, other in look.shards.items():
        row = other.ownership.get(key)
        if name == shard or row is None or row.state is OwnershipState.IMPORTING:
            continue
        owned_until = min(row.epoch, row.successor.epoch) if row.successor else row.epoch
        if owned_until > epoch:
            return f"{name} may have had it later, until epoch {owned_until}"
    return ""


def _find_rows(look: Look, shard: str) -> Iterator[Remnant]:
    for key in look.shards[shard].foreign:
        owner = look.owner(key)
        # Where nobody else says that he owns them, they may be all there is.
        if owner not in (None, shard) and not look.is_in_use(key, shard):
            yield ForeignRows(shard, key, str(owner))
    for key in look.shards[shard].markers:
        if not look.is_in_use(key, shard):
            yield Marker(shard, key)


def _find_placements(look: Look) -> Iterator[Remnant]:
    """What map, pins and shards do not agree in."""
    keys = {key for shard in look.shards.values() for key in shard.ownership}
    for key in sorted(keys | look.shard_map.overrides.keys() | look.pins.keys()):
        if look.is_moving(key):
            continue
        active, own = look.active(key), look.shard_map.overrides.get(key)
        placed = own if key != system_ns(slot_of(key)) else look.shard_map.placement(key)
        if look.is_whole and len(active) == 1 and (placed is None or placed.epoch < active[0].epoch):
            yield Unpublished(active[0].shard, key, active[0].epoch)
        yield from _judge_place(look, key)


def _judge_place(look: Look, key: NsId) -> Iterator[Remnant]:
    own, pin = look.shard_map.overrides.get(key), look.pins.get(key)
    home = look.shard_map.placement(system_ns(slot_of(key)))
    if home is None or key == system_ns(slot_of(key)):
        return
    if own is not None and pin is None and own.shard == home.shard:
        yield Homecoming(own.shard, key)
    if own is None and pin is not None and pin.is_met_by(look.shard_map.shards[home.shard]):
        yield LoosePin(home.shard, key)
