"""Selective sync: folders that are left out on this device, by entry id, so that they stay so when they move.

What the server has in such a folder is hidden: to a plan it is not there. So what the disk has of it goes the
way of everything that the server has lost (compared, into the trash, compared again), only that nobody tells
the server. What may not be lost by that:

* Changes below the folder that are not sent yet are sent first; until then the exclusion waits.
* What is written there in the very last moment stays, and is sent under another name, like everything that is
  made here under a hidden name: `NAME (Selective Sync Conflict)`.
* A folder that is deleted here is not deleted there while something hidden is in it: it comes back.
"""

from dataclasses import dataclass
from enum import StrEnum

from client.model import ROOT
from client.state import State
from client.trees import Trees
from wire.names import MAX_NAME_CHARS

CONFLICT = " (Selective Sync Conflict)"


class Verb(StrEnum):
    """What may be ordered of a folder."""

    ADD = "add"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A folder that is left out, or is to be; its path from the root, without a slash before it."""

    id: int
    path: str
    state: str
    """excluded; waiting (until what is not sent yet below it has been); returning; gone (from the server)."""


def order(state: State, verb: Verb, node_id: int, path: str) -> None:
    """Have the next sync, or the one that runs, leave a folder out or take it in again."""
    with state.tx("order") as conn:
        conn.execute("DELETE FROM orders WHERE id = ?", (node_id,))
        conn.execute("INSERT INTO orders (verb, id, path) VALUES (?, ?, ?)", (verb.value, node_id, path))


def list_exclusions(state: State) -> list[Exclusion]:
    """What is left out, and what is about to be or to return, by path."""
    trees = state.trees
    found: dict[int, Exclusion] = {}
    for node_id, stored in state.list_exclusions():
        path = remote_path(trees, node_id)
        found[node_id] = Exclusion(node_id, path or stored, "excluded" if path is not None else "gone")
    for _, verb, node_id, stored in state.list_orders():
        path = remote_path(trees, node_id) or stored
        if verb == Verb.ADD and node_id not in found:
            found[node_id] = Exclusion(node_id, path, "waiting")
        elif verb == Verb.REMOVE and node_id in found:
            found[node_id] = Exclusion(node_id, path, "returning")
    return sorted(found.values(), key=lambda x: x.path)


def carry_out_orders(state: State) -> bool:
    """Leave out and take in what was ordered, as far as can be now; True if something was changed."""
    orders = state.list_orders()
    if not orders and state.find_fact("has_waiting_orders") is None:
        return False
    has_acted = False
    problems: list[tuple[bytes, str, str]] = []
    for number, verb, node_id, path in orders:
        unsent = state.trees.count_unsent(node_id) if verb == Verb.ADD else 0
        if unsent:
            detail = f"left out as soon as {unsent} changes in it have been sent"
            problems.append((path.encode(), "exclusion_waits", detail))
            continue
        with state.tx("exclude") as conn:
            conn.execute("DELETE FROM orders WHERE number = ?", (number,))
            if verb == Verb.ADD:
                conn.execute("INSERT OR REPLACE INTO exclusions VALUES (?, ?)", (node_id, path))
            else:
                conn.execute("DELETE FROM exclusions WHERE id = ?", (node_id,))
            place(state.trees, node_id)
        has_acted = True
    if problems != [(x[0], x[2], x[3]) for x in state.list_problems() if x[1] == "selection"]:
        with state.tx("report"):
            state.replace_problems("selection", problems)
            state.put_fact("has_waiting_orders", "1" if problems else None)
    return has_acted


def place(trees: Trees, node_id: int) -> None:
    """Put an entry on the side where it belongs, with all that is below it. Tx: the caller's."""
    is_out = is_left_out(trees, node_id)
    if node_id in (trees.remote if not is_out else trees.hidden):
        return
    todo = [(node_id, is_out)]
    while todo:
        at, is_out = todo.pop()
        if is_out:
            trees.hide(at)
        else:
            trees.show(at)
        below = [*trees.remote.children(at), *trees.hidden.children(at)]
        todo += [(child, is_out or trees.is_excluded(child)) for child in below]


def is_left_out(trees: Trees, node_id: int) -> bool:
    """Whether it, or a folder above it on the server, is an excluded one."""
    seen: set[int] = set()
    while node_id != ROOT and node_id not in seen:
        if trees.is_excluded(node_id):
            return True
        seen.add(node_id)
        node = trees.find_remote(node_id)
        if node is None:
            return False
        node_id = node.parent
    return False


def remote_path(trees: Trees, node_id: int) -> str | None:
    """Where the server has an entry, hidden or not; None if it has not."""
    parts: list[str] = []
    while node_id != ROOT:
        node = trees.find_remote(node_id)
        if node is None or len(parts) > 10_000:
            return None
        parts.append(node.name)
        node_id = node.parent
    return "/".join(reversed(parts))


def find_by_path(trees: Trees, path: str) -> int | None:
    """The entry at a path on the server, hidden or not, as far as the listing has been read."""
    at = ROOT
    for name in filter(None, path.split("/")):
        found = trees.remote.child(at, name)
        if found is None:
            found = trees.hidden.child(at, name)
        if found is None:
            return None
        at = found
    return at


def conflict_name(name: str, *, is_folder: bool) -> str:
    """What is sent instead of a name that something hidden holds."""
    stem, dot, ending = name.rpartition(".")
    if is_folder or not stem or len(ending) > 20:
        stem, dot, ending = name, "", ""
    return stem[: MAX_NAME_CHARS - len(CONFLICT) - len(dot + ending)] + CONFLICT + dot + ending
