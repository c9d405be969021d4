"""Create the services' databases in the embedded PostgreSQL, and connect to a database."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING

import psycopg2
from psycopg2 import sql

from settle.stack.definition import SERVICES
from settle.stack.embedded.postgres import SUPERUSER
from settle_outbox.errors import SettleError
from settle_outbox.storage.database import connect_autocommit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg2.extensions import cursor

    from settle.stack.embedded.postgres import Cluster

NAME = "settle"

# Names that need no quotes, except for the hyphen, which a service's name may have.
_DATABASE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_RESERVED = {*SERVICES, SUPERUSER, "template0", "template1"}


class DatabaseNameError(SettleError):
    """A database cannot have that name."""


def connection_error(url: str) -> str | None:
    """Return the error of a connection to a database; None if it answers."""
    try:
        connect_autocommit(url, application_name=NAME).close()
    except psycopg2.OperationalError as error:
        return " ".join(str(error).split())
    return None


def create_databases(cluster: Cluster, port: int, names: Sequence[str] = SERVICES) -> None:
    """Create the missing role and database of each service.

    Each role owns its database, and cannot connect to the database of another service.
    """
    url = cluster.url(port, "postgres")
    with closing(connect_autocommit(url, application_name=NAME)) as opened, opened.cursor() as run:
        for name in names:
            _create(run, name, cluster.password(name))


def create_database(cluster: Cluster, port: int, name: str) -> str:
    """Create the missing role and database of another service.

    Args:
        cluster: the running embedded PostgreSQL.
        port: its port.
        name: the name of the service, the role and the database.

    Returns:
        The database's URL, with the password of its role.

    Raises:
        DatabaseNameError: the name is reserved, or would need quotes.
    """
    if name in _RESERVED or not _DATABASE_NAME.fullmatch(name):
        raise DatabaseNameError(
            f"A database cannot have the name {name!r}: use a-z, 0-9, '_' and '-', with a letter"
            f" first. Reserved: {', '.join(sorted(_RESERVED))}."
        )
    create_databases(cluster, port, [name])
    return cluster.url(port, name, name)


def _create(run: cursor, service: str, password: str) -> None:
    name = sql.Identifier(service)
    run.execute("SELECT FROM pg_roles WHERE rolname = %s", (service,))
    verb = sql.SQL("CREATE" if run.fetchone() is None else "ALTER")
    run.execute(sql.SQL("{} ROLE {} LOGIN PASSWORD %s").format(verb, name), (password,))
    run.execute("SELECT FROM pg_database WHERE datname = %s", (service,))
    if run.fetchone() is None:
        run.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, name))
    # Even for an existing database: an earlier run may have been interrupted before this statement.
    run.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
