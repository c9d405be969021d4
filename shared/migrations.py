"""Run the migrations of a service's database, from alembic's command line or in process."""

from __future__ import annotations

import sysconfig
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from alembic import command, context, op
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import NullPool, create_engine, event, text
from sqlalchemy.exc import OperationalError

from settle_outbox.errors import SettleError
from settle_outbox.settings import read_database_url
from settle_outbox.storage.database import ISOLATION_LEVEL, connect_args
from settle_outbox.storage.migrations import include_object
from settle_outbox.storage.sqlstate import LOCK_NOT_AVAILABLE, sqlstate_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy import Connection, Engine, MetaData

log = structlog.get_logger(__name__)

# The migrations are in the checkout, or where the wheel has installed them (setup.cfg).
FOLDERS = (
    Path(__file__).resolve().parent.parent / "alembic",
    Path(sysconfig.get_path("data"), "share", "settle", "alembic"),
)

# An arbitrary key: advisory locks are per database, and nothing else uses this one.
ADVISORY_LOCK = 7_310_415_091

# The time-outs of a transaction. A statement that waits for a table's lock blocks all later writers
# of that table. So it gives up early, and the revision is tried again.
LOCK_TIMEOUT_MS = 500
_STATEMENT_TIMEOUT_MS = 60_000
# Maximum time for all retries of a run, in seconds, and the pause between two.
RETRY_FOR_S = 120.0
_RETRY_PAUSE_S = 1.0
# The time-outs of a statement outside of a transaction, which builds an index while others write.
# The build waits for older transactions to end, and blocks no writer.
_BUILD_TIMEOUTS = {"lock_timeout": "10min", "statement_timeout": "6h"}
# The time to wait for another migration of the database, in seconds.
TURN_TIMEOUT_S = 120


class MigrationsNotFoundError(SettleError):
    """The migrations are not installed."""


class MigrationsBusyError(SettleError):
    """Another migration of the same database has not ended in time."""


def upgrade(service: str, database_url: str) -> None:
    """Migrate a service's database to the newest revision. Two calls at once are safe.

    Args:
        service: ``payments`` or ``orders``.
        database_url: ``postgresql+psycopg2://...``.

    Raises:
        MigrationsNotFoundError: the migrations are not installed.
        MigrationsBusyError: another migration of the database has not ended in time.
    """
    config = config_of(service)
    config.attributes["database_url"] = database_url
    command.upgrade(config, "head")


def head(service: str) -> str:
    """Return the newest revision of a service's migrations.

    Raises:
        MigrationsNotFoundError: the migrations are not installed.
    """
    found = ScriptDirectory.from_config(config_of(service)).get_current_head()
    if found is None:
        raise MigrationsNotFoundError(f"There is no migration of {service}.")
    return found


def config_of(service: str) -> Config:
    """Return Alembic's configuration of a service's migrations.

    Raises:
        MigrationsNotFoundError: the migrations are not installed.
    """
    for folder in FOLDERS:
        if (folder / service / "env.py").is_file():
            config = Config(ini_section=service)
            # Alembic formats the value, so a percent sign is doubled.
            config.set_main_option("script_location", str(folder / service).replace("%", "%%"))
            config.set_main_option("path_separator", "os")
            return config
    raise MigrationsNotFoundError(
        f"The migrations of {service} are not in {' or '.join(map(str, FOLDERS))}: install Settle"
        " again, or run it from a checkout."
    )


def run(target_metadata: Sequence[MetaData]) -> None:
    """Run the alembic command in progress; a service's ``env.py`` calls it.

    Each revision is a transaction. A revision that meets a lock is rolled back and tried again,
    for `RETRY_FOR_S` in all. A relative target, such as -2, is not tried again after a revision was
    applied. Only one process at a time migrates a database. A second process waits, and then finds
    nothing left to do.

    Args:
        target_metadata: the tables as the code knows them.

    Raises:
        MigrationsBusyError: another migration of the database has not ended in time.
    """
    config = context.config
    service = config.config_ini_section
    url = config.attributes.get("database_url") or read_database_url(service)
    engine = create_engine(
        url,
        poolclass=NullPool,
        isolation_level=ISOLATION_LEVEL,
        connect_args=connect_args(
            url, application_name=f"migrations-{service}", session_settings=_BUILD_TIMEOUTS
        ),
    )
    event.listen(engine, "begin", _set_timeouts)
    with _turn(engine, service), engine.connect() as connection:
        _run_with_retries(connection, service, target_metadata)


def create_index(name: str, on: str) -> None:
    """Create an index on a table that has rows, while others write to it.

    It commits the revision's transaction: call it from a revision that does nothing else. It may
    be interrupted and run again. A valid index of that name, built by an operator, is kept; an
    invalid one, left by an interruption, is replaced.

    Args:
        name: the index's name.
        on: table and columns, as in ``orders (status, id)``, and a WHERE clause if there is one.
    """
    is_invalid = text(
        "SELECT EXISTS (SELECT FROM pg_index"
        " WHERE indexrelid = to_regclass(:name) AND NOT indisvalid)"
    )
    with op.get_context().autocommit_block():
        if op.get_bind().scalar(is_invalid, {"name": name}):
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        op.execute(f"CREATE INDEX CONCURRENTLY IF NOT EXISTS {name} ON {on}")


def drop_index(name: str) -> None:
    """Drop an index of a table that has rows, while others write to it.

    It commits the revision's transaction, like `create_index`, and may be run again.

    Args:
        name: the index's name.
    """
    with op.get_context().autocommit_block():
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")


@contextmanager
def _turn(engine: Engine, service: str) -> Iterator[None]:
    """Hold the lock that only one migration of a database can have.

    The lock belongs to a transaction, because a session's lock does not survive a connection
    pooler. The transaction has a separate connection, because CREATE INDEX CONCURRENTLY cannot run
    in a transaction. The lock's transaction holds no snapshot, so the build does not wait for it.
    """
    with engine.begin() as connection:
        connection.execute(
            text(
                "SELECT set_config('lock_timeout', :wait, true),"
                " set_config('statement_timeout', '0', true),"
                " set_config('idle_in_transaction_session_timeout', '0', true)"
            ),
            {"wait": f"{TURN_TIMEOUT_S}s"},
        )
        try:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        except OperationalError as error:
            if sqlstate_of(error) != LOCK_NOT_AVAILABLE:
                raise
            raise MigrationsBusyError(
                f"Another migration of {service} has run for over {TURN_TIMEOUT_S} s, perhaps to"
                f" build an index. Wait until it ends (application_name migrations-{service} in"
                " pg_stat_activity), then run this again."
            ) from error
        yield


def _run_with_retries(
    connection: Connection, service: str, target_metadata: Sequence[MetaData]
) -> None:
    deadline = time.monotonic() + RETRY_FOR_S
    applied: list[object] = []
    while True:
        context.configure(
            connection=connection,
            transaction_per_migration=True,
            on_version_apply=lambda step, **_: applied.append(step),
            target_metadata=list(target_metadata),
            include_object=include_object,
            compare_server_default=True,
            # Comments on tables and columns are only in the migrations, so they are not compared.
            autogenerate_plugins=["alembic.autogenerate.*", "~alembic.autogenerate.comments"],
        )
        try:
            with context.begin_transaction():
                context.run_migrations()
        except OperationalError as error:
            if sqlstate_of(error) != LOCK_NOT_AVAILABLE or time.monotonic() > deadline:
                raise
            # After a revision was applied, a target such as -2 would mean another revision.
            if applied and {"+", "-"} & set(context.get_revision_argument() or ""):
                raise
            connection.rollback()
            log.warning("migrations.locked", service=service, retry_in_s=_RETRY_PAUSE_S)
            time.sleep(_RETRY_PAUSE_S)
        else:
            return


def _set_timeouts(connection: Connection) -> None:
    """Set the time-outs of a new transaction. They end with it, even behind a pooler."""
    # By the driver's cursor: Connection.execute() would begin a transaction again.
    cursor = connection.connection.cursor()
    cursor.execute(
        "SELECT set_config('lock_timeout', %s, true), set_config('statement_timeout', %s, true)",
        (f"{LOCK_TIMEOUT_MS}ms", f"{_STATEMENT_TIMEOUT_MS}ms"),
    )
    cursor.close()
