"""A container without a container engine: a process in Linux namespaces, as Kubernetes starts it.

The container has a read-only root, an unprivileged user without capabilities, temporary folders
from which nothing can be executed, its own process ids, and no supervisord.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from support.system import children, send
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
USER = ["setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", "--no-new-privs"]
USER += ["--bounding-set=-all", "--inh-caps=-all"]
# Arguments: the checkout, which is the image's workdir; Python's folder; the folder of the secrets.
# In the container, /root and /tmp are empty. The checkout and Python may be in one of them, so they
# are mounted a second time at their old paths.
SETUP = """
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /srv
mkdir /srv/settle
mount --bind "$1" /srv/settle
mount -t tmpfs -o noexec,nosuid,nodev,mode=755 tmpfs /run
mkdir -p /run/settle /run/python /run/secrets/settle
chown 10001:10001 /run/settle
cp "$3"/* /run/secrets/settle/
mount --bind "$2" /run/python
mount -t tmpfs -o mode=755 tmpfs /root
mount -t tmpfs -o noexec,nosuid,nodev tmpfs /tmp
mkdir -p "$1" "$2"
mount --bind /srv/settle "$1"
mount --bind /run/python "$2"
for folder in / /srv/settle "$1" "$2"; do mount -o remount,bind,ro "$folder"; done
cd /srv/settle
shift 3
exec "$@"
"""


class Container:
    """One container of a manifest, started.

    Args:
        manifest: a Deployment, or another manifest with the template of a Pod.
        settings: the variables of its ConfigMap.
        secrets: the folder of its Secret.
        log: the file for the output of the container.
    """

    def __init__(
        self, manifest: dict[str, Any], settings: Mapping[str, str], secrets: Path, log: Path
    ) -> None:
        self.pod: dict[str, Any] = manifest["spec"]["template"]["spec"]
        (self.spec,) = self.pod["containers"]
        self._environ = {
            # In the image, the first of these folders is /opt/settle/bin.
            "PATH": f"{sysconfig.get_path('scripts')}:/usr/bin:/bin",
            "PYTHONDONTWRITEBYTECODE": "1",
            **settings,
        }
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *("unshare", "--mount", "--pid", "--fork", "--mount-proc"),
                    *("bash", "-c", SETUP, "setup", str(ROOT), sys.base_prefix, str(secrets)),
                    *(*USER, *self.spec["command"], *self.spec["args"]),
                ],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # All processes of a pid namespace end with its first one.
        send(children(self._process.pid), signal.SIGKILL)
        self._process.wait(30)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as a probe or `kubectl exec` does."""
        (first,) = children(self._process.pid)
        inside = ["nsenter", "--target", str(first), "--mount", "--pid"]
        in_workdir = ["bash", "-c", 'cd /srv/settle && exec "$@"', "bash"]
        return subprocess.run(
            [*inside, *USER, *in_workdir, *command],
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def wait_started(self) -> None:
        """Wait until the startup probe passes."""
        probe = self.spec["startupProbe"]

        def passes() -> bool:
            assert self._process.poll() is None, "the container has ended"
            done = self.run(*probe["exec"]["command"])
            assert done.returncode == 0, done
            return True

        limit_s = probe["periodSeconds"] * probe["failureThreshold"]
        wait_until(passes, timeout_s=limit_s, what="the startup probe")

    def stop(self) -> None:
        """Send SIGTERM to the first process of the container."""
        send(children(self._process.pid), signal.SIGTERM)

    def wait(self) -> int:
        """Wait for the end, and return the exit code. Fail after the Pod's grace period."""
        return self._process.wait(self.pod.get("terminationGracePeriodSeconds", 30))


def require_namespaces() -> None:
    """Skip the test if Linux namespaces cannot be created here."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("containers are simulated with unshare, by root")
