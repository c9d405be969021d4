"""systemd and a shell read the same values from a server's environment file."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
EXAMPLE = re.compile(
    r"cat > /etc/settle/environment <<'ENVIRONMENT'\n(.*?)ENVIRONMENT\n", re.DOTALL
)


def as_systemd_reads_it(text: str) -> dict[str, str]:
    """Read simple lines as systemd.exec(5) does: it only removes quotes around a value."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name: value.strip("'\"") for name, _, value in pairs}


def test_a_shell_reads_what_systemd_reads(tmp_path: Path) -> None:
    (example,) = (
        found
        for page in sorted(DOCS.rglob("*.md"))
        for found in EXAMPLE.findall(page.read_text(encoding="utf-8"))
    )
    (tmp_path / "environment").write_text(example, encoding="utf-8")

    done = subprocess.run(
        ["env", "-i", "/bin/sh", "-ec", "set -a; . ./environment; exec /usr/bin/env -0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )

    expected = as_systemd_reads_it(example)
    found = dict(pair.split("=", 1) for pair in done.stdout.split("\0") if pair)
    assert {name: found.get(name) for name in expected} == expected
    assert "&" in expected["PAYMENTS_DATABASE_URL"]
