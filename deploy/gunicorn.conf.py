"""How gunicorn runs an API: under supervisord, or alone in a container."""

import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from settle_outbox.settings import SettingsError
from shared.settings import ANY_HOST, read_listen_address, read_server_size, read_web_settings

log = structlog.get_logger(__name__)

# Variables by which a reload passes the open port and the old workers' pids to the new master.
SOCKET = "SETTLE_API_SOCKET"
OLD_WORKERS = "SETTLE_API_OLD_WORKERS"

try:
    bind = os.environ.get(SOCKET) or read_listen_address()
    workers, threads = read_server_size()
except SettingsError as error:
    sys.exit(str(error))
# This worker's own answers are problem documents.
worker_class = "shared.web.server.worker.Worker"
# gunicorn's lines obey LOG_LEVEL and LOG_FORMAT. The app logs the requests.
logger_class = "shared.web.server.logger.Logger"
# Maximum number of connections that wait until a worker accepts them.
backlog = 2048

# The app handles X-Forwarded-* (TRUSTED_PROXIES). gunicorn must not trust these headers.
forwarded_allow_ips = ""

# Maximum bytes of the first line and of a header, and maximum number of headers. Beyond them the
# answer is 414 or 431. shared/web/server/request_reader.py limits all headers together, and
# shared/web/json_body.py the body.
limit_request_line = 4094
limit_request_fields = 100
limit_request_field_size = 8190

# In seconds. At a stop, requests in progress have `graceful_timeout` to end; supervisord waits
# longer (stopwaitsecs).
graceful_timeout = 20
timeout = 30
keepalive = 5

# The control socket has one path per user, so the second of a user's two masters would fail.
control_socket_disable = True
# A worker updates a file to show that it is alive. On a busy disk that can block, so the file is in
# memory.
if Path("/dev/shm").is_dir():  # noqa: S108 - gunicorn creates its own folder in it
    worker_tmp_dir = "/dev/shm"  # noqa: S108


def on_starting(server: Any) -> None:
    """Refuse invalid settings with one sentence, before workers start and fail."""
    package, _, rest = server.app.app_uri.partition(".")
    if package == "services":
        try:
            settings = read_web_settings(rest.partition(".")[0])
        except SettingsError as error:
            server.log.error(str(error))  # noqa: TRY400 - the sentence says everything
            sys.exit(1)
        if ANY_HOST in settings.allowed_hosts and ANY_HOST not in os.environ.get(
            "ALLOWED_HOSTS", ""
        ):
            log.warning("web.any_host_allowed", remedy="set ALLOWED_HOSTS to the service's names")


def read_children(pid: int) -> list[str]:
    """Return the pids of the child processes of a process."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()


def on_reload(server: Any) -> None:
    """Load the installed code after SIGHUP, without closing the port.

    gunicorn would only fork new workers, which would keep the modules that the master has imported.
    So the master starts again in the same process, with the same pid and the same open port. The
    old workers serve until a new one is ready.

    Until the new master has its handlers, SIGHUP is ignored, because its default action would end
    the master. An exec resets the handlers of all other signals, so a SIGTERM in this time ends the
    master.
    """
    (listener,) = server.LISTENERS
    os.environ[SOCKET] = f"fd://{listener.fileno()}"
    # All children, because workers from before an earlier reload may still serve.
    os.environ[OLD_WORKERS] = " ".join(read_children(os.getpid()))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - no shell is wanted


def post_worker_init(worker: Any) -> None:
    """Stop the workers from before a reload. They finish their requests."""
    old = os.environ.get(OLD_WORKERS, "").split()
    if not old:
        return
    # Only children of the master: another process may have the pid of a worker that has ended.
    for pid in set(old) & set(read_children(worker.ppid)):
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGTERM)


def when_ready(server: Any) -> None:
    """Write the pid of this master for `settle`, if supervisord runs it.

    After a master is killed, its workers still answer on the port for a moment. The file shows that
    the new master has the port.
    """
    directory = os.environ.get("HEALTH_DIR")
    program = os.environ.get("SUPERVISOR_PROCESS_NAME")
    if not directory or not program:
        return
    try:
        Path(directory, f"{program}.json").write_text(
            json.dumps({"pid": os.getpid()}), encoding="ascii"
        )
    except OSError as error:
        server.log.error("HEALTH_DIR is %r: cannot write to it (%s)", directory, error.strerror)  # noqa: TRY400
        sys.exit(1)
