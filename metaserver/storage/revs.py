"""Reading revs: the journal rows that hold contents."""

from collections.abc import Collection

from metaserver.model.rows import RevTimes
from sharding.pool import Connection
from wire.ids import Jid, NsId


async def list_times(conn: Connection, ns_id: NsId, revs: Collection[Jid]) -> dict[Jid, RevTimes]:
    """When the contents of these revs were made."""
    cursor = await conn.execute(
        "SELECT jid, client_modified_us, at_us FROM ns.server_file_journal"
        " WHERE ns_id = %s AND jid = ANY(%s)",
        [ns_id, sorted(revs)],
        binary=True,
    )
    return {row[0]: RevTimes(row[1], row[2]) for row in await cursor.fetchall()}
