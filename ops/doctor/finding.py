"""What a check says."""

from enum import StrEnum

import msgspec


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """Works, and will not for ever."""
    FAIL = "fail"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    check: str
    """Stable name of the check."""
    subject: str
    """What was looked at: a shard, a server, the directory."""
    verdict: Verdict
    detail: str
    remedy: str | None = None


def ok(check: str, subject: str, detail: str) -> Finding:
    """All is well."""
    return Finding(check=check, subject=subject, verdict=Verdict.OK, detail=detail)


def warn(check: str, subject: str, detail: str, remedy: str) -> Finding:
    """Something that somebody should look at."""
    return Finding(check=check, subject=subject, verdict=Verdict.WARN, detail=detail, remedy=remedy)


def fail(check: str, subject: str, detail: str, remedy: str) -> Finding:
    """Something that is broken."""
    return Finding(check=check, subject=subject, verdict=Verdict.FAIL, detail=detail, remedy=remedy)
