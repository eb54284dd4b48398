"""What a run found, kept as files until `python -m tests.journal` adds it up."""

import os
from pathlib import Path

import msgspec

RESULTS_VARIABLE = "SHARDBOX_JOURNAL_RESULTS"


def save_result(kind: str, name: str, result: dict[str, int]) -> None:
    """Keep the figures of one test, if somebody collects them."""
    folder = os.environ.get(RESULTS_VARIABLE)
    if folder:
        (Path(folder) / f"{kind}-{name}.json").write_bytes(msgspec.json.encode(result))


def sum_results(folder: Path, kind: str) -> dict[str, int]:
    """The figures of all tests of a kind, added up."""
    total: dict[str, int] = {}
    for file in folder.glob(f"{kind}-*.json"):
        for name, value in msgspec.json.decode(file.read_bytes(), type=dict[str, int]).items():
            total[name] = total.get(name, 0) + value
    return total
