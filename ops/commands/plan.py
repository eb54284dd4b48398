"""`shardctl plan`: what should move, how much that is, and why."""

from typing import Annotated

import typer

from ops.cluster import find_directory_dsn
from ops.commands.dev import DataDirOption
from ops.output import OutputFormat, OutputOption, show
from ops.planning import print_plan, report_plan
from ops.survey import Weighing, survey
from sharding.reshard.planner import COPY_BYTES_PER_S, plan_moves

_MEGABYTE = 1_000_000

ByOption = Annotated[
    Weighing, typer.Option(help="What is evened out beside the number of slots: their bytes, or their load.")
]


def plan(
    by: ByOption = Weighing.SLOTS,
    mb_per_s: Annotated[
        float, typer.Option(min=0.001, help="How fast a copy goes, for the time that is expected.")
    ] = COPY_BYTES_PER_S / _MEGABYTE,
    data_dir: DataDirOption = None,
    output: OutputOption = OutputFormat.TEXT,
) -> None:
    """Tell what should move: slots of shards that have too many or drain, and namespaces by their pins.

    Changes nothing. A shard may keep 1.15 times its fair share of slots, by weight. What is being moved
    already is taken to be where it goes.
    """
    surveyed = survey(find_directory_dsn(data_dir), by)
    made = plan_moves(surveyed.situation, mb_per_s * _MEGABYTE)
    report = report_plan(made, is_exact=surveyed.is_exact)
    show(report, output, lambda: print_plan(report))
