"""Finding entries of a namespace by a part of their names."""

from msgspec import structs

from metaserver.model.present import present_entry
from metaserver.services.access import AccessService, Who, require_read
from metaserver.services.lookup import Lookup, view_of
from metaserver.storage.search import list_candidates
from sharding.tx import Transactions
from wire.api import Metadata, Search, SearchResult
from wire.cursors import SearchCursor, format_search_cursor, parse_search_cursor
from wire.errors import InvalidCursor, NotFound
from wire.ids import EntryId
from wire.internal import Caller
from wire.keys import KeyRing
from wire.names import name_key


class SearchService:
    """Searches by name."""

    def __init__(self, transactions: Transactions, access: AccessService, cursor_keys: KeyRing):
        self._lookup = Lookup(transactions)
        self._access = access
        self._keys = cursor_keys

    async def search(self, caller: Caller, request: Search) -> SearchResult:
        """The first page of the live entries below a folder whose names hold the query.

        Raises:
            NotFound, NotAFolder: no folder there.
        """
        who = await self._access.identify(caller)
        ns_id, folder = await self._lookup.find_folder(who, request.path)
        key = name_key(request.query)
        cursor = SearchCursor(who.account_id, ns_id, key, folder, EntryId(0), request.limit)
        return await self._search_on(who, cursor)

    async def search_continue(self, caller: Caller, cursor_text: str) -> SearchResult:
        """The next page.

        Raises:
            InvalidCursor: forged, or another account's.
            NotFound: the folder has been deleted.
        """
        who = await self._access.identify(caller)
        cursor = parse_search_cursor(cursor_text, self._keys)
        if cursor.account_id != who.account_id:
            raise InvalidCursor("the cursor is another account's")
        return await self._search_on(who, cursor)

    async def _search_on(self, who: Who, cursor: SearchCursor) -> SearchResult:
        ns_id, folder = cursor.ns_id, cursor.folder
        reader = self._lookup.reader(who, ns_id)
        candidates = await list_candidates(reader, cursor.key, cursor.after, folder)
        page = candidates.page
        require_read(page.state.level)
        view = view_of(page, folder)
        if view.find_live(folder) is None:
            raise NotFound("the folder has been deleted")
        matches: list[Metadata] = []
        place, has_more = cursor.after, False
        for row in page.rows:
            entry = row.entry
            if entry is None or not view.is_under(entry, folder):
                continue
            if len(matches) == cursor.limit:
                has_more = True
                break
            matches.append(present_entry(ns_id, entry, path=view.find_path(entry), times=row.times))
            place = entry.entry_id
        else:  # all that was looked at has been told
            if candidates.after is not None:
                place, has_more = candidates.after, True
        after = structs.replace(cursor, after=place)
        return SearchResult(
            matches=matches, has_more=has_more, cursor=format_search_cursor(after, self._keys)
        )
