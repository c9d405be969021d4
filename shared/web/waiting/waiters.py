"""Requests that wait for something to be over, without holding a database connection."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from flask import current_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from uuid import UUID

    from flask import Flask

T = TypeVar("T")

_EXTENSION = "settle-waiters"


class Waiters:
    """Those who wait in a process, each for what an id names.

    A waiter stands here before it looks whether there is anything to wait for: whoever calls `wake`
    after something is over reaches all who saw it before that.

    Args:
        most: how many may wait at once: what waits is a thread, and others want to be served.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._woken: dict[UUID, list[threading.Event]] = {}
        self._count = 0
        self.released = False
        """Whether nobody waits any more, for good."""
        self.present = threading.Event()
        """Set as long as somebody waits, and when all are released."""

    def hold(
        self, key: UUID, seconds: float, read: Callable[[], T], is_over: Callable[[T], bool]
    ) -> tuple[T, bool]:
        """Read until what is read is over, or time is.

        Args:
            key: by which the waiter is woken.
            seconds: how long to wait at most.
            read: looks how things stand; what it raises ends the wait.
            is_over: whether there is nothing more to wait for.

        Returns:
            What was read last, and whether it is over or was waited for as long as told. False when
            too many wait already, or `release` ended it.
        """
        deadline = time.monotonic() + seconds
        with self._place(key) as woken:
            while True:
                if woken is not None:
                    woken.clear()  # before reading: what comes from now on ends the wait below
                found = read()
                left_s = deadline - time.monotonic()
                if is_over(found) or left_s <= 0:
                    return found, True
                if woken is None or self.released:
                    return found, False
                woken.wait(left_s)

    @contextmanager
    def _place(self, key: UUID) -> Iterator[threading.Event | None]:
        """A place among the waiters; None when there is none left."""
        woken = threading.Event()
        with self._lock:
            if self.released or self._count >= self._most:
                woken_or_none = None
            else:
                woken_or_none = woken
                self._count += 1
                self._woken.setdefault(key, []).append(woken)
                self.present.set()
        try:
            yield woken_or_none
        finally:
            if woken_or_none is not None:
                self._leave(key, woken)

    def _leave(self, key: UUID, woken: threading.Event) -> None:
        with self._lock:
            self._count -= 1
            self._woken[key].remove(woken)
            if not self._woken[key]:
                del self._woken[key]
            if not self._count and not self.released:
                self.present.clear()

    def keys(self) -> list[UUID]:
        """What is waited for."""
        with self._lock:
            return list(self._woken)

    def wake(self, keys: Iterable[UUID]) -> None:
        """Have those who wait for any of these look again."""
        with self._lock:
            for key in keys:
                for woken in self._woken.get(key, ()):
                    woken.set()

    def release(self) -> None:
        """End every wait, and begin none any more: the process is about to end."""
        with self._lock:
            self.released = True
            self.present.set()
            for several in self._woken.values():
                for woken in several:
                    woken.set()


def register_waiters(app: Flask, *, most: int) -> Waiters:
    """Give an app its waiters; as many as told may wait at once."""
    waiters = Waiters(most)
    app.extensions[_EXTENSION] = waiters
    return waiters


def current_waiters() -> Waiters:
    """The waiters of the app."""
    waiters: Waiters = current_app.extensions[_EXTENSION]
    return waiters


def release_waiters(app: Flask) -> None:
    """End every wait in an app, where any is possible."""
    waiters: Waiters | None = app.extensions.get(_EXTENSION)
    if waiters is not None:
        waiters.release()
