"""The form of the logs, in processes of their own: what is tested is what reaches stderr."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

WRITE = """
import logging
import structlog
from shared.log import configure_logging

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
    """What the lines look like, on a pipe or on a terminal."""
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
def test_where_nobody_watches_each_line_is_json(form: str) -> None:
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
def test_a_person_gets_readable_lines(form: str, *, terminal: bool) -> None:
    shown = write(form, terminal=terminal)
    assert "order.placed" in shown
    assert '{"' not in shown
    assert ("\x1b[" in shown) is terminal  # colours
    assert "ValueError: no" in shown


@pytest.mark.parametrize("form", ["json", "console"])
def test_an_error_shows_no_local_variables(form: str) -> None:
    assert "hunter2" not in write(form)


def test_what_a_client_sent_does_not_steer_the_terminal() -> None:
    assert "\x1b[31m" not in write("console")


def test_the_level_holds_for_all() -> None:
    (failed,) = write("json", "ERROR").splitlines()
    assert json.loads(failed)["event"] == "order.failed"
    assert "too.fine" in write("json", "DEBUG")


NOBODY_READS = """
import logging, os, sys
import structlog
from shared.log import configure_logging, write_together

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


def test_a_line_that_cannot_be_written_fails_nothing_else() -> None:
    """A supervisor that is killed leaves its programs with a pipe that nobody reads."""
    command = [sys.executable, "-c", NOBODY_READS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "goes on\n")
