"""Each rule of the journal is needed: random histories catch a server, or a reader, that lacks it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack

import psycopg
import pytest

from tests.journal.history import run_histories
from tests.journal.results import save_result
from tests.journal.rules import RULES, Rule
from tests.journal.truth import Difference
from tests.journal.world import World, open_world
from tests.support.databases import FreshCluster, PgServers, cloned_cluster

MAX_HISTORIES = 1_000
"""The model that the rules come from caught each within a few hundred."""
PER_STEP = 20
FIRST_SEED = 1_000_000
KNOWN = (180, 20)
"""Where what most histories do not show is seen: rows created after base in a scan, a part of a copy."""


@pytest.fixture(scope="module")
async def shared_world(pg_templates: PgServers) -> AsyncIterator[World]:
    """One cluster for all the rules that leave its tables as they are."""
    with ExitStack() as stack:
        async with open_world(stack.enter_context(cloned_cluster(pg_templates))) as world:
            yield world
        # Not in the loop's thread: a connection that the pool was just making could not end its login.
        await asyncio.to_thread(stack.close)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name.replace(" ", "-"))
async def test_a_rule_is_missed(
    rule: Rule, shared_world: World, pg_templates: PgServers, monkeypatch: pytest.MonkeyPatch
):
    save_result("rules", str(RULES.index(rule)), {"rules": 1})
    if rule.statements:
        with cloned_cluster(pg_templates) as cluster:
            _change_tables(cluster, rule)
            async with open_world(cluster) as world:
                await _catch(rule, world, monkeypatch)
    else:
        await _catch(rule, shared_world, monkeypatch)
    save_result("rules", f"{RULES.index(rule)}-caught", {"rules_caught": 1})


async def _catch(rule: Rule, world: World, patch: pytest.MonkeyPatch) -> None:
    """Play histories without a rule until one is caught."""
    rule.switch_off(patch, world)
    for count, first in enumerate((*KNOWN, *range(0, MAX_HISTORIES, PER_STEP)), start=1):
        seeds = range(FIRST_SEED + first, FIRST_SEED + first + PER_STEP)
        try:
            await run_histories(world, seeds, reader_class=rule.reader)
        except (Difference, *rule.errors) as error:
            found = f"{type(error).__name__}: {error}".splitlines()[0]
            print(f"caught within {count * PER_STEP} histories: {found}")
            return
    pytest.fail(f"{MAX_HISTORIES} histories did not miss the rule: {rule.name}")


def _change_tables(cluster: FreshCluster, rule: Rule) -> None:
    for dsn in cluster.shard_dsns.values():
        with psycopg.connect(dsn, autocommit=True) as conn:
            for statement in rule.statements:
                conn.execute(statement)  # type: ignore[arg-type]


def test_rules_have_names_of_their_own():
    assert len({rule.name for rule in RULES}) == len(RULES)
