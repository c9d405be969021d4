"""The interrupt key works, whatever Python is about."""

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
    """Run the tests with Python's handler: a shell lets background jobs ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class PressedWhenFinalized(io.RawIOBase):
    """While it is finalized, somebody presses the interrupt key."""

    def close(self) -> None:
        if not self.closed:
            super().close()
            signal.raise_signal(signal.SIGINT)


def work(press: Callable[[], object], done: list[str]) -> None:
    with interrupts_heard():
        press()
        done.append("the rest")


# From Python 3.13 on, an exception that is dropped is reported.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("press", "before_it"),
    [(PressedWhenFinalized, ["the rest"]), (partial(signal.raise_signal, signal.SIGINT), [])],
    ids=["dropped", "raised at once"],
)
def test_one_is_raised_at_the_end_at_the_latest(
    press: Callable[[], object], before_it: list[str]
) -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        work(press, done)
    assert done == before_it
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_without_one_nothing_is_raised() -> None:
    with interrupts_heard():
        pass


def test_where_they_are_ignored_they_stay_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    with interrupts_heard():
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
