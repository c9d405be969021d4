"""Queries that run on SQLAlchemy's connections and on `checks.database.Database`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Connection

RunQuery = Callable[[str, Mapping[str, Any]], Sequence[Sequence[Any]]]
"""Run a query with psycopg2's named parameters, and return its rows."""


def query_runner(connection: Connection) -> RunQuery:
    """Return a function that runs queries on a SQLAlchemy connection."""
    return lambda query, parameters: connection.exec_driver_sql(query, dict(parameters)).all()
