"""A direct upload into a store that itself refuses bytes that do not have their checksum."""

import asyncio
from pathlib import Path

from tests.integration.blockserver.servers import Stack
from tests.integration.blockserver.test_direct_uploads import VERIFIES, assert_read_back, put_all
from tests.integration.blockserver.test_uploads import commit_body
from tests.integration.blockserver.uploads import Draft, Uploader, put_plainly
from tests.support.s3 import running_seaweedfs


async def test_wrong_bytes_never_become_an_object(stack: Stack, tmp_path: Path):
    with running_seaweedfs(tmp_path) as store, stack.blocks_in(store, **{VERIFIES: "true"}):
        ada = Uploader(stack, await stack.new_user())
        draft = Draft.random()
        session = await ada.open(draft.opening())
        (target,) = session.targets
        wrong = bytes(len(draft.blocks[0]))
        assert await asyncio.to_thread(put_plainly, target, wrong) == 400
        assert await ada.completed(session.upload_id, *draft.block_list) == ["block_not_found"]
        await put_all(draft, session)
        assert await ada.completed(session.upload_id, *draft.block_list) == [None]
        # The address still holds, and still takes nothing else.
        assert await asyncio.to_thread(put_plainly, target, wrong) == 400
        await ada.commit(commit_body(session.upload_id, draft))
        await assert_read_back(ada, draft)
