"""Runs the migrations of a service's database, from alembic's command line or in process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alembic import command, context
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import NullPool, create_engine, text

from settle_outbox.errors import SettleError
from settle_outbox.settings import read_database_url
from settle_outbox.storage.database import ISOLATION_LEVEL, connect_args

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, MetaData

# Found beside the packages: migrations are run from a checkout, or from an image that holds one.
CONFIG_FILE = Path(__file__).resolve().parent.parent / "alembic.ini"

# Any constant will do: the lock is of one database, and nothing else there takes this number.
ADVISORY_LOCK = 7_310_415_091

# How long to wait for another migration to end; then, for a lock that a running service holds
# (a waiting DDL statement blocks all who come after it); and for one statement to run.
_WAIT_FOR_TURN = "120s"
_LOCK_TIMEOUT = "5s"
_STATEMENT_TIMEOUT = "60s"


class MigrationsNotFoundError(SettleError):
    """The migrations are not where they should be."""


def upgrade(service: str, database_url: str) -> None:
    """Bring a service's database to the newest revision; safe to call twice at once.

    Args:
        service: ``payments`` or ``orders``: a section of ``alembic.ini``.
        database_url: ``postgresql+psycopg2://...``.

    Raises:
        MigrationsNotFoundError: there is no ``alembic.ini`` beside the packages.
    """
    config = _config(service)
    config.attributes["database_url"] = database_url
    command.upgrade(config, "head")


def head(service: str) -> str:
    """The newest revision of a service's migrations.

    Raises:
        MigrationsNotFoundError: there is no ``alembic.ini`` beside the packages.
    """
    found = ScriptDirectory.from_config(_config(service)).get_current_head()
    if found is None:
        raise MigrationsNotFoundError(f"{CONFIG_FILE} names no migration of {service}.")
    return found


def run(target_metadata: Sequence[MetaData]) -> None:
    """Do what alembic was asked to; a service's ``env.py`` calls it.

    All of it is one transaction, under an advisory lock that ends with it: of two at once, the
    second finds nothing left to do. A lock of a session would not survive a connection pooler.

    Args:
        target_metadata: the tables as the code knows them.
    """
    config = context.config
    service = config.config_ini_section
    url = config.attributes.get("database_url") or read_database_url(service)
    engine = create_engine(
        url,
        poolclass=NullPool,
        isolation_level=ISOLATION_LEVEL,
        connect_args=connect_args(url, application_name=f"migrations-{service}"),
    )
    with engine.begin() as connection:
        _set_timeouts(connection, lock=_WAIT_FOR_TURN, statement=_WAIT_FOR_TURN)
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        _set_timeouts(connection, lock=_LOCK_TIMEOUT, statement=_STATEMENT_TIMEOUT)
        partitions = _partitions(connection)

        def is_ours(_: object, name: str | None, kind: str, *__: object) -> bool:
            # Partitions come and go with the days; their parents are what is compared.
            return not (kind == "table" and name in partitions)

        context.configure(
            connection=connection,
            target_metadata=list(target_metadata),
            include_object=is_ours,
            compare_server_default=True,
            # Comments are for those who read the database; the migrations alone hold them.
            autogenerate_plugins=["alembic.autogenerate.*", "~alembic.autogenerate.comments"],
        )
        with context.begin_transaction():
            context.run_migrations()


def _config(service: str) -> Config:
    if not CONFIG_FILE.is_file():
        raise MigrationsNotFoundError(
            f"{CONFIG_FILE} is missing: run from a checkout (pip install -e .), or keep alembic.ini"
            " and alembic/ beside the packages."
        )
    return Config(CONFIG_FILE, ini_section=service)


def _set_timeouts(connection: Connection, *, lock: str, statement: str) -> None:
    connection.execute(
        text(
            "SELECT set_config('lock_timeout', :lock, true),"
            " set_config('statement_timeout', :statement, true)"
        ),
        {"lock": lock, "statement": statement},
    )


def _partitions(connection: Connection) -> frozenset[str]:
    return frozenset(
        connection.execute(text("SELECT relname FROM pg_class WHERE relispartition")).scalars()
    )
