"""Run schemathesis against a running service, and count the answers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def run(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Test a service against its description, with all checks of schemathesis and those in `hooks`.

    Args:
        url: The URL of the service.
        options: Further options of ``schemathesis run``, such as ``--max-examples``.
    """
    return subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            *("--config-file", str(FOLDER / "schemathesis.toml")),
            *("run", f"{url}/openapi.json", "--checks", "all", *options),
        ],
        cwd=FOLDER,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


def statuses(log: Path) -> Counter[int]:
    """Count the statuses of a service's answers in its JSON log.

    With LOG_LEVEL=INFO, the log has no requests to /livez and /readyz.
    """
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return Counter(line["status"] for line in lines if line.get("event") == "web.request")
