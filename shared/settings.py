"""Settings of the APIs, read from the environment once, at start.

They are apart from the engine's (`settle_outbox.settings`), so a wrong one stops no relay and no
consumer, and a wrong one of those stops no API.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from environs import Env, EnvError

from settle_outbox.settings import (
    DAY_S,
    SettingsError,
    read_database_url,
    read_list,
    read_log_settings,
    read_whole,
)

CURSOR_SECRET_MIN = 32

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


@dataclass(frozen=True, slots=True)
class WebSettings:
    """What an API of one service needs to know. Units stand last in the names.

    `cursor_secret` signs the cursors of lists; None for the one in the service's database.

    `allowed_hosts` are the hosts that an API answers to beside those of the loopback, in lower
    case; `ANY_HOST` among them means all.
    """

    service: str
    database_url: str
    idempotency_retention_s: int
    cursor_secret: str | None
    trusted_proxies: int
    allowed_hosts: tuple[str, ...]
    cors_origins: tuple[str, ...]
    log_level: str
    log_format: str


def read_web_settings(service: str) -> WebSettings:
    """Read the settings of one service's API from the environment.

    Args:
        service: the service's name.

    Raises:
        SettingsError: naming the variable and what is wrong with it.
    """
    env = Env()
    log_level, log_format = read_log_settings()
    try:
        return WebSettings(
            service=service,
            database_url=read_database_url(service),
            idempotency_retention_s=read_idempotency_retention_s(),
            cursor_secret=_cursor_secret(env),
            trusted_proxies=read_whole(env, "TRUSTED_PROXIES", 0, minimum=0, maximum=10),
            allowed_hosts=_allowed_hosts(env),
            cors_origins=_origins(env, "CORS_ORIGINS"),
            log_level=log_level,
            log_format=log_format,
        )
    except EnvError as error:
        raise SettingsError(str(error)) from error


def read_idempotency_retention_s() -> int:
    """Read how long an Idempotency-Key is known; all that the removal of keys needs.

    Raises:
        SettingsError: naming the variable and what is wrong with it.
    """
    return read_whole(Env(), "IDEMPOTENCY_RETENTION_S", DAY_S, minimum=60)


def _cursor_secret(env: Env) -> str | None:
    given: str = env.str("CURSOR_SECRET", "")
    if not given:
        return None
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
    hosts = tuple(host.lower() for host in read_list(env, "ALLOWED_HOSTS", ""))
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
    origins = read_list(env, name, "")
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
