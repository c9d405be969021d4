"""All commands, and docs/reference/cli.md, which ``make commands`` writes from their help."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from click.testing import CliRunner

from settle.cli import main as settle
from settle_outbox.cli.doctor import main as outbox_doctor
from settle_outbox.cli.inbox import main as inbox_consumer
from settle_outbox.cli.relay import main as outbox_relay
from support.web import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

CLIS: dict[str, click.Command] = {
    "settle": settle,
    "outbox-relay": outbox_relay,
    "inbox-consumer": inbox_consumer,
    "outbox-doctor": outbox_doctor,
}
PAGE = ROOT / "docs" / "reference" / "cli.md"

_HEAD = """# Commands

What each command prints for `--help`. `make commands` renews this page, and a test
compares it with the commands.

The commands are in `.venv/bin`. `settle` runs both services on one machine; `outbox-relay` and
`inbox-consumer` belong to the engine, and run any service that is built on it.

## Completion

In bash (`zsh_source` and `fish_source` are for the other shells):

```sh
. .venv/bin/activate
eval "$(_SETTLE_COMPLETE=bash_source settle)"
eval "$(_OUTBOX_RELAY_COMPLETE=bash_source outbox-relay)"
eval "$(_INBOX_CONSUMER_COMPLETE=bash_source inbox-consumer)"
eval "$(_OUTBOX_DOCTOR_COMPLETE=bash_source outbox-doctor)"
```
"""


def walk(path: tuple[str, ...], command: click.Command) -> Iterator[tuple[str, ...]]:
    """Yield the path of a command and of all commands below it."""
    yield path
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from walk((*path, name), inner)


COMMANDS = [path for name, cli in CLIS.items() for path in walk((name,), cli)]


def find(path: tuple[str, ...]) -> click.Command:
    """Return the command of a path."""
    command = CLIS[path[0]]
    for name in path[1:]:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    return command


def page() -> str:
    """Return the text of the page, which is the help of all commands."""
    return "\n".join([_HEAD, *(_section(path) for path in COMMANDS)])


def _section(path: tuple[str, ...]) -> str:
    arguments = [*path[1:], "--help"]
    shown = CliRunner().invoke(CLIS[path[0]], arguments, prog_name=path[0], terminal_width=80)
    level = "#" * (2 if len(path) == 1 else 3)
    return f"{level} {' '.join(path)}\n\n```text\n{shown.output}```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
