"""Run a Dockerfile's steps in a folder, on a machine without Docker."""

from __future__ import annotations

import fnmatch
import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A command that changes the machine and not the folder. It is not run, but kept for the test.
MACHINE_STEP = "useradd"


@dataclass
class Build:
    """The files of an image, as its steps created them in a folder.

    Args:
        context: The folder that COPY copies from, without the files that .dockerignore excludes.
        root: The folder that represents the image's root.
    """

    context: Path
    root: Path
    base: str = ""
    user: str = ""
    workdir: str = "/"
    command: list[str] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)
    machine_steps: list[str] = field(default_factory=list)

    def run(self, dockerfile: Path) -> None:
        """Run every instruction. Fail at an unknown one."""
        for line in _instructions(dockerfile.read_text(encoding="utf-8")):
            name, _, rest = line.partition(" ")
            getattr(self, f"_{name.lower()}")(rest.strip())

    def here(self, path: str) -> Path:
        """Return where a path of the image is, below `root`."""
        return self.root / path.lstrip("/")

    def environment(self) -> dict[str, str]:
        """Return the environment of a process in the image.

        It has few variables of the machine: only those that a process needs to run.
        """
        kept = {
            name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL"))
        }
        path = self.environ.get("PATH", "").replace("$PATH", os.environ["PATH"])
        return kept | self.environ | {"PATH": self._mapped(path), "HOME": str(self.root)}

    def shell(self, command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command line in the image's folder, and fail if the command fails."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self._mapped(command)],
            cwd=self.here(self.workdir),
            env=self.environment() | environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def _mapped(self, text: str) -> str:
        for folder in ("/opt/settle", "/srv/settle"):
            text = text.replace(folder, str(self.here(folder)))
        return text

    def _from(self, rest: str) -> None:
        self.base = rest

    def _label(self, _rest: str) -> None:
        """Change no file."""

    def _workdir(self, rest: str) -> None:
        self.workdir = rest
        self.here(rest).mkdir(parents=True, exist_ok=True)

    def _env(self, rest: str) -> None:
        self.environ |= dict(word.split("=", 1) for word in shlex.split(rest))

    def _user(self, rest: str) -> None:
        self.user = rest

    def _cmd(self, rest: str) -> None:
        self.command = json.loads(rest)

    def _copy(self, rest: str) -> None:
        *sources, target = shlex.split(rest)
        for source in sources:
            place = self.here(self.workdir) / target
            if target.endswith("/"):
                place = place / source
            assert not self._ignored(source), f"COPY {source}: .dockerignore excludes it"
            if (self.context / source).is_dir():
                shutil.copytree(
                    self.context / source,
                    place,
                    dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("__pycache__"),
                )
            else:
                shutil.copy2(self.context / source, place)

    def _ignored(self, source: str) -> bool:
        ignored = False
        for pattern in (self.context / ".dockerignore").read_text().split():
            if fnmatch.fnmatch(source, pattern.removeprefix("!")):
                ignored = not pattern.startswith("!")
        return ignored

    def _run(self, rest: str) -> None:
        if MACHINE_STEP in rest:
            self.machine_steps.append(rest)
            return
        # The Python of the tests stands for the Python of the image.
        self.shell(rest.replace("python -m venv", f"{shlex.quote(sys.executable)} -m venv"))


def _instructions(text: str) -> Iterator[str]:
    whole = ""
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        whole += line.rstrip("\\") if line.endswith("\\") else line
        if not line.endswith("\\"):
            yield " ".join(whole.split())
            whole = ""
