"""Settings of the APIs, read from the environment once, at start.

They are separate from the engine's (`settle_outbox.settings`), so an invalid setting of an API does
not stop a relay or a consumer, and the reverse. An empty variable counts as unset.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from settle_outbox.settings import (
    DAY_S,
    SettingsError,
    read_database_url,
    read_list,
    read_log_settings,
    read_whole,
)

CURSOR_SECRET_MIN = 32

# In ALLOWED_HOSTS: all hosts are allowed.
ANY_HOST = "*"

_NAME = r"[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?"
_ADDRESS_6 = r"\[[0-9a-f:.]+\]"
_HOST = re.compile(rf"{_NAME}|{_ADDRESS_6}")
_ORIGIN = re.compile(
    rf"(?P<scheme>https?)://(?P<host>{_NAME}|{_ADDRESS_6})(?::(?P<port>[1-9][0-9]{{0,4}}))?"
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_PORT_MAX = 65535
DEFAULT_WORKERS = 2
DEFAULT_THREADS = 8
# gunicorn's own default.
DEFAULT_PORT = 8000

# RFC 6761, section 6.3, and RFC 1122, section 3.2.1.3. Such a name cannot point to another machine.
_LOOPBACK = re.compile(r"(?:[a-z0-9_.-]+\.)?localhost|127(?:\.[0-9]{1,3}){3}|\[?::1\]?")


@dataclass(frozen=True, slots=True)
class WebSettings:
    """Settings of one service's API. Units are last in the names.

    `cursor_secret` signs the cursors of lists. None means the secret in the service's database.

    `allowed_hosts` are the accepted hosts in addition to loopback names, in lower case. `ANY_HOST`
    among them allows all hosts.

    `api_threads` is the number of requests that a worker handles at the same time.
    """

    service: str
    database_url: str
    idempotency_retention_s: int
    cursor_secret: str | None
    trusted_proxies: int
    allowed_hosts: tuple[str, ...]
    cors_origins: tuple[str, ...]
    api_workers: int
    api_threads: int
    log_level: str
    log_format: str


def read_web_settings(service: str) -> WebSettings:
    """Read the settings of one service's API from the environment.

    Args:
        service: the service's name.

    Raises:
        SettingsError: naming the variable and what is wrong with it.
    """
    log_level, log_format = read_log_settings()
    trusted_proxies = read_whole("TRUSTED_PROXIES", 0, minimum=0, maximum=10)
    api_workers, api_threads = read_server_size()
    return WebSettings(
        service=service,
        database_url=read_database_url(service),
        idempotency_retention_s=read_idempotency_retention_s(),
        cursor_secret=_cursor_secret(),
        trusted_proxies=trusted_proxies,
        allowed_hosts=_allowed_hosts(is_proxied=trusted_proxies > 0),
        cors_origins=_cors_origins(),
        api_workers=api_workers,
        api_threads=api_threads,
        log_level=log_level,
        log_format=log_format,
    )


def read_idempotency_retention_s() -> int:
    """Read how long an Idempotency-Key is kept, in seconds.

    Raises:
        SettingsError: naming the variable and what is wrong with it.
    """
    return read_whole("IDEMPOTENCY_RETENTION_S", DAY_S, minimum=60)


def read_server_size() -> tuple[int, int]:
    """Read the number of an API's worker processes, and of the threads of each.

    Raises:
        SettingsError: naming the variable and what is wrong with it.
    """
    return (
        read_whole("API_WORKERS", DEFAULT_WORKERS, minimum=1, maximum=256),
        read_whole("API_THREADS", DEFAULT_THREADS, minimum=1, maximum=256),
    )


def read_listen_address() -> str:
    """Read the address on which an API listens, as gunicorn's setting `bind`.

    Raises:
        SettingsError: naming the variable and what is wrong with it.
    """
    host = _bind_address().strip("[]")
    port = read_whole("PORT", DEFAULT_PORT, minimum=1, maximum=_PORT_MAX)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind_address() -> str:
    return os.environ.get("BIND_ADDRESS") or "127.0.0.1"


def _cursor_secret() -> str | None:
    given = os.environ.get("CURSOR_SECRET")
    if not given:
        return None
    if len(given) < CURSOR_SECRET_MIN:
        raise SettingsError(
            f"CURSOR_SECRET has {len(given)} characters: expected at least {CURSOR_SECRET_MIN},"
            " chosen at random, such as by openssl rand -hex 32"
        )
    return given


def is_loopback(host: str) -> bool:
    """Return whether a host, in lower case, is a loopback name or address, without resolving it."""
    return _LOOPBACK.fullmatch(host) is not None


def is_host(text: str) -> bool:
    """Return whether a text, in lower case, is valid in ALLOWED_HOSTS."""
    return _HOST.fullmatch(text) is not None


def _allowed_hosts(*, is_proxied: bool) -> tuple[str, ...]:
    """Return the setting, or its default.

    By default only loopback names are allowed. If the API listens on another address, or is behind
    a proxy, its names are unknown, and all hosts are allowed.
    """
    hosts = tuple(host.lower() for host in read_list("ALLOWED_HOSTS"))
    for host in hosts:
        if host != ANY_HOST and not is_host(host):
            raise SettingsError(
                f"ALLOWED_HOSTS has {host!r}, which is not a host: expected shop.example or"
                " 192.0.2.7, separated by commas, without schemes and ports; or * for all"
            )
    if hosts:
        return hosts
    is_exposed = not is_loopback(_bind_address().lower())
    return (ANY_HOST,) if is_exposed or is_proxied else ()


def _cors_origins() -> tuple[str, ...]:
    """Read origins as browsers write them (RFC 6454, section 6.2; WHATWG URL, section 4.5)."""
    origins = read_list("CORS_ORIGINS")
    for origin in origins:
        if not _is_origin(origin):
            raise SettingsError(
                f"CORS_ORIGINS has {origin!r}, which is not an origin as browsers write it:"
                " expected https://shop.example or http://localhost:3000, separated by commas"
            )
    return origins


def _is_origin(text: str) -> bool:
    found = _ORIGIN.fullmatch(text)
    if found is None:
        return False
    port = int(found["port"] or 0)
    return port <= _PORT_MAX and port != _DEFAULT_PORTS[found["scheme"]]
