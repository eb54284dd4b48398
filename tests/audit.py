"""`python -m tests.audit`: committed secrets, licences of what is shipped with, known vulnerabilities.

`make check` runs it. The list of licences is docs/licences.md (`python -m tests.audit --write`).
"""

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
LICENCES_PAGE = ROOT / "docs" / "licences.md"
PERMITTED = ("Apache", "BSD", "ISC", "LGPL", "MIT", "MPL", "PSF", "Python Software Foundation", "Zope", "ZPL")
"""May be used, unchanged, by a program under Apache-2.0."""
AUDIT_TIMEOUT_S = 120


def main() -> int:
    """The number of checks that failed."""
    licences = _find_licences()
    if "--write" in sys.argv:
        LICENCES_PAGE.write_text(_page(licences))
    return sum([not _are_no_secrets_committed(), not _are_permitted(licences), not _is_nothing_known()])


def _are_no_secrets_committed() -> bool:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = [name for name in files.stdout.splitlines() if (ROOT / name).exists()]
    # A false alarm is marked where it is: `pragma: allowlist secret`.
    done = subprocess.run([BIN / "detect-secrets-hook", *names], cwd=ROOT, check=False)
    print(f"==> secrets: {'none' if done.returncode == 0 else 'see above'} in {len(names)} files")
    return done.returncode == 0


def _find_licences() -> dict[str, str]:
    """Of every package that the project needs to run, here."""
    done = subprocess.run(
        [BIN / "pip-licenses", "--from=mixed", "--format=json", "--packages", *sorted(set(_iter_needed()))],
        capture_output=True,
        text=True,
        check=True,
    )
    return {canonicalize_name(row["Name"]): row["License"] for row in json.loads(done.stdout)}


def _iter_needed() -> Iterator[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    todo = [(x, "") for x in [*project["dependencies"], *project["optional-dependencies"]["embedded"]]]
    seen: set[tuple[str, str]] = set()
    while todo:
        text, of_extra = todo.pop()
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": of_extra}):
            continue
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                todo += [(x, extra) for x in distribution(name).requires or []]
            except PackageNotFoundError:
                continue  # not for this platform
            yield name


def _are_permitted(licences: dict[str, str]) -> bool:
    refused = {name: text for name, text in licences.items() if not any(word in text for word in PERMITTED)}
    page = LICENCES_PAGE.read_text()
    is_listed = all(_row(name, text) in page for name, text in licences.items())
    print(f"==> licences: {len(licences)} packages, not permitted: {refused or 'none'}")
    if not is_listed:
        print("    docs/licences.md is not up to date: python -m tests.audit --write")
    return not refused and is_listed


def _page(licences: dict[str, str]) -> str:
    rows = "".join(_row(name, text) for name, text in sorted(licences.items()))
    return (
        "# Licences\n\nShardbox is under Apache-2.0. What it needs to run, and under which licence that comes"
        f" (`make check` holds this list):\n\n| package | licence |\n| --- | --- |\n{rows}"
    )


def _row(name: str, text: str) -> str:
    return f"| {name} | {text} |\n"


def _is_nothing_known() -> bool:
    """Whether no package of the lock file has a known vulnerability, where advisories can be had."""
    command = [
        BIN / "pip-audit", "--requirement", ROOT / "requirements.lock", "--require-hashes", "--disable-pip",
        "--format=json", "--progress-spinner=off",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=AUDIT_TIMEOUT_S, check=False)
        found = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError):
        print("==> vulnerabilities: skipped, no advisories can be had here")
        return True
    audited = [package for package in found if "skip_reason" not in package]
    if not audited:
        print("==> vulnerabilities: skipped, the package index here has no advisories")
        return True
    known = {p["name"]: [v["id"] for v in p["vulns"]] for p in audited if p["vulns"]}
    print(f"==> vulnerabilities: {known or 'none known'} in {len(audited)} of {len(found)} packages")
    return not known


if __name__ == "__main__":
    sys.exit(main())
