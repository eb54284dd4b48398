"""The moves of `make bench-move`: slots back and forth between two shards, by `shardctl`."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

from loadtest.commands import BIN
from loadtest.move_load import Holder, Tally
from loadtest.move_members import Roles, renew
from loadtest.move_requests import Asker
from loadtest.move_rows import Shards, copy_plainly

Figures = dict[str, Any]


MAX_TRIES = 10


class FenceHeld(RuntimeError):
    """Writers were so slow that nothing was switched: to be tried again, as the command says."""


async def shardctl(*args: str) -> Any:
    """What a shardctl command answers, as JSON. It is told to stop when its caller is.

    Raises:
        FenceHeld: a switch was called off.
        RuntimeError: it failed otherwise; its own words.
    """
    process = await asyncio.create_subprocess_exec(
        BIN / "shardctl",
        *(*args, "--output", "json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await process.communicate()
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    if process.returncode != 0:
        kind = FenceHeld if b"shardctl: fence_held:" in err else RuntimeError
        raise kind(f"shardctl {' '.join(args)}: {err.decode() or out.decode()}")
    return json.loads(out)


@dataclass(slots=True)
class Course:
    """Copies there and back, each with its cutovers, and what they took."""

    shards: Shards
    roles: Roles
    asker: Asker
    holders: list[Holder]
    tally: Tally
    is_verified: bool
    cutovers: list[Figures] = field(default_factory=list)
    copies: list[Figures] = field(default_factory=list)
    plain_rows_per_s: list[float] = field(default_factory=list)
    switches: int = 0
    refusals: int = 0
    """Switches that were called off, as writers were too slow, and begun anew."""

    async def run(self, copies: int, switches: int) -> None:
        """So many copies, and at least so many times that all units change hands."""
        holder, heir = self.roles.source, self.roles.target
        # An odd number of switches and rollbacks ends at the heir.
        each = -(-switches // copies) // 2 * 2 + 1
        for number in range(copies):
            print(f"--- copy {number + 1} of {copies}, {holder} to {heir}", flush=True)
            await renew(self.asker, self.roles.all)
            rate = await asyncio.to_thread(copy_plainly, self.shards, holder, heir, self.roles.slots)
            self.plain_rows_per_s.append(rate)
            print(f"    plain COPY: {rate:,.0f} rows/s", flush=True)
            await self._move(heir, each)
            holder, heir = heir, holder

    async def _move(self, heir: str, switches: int) -> None:
        options = [] if self.is_verified else ["--no-verify"]
        for holder in self.holders:
            holder.hold()
        started = await shardctl(
            *("move", "start", "--to", heir, "--slots", ",".join(map(str, self.roles.slots))),
            *("--until", "ready", "--quarantine", "0", *options),
        )
        move_id = str(started["move_id"])
        copied = started["copied"]
        self.copies.append(copied)
        print(f"    copied: {copied['rows']:,} rows, {copied['rows_per_s']:,.0f} rows/s", flush=True)
        for number in range(switches):
            await self._switch("switch" if number % 2 == 0 else "rollback", move_id)
        began = time.monotonic()
        await shardctl("move", "complete", move_id)
        print(f"    completed, and the old rows deleted, in {time.monotonic() - began:.1f} s", flush=True)

    async def _switch(self, way: str, move_id: str) -> None:
        """Cut all units over; each poll that was held meanwhile must be woken by what is written then."""
        for holder in self.holders:
            holder.hold()
        started = time.monotonic()
        done = await self._try_switch(way, move_id)
        gap_ms = self.tally.longest_gap_ms(started, time.monotonic())
        units = done["cutovers"]
        self.cutovers.extend(units)
        self.switches += 1
        longest_ms = max(unit["total_ms"] for unit in units)
        print(
            f"    {way:8} {len(units)} units, the longest {longest_ms:.1f} ms; no acknowledgement for"
            f" {gap_ms:.0f} ms at most",
            flush=True,
        )
        await asyncio.gather(*(holder.probe() for holder in self.holders))

    async def _try_switch(self, way: str, move_id: str) -> Any:
        for _ in range(MAX_TRIES - 1):
            try:
                return await shardctl("move", way, move_id)
            except FenceHeld as error:
                self.refusals += 1
                print(f"    {way} was called off: {str(error).strip().splitlines()[-1]}", flush=True)
        return await shardctl("move", way, move_id)
