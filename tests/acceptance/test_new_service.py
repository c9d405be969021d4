"""The recipe of CONTRIBUTING.md for a new service works in a copy of the project."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest
import requests

from support.delivery import Delivery, header
from support.ports import free_port
from support.stack import Stack
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

# The recipe installs the copy of the project, from the package index or pip's cache.
pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
RECIPE = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## A new service\n")[2]
FILES = re.findall(r"`([\w/]+\.py)`[^`]*:\n\n   ```python\n(   .*?)\n   ```", RECIPE, re.DOTALL)
WIRE, RUN, TRY = re.findall(r"   ```sh\n(.*?)\n   ```", RECIPE, re.DOTALL)
# Reading topics needs no database.
NOWHERE = "postgresql+psycopg2://127.0.0.1:9/none"


def copy_with_service(copy: Path) -> None:
    """Copy the project, and add the service: the recipe up to the step that runs it."""
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=left_out)
    for name, text in FILES:
        path = copy / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{dedent(text)}\n", "utf-8")
    subprocess.run(["bash", "-euc", dedent(WIRE)], cwd=copy, check=True)


class Reader:
    """A reader of the recipe, with a copy of the project."""

    def __init__(self) -> None:
        # Not pytest's tmp_path: if root runs the tests, PostgreSQL's user cannot reach that folder.
        self.folder = Path(tempfile.mkdtemp(prefix="settle-test-"))
        self.folder.chmod(0o755)
        self.copy = self.folder / "settle"
        copy_with_service(self.copy)
        self.stack = Stack(self.copy)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.supervisor_socket = ""

    def paste(self, commands: str) -> str:
        """Run commands of the recipe, with free ports, and return what they print."""
        done = subprocess.run(
            ["bash", "-euc", dedent(commands).replace("8082", str(self.port))],
            cwd=self.copy,
            env={name: value for name, value in self.stack.env.items() if name != "PYTHONPATH"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def run_the_service(self) -> None:
        """Start everything as the recipe says, and wait until the new API is ready."""
        printed = self.paste(f"{RUN}\necho $SETTLE_SOCKET")
        self.supervisor_socket = printed.splitlines()[-1]
        wait_until(self._is_ready, timeout_s=60, what="the new API to be ready")

    def _is_ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/readyz", timeout=10).ok
        except requests.RequestException:
            return False

    def stamps(self, user_id: str) -> int:
        """Return how many stamps the new service counts for a user."""
        answer = requests.get(f"{self.url}/stamps", {"user_id": user_id}, timeout=10)
        stamps: int = answer.json()["stamps"]
        return stamps

    def discard(self) -> None:
        """Stop everything, and remove the copy."""
        if self.supervisor_socket:
            self.paste(f".venv/bin/supervisorctl -s unix://{self.supervisor_socket} shutdown")
            folder = Path(self.supervisor_socket).parent
            wait_until(lambda: not (folder / "supervisord.pid").exists(), timeout_s=60)
            shutil.rmtree(folder)
        self.stack.discard()
        shutil.rmtree(self.folder)


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    made = Reader()
    try:
        made.run_the_service()
        yield made
    finally:
        made.discard()


def test_a_request_and_an_event_reach_the_new_service(reader: Reader) -> None:
    posted, counted = map(json.loads, reader.paste(TRY).splitlines())
    (user_id,) = set(re.findall(r"[0-9a-f-]{36}", TRY))

    reader.stack.place_order(user_id, 3900)

    assert posted == counted == {"stamps": 1}
    wait_until(lambda: reader.stamps(user_id) == 2, timeout_s=60, what="the stamp of the order")
    topics = Delivery(NOWHERE, NOWHERE, f"127.0.0.1:{reader.stack.ports['KAFKA_PORT']}")
    wait_until(lambda: len(topics.records("stamps.events")) == 2, timeout_s=60)
    sent = topics.records("stamps.events")
    assert {header(record, "ce_type") for record in sent} == {"stamp.given"}
    assert {header(record, "ce_source") for record in sent} == {"/stamps"}


def test_the_recipe_is_written_in_the_projects_style(tmp_path: Path) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    copy_with_service(tmp_path / "settle")

    for command in (["check"], ["format", "--diff"]):
        done = subprocess.run(
            [ruff, *command, "services/stamps", "alembic/stamps"],
            cwd=tmp_path / "settle",
            capture_output=True,
            text=True,
            check=False,
        )

        assert done.returncode == 0, done.stdout
