"""Find out whether a port is free, and which process uses it."""

from __future__ import annotations

import socket

import psutil


def address_family(host: str) -> socket.AddressFamily:
    """Return the family of an address or name to listen on."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def port_conflict(host: str, port: int) -> str | None:
    """Return why a port cannot be used, and which process listens on it; None if it is free."""
    try:
        with socket.socket(address_family(host)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen()
    except OSError as error:
        reason = error.strerror or str(error)
        listener = _listener(port)
        return f"{reason}: {listener}" if listener else reason
    return None


def _listener(port: int) -> str | None:
    """Return the process that listens on a port; None if this user may not see it."""
    try:
        for found in psutil.net_connections("tcp"):
            listens = found.status == psutil.CONN_LISTEN and found.laddr
            if listens and listens.port == port and found.pid:
                return f"{psutil.Process(found.pid).name()}, pid {found.pid}"
    except (psutil.Error, OSError):  # it has ended, or this system does not show it
        return None
    return None
