"""Requests that wait for a result, without holding a database connection."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from flask import Flask, current_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from uuid import UUID

T = TypeVar("T")

_EXTENSION = "settle-waiters"
_STOPPING = "settle-stopping"


class Waiters:
    """The waiting requests of a process. Each waits for the change of one thing, named by its id.

    Waiters register before they read the state, so a `wake` after the change cannot be missed.

    Args:
        limit: maximum number of waiters. Each holds a thread during its wait.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._waiting: set[tuple[UUID, threading.Event]] = set()
        self.ended = False
        """Whether all waits were ended for good."""
        self.has_waiters = threading.Event()
        """Set while there are waiters, and after `end_all`."""

    def wait(
        self, key: UUID, seconds: float, read: Callable[[], T], is_final: Callable[[T], bool]
    ) -> tuple[T, bool]:
        """Read the state, and again after each `wake`, until it is final or the time is over.

        Args:
            key: id of the thing to wait for.
            seconds: maximum time to wait.
            read: returns the state. An error ends the wait.
            is_final: whether there is nothing to wait for.

        Returns:
            The state as it was read last, and whether the wait was honoured: the state is final, or
            the time is over. False if there were too many waiters, or `end_all` ended the wait.
        """
        deadline = time.monotonic() + seconds
        with self._registered(key) as woken:
            while True:
                if woken is not None:
                    woken.clear()  # before reading: a change after this ends the wait below
                found = read()
                left_s = deadline - time.monotonic()
                if is_final(found) or left_s <= 0:
                    return found, True
                if woken is None or self.ended:
                    return found, False
                woken.wait(left_s)

    @contextmanager
    def _registered(self, key: UUID) -> Iterator[threading.Event | None]:
        """Register a waiter while the block runs. Yields None if there are too many."""
        with self._lock:
            woken = None
            if not self.ended and len(self._waiting) < self._limit:
                woken = threading.Event()
                self._waiting.add((key, woken))
                self.has_waiters.set()
        try:
            yield woken
        finally:
            if woken is not None:
                with self._lock:
                    self._waiting.remove((key, woken))
                    if not self._waiting and not self.ended:
                        self.has_waiters.clear()

    def keys(self) -> list[UUID]:
        """Return the ids that are waited for."""
        with self._lock:
            return list({key for key, _ in self._waiting})

    def wake(self, keys: Iterable[UUID]) -> None:
        """Let the waiters for these ids read the state again."""
        wanted = set(keys)
        with self._lock:
            for key, woken in self._waiting:
                if key in wanted:
                    woken.set()

    def end_all(self) -> None:
        """End all waits, and allow no new ones. The process is about to end."""
        with self._lock:
            self.ended = True
            self.has_waiters.set()
            for _, woken in self._waiting:
                woken.set()


def register_waiters(app: Flask, *, limit: int) -> Waiters:
    """Create the waiters of an app, at most `limit` at a time."""
    waiters = Waiters(limit)
    app.extensions[_EXTENSION] = waiters
    return waiters


def current_waiters() -> Waiters:
    """Return the waiters of the current app."""
    waiters: Waiters = current_app.extensions[_EXTENSION]
    return waiters


def end_waits(app: Flask) -> None:
    """End all waits of an app, because its process stops."""
    app.extensions[_STOPPING] = True
    waiters: Waiters | None = app.extensions.get(_EXTENSION)
    if waiters is not None:
        waiters.end_all()


def is_stopping() -> bool:
    """Return whether the process of the current app is stopping."""
    return _STOPPING in current_app.extensions
