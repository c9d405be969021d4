"""How an audit is shown: bars while it reads, and a table of what it found."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from settle.audit.report import Report

    Tell = Callable[[int], None]

WIDTH = 40
# Of each check, so many violations are shown; --json has more.
MOST_SHOWN = 10


class Bars:
    """Shows nothing; what a program wants."""

    @contextmanager
    def bar(self, doing: str, total: int | None) -> Iterator[Tell]:  # noqa: ARG002 - for the others
        """Enter it for as long as a reading takes.

        Args:
            doing: what is read.
            total: how many there are; None when that is not known.

        Yields:
            What is told how many were read since.
        """
        yield lambda _: None


class Lines(Bars):
    """A line for each reading that is done."""

    @contextmanager
    def bar(self, doing: str, total: int | None) -> Iterator[Tell]:  # noqa: ARG002 - for the live one
        """Enter it for as long as a reading takes; see the base."""
        read = 0

        def tell(more: int) -> None:
            nonlocal read
            read += more

        began = time.monotonic()
        yield tell
        told = f"{read:>12,}" if read else ""
        click.echo(f"  {doing:<{WIDTH}} {told:>12} {time.monotonic() - began:6.1f} s", err=True)


class LiveBars(Bars):
    """A bar that grows."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @contextmanager
    def bar(self, doing: str, total: int | None) -> Iterator[Tell]:
        """Enter it for as long as a reading takes; see the base."""
        task = self._progress.add_task(doing, total=total)
        yield lambda more: self._progress.advance(task, more)
        done = self._progress.tasks[task].completed
        self._progress.update(task, total=max(done, 1), completed=max(done, 1))


@contextmanager
def shown_bars() -> Iterator[Bars]:
    """Bars in the form that suits where stderr goes; stdout is for what was found."""
    console = Console(stderr=True)
    if not sys.stderr.isatty() or console.is_dumb_terminal:
        yield Lines()
        return
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(width=WIDTH)),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield LiveBars(progress)


def show(report: Report) -> None:
    """Print a report: a line a check, and below it what is wrong."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("check")
    table.add_column("seen", justify="right")
    table.add_column("wrong", justify="right")
    table.add_column("notes")
    for check in report.checks:
        notes = ", ".join(f"{count:,} {name}" for name, count in sorted(check.notes.items()))
        style = "red" if check.wrong else None
        table.add_row(check.name, f"{check.seen:,}", f"{check.wrong:,}", notes, style=style)
    console.print(table, markup=False, highlight=False)
    for check in report.checks:
        for violation in check.violations[:MOST_SHOWN]:
            click.echo(f"{violation.kind}: {violation.id}: {violation.detail}.")
        if check.wrong > MOST_SHOWN:
            click.echo(f"... and {check.wrong - MOST_SHOWN:,} more: {check.name}.")
    verdict = "Nothing is wrong." if report.clean else "It is not as it must be: see above."
    click.echo(f"{verdict} ({report.took_s:.1f} s)")
