"""What an audit has found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from settle_outbox.errors import SettleError

# Of each check, so many violations are told with their ids; the rest is counted.
MOST_TOLD = 100


class AuditError(SettleError):
    """The audit could not look; nothing is said about what is there."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is not as it must be.

    Args:
        kind: a stable short name, such as ``lost``.
        id: of the order, the event or the user it is about.
        detail: a sentence.
    """

    kind: str
    id: str
    detail: str


@dataclass(slots=True)
class Check:
    """One line of the report.

    Args:
        name: what must be so.
        seen: how many rows and records were looked at.
        wrong: how many violations there are.
        violations: the first `MOST_TOLD` of them.
        notes: what is no violation and worth knowing, counted by its name.
    """

    name: str
    seen: int = 0
    wrong: int = 0
    violations: list[Violation] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, violation: Violation) -> None:
        """Count a violation, and tell it unless so many are told already."""
        self.wrong += 1
        if len(self.violations) < MOST_TOLD:
            self.violations.append(violation)

    def note(self, name: str, count: int) -> None:
        """Count what is no violation; nothing is noted of what there is none of."""
        if count:
            self.notes[name] += count

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.name,
            "seen": self.seen,
            "wrong": self.wrong,
            "violations": [
                {"kind": each.kind, "id": each.id, "detail": each.detail}
                for each in self.violations
            ],
            "notes": dict(self.notes),
        }


@dataclass(slots=True)
class Report:
    """All checks of an audit."""

    checks: list[Check]
    took_s: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether nothing is wrong."""
        return not any(check.wrong for check in self.checks)

    @property
    def violations(self) -> list[Violation]:
        """Those that are told, of all checks."""
        return [violation for check in self.checks for violation in check.violations]

    def check(self, name: str) -> Check:
        """The check of that name."""
        (found,) = [check for check in self.checks if check.name == name]
        return found

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "clean": self.clean,
            "took_s": round(self.took_s, 3),
            "checks": [check.as_json() for check in self.checks],
        }

    def __str__(self) -> str:
        """What a failed assertion needs to say."""
        lines = [f"{check.name}: {check.wrong} wrong of {check.seen}" for check in self.checks]
        told = [f"  {each.kind} {each.id}: {each.detail}" for each in self.violations]
        return "\n".join([*lines, *told])
