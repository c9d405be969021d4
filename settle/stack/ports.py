"""Whether a port is free, and who holds it where it is not."""

from __future__ import annotations

import socket
from pathlib import Path

LISTEN = "0A"  # the state of a listening socket in /proc/net/tcp


def address_family(host: str) -> socket.AddressFamily:
    """The family of an address or name to listen on."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def port_conflict(host: str, port: int) -> str | None:
    """Why nothing can listen there now, and who does, where that can be seen; None when free."""
    try:
        with socket.socket(address_family(host)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen()
    except OSError as error:
        reason = error.strerror or str(error)
        holder = _holder(port)
        return f"{reason}: {holder}" if holder else reason
    return None


def _holder(port: int) -> str | None:
    """The process that listens on a port; None for one that this user may not see."""
    wanted = {f"socket:[{inode}]" for inode in _listening(port)}
    if not wanted:
        return None
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if any(_target(fd) in wanted for fd in (folder / "fd").iterdir()):
                return f"{(folder / 'comm').read_text().strip()}, pid {folder.name}"
        except OSError:  # ended meanwhile, or someone else's
            continue
    return None


def _target(fd: Path) -> str:
    try:
        return str(fd.readlink())
    except FileNotFoundError:  # closed meanwhile
        return ""


def _listening(port: int) -> set[str]:
    """The inodes of the sockets that listen on a port."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            # sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode (proc_net(5))
            fields = line.split()
            if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(fields[9])
    return inodes
