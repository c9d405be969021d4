"""The database session of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flask import current_app

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from flask import Flask
    from sqlalchemy.orm import Session, sessionmaker

_EXTENSION = "settle-sessions"


def register(app: Flask, sessions: sessionmaker[Session]) -> None:
    """Give an app the sessions that `transaction` begins."""
    app.extensions[_EXTENSION] = sessions


def transaction() -> AbstractContextManager[Session]:
    """Begin the transaction of a request; leaving the block commits it, an error rolls it back."""
    sessions: sessionmaker[Session] = current_app.extensions[_EXTENSION]
    return sessions.begin()
