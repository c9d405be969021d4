"""The whole stack, as `settle up` starts it, in a separate folder and on free ports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import tempfile
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import requests

from settle.stack.definition import (
    BOOTSTRAP,
    BROKER,
    BROKER_KIND,
    DATABASE_URLS,
    EMBEDDED,
    PORTS,
    WORKERS,
)
from settle.stack.leftovers import find_leftovers
from settle.stack.state import StateFolder
from support.ports import free_port
from support.waiting import wait_until

if TYPE_CHECKING:
    from types import TracebackType

COMMAND_TIMEOUT_S = 150
REQUEST_TIMEOUT_S = 10


class Stack:
    """A stack for one test. Its `settle` commands act only on this stack."""

    def __init__(self, checkout: Path | None = None, /, **settings: str) -> None:
        """Choose a folder and ports.

        Args:
            checkout: The checkout of the code to run; None for this one.
            settings: Environment variables, for example to use other databases or another broker.
        """
        if checkout is None:
            # pytest's tmp_path is not used. If root runs pytest, PostgreSQL's user cannot read it.
            self.home = Path(tempfile.mkdtemp(prefix="settle-test-"))
            self.home.chmod(0o755)
            place = {"SETTLE_HOME": str(self.home)}
        else:
            # Python finds the code of that checkout first. The stack's data is in it, too.
            self.home = checkout / ".settle"
            place = {"PYTHONPATH": str(checkout)}
        self.ports = {name: free_port() for name in PORTS}
        given = {BOOTSTRAP, BROKER_KIND, EMBEDDED, "SETTLE_HOME", *DATABASE_URLS.values()}
        self.env = {
            **{name: value for name, value in os.environ.items() if name not in given},
            **{name: str(port) for name, port in self.ports.items()},
            **place,
            **settings,
        }
        self.payments = f"http://127.0.0.1:{self.ports['PAYMENTS_PORT']}"
        self.orders = f"http://127.0.0.1:{self.ports['ORDERS_PORT']}"

    def settle(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `settle`, and return the result."""
        return subprocess.run(  # noqa: PLW1510 - the caller looks at how it ended
            [f"{sysconfig.get_path('scripts')}/settle", *arguments],
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `settle` as the first process of a new session, and do not wait for it."""
        return subprocess.Popen(
            # A shell makes the tests ignore SIGINT if it runs them in the background. Undo that.
            [
                *("env", "--default-signal=INT"),
                *(f"{sysconfig.get_path('scripts')}/settle", *arguments),
            ],
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def up(self) -> str:
        """Start the stack with `settle up`, and return its output."""
        done = self.settle("up")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.settle("status", "--json").stdout)
        return status

    def processes(self) -> dict[str, dict[str, Any]]:
        """Return what `settle status` reports about each process, by name."""
        return {process["process"]: process for process in self.status()["processes"]}

    def running(self) -> list[int]:
        """Return the ids of all processes of the stack, supervised or not."""
        return [process.pid for process in find_leftovers(StateFolder(self.home))]

    def supervise(self, action: str, process: str) -> None:
        """Start or stop a process through supervisord, as an operator would."""
        group = process.partition("-")[0]
        subprocess.run(
            [
                f"{sysconfig.get_path('scripts')}/supervisorctl",
                *("-s", f"unix://{StateFolder(self.home).socket}", action, f"{group}:{process}"),
            ],
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
            check=True,
        )

    def open_account(self, amount: int) -> str:
        """Open an account, deposit the amount, and return the user's id."""
        user_id = str(uuid.uuid4())
        self._post_until_taken("/accounts", {"user_id": user_id}, 201)
        self._post_until_taken(f"/accounts/{user_id}/deposit", {"amount": amount}, 200)
        return user_id

    def _post_until_taken(self, path: str, body: dict[str, Any], expected: int) -> None:
        """Post, and repeat after each 503."""

        def accepted() -> bool:
            answer = requests.post(f"{self.payments}{path}", json=body, timeout=REQUEST_TIMEOUT_S)
            assert answer.status_code in {expected, 503}, answer.text
            return answer.status_code == expected

        wait_until(accepted, what=f"{path} to be accepted")

    def balance(self, user_id: str) -> int:
        url = f"{self.payments}/accounts/balance?user_id={user_id}"

        def answered() -> requests.Response:
            answer = requests.get(url, timeout=REQUEST_TIMEOUT_S)
            assert answer.status_code == 200, answer.text
            return answer

        return int(wait_until(answered, what="the balance").json()["balance"])

    def place_order(self, user_id: str, amount: int) -> str | None:
        """Place an order, and return its path, or None if it was not accepted."""
        body = {"user_id": user_id, "amount": amount}
        try:
            answer = requests.post(f"{self.orders}/orders", json=body, timeout=REQUEST_TIMEOUT_S)
        except requests.RequestException:
            return None
        return answer.headers["Location"] if answer.status_code == 202 else None

    def order_status(self, path: str) -> str:
        answer = requests.get(f"{self.orders}{path}", timeout=REQUEST_TIMEOUT_S)
        # a failed assertion makes wait_until try again
        assert answer.status_code == 200, answer.text
        return str(answer.json()["status"])

    def wait_settled(self, paths: list[str], *, timeout_s: float = 90) -> list[str]:
        """Wait until every order has a final status, and return the statuses."""
        final: dict[str, str] = {}

        def all_settled() -> bool:
            for path in paths:
                status = final.get(path) or self.order_status(path)
                if status != "created":
                    final[path] = status
            assert len(final) == len(paths), f"{len(final)} of {len(paths)}"
            return True

        try:
            wait_until(all_settled, timeout_s=timeout_s, what="every order to settle")
        except AssertionError as error:
            error.add_note(self._last_states_and_logs())
            raise
        return [final[path] for path in paths]

    def _last_states_and_logs(self, *, lines: int = 40) -> str:
        """Return the state and the last log lines of each process, to find the one that failed."""
        report = [self.settle("status").stdout]
        for process in (*WORKERS, BROKER):
            log = StateFolder(self.home).logs / f"{process}.log"
            said = log.read_text(errors="replace").splitlines()[-lines:]
            report += [f"--- {process}", *said]
        return "\n".join(report)

    def discard(self) -> None:
        """Stop the stack, and remove its data."""
        done = self.settle("reset", "--yes")
        left = self.running()
        shutil.rmtree(self.home, ignore_errors=True)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        assert left == []


class Load:
    """Place small orders one after the other, in the background, until the context ends."""

    def __init__(self, stack: Stack, user_id: str, amount: int) -> None:
        self.accepted: list[str] = []
        self._stack, self._user_id, self._amount = stack, user_id, amount
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(0.02):  # a light load is enough to find a lost order
            path = self._stack.place_order(self._user_id, self._amount)
            if path is not None:
                self.accepted.append(path)

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: len(self.accepted) > 5, what="the load to start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
