"""The services' databases in the embedded PostgreSQL, and whether a database answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg2
from psycopg2 import sql

from settle.stack import SERVICES
from settle_outbox.storage.database import connect_autocommit

if TYPE_CHECKING:
    from psycopg2.extensions import cursor

    from settle.embedded.postgres import Cluster

NAME = "settle"


def why_silent(url: str) -> str | None:
    """Why a database does not answer, in its words; None when it does."""
    try:
        connect_autocommit(url, application_name=NAME).close()
    except psycopg2.OperationalError as error:
        return " ".join(str(error).split())
    return None


def revision(url: str) -> str | None:
    """The migration that a database is at; None for one that has seen none.

    Raises:
        psycopg2.Error: it cannot be asked.
    """
    opened = connect_autocommit(url, application_name=NAME)
    try:
        with opened.cursor() as run:
            run.execute("SELECT to_regclass('alembic_version') IS NOT NULL")
            if run.fetchone() != (True,):
                return None
            run.execute("SELECT version_num FROM alembic_version")
            found = run.fetchone()
            return str(found[0]) if found else None
    finally:
        opened.close()


def create_databases(cluster: Cluster, port: int) -> None:
    """Create a role and a database for each service, where missing.

    Each role owns its database, and neither gets into the other's.
    """
    opened = connect_autocommit(cluster.url(port, "postgres"), application_name=NAME)
    try:
        with opened.cursor() as run:
            for service in SERVICES:
                _create(run, service, cluster.password(service))
    finally:
        opened.close()


def _create(run: cursor, service: str, password: str) -> None:
    name = sql.Identifier(service)
    run.execute("SELECT FROM pg_roles WHERE rolname = %s", (service,))
    verb = sql.SQL("CREATE" if run.fetchone() is None else "ALTER")
    run.execute(sql.SQL("{} ROLE {} LOGIN PASSWORD %s").format(verb, name), (password,))
    run.execute("SELECT FROM pg_database WHERE datname = %s", (service,))
    if run.fetchone() is None:
        run.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, name))
    # Also of one that was there: whoever made it may have been interrupted right after.
    run.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
