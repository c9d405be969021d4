"""Print the report of an audit."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Console
from rich.table import Table

from settle_outbox.cli.terminal import printable

if TYPE_CHECKING:
    from settle.audit.report import Report

# --json prints more violations of each check.
SHOWN_MAX = 10


def print_report(report: Report) -> None:
    """Print a table with a line per check, then the violations."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("check")
    table.add_column("seen", justify="right")
    table.add_column("wrong", justify="right")
    table.add_column("notes")
    for check in report.checks:
        notes = ", ".join(f"{count:,} {name}" for name, count in sorted(check.notes.items()))
        style = "red" if check.wrong else None
        cells = (check.name, f"{check.seen:,}", f"{check.wrong:,}", printable(notes))
        table.add_row(*cells, style=style)
    console.print(table, markup=False, highlight=False)
    for check in report.checks:
        for violation in check.violations[:SHOWN_MAX]:
            click.echo(printable(f"{violation.kind}: {violation.id}: {violation.detail}."))
        if check.wrong > SHOWN_MAX:
            click.echo(f"{check.name}: {check.wrong - SHOWN_MAX:,} more; --json prints up to 100.")
    wrong = sum(check.wrong for check in report.checks)
    verdict = f"{wrong:,} violation{'s' * (wrong != 1)} found." if wrong else "Nothing is wrong."
    click.echo(f"{verdict} ({report.took_s:.1f} s)")
