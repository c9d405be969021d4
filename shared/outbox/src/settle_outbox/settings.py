"""Settings of relays and consumers. They are read from the environment at the start."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
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
# The schemes that libpq accepts. They name no driver.
_PLAIN_SCHEMES = {"postgresql", "postgres"}
# Names of schemas that need no quotes in `search_path`.
_SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
# Valid names of topics in Kafka (org.apache.kafka.common.internals.Topic). The same characters are
# allowed here in the name of a consumer group.
KAFKA_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
EARLIEST = "earliest"
LATEST = "latest"
# As TOPIC_REPLICATION: a new topic gets the broker's default.replication.factor (KIP-464).
BROKER_DEFAULT = -1
# Maximum characters of an invalid value that a message quotes.
_QUOTED_MAX = 100


class SettingsError(SettleError):
    """A setting is missing or invalid."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a relay or consumer of one service. Names end with their units.

    `outbox_shards` is the number of shards that the operator expects, or None. A relay ends with an
    error if the database has another number.

    `topic_prefix` comes before the names of all topics, published and consumed ones. With it, two
    systems can share a Kafka cluster.

    `new_group_start` is the position at which a new consumer group starts: EARLIEST or LATEST.
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


def read_settings(
    service: str, database_url: str | None = None, *, needs_kafka: bool = True
) -> Settings:
    """Read the settings of one service's relay or consumer from the environment.

    Args:
        service: the name of the service. ``<SERVICE>_DATABASE_URL`` has the URL of its database.
        database_url: a URL that is used in place of that variable.
        needs_kafka: whether a missing KAFKA_BOOTSTRAP_SERVERS is an error.

    Raises:
        SettingsError: a setting is invalid. The message names its variable.
    """
    log_level, log_format = read_log_settings()
    settings = Settings(
        service=service,
        database_url=read_database_url(service, database_url),
        kafka_bootstrap_servers=_bootstrap_servers(is_needed=needs_kafka),
        topic_prefix=_topic_prefix(),
        consumer_group=read_consumer_group(service),
        new_group_start=_one_of("NEW_GROUP_START", EARLIEST, [EARLIEST, LATEST]),
        topic_partitions=read_whole("TOPIC_PARTITIONS", 6, minimum=1, maximum=10_000),
        topic_replication=_read(
            Env().int,
            "TOPIC_REPLICATION",
            1,
            validate.OneOf([BROKER_DEFAULT, *range(1, 101)]),
            "a whole number from 1 to 100, or -1 for the broker's default.replication.factor",
        ),
        topic_retention_s=read_whole("TOPIC_RETENTION_S", 7 * DAY_S, minimum=60),
        outbox_shards=(
            read_whole("OUTBOX_SHARDS", 1, minimum=1, maximum=1024)
            if os.environ.get("OUTBOX_SHARDS")
            else None
        ),
        outbox_retention_s=read_whole("OUTBOX_RETENTION_S", 7 * DAY_S, minimum=DAY_S),
        inbox_retention_s=read_whole("INBOX_RETENTION_S", 30 * DAY_S, minimum=DAY_S),
        replay_window_s=read_whole("REPLAY_WINDOW_S", 7 * DAY_S, minimum=60),
        relay_batch=read_whole("RELAY_BATCH", 500, minimum=1, maximum=10_000),
        relay_poll_s=_read(
            Env().float,
            "RELAY_POLL_S",
            1.0,
            validate.Range(min=0.01, max=60.0),
            "a number from 0.01 to 60",
        ),
        consumer_batch=read_whole("CONSUMER_BATCH", 500, minimum=1, maximum=500),
        retry_attempts=read_whole("RETRY_ATTEMPTS", 10, minimum=1, maximum=1000),
        brake_failures=read_whole("BRAKE_FAILURES", 20, minimum=1, maximum=1_000_000),
        health_dir=os.environ.get("HEALTH_DIR") or None,
        log_level=log_level,
        log_format=log_format,
    )
    _check_windows(settings)
    return settings


def service_variable(service: str, name: str) -> str:
    """Return the name of a variable of one service: ``USER_NOTIFICATIONS_DATABASE_URL``.

    A hyphen in the service's name becomes an underscore, because shell variables have no hyphens.
    """
    return f"{service.upper().replace('-', '_')}_{name}"


def read_consumer_group(service: str) -> str:
    """Read the name of a service's consumer group. The default is the service's name.

    Raises:
        SettingsError: the name is invalid.
    """
    name = service_variable(service, "CONSUMER_GROUP")
    group = os.environ.get(name) or service
    if not KAFKA_NAME.fullmatch(group):
        raise SettingsError(
            f"{name} is {group!r}: use 1 to 249 of the characters a-z, A-Z, 0-9, '.', '_' and '-'"
        )
    return group


def read_log_settings() -> tuple[str, str]:
    """Read the level and the form of the logs, without requiring other settings.

    Raises:
        SettingsError: one of them is invalid.
    """
    return (
        _one_of("LOG_LEVEL", "INFO", ["DEBUG", "INFO", "WARNING", "ERROR"]),
        _one_of("LOG_FORMAT", "auto", ["auto", "json", "console"]),
    )


def _one_of(name: str, default: str, values: list[str]) -> str:
    return _read(Env().str, name, default, validate.OneOf(values), " or ".join(values))


def read_whole(name: str, default: int, *, minimum: int, maximum: int = 3650 * DAY_S) -> int:
    """Read a whole number within limits.

    Raises:
        SettingsError: it is not a whole number, or is outside the limits.
    """
    within = validate.Range(min=minimum, max=maximum)
    return _read(Env().int, name, default, within, f"a whole number from {minimum} to {maximum}")


def read_list(name: str) -> tuple[str, ...]:
    """Read items that are separated by commas. Spaces around items and empty items are ignored."""
    items = (item.strip() for item in os.environ.get(name, "").split(","))
    return tuple(item for item in items if item)


def _read(
    parse: Callable[..., T],
    name: str,
    default: T,
    validator: validate.Validator,
    expected: str,
) -> T:
    """Read a setting that is not secret, because errors quote its value. Empty counts as unset."""
    if not os.environ.get(name):
        return default
    try:
        return parse(name, default, validate=validator)
    except EnvError as error:
        value = os.environ.get(name, "")[:_QUOTED_MAX]
        raise SettingsError(f"{name} is {value!r}: expected {expected}") from error


def _bootstrap_servers(*, is_needed: bool) -> tuple[str, ...]:
    name = "KAFKA_BOOTSTRAP_SERVERS"
    servers = read_list(name)
    if is_needed and not servers:
        raise SettingsError(f"{name} is not set: expected HOST:PORT, separated by commas")
    return servers


def _topic_prefix() -> str:
    prefix = os.environ.get("TOPIC_PREFIX", "")
    if prefix and not KAFKA_NAME.fullmatch(prefix):
        raise SettingsError(
            f"TOPIC_PREFIX is {prefix!r}: use the characters a-z, A-Z, 0-9, '.', '_' and '-' alone,"
            " such as staging. with its dot"
        )
    return prefix


def read_database_url(service: str, given: str | None = None) -> str:
    """Read the URL of a service's database, without requiring other settings.

    The result starts with ``postgresql+psycopg2://``. If ``<SERVICE>_DATABASE_SCHEMA`` is set, this
    schema is the search path of its connections.

    Args:
        service: the service's name.
        given: a URL that is used in place of the variable.

    Raises:
        SettingsError: the URL is missing or invalid.
    """
    name = service_variable(service, "DATABASE_URL") if given is None else "--database-url"
    text = os.environ.get(name, "") if given is None else given
    if not text:
        raise SettingsError(
            f"{name} is not set: expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE; relays and"
            " consumers also accept the option --database-url"
        )
    # Hide the errors of SQLAlchemy and libpq. They quote parts of the URL, perhaps the password.
    malformed = SettingsError(
        f"{name} is not a database URL: expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE,"
        " with special characters of the password percent-encoded (@ is %40)"
    )
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise malformed from None
    if url.drivername in _PLAIN_SCHEMES:
        # SQLAlchemy 2.1 would use psycopg 3 for a plain postgresql://.
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
    return _in_schema(service, url).render_as_string(hide_password=False)


def _in_schema(service: str, url: URL) -> URL:
    """Add the service's schema to the URL. Connections use and create tables in this schema."""
    name = service_variable(service, "DATABASE_SCHEMA")
    schema = os.environ.get(name, "")
    if not schema:
        return url
    if not _SCHEMA_NAME.fullmatch(schema):
        raise SettingsError(
            f"{name} is {schema!r}: use 1 to 63 of the characters a-z, 0-9 and '_', no digit first"
        )
    # The search path has only this schema. A missing table must not be found in another one.
    given = url.normalized_query.get("options", ())
    options = " ".join([*given, f"-c search_path={schema}"])
    return url.update_query_dict({"options": options})


def _check_windows(settings: Settings) -> None:
    """Check that inbox and outbox keep events long enough.

    The inbox must remember an event as long as it can be delivered. A replay can send an event that
    is as old as the replay window, and the topic then keeps it for the topic's retention. The
    outbox must keep the events that a replay sends.

    Raises:
        SettingsError: the inbox or the outbox keeps events for less time.
    """
    latest_s = settings.topic_retention_s + settings.replay_window_s
    if settings.inbox_retention_s <= latest_s:
        raise SettingsError(
            f"INBOX_RETENTION_S ({settings.inbox_retention_s}) must be greater than "
            f"TOPIC_RETENTION_S + REPLAY_WINDOW_S ({latest_s}), or late duplicates become"
            " dead letters"
        )
    if settings.replay_window_s > settings.outbox_retention_s:
        raise SettingsError(
            f"REPLAY_WINDOW_S ({settings.replay_window_s}) must not be greater than "
            f"OUTBOX_RETENTION_S ({settings.outbox_retention_s}): dropped events cannot be replayed"
        )
