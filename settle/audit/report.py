"""The report of an audit."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from settle_outbox.errors import SettleError

# Of each check, this many violations are kept with their ids; the rest is only counted.
VIOLATIONS_MAX = 100


class AuditError(SettleError):
    """The audit could not read everything, so it has no result."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One violation of a rule.

    Args:
        kind: a stable short name, such as ``lost``.
        id: the id of an order, event or user, or a name such as ``all accounts``.
        detail: a sentence.
    """

    kind: str
    id: str
    detail: str


@dataclass(slots=True)
class Check:
    """One line of the report.

    Args:
        name: the rule.
        seen: the number of rows and records that were checked.
        wrong: the number of violations.
        violations: the first `VIOLATIONS_MAX` of them.
        notes: counts of things that are not violations, by name.
    """

    name: str
    seen: int = 0
    wrong: int = 0
    violations: list[Violation] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)

    def add(self, violation: Violation) -> None:
        """Count a violation, and keep it if it is among the first."""
        self.wrong += 1
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(violation)

    def note(self, name: str, count: int) -> None:
        """Add to the count of a note. A count of 0 leaves no note."""
        if count:
            self.notes[name] = self.notes.get(name, 0) + count


@dataclass(slots=True)
class Report:
    """All checks of an audit."""

    checks: list[Check]
    took_s: float = 0.0

    @property
    def clean(self) -> bool:
        """Whether there is no violation."""
        return not any(check.wrong for check in self.checks)

    @property
    def violations(self) -> list[Violation]:
        """The kept violations of all checks."""
        return [violation for check in self.checks for violation in check.violations]

    def check(self, name: str) -> Check:
        """Return the check of that name."""
        (found,) = [check for check in self.checks if check.name == name]
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the content as JSON."""
        return {
            "clean": self.clean,
            "took_s": round(self.took_s, 3),
            "checks": [asdict(check) for check in self.checks],
        }

    def __str__(self) -> str:
        """Describe the report for a failed assertion."""
        lines = [f"{check.name}: {check.wrong} wrong of {check.seen}" for check in self.checks]
        lines += [f"  {each.kind} {each.id}: {each.detail}" for each in self.violations]
        return "\n".join(lines)
