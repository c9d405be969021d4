"""The database session and transaction of a request."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING

from flask import Flask, current_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session, sessionmaker

_EXTENSION = "settle-sessions"
_outer_session: ContextVar[Session | None] = ContextVar("outer_session", default=None)


def register(app: Flask, sessions: sessionmaker[Session]) -> None:
    """Set the session factory of an app."""
    app.extensions[_EXTENSION] = sessions


def session_factory(app: Flask) -> sessionmaker[Session]:
    """Return the session factory of an app."""
    sessions: sessionmaker[Session] = app.extensions[_EXTENSION]
    return sessions


def transaction() -> AbstractContextManager[Session]:
    """Begin the transaction of a request. The end of the block commits it; an error rolls it back.

    Inside `outer_transaction` it joins the outer transaction, which ends with the outer block.
    """
    outer = _outer_session.get()
    return _begin() if outer is None else nullcontext(outer)


@contextmanager
def outer_transaction() -> Iterator[Session]:
    """Begin a transaction that each `transaction` in its block joins."""
    with _begin() as session:
        token = _outer_session.set(session)
        try:
            yield session
        finally:
            _outer_session.reset(token)


@contextmanager
def _begin() -> Iterator[Session]:
    with session_factory(current_app)() as session:  # closing rolls back
        yield session
        session.commit()
