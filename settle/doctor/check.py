"""One line of the doctor's: what was looked at, how it is, and what to do about it."""

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

_LATER = "ask again when there is less to do"
_RIGHT = "give the doctor's role the right"
_MIGRATE = "run the migrations, then ask again"
# The check's own lack of a right, of time, or of what a migration makes, and what to do: a check of
# its own tells of the last, and of the others nothing is known to be wrong.
_UNTOLD: dict[type[Exception], str] = {
    psycopg2.errors.InsufficientPrivilege: _RIGHT,
    psycopg2.errors.LockNotAvailable: _LATER,
    psycopg2.errors.QueryCanceled: _LATER,
    psycopg2.errors.UndefinedColumn: _MIGRATE,
    psycopg2.errors.UndefinedTable: _MIGRATE,
    AuthorizationError: _RIGHT,
    CoordinatorNotAvailableError: _LATER,
}
UNTOLD = "cannot be told: this broker does not say"


class Verdict(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One line.

    Args:
        name: of what was looked at.
        verdict: how it is.
        found: what was found.
        remedy: what to do about it; empty when it is well.
    """

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


Look = tuple[str, "Callable[[], Iterable[Check]]"]
"""A check's name, for when it cannot be carried out, and what carries it out."""


def ok(name: str, found: str) -> Check:
    """It is well."""
    return Check(name, Verdict.OK, found)


def warn(name: str, found: str, remedy: str) -> Check:
    """It works, and is not as it should be."""
    return Check(name, Verdict.WARN, found, remedy)


def fail(name: str, found: str, remedy: str) -> Check:
    """Something does not work, or soon will not."""
    return Check(name, Verdict.FAIL, found, remedy)


def graded(
    name: str, figure: float, found: str, remedy: str, *, warn_over: float, fail_over: float
) -> Check:
    """A figure against its two thresholds."""
    if figure > fail_over:
        return fail(name, found, remedy)
    if figure > warn_over:
        return warn(name, found, remedy)
    return ok(name, found)


def worst(checks: Iterable[Check]) -> Verdict:
    """The worst verdict of all."""
    order = list(Verdict)
    return max((check.verdict for check in checks), key=order.index, default=Verdict.OK)


def carried_out(looks: Iterable[Look]) -> Iterator[Check]:
    """Carry out checks; one that cannot be says why, and the next one has its turn."""
    for name, look in looks:
        try:
            yield from look()
        except Exception as error:  # noqa: BLE001 - what a check stumbles over is a finding as well
            yield _stumbled(name, error)


def _stumbled(name: str, error: Exception) -> Check:
    if isinstance(error, UnsupportedVersionError):
        return ok(name, UNTOLD)
    for kind, remedy in _UNTOLD.items():
        if isinstance(error, kind):
            said = str(error).strip().partition("\n")[0] or type(error).__name__
            return warn(name, f"cannot be told: {said}", remedy)
    if isinstance(error, EXPECTED):
        return fail(name, error_sentence(error), "as it says")
    # A library's own, over an answer that it did not expect.
    return warn(name, f"cannot be told: {type(error).__name__}: {error}", "look at it by hand")


def duration(seconds: float) -> str:
    """A length of time for a person: ``7 s``, ``12 min``, ``3.5 h``, ``30 days``."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004


def size(count: float) -> str:
    """A number of bytes for a person."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:  # noqa: PLR2004
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
