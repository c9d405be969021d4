"""Bodies that are expensive to parse cost the deployed server little memory and time.

Most bodies are nearly as large as the limit allows. There are as many clients as threads, and one
more client that requests /livez all the time.
"""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import requests

from shared.settings import DEFAULT_THREADS as THREADS
from shared.web.json_body import MAX_BYTES
from support.web import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow

WORKERS = 2
CLIENTS = WORKERS * THREADS
MEMORY_MAX_KB = 200 * 1024
# The slowest answer takes about one second on an idle machine. But other tests may run as well.
LIVEZ_MAX_S = 5.0

JSON = {"Content-Type": "application/json"}
EMOJI = "\U0001f600".encode()


def order(value: bytes) -> bytes:
    """Return a valid order with an additional field."""
    return b'{"user_id": "%s", "amount": 1, "x": %s}' % (str(uuid4()).encode(), value)


def array(item: bytes, *, size: int = 120_000) -> bytes:
    """Return an array of about `size` bytes that repeats one item."""
    return b"[" + b",".join([item] * (size // (len(item) + 1))) + b"]"


def names(value: bytes, *, distinct: int) -> bytes:
    """Return an object of 10,000 members, with this number of distinct names."""
    return b"{" + b",".join(b'"%x":%s' % (n % distinct, value) for n in range(10_000)) + b"}"


def nested(value: bytes) -> bytes:
    """Return a value inside 25 objects, whose names are three times as long in a JSON Pointer."""
    return (b'{"' + EMOJI * 100 + b'":') * 25 + value + b"}" * 25


# Bodies, each with the expected status.
BODIES = {
    "empty arrays": (order(array(b"[]")), 202),
    "empty objects": (order(array(b"{}")), 202),
    "arrays in arrays": (order(array(b"[[0]]")), 202),
    "objects in objects": (order(array(b'{"":{}}')), 202),
    "strings": (order(array(b'""')), 202),
    "escapes": (order(b'"' + b"\\u0000" * 20_000 + b'"'), 202),
    "names": (order(names(b"[]", distinct=10_000)), 202),
    "duplicate names": (order(names(b"[]", distinct=5_000)), 422),
    "one name": (order(names(b"[]", distinct=1)), 422),
    "long names around arrays": (order(nested(array(b"[]", size=100_000))), 202),
    "long names around duplicate names": (
        order(nested(array(b'{"a":1,"a":1}', size=100_000))),
        422,
    ),
    "numbers of 4,300 digits": (order(array(b"9" * 4300)), 202),
    "a number of 120,000 digits": (order(b"9" * 120_000), 422),
    "a fraction of 120,000 digits": (order(b"0." + b"9" * 120_000), 202),
    "an exponent of 120,000 digits": (order(b"1e" + b"9" * 120_000), 422),
    "too deep": (b"[" * MAX_BYTES, 400),
    "too deep, by objects": (b'{"":' * 30_000, 400),
    "a string that does not end": (b'"' + b'\\"' * 60_000, 400),
    "too large": (b" " * (MAX_BYTES + 1), 413),
}


@pytest.fixture(scope="module")
def health_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("health")


@pytest.fixture(scope="module")
def url(
    database_url: str, health_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Start the API in gunicorn, and yield its URL. Its process id is in a health file."""
    log = tmp_path_factory.mktemp("gunicorn") / "orders-api.log"
    process_name = {"HEALTH_DIR": str(health_dir), "SUPERVISOR_PROCESS_NAME": "orders-api"}
    with serve("orders", database_url, log, **process_name) as address:
        yield address


def peak_memory_kb(health_dir: Path) -> list[int]:
    """Return the peak resident memory of each worker (proc(5), VmHWM)."""
    master = json.loads((health_dir / "orders-api.json").read_text())["pid"]
    workers = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    assert len(workers) == WORKERS
    peaks = []
    for worker in workers:
        status = Path(f"/proc/{worker}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        peaks.append(int(line.split()[1]))
    return peaks


@contextmanager
def probing(url: str) -> Iterator[list[float]]:
    """Request /livez continuously, and yield the list of the response times in seconds."""
    took: list[float] = []
    over = threading.Event()

    def probe() -> None:
        while not over.is_set():
            began = time.monotonic()
            assert requests.get(f"{url}/livez", timeout=30).ok
            took.append(time.monotonic() - began)

    with ThreadPoolExecutor(1) as pool:
        probes = pool.submit(probe)
        try:
            yield took
        finally:
            over.set()
            probes.result()


def test_expensive_bodies_cost_little_time_and_memory(url: str, health_dir: Path) -> None:
    def post(name: str) -> tuple[str, int, int]:
        body, _ = BODIES[name]
        answer = requests.post(f"{url}/orders", data=body, headers=JSON, timeout=60)
        return name, answer.status_code, len(answer.content)

    with probing(url) as took, ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(post, [*BODIES] * 4))

    assert {name: status for name, status, _ in answers} == {
        name: status for name, (_, status) in BODIES.items()
    }
    assert max(size for _, _, size in answers) < 50_000
    assert max(took) < LIVEZ_MAX_S
    assert max(peak_memory_kb(health_dir)) < MEMORY_MAX_KB
