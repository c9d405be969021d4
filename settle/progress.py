"""Shows what `settle up` is doing: live on a terminal, in plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Tell = Callable[[str], None]

WIDTH = 60


class Steps:
    """A line for each step that is done, with the time it took."""

    def say(self, line: str) -> None:
        """Tell something that is not a step."""
        click.echo(line)

    @contextmanager
    def step(self, doing: str, done: str) -> Iterator[Tell]:  # noqa: ARG002 - for the live one
        """Enter it for as long as a step takes.

        Args:
            doing: what is done, shown meanwhile.
            done: what is so afterwards.

        Yields:
            What tells, meanwhile, what is waited for.
        """
        began = time.monotonic()
        yield lambda _: None
        click.echo(f"  {done:<{WIDTH}} {time.monotonic() - began:5.1f} s")


class LiveSteps(Steps):
    """The same on a terminal, where the step under way turns and counts the seconds."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def say(self, line: str) -> None:
        """Tell something that is not a step."""
        self._progress.console.print(line, markup=False, highlight=False)

    @contextmanager
    def step(self, doing: str, done: str) -> Iterator[Tell]:
        """Enter it for as long as a step takes; see the base."""
        task = self._progress.add_task(doing, total=1)
        try:
            yield lambda waiting: self._progress.update(task, description=f"{doing}: {waiting}")
        except BaseException:
            self._progress.update(task, description=f"{doing}: not done")
            self._progress.stop_task(task)
            raise
        self._progress.update(task, description=done, completed=1)


class _Took(ProgressColumn):
    def render(self, task: Task) -> Text:
        took_s = task.finished_time if task.finished_time is not None else task.elapsed
        return Text(f"{took_s or 0.0:5.1f} s")


@contextmanager
def shown_steps() -> Iterator[Steps]:
    """Steps in the form that suits where stdout goes. NO_COLOR is honoured."""
    console = Console()
    # Not console.is_terminal: FORCE_COLOR, which many build servers set, makes that true.
    if not sys.stdout.isatty() or console.is_dumb_terminal:
        yield Steps()
        return
    ascii_only = console.options.ascii_only
    columns = (
        SpinnerColumn("line" if ascii_only else "dots", finished_text="+" if ascii_only else "✓"),
        TextColumn("{task.description}", markup=False, table_column=Column(width=WIDTH)),
        _Took(),
    )
    with Progress(*columns, console=console) as progress:
        yield LiveSteps(progress)
