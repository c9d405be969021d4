"""What a check returns, and how checks are run."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import psycopg2
from kafka.errors import (
    AuthorizationError,
    CoordinatorNotAvailableError,
    UnsupportedVersionError,
)

from settle_outbox.cli.command import EXPECTED, error_sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_LATER = "try again when the system is less busy"
_GRANT = "grant the right to the role that runs the checks"
_MIGRATE = "run the migrations, then try again"
# Errors because of which a check could not be made (no permission, a timeout, a table that is not
# migrated yet), and what to do about each. They do not mean that the checked thing is broken.
_NOT_CHECKED: dict[type[Exception], str] = {
    psycopg2.errors.InsufficientPrivilege: _GRANT,
    psycopg2.errors.LockNotAvailable: _LATER,
    psycopg2.errors.QueryCanceled: _LATER,
    psycopg2.errors.UndefinedColumn: _MIGRATE,
    psycopg2.errors.UndefinedTable: _MIGRATE,
    AuthorizationError: _GRANT,
    CoordinatorNotAvailableError: _LATER,
}
NOT_REPORTED = "not checked: this broker does not report it"


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check: one line of the report.

    Args:
        name: what was checked.
        verdict: how bad it is.
        found: what was found.
        remedy: what to do about it; empty if the verdict is ok.
    """

    name: str
    verdict: Level
    found: str
    remedy: str = ""


NamedCheck = tuple[str, "Callable[[], Iterable[Finding]]"]
"""A name and a check. If the check raises an error, the finding about this has the name."""


def ok(name: str, found: str) -> Finding:
    """Return a finding that needs no action."""
    return Finding(name, Level.OK, found)


def warn(name: str, found: str, remedy: str) -> Finding:
    """Return a finding about something that works, but not as it should."""
    return Finding(name, Level.WARN, found, remedy)


def fail(name: str, found: str, remedy: str) -> Finding:
    """Return a finding about something that does not work, or will soon stop working."""
    return Finding(name, Level.FAIL, found, remedy)


def fail_with(name: str, error: Exception) -> Finding:
    """Return a finding about an expected error. The error's second sentence is the remedy."""
    found, _, remedy = error_sentence(error).partition(". ")
    return fail(name, found.rstrip("."), remedy.rstrip(".") or "correct what the message names")


def grade(
    name: str, figure: float, found: str, remedy: str, *, warn_over: float, fail_over: float
) -> Finding:
    """Compare a figure with two thresholds."""
    if figure > fail_over:
        return fail(name, found, remedy)
    if figure > warn_over:
        return warn(name, found, remedy)
    return ok(name, found)


def worst(findings: Iterable[Finding]) -> Level:
    """Return the worst verdict of all findings."""
    order = list(Level)
    return max((finding.verdict for finding in findings), key=order.index, default=Level.OK)


def run_each(checks: Iterable[NamedCheck]) -> Iterator[Finding]:
    """Run checks in order. An error in one becomes a finding, and the next one runs."""
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:  # noqa: BLE001 - an error in a check is a finding, too
            yield _finding_of_error(name, error)


def _finding_of_error(name: str, error: Exception) -> Finding:
    if isinstance(error, UnsupportedVersionError):
        return ok(name, NOT_REPORTED)
    for kind, remedy in _NOT_CHECKED.items():
        if isinstance(error, kind):
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            return warn(name, f"not checked: {reason}", remedy)
    if isinstance(error, EXPECTED):
        return fail_with(name, error)
    # A library raised it because of an answer that it did not expect.
    return warn(name, f"not checked: {type(error).__name__}: {error}", "check it by hand")


def duration(seconds: float) -> str:
    """Format a duration for people: ``7 s``, ``12 min``, ``3.5 h``, ``30 days``."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004


def size(count: float) -> str:
    """Format a number of bytes for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:  # noqa: PLR2004
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
