"""An interrupt is raised even if Python would drop it."""

from __future__ import annotations

import io
import signal
from functools import partial
from typing import TYPE_CHECKING

import pytest

from settle.interrupts import interrupts_heard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Use Python's handler for SIGINT, because a shell makes background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class PressedWhenFinalized(io.RawIOBase):
    """A file whose finalizer receives an interrupt."""

    def close(self) -> None:
        if not self.closed:
            super().close()
            signal.raise_signal(signal.SIGINT)


def work(press: Callable[[], object], done: list[str]) -> None:
    with interrupts_heard():
        press()
        done.append("the rest")


# Python 3.13 and later report the exception that they drop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("press", "before_it"),
    [(PressedWhenFinalized, ["the rest"]), (partial(signal.raise_signal, signal.SIGINT), [])],
    ids=["dropped", "raised at once"],
)
def test_an_interrupt_is_raised_by_the_end_of_the_block(
    press: Callable[[], object], before_it: list[str]
) -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        work(press, done)
    assert done == before_it
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_is_raised_without_an_interrupt() -> None:
    with interrupts_heard():
        pass


def test_ignored_interrupts_stay_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    with interrupts_heard():
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
