"""Settings of relays and consumers, read from the environment once, at start."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import psycopg2
from environs import Env, EnvError, validate
from psycopg2.extensions import parse_dsn
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from settle_outbox.errors import SettleError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

DAY_S = 24 * 60 * 60
DRIVER = "postgresql+psycopg2"
# Other spellings of a PostgreSQL URL: libpq's, and an older one that some hosts still hand out.
_PLAIN = {"postgresql", "postgres"}
# Any other name would have to be quoted in `search_path`.
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,62}")
# Kafka's names of topics and groups (org.apache.kafka.common.internals.Topic).
_KAFKA_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
EARLIEST = "earliest"
LATEST = "latest"
# Characters of a wrong value that a message quotes.
_QUOTED_MAX = 100


class SettingsError(SettleError):
    """A setting is missing or wrong."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a relay or consumer of one service needs to know. Units stand last in the names.

    `outbox_shards` is the count the operator expects; the database holds the true one, and a
    relay refuses to start when the two differ. None expects nothing.

    `topic_prefix` stands before the name of every topic: of those that the service publishes, and
    of those that it consumes. So two systems can share one Kafka cluster.

    `new_group_start` is where a consumer group begins that has never read anything: EARLIEST or
    LATEST.
    """

    service: str
    database_url: str
    kafka_bootstrap_servers: tuple[str, ...]
    topic_prefix: str
    consumer_group: str
    new_group_start: str
    topic_partitions: int
    topic_replication: int
    topic_retention_s: int
    outbox_shards: int | None
    outbox_retention_s: int
    inbox_retention_s: int
    replay_window_s: int
    relay_batch: int
    relay_poll_s: float
    consumer_batch: int
    retry_attempts: int
    brake_failures: int
    health_dir: str | None
    log_level: str
    log_format: str


def read_settings(service: str, database_url: str | None = None) -> Settings:
    """Read the settings of one service's relay or consumer from the environment.

    Args:
        service: the service's name; its database is named by ``<SERVICE>_DATABASE_URL``.
        database_url: used in place of that variable.

    Raises:
        SettingsError: naming the variable and what is wrong with it.
    """
    env = Env()
    whole = partial(read_whole, env)
    try:
        settings = Settings(
            service=service,
            database_url=_database_url(env, service, database_url),
            kafka_bootstrap_servers=_bootstrap_servers(env, "KAFKA_BOOTSTRAP_SERVERS"),
            topic_prefix=_topic_prefix(env),
            consumer_group=read_consumer_group(service),
            new_group_start=_one_of(env, "NEW_GROUP_START", EARLIEST, [EARLIEST, LATEST]),
            topic_partitions=whole("TOPIC_PARTITIONS", 6, minimum=1, maximum=10_000),
            topic_replication=whole("TOPIC_REPLICATION", 1, minimum=1, maximum=100),
            topic_retention_s=whole("TOPIC_RETENTION_S", 7 * DAY_S, minimum=60),
            outbox_shards=(
                whole("OUTBOX_SHARDS", 1, minimum=1, maximum=1024)
                if env.str("OUTBOX_SHARDS", "")
                else None
            ),
            outbox_retention_s=whole("OUTBOX_RETENTION_S", 7 * DAY_S, minimum=DAY_S),
            inbox_retention_s=whole("INBOX_RETENTION_S", 30 * DAY_S, minimum=DAY_S),
            replay_window_s=whole("REPLAY_WINDOW_S", 7 * DAY_S, minimum=60),
            relay_batch=whole("RELAY_BATCH", 500, minimum=1, maximum=10_000),
            relay_poll_s=_read(
                env.float,
                "RELAY_POLL_S",
                1.0,
                validate.Range(min=0.01, max=60.0),
                "a number from 0.01 to 60",
            ),
            consumer_batch=whole("CONSUMER_BATCH", 500, minimum=1, maximum=500),
            retry_attempts=whole("RETRY_ATTEMPTS", 10, minimum=1, maximum=1000),
            brake_failures=whole("BRAKE_FAILURES", 20, minimum=1, maximum=1_000_000),
            health_dir=env.str("HEALTH_DIR", "") or None,
            log_level=_log_level(env),
            log_format=_log_format(env),
        )
    except EnvError as error:
        raise SettingsError(str(error)) from error
    _check_windows(settings)
    return settings


def service_variable(service: str, name: str) -> str:
    """Return the name of a variable of one service: ``USER_NOTIFICATIONS_DATABASE_URL``.

    A hyphen in the service's name is an underscore there, because no shell exports the other.
    """
    return f"{service.upper().replace('-', '_')}_{name}"


def read_consumer_group(service: str) -> str:
    """Read the name of one service's consumer group; by default, the service's name.

    Raises:
        SettingsError: naming the variable and what is wrong with it.
    """
    name = service_variable(service, "CONSUMER_GROUP")
    group = Env().str(name, "") or service
    if not _KAFKA_NAME.fullmatch(group):
        raise SettingsError(
            f"{name} is {group!r}: use 1 to 249 of the characters a-z, A-Z, 0-9, '.', '_' and '-'"
        )
    return group


def read_database_url(service: str) -> str:
    """Read the URL of one service's database from the environment; all that a migration needs.

    It begins with ``postgresql+psycopg2://``, and sets the service's schema, if it has one.

    Raises:
        SettingsError: naming the variable and what is wrong with it.
    """
    try:
        return _database_url(Env(), service)
    except EnvError as error:
        raise SettingsError(str(error)) from error


def read_log_settings() -> tuple[str, str]:
    """Read the logs' level and form from the environment; all that gunicorn's master needs.

    Raises:
        SettingsError: naming the variable and what is wrong with it.
    """
    env = Env()
    try:
        return _log_level(env), _log_format(env)
    except EnvError as error:
        raise SettingsError(str(error)) from error


def _log_level(env: Env) -> str:
    return _one_of(env, "LOG_LEVEL", "INFO", ["DEBUG", "INFO", "WARNING", "ERROR"])


def _log_format(env: Env) -> str:
    return _one_of(env, "LOG_FORMAT", "auto", ["auto", "json", "console"])


def _one_of(env: Env, name: str, default: str, values: list[str]) -> str:
    return _read(env.str, name, default, validate.OneOf(values), " or ".join(values))


def read_whole(
    env: Env, name: str, default: int, *, minimum: int, maximum: int = 3650 * DAY_S
) -> int:
    """Read a whole number within bounds.

    Raises:
        SettingsError: naming the variable and its value.
    """
    within = validate.Range(min=minimum, max=maximum)
    return _read(env.int, name, default, within, f"a whole number from {minimum} to {maximum}")


def read_list(env: Env, name: str) -> tuple[str, ...]:
    """Read items that are separated by commas. Spaces around them and empty items are ignored."""
    items = (item.strip() for item in env.str(name, "").split(","))
    return tuple(item for item in items if item)


def _read(
    parse: Callable[..., T],
    name: str,
    default: T,
    validator: validate.Validator,
    expected: str,
) -> T:
    """Read a setting that is not secret: an error shows its value. An empty one counts as unset."""
    if not os.environ.get(name):
        return default
    try:
        return parse(name, default, validate=validator)
    except EnvError as error:
        found = os.environ.get(name, "")[:_QUOTED_MAX]
        raise SettingsError(f"{name} is {found!r}: expected {expected}") from error


def _bootstrap_servers(env: Env, name: str) -> tuple[str, ...]:
    servers = read_list(env, name)
    if not servers:
        raise SettingsError(f"{name} is not set: expected HOST:PORT, separated by commas")
    return servers


def _topic_prefix(env: Env) -> str:
    prefix: str = env.str("TOPIC_PREFIX", "")
    if prefix and not _KAFKA_NAME.fullmatch(prefix):
        raise SettingsError(
            f"TOPIC_PREFIX is {prefix!r}: use the characters a-z, A-Z, 0-9, '.', '_' and '-' alone,"
            " such as staging. with its dot"
        )
    return prefix


def _database_url(env: Env, service: str, given: str | None = None) -> str:
    name = service_variable(service, "DATABASE_URL") if given is None else "--database-url"
    text: str = env.str(name, "") if given is None else given
    if not text:
        raise SettingsError(
            f"{name} is not set: expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE; relays and"
            " consumers take it by --database-url, too"
        )
    # The errors of SQLAlchemy and libpq quote parts of a URL, and its password may be among them.
    malformed = SettingsError(
        f"{name} is not a database URL: expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE,"
        " with special characters of the password percent-encoded (@ is %40)"
    )
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise malformed from None
    if url.drivername in _PLAIN:
        # SQLAlchemy 2.1 reads a bare postgresql:// as psycopg 3, which is not what runs here.
        url = url.set(drivername=DRIVER)
    if url.drivername != DRIVER:
        raise SettingsError(
            f"{name} must begin with postgresql:// or {DRIVER}:// (found {url.drivername}://)"
        )
    if "@" in (url.host or ""):
        raise malformed
    try:
        parse_dsn(url.set(drivername="postgresql").render_as_string(hide_password=False))
    except psycopg2.ProgrammingError:
        raise malformed from None
    return _in_schema(env, service, url).render_as_string(hide_password=False)


def _in_schema(env: Env, service: str, url: URL) -> URL:
    """Let every connection to the URL find, and create, its tables in the service's schema."""
    name = service_variable(service, "DATABASE_SCHEMA")
    schema = env.str(name, "")
    if not schema:
        return url
    if not _SCHEMA.fullmatch(schema):
        raise SettingsError(
            f"{name} is {schema!r}: use 1 to 63 of the characters a-z, 0-9 and '_', no digit first"
        )
    # That schema alone: a table that is missing there must not be found in another service's.
    given = url.normalized_query.get("options", ())
    options = " ".join([*given, f"-c search_path={schema}"])
    return url.update_query_dict({"options": options})


def _check_windows(settings: Settings) -> None:
    """Hold the windows in the order that keeps duplicates out.

    An event can reach the inbox as late as its topic keeps it, plus as far back as a replay
    goes; the inbox must still know it then.
    """
    latest_s = settings.topic_retention_s + settings.replay_window_s
    if settings.inbox_retention_s <= latest_s:
        raise SettingsError(
            f"INBOX_RETENTION_S ({settings.inbox_retention_s}) must be greater than "
            f"TOPIC_RETENTION_S + REPLAY_WINDOW_S ({latest_s}), or a late duplicate is applied"
        )
    if settings.replay_window_s > settings.outbox_retention_s:
        raise SettingsError(
            f"REPLAY_WINDOW_S ({settings.replay_window_s}) must not be greater than "
            f"OUTBOX_RETENTION_S ({settings.outbox_retention_s}): what is dropped is not replayed"
        )
