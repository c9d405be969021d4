"""Log lines: their form, level and length. Each test runs a process that writes some."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys

import pytest

WRITE = """
import logging
import structlog
from settle_outbox.log import configure_logging

configure_logging(level="{level}", form="{form}")
log = structlog.get_logger()
log.debug("too.fine")
log.info("order.placed", path="/a\\x1b[31m\\nb", amount=7)
logging.getLogger("library").warning("It is %s.", "odd")
try:
    password = "hunter2"
    raise ValueError("no")
except ValueError:
    log.exception("order.failed")
"""


def write(form: str, level: str = "INFO", *, terminal: bool = False) -> str:
    """Return the lines that a process writes to a pipe or to a terminal."""
    command = [sys.executable, "-c", WRITE.format(form=form, level=level)]
    if not terminal:
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr
    reader, writer = pty.openpty()
    try:
        subprocess.run(command, stderr=writer, check=True)
        return os.read(reader, 65536).decode()
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("form", ["json", "auto"])
def test_the_forms_json_and_auto_write_json_to_a_pipe(form: str) -> None:
    placed, library, failed = map(json.loads, write(form).splitlines())
    assert placed.pop("at").endswith("Z")
    assert placed == {
        "event": "order.placed",
        "level": "info",
        "path": "/a\x1b[31m\nb",
        "amount": 7,
    }
    assert (library["event"], library["level"]) == ("It is odd.", "warning")
    assert library["logger"] == "library"
    assert failed["exception"].endswith("ValueError: no")


@pytest.mark.parametrize(("form", "terminal"), [("console", False), ("auto", True)])
def test_console_on_a_pipe_and_auto_on_a_terminal_write_plain_text(
    form: str, *, terminal: bool
) -> None:
    shown = write(form, terminal=terminal)
    assert "order.placed" in shown
    assert '{"' not in shown
    assert ("\x1b[" in shown) is terminal  # colours
    assert "ValueError: no" in shown


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_error_shows_no_local_variables(form: str) -> None:
    assert "hunter2" not in write(form)


def test_text_of_a_client_does_not_control_the_terminal() -> None:
    assert "\x1b[31m" not in write("console")


def test_the_level_applies_to_all_loggers() -> None:
    (failed,) = write("json", "ERROR").splitlines()
    assert json.loads(failed)["event"] == "order.failed"
    assert "too.fine" in write("json", "DEBUG")


HOSTILE = """
import logging
import structlog
from settle_outbox.log import configure_logging, write_together

configure_logging(level="INFO", form="{form}")
log = structlog.get_logger()
long = "<" + {unit!r} * 100_000
log.info("value", path=long)
log.info("values", requests=["short", long], count=7, nothing=None)
log.info("object", error=ValueError(long))
write_together("together", [(logging.INFO, dict(path=long, at="now"))])
logging.getLogger("gunicorn.error").warning("Invalid request: %s", long)
def again(depth):
    if depth:
        again(depth - 1)
    raise ValueError(long)
for depth in (1, 500):
    try:
        again(depth)
    except ValueError:
        log.exception("failed")
try:
    raise ValueError("line\\n" * 100_000)
except ValueError:
    log.exception("failed")
"""


def write_hostile(form: str, unit: str = "x") -> list[str]:
    """Return lines that consist mostly of text from a client or a topic."""
    code = HOSTILE.format(form=form, unit=unit)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()


def test_text_of_a_client_is_cut_to_200_characters() -> None:
    """The size of the logs is limited, so long lines would push out many others."""
    cut = "<" + "x" * 198 + "…"

    value, values, error, together, library, *failed = map(json.loads, write_hostile("json"))

    assert value["path"] == cut
    assert (values["requests"], values["count"]) == (["short", cut], 7)
    assert values["nothing"] is None
    assert error["error"] == cut
    assert together["path"] == cut
    assert library["event"] == f"Invalid request: {cut}"[:199] + "…"
    for each in failed:
        lines = each["exception"].split("\n")
        assert lines[0] == "Traceback (most recent call last):"
        assert len(lines) <= 201
        assert max(map(len, lines)) <= 200
    assert failed[0]["exception"].endswith("ValueError: <" + "x" * 186 + "…")
    # 200 lines of about 100,000 are kept.
    assert re.search(r"\(99\d{3} lines left out\)", failed[-1]["exception"])


@pytest.mark.parametrize("unit", ["x", "\x1b", "\n", "\U0001f600", "\ud800"])
def test_json_lines_without_a_traceback_are_short(unit: str) -> None:
    """JSON escapes a character with twelve characters at most."""
    shown = [line for line in write_hostile("json", unit) if "exception" not in json.loads(line)]

    assert max(map(len, shown)) < 12 * 200 + 200


def test_console_lines_are_short() -> None:
    assert max(map(len, write_hostile("console"))) < 400


NOBODY_READS = """
import logging, os, sys
import structlog
from settle_outbox.log import configure_logging, write_together

configure_logging(level="INFO", form="json")
reader, writer = os.pipe()
os.dup2(writer, sys.stderr.fileno())
os.close(reader)
os.close(writer)
structlog.get_logger().error("broken.pipe")
logging.getLogger("library").error("broken.pipe")
write_together("broken.pipe", [(logging.INFO, {"at": "now"})])
print("goes on")
"""


def test_a_process_continues_after_a_line_that_cannot_be_written() -> None:
    """After a supervisor is killed, its programs write to a pipe that nobody reads."""
    command = [sys.executable, "-c", NOBODY_READS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "goes on\n")
