"""Show the progress of a command: live on a terminal, a line per finished step elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Say = Callable[[str], None]

WIDTH = 60


class Step:
    """A step under way.

    Args:
        update: shows a detail of the step.
    """

    def __init__(self, update: Say) -> None:
        self.count = 0
        self.update = update

    def add(self, count: int) -> None:
        """Add to the number of rows or records that the step has read."""
        self.count += count
        self.update(f"{self.count:,}")


class Steps:
    """The steps of a command. Each is shown with the time it took.

    Args:
        say: prints a line that is not a step.
        live: the display on a terminal; None prints a line when a step is done.
    """

    def __init__(self, say: Say, live: Progress | None = None) -> None:
        self.say = say
        self._live = live

    @contextmanager
    def step(self, doing: str, done: str = "") -> Iterator[Step]:
        """Show a step while its block runs.

        Args:
            doing: the text while it runs.
            done: the text afterwards; the same by default.
        """
        began = time.monotonic()
        if self._live is None:
            step = Step(lambda _: None)
            yield step
            self.say(f"  {_text(done or doing, step):<{WIDTH}} {time.monotonic() - began:5.1f} s")
            return
        change = partial(self._live.update, self._live.add_task(doing, total=1))
        step = Step(lambda detail: change(description=f"{doing}: {detail}"))
        try:
            yield step
        except BaseException:
            change(description=f"{doing}: not done", total=None)
            raise
        change(description=_text(done or doing, step), completed=1)


def _text(text: str, step: Step) -> str:
    return f"{text}: {step.count:,}" if step.count else text


class _Took(ProgressColumn):
    def render(self, task: Task) -> Text:
        took_s = task.finished_time if task.finished_time is not None else task.elapsed
        return Text(f"{took_s or 0.0:5.1f} s")


@contextmanager
def shown_steps(*, err: bool = False) -> Iterator[Steps]:
    """Show steps on stdout or stderr, in the form that suits it. NO_COLOR is honoured.

    Args:
        err: use stderr.
    """
    console = Console(stderr=err)
    # Not console.is_terminal: FORCE_COLOR, which many build servers set, makes that true.
    if not (sys.stderr if err else sys.stdout).isatty() or console.is_dumb_terminal:
        yield Steps(partial(click.echo, err=err))
        return
    ascii_only = console.options.ascii_only
    columns = (
        SpinnerColumn("line" if ascii_only else "dots", finished_text="+" if ascii_only else "✓"),
        TextColumn("{task.description}", markup=False, table_column=Column(width=WIDTH)),
        _Took(),
    )
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    with Progress(*columns, console=console) as live:
        yield Steps(say, live)
