"""Settings of a service's processes, read from the environment once, at start."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import psycopg2
from environs import Env, EnvError, validate
from psycopg2.extensions import parse_dsn
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from settle_outbox.errors import SettleError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

DAY_S = 24 * 60 * 60
DRIVER = "postgresql+psycopg2"
CURSOR_SECRET_MIN = 32

# Characters of a wrong value that a message quotes.
_QUOTED_MAX = 100

# In ALLOWED_HOSTS: every host is allowed.
ANY_HOST = "*"

_NAME = r"[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?"
_ADDRESS_6 = r"\[[0-9a-f:.]+\]"
_HOST = re.compile(rf"{_NAME}|{_ADDRESS_6}")
_ORIGIN = re.compile(
    rf"(?P<scheme>https?)://(?P<host>{_NAME}|{_ADDRESS_6})(?::(?P<port>[1-9][0-9]{{0,4}}))?"
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_PORT_MAX = 65535

# RFC 6761, section 6.3, and RFC 1122, section 3.2.1.3. Nobody can point such a name elsewhere.
_LOOPBACK = re.compile(r"(?:[a-z0-9_.-]+\.)?localhost|127(?:\.[0-9]{1,3}){3}|\[?::1\]?")


class SettingsError(SettleError):
    """A setting is missing or wrong."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a process of one service needs to know. Units stand last in the names.

    `outbox_shards` is the count the operator expects; the database holds the true one, and a
    relay refuses to start when the two differ. None expects nothing.

    `cursor_secret` is what the cursors of lists are signed with.

    `allowed_hosts` are the hosts that an API answers to beside those of the loopback, in lower
    case; `ANY_HOST` among them means all.
    """

    service: str
    database_url: str
    kafka_bootstrap_servers: tuple[str, ...]
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
    idempotency_retention_s: int
    cursor_secret: str
    trusted_proxies: int
    allowed_hosts: tuple[str, ...]
    cors_origins: tuple[str, ...]
    health_dir: str | None
    log_level: str
    log_format: str


def read_settings(service: str) -> Settings:
    """Read the settings of one service's process from the environment.

    Args:
        service: the service's name; its database is named by ``<SERVICE>_DATABASE_URL``.

    Raises:
        SettingsError: naming the variable and what is wrong with it.
    """
    env = Env()
    whole = partial(read_whole, env)
    try:
        settings = Settings(
            service=service,
            database_url=_database_url(env, f"{service.upper()}_DATABASE_URL"),
            kafka_bootstrap_servers=_bootstrap_servers(env, "KAFKA_BOOTSTRAP_SERVERS"),
            topic_partitions=whole("TOPIC_PARTITIONS", 6, least=1, most=10_000),
            topic_replication=whole("TOPIC_REPLICATION", 1, least=1, most=100),
            topic_retention_s=whole("TOPIC_RETENTION_S", 7 * DAY_S, least=60),
            outbox_shards=(
                whole("OUTBOX_SHARDS", 1, least=1, most=1024)
                if env.str("OUTBOX_SHARDS", "")
                else None
            ),
            outbox_retention_s=whole("OUTBOX_RETENTION_S", 7 * DAY_S, least=DAY_S),
            inbox_retention_s=whole("INBOX_RETENTION_S", 30 * DAY_S, least=DAY_S),
            replay_window_s=whole("REPLAY_WINDOW_S", 7 * DAY_S, least=60),
            relay_batch=whole("RELAY_BATCH", 500, least=1, most=10_000),
            relay_poll_s=_read(
                env.float,
                "RELAY_POLL_S",
                1.0,
                validate.Range(min=0.01, max=60.0),
                "a number from 0.01 to 60",
            ),
            consumer_batch=whole("CONSUMER_BATCH", 500, least=1, most=500),
            retry_attempts=whole("RETRY_ATTEMPTS", 10, least=1, most=1000),
            brake_failures=whole("BRAKE_FAILURES", 20, least=1, most=1_000_000),
            idempotency_retention_s=whole("IDEMPOTENCY_RETENTION_S", DAY_S, least=60),
            cursor_secret=_cursor_secret(env, service),
            trusted_proxies=whole("TRUSTED_PROXIES", 0, least=0, most=10),
            allowed_hosts=_allowed_hosts(env),
            cors_origins=_origins(env, "CORS_ORIGINS"),
            health_dir=env.str("HEALTH_DIR", "") or None,
            log_level=_log_level(env),
            log_format=_log_format(env),
        )
    except EnvError as error:
        raise SettingsError(str(error)) from error
    _check_windows(settings)
    return settings


def read_database_url(service: str) -> str:
    """Read the URL of one service's database from the environment; all that a migration needs.

    Raises:
        SettingsError: naming the variable and what is wrong with it.
    """
    try:
        return _database_url(Env(), f"{service.upper()}_DATABASE_URL")
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
    levels = ["DEBUG", "INFO", "WARNING", "ERROR"]
    return _read(env.str, "LOG_LEVEL", "INFO", validate.OneOf(levels), " or ".join(levels))


def _log_format(env: Env) -> str:
    forms = ["auto", "json", "console"]
    return _read(env.str, "LOG_FORMAT", "auto", validate.OneOf(forms), " or ".join(forms))


def read_whole(env: Env, name: str, default: int, *, least: int, most: int = 3650 * DAY_S) -> int:
    """Read a whole number from `least` to `most`.

    Raises:
        SettingsError: naming the variable and its value.
    """
    within = validate.Range(min=least, max=most)
    return _read(env.int, name, default, within, f"a whole number from {least} to {most}")


def _read(
    parse: Callable[..., T],
    name: str,
    default: T,
    validator: validate.Validator,
    expected: str,
) -> T:
    """Read a setting that is not secret: an error shows its value."""
    try:
        return parse(name, default, validate=validator)
    except EnvError as error:
        found = os.environ.get(name, "")[:_QUOTED_MAX]
        raise SettingsError(f"{name} is {found!r}: expected {expected}") from error


def _read_list(env: Env, name: str, *default: str) -> tuple[str, ...]:
    """Read items that are separated by commas. Spaces around them and empty items are ignored."""
    items = (item.strip() for item in env.str(name, *default).split(","))
    return tuple(item for item in items if item)


def _bootstrap_servers(env: Env, name: str) -> tuple[str, ...]:
    servers = _read_list(env, name)
    if not servers:
        raise SettingsError(f"{name} is empty: expected HOST:PORT, separated by commas")
    return servers


def _cursor_secret(env: Env, service: str) -> str:
    """The setting; unless it is given, one that all processes on the same database have in common.

    It outlives restarts, and changes with the database's password.
    """
    given = env.str("CURSOR_SECRET", "")
    if not given:
        return f"cursors on {env.str(f'{service.upper()}_DATABASE_URL')}"
    if len(given) < CURSOR_SECRET_MIN:
        raise SettingsError(
            f"CURSOR_SECRET is of {len(given)} characters; make it {CURSOR_SECRET_MIN} or more,"
            " of chance: openssl rand -hex 32"
        )
    return given


def is_loopback(host: str) -> bool:
    """Return whether a host, in lower case, is a loopback name or address. No resolver is asked."""
    return _LOOPBACK.fullmatch(host) is not None


def is_host(text: str) -> bool:
    """Return whether a text, in lower case, is a host that ALLOWED_HOSTS can hold."""
    return _HOST.fullmatch(text) is not None


def _allowed_hosts(env: Env) -> tuple[str, ...]:
    """The setting. Unless it is given: no further hosts, or any where others may know our names.

    That is where an API listens on more than the loopback, or behind a proxy.
    """
    hosts = tuple(host.lower() for host in _read_list(env, "ALLOWED_HOSTS", ""))
    for host in hosts:
        if host != ANY_HOST and not is_host(host):
            raise SettingsError(
                f"ALLOWED_HOSTS holds {host!r}, which is no host: expected shop.example or"
                " 192.0.2.7, separated by commas, without schemes and ports; or * for all"
            )
    if hosts:
        return hosts
    exposed = not is_loopback(env.str("BIND_ADDRESS", "127.0.0.1").lower())
    return (ANY_HOST,) if exposed or env.int("TRUSTED_PROXIES", 0) else ()


def _origins(env: Env, name: str) -> tuple[str, ...]:
    """Origins as browsers write them (RFC 6454, section 6.2; WHATWG URL, section 4.5)."""
    origins = _read_list(env, name, "")
    for origin in origins:
        if not _is_origin(origin):
            raise SettingsError(
                f"{name} holds {origin!r}, which is no origin as browsers write it:"
                " expected https://shop.example or http://localhost:3000, separated by commas"
            )
    return origins


def _is_origin(text: str) -> bool:
    found = _ORIGIN.fullmatch(text)
    if found is None:
        return False
    port = int(found["port"] or 0)
    return port <= _PORT_MAX and port != _DEFAULT_PORTS[found["scheme"]]


def _database_url(env: Env, name: str) -> str:
    text = env.str(name)
    # The errors of SQLAlchemy and libpq quote parts of a URL, and its password may be among them.
    malformed = SettingsError(
        f"{name} is not a database URL: expected {DRIVER}://USER:PASSWORD@HOST:PORT/DATABASE,"
        " with special characters of the password percent-encoded (@ is %40)"
    )
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise malformed from None
    if url.drivername != DRIVER:
        # SQLAlchemy 2.1 reads a bare postgresql:// as psycopg 3, which is not what runs here.
        raise SettingsError(f"{name} must begin with {DRIVER}:// (found {url.drivername}://)")
    if "@" in (url.host or ""):
        raise malformed
    try:
        parse_dsn(url.set(drivername="postgresql").render_as_string(hide_password=False))
    except psycopg2.ProgrammingError:
        raise malformed from None
    return text


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
