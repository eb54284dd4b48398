"""`restore` without a version."""

from types import SimpleNamespace
from typing import cast

import pytest
import typer

from client.calls import Calls
from client.remote_commands import _restore
from wire.api import ListRevisionsResult


async def test_a_file_that_is_there_is_answered_with_what_to_do() -> None:
    async def list_revisions(*_: object, **__: object) -> ListRevisionsResult:
        return ListRevisionsResult(is_deleted=False, entries=[], has_more=False)

    calls = cast("Calls", SimpleNamespace(list_revisions=list_revisions))
    with pytest.raises(typer.BadParameter, match=r"--rev .*`shardbox history 'my notes/a.txt'`"):
        await _restore(calls, "my notes/a.txt", None)
