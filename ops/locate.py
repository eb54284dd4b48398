"""Where a namespace lives, by the map and by what its shard says itself."""

import msgspec
import psycopg

from metaserver.services.accounts import email_key
from ops.session import APPLICATION, CONNECT_TIMEOUT_S, load_map
from sharding.directory import Connection
from sharding.shardmap import OwnershipState, ShardMap, ownership_keys
from wire.errors import NotFound, ShardUnavailable
from wire.ids import (
    MAX_COUNT,
    NsId,
    parse_file_id,
    parse_ns_id,
    parse_rev,
    root_ns_of_account,
    root_ns_of_device,
    slot_of,
    slot_of_hash,
    system_ns,
)

_REV_CHARS = 32


class NamespaceLocation(msgspec.Struct, frozen=True, kw_only=True):
    """Where a namespace lives."""

    ns_id: str
    slot: int
    count: int
    """Within its slot; 0 is the slot's system namespace."""
    shard: str
    epoch: int
    map_version: int
    is_override: bool
    """Whether the map places it by itself, apart from its slot."""
    owner_state: str | None
    """What the shard says of itself: active, fenced, importing, gone; None when it has no record."""
    owner_epoch: int | None
    exists: bool
    """Whether there is such a namespace; the system namespace of a slot in use always is."""


def locate_namespace(directory_dsn: str, what: str) -> NamespaceLocation:
    """Where the namespace is that something names.

    Raises:
        NoCluster: the directory does not answer.
        NotFound: nothing of that name, or its slot is not in use.
        ShardUnavailable: its shard does not answer.
        MalformedId: not a name of anything.
    """
    shard_map = load_map(directory_dsn)
    ns_id = _ns_of_email(shard_map, what) if "@" in what else ns_id_of(what)
    placed = shard_map.placement(ns_id)
    if placed is None:
        raise NotFound(f"slot {slot_of(ns_id)} is not in use: the cluster has {shard_map.slot_count}")
    own, slot_key = ownership_keys(ns_id)
    with _connect(shard_map, placed.shard) as conn:
        # The namespace's own row, which has the higher key, goes before its slot's.
        owner = conn.execute(
            "SELECT epoch, state FROM local.ownership WHERE ns_id IN (%s, %s) ORDER BY ns_id DESC LIMIT 1",
            [own, slot_key],
        ).fetchone()
        found = conn.execute("SELECT 1 FROM ns.namespaces WHERE ns_id = %s", [ns_id]).fetchone()
    return NamespaceLocation(
        ns_id=str(ns_id),
        slot=slot_of(ns_id),
        count=ns_id & MAX_COUNT,
        shard=placed.shard,
        epoch=placed.epoch,
        map_version=shard_map.version,
        is_override=ns_id in shard_map.overrides,
        owner_state=OwnershipState(owner[1]).name.lower() if owner else None,
        owner_epoch=owner[0] if owner else None,
        exists=found is not None or ns_id == slot_key,
    )


def ns_id_of(what: str) -> NsId:
    """The namespace that an id carries.

    Raises:
        MalformedId: not an id of any kind.
    """
    for prefix, parse in (("dbid:", root_ns_of_account), ("device:", root_ns_of_device)):
        if what.startswith(prefix):
            return parse(what)
    if what.startswith("id:"):
        return parse_file_id(what)[0]
    # A rev of digits only is too long to be a namespace id.
    return parse_rev(what)[0] if len(what) == _REV_CHARS else parse_ns_id(what)


def _ns_of_email(shard_map: ShardMap, email: str) -> NsId:
    key = email_key(email)
    email_ns = system_ns(slot_of_hash(key.encode(), shard_map.slot_count))
    placed = shard_map.placement(email_ns)
    assert placed is not None
    with _connect(shard_map, placed.shard) as conn:
        row = conn.execute(
            "SELECT account_id FROM ns.emails WHERE ns_id = %s AND email_key = %s", [email_ns, key]
        ).fetchone()
    if row is None:
        raise NotFound(f"there is no account {email!r}")
    return root_ns_of_account(row[0])


def _connect(shard_map: ShardMap, shard: str) -> Connection:
    try:
        return psycopg.connect(
            shard_map.shards[shard].dsn,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name=APPLICATION,
        )
    except psycopg.OperationalError as error:
        raise ShardUnavailable(f"{shard} does not answer: {str(error).strip()}") from error
