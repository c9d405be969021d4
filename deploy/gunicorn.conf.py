"""How gunicorn runs either API; supervisord.conf gives the port."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import structlog

from settle_outbox.settings import SettingsError
from shared.settings import ANY_HOST, read_web_settings
from shared.web.app import THREADS

log = structlog.get_logger(__name__)

_host = os.environ.get("BIND_ADDRESS", "127.0.0.1").strip("[]")
# gunicorn knows an IPv6 address by its brackets.
bind = f"{f'[{_host}]' if ':' in _host else _host}:{os.environ['PORT']}"
# gthread, answering in problem documents where gunicorn answers itself.
worker_class = "shared.web.server.worker.Worker"
# Its lines in the form of ours, by LOG_LEVEL and LOG_FORMAT; the app logs the requests.
logger_class = "shared.web.server.worker.Logger"
workers = 2
threads = THREADS
# Requests beyond the threads wait here; they are not refused.
backlog = 2048

# X-Forwarded-* and the like are the app's matter (TRUSTED_PROXIES): gunicorn believes nobody.
forwarded_allow_ips = ""

# Bytes of a request's first line, its headers, and bytes of each; what is more is 414 or 431. For
# all of them together, shared/web/server/request_reader.py has a limit; for the body,
# shared/web/json_body.py.
limit_request_line = 4094
limit_request_fields = 100
limit_request_field_size = 8190

# Seconds. A request under way at a stop may end; supervisord waits longer than this.
graceful_timeout = 20
timeout = 30
keepalive = 5

# Its default path is the user's, the same for every master: the second would fail.
control_socket_disable = True
# Workers touch a file to show they live; on a busy disk that can stall.
if Path("/dev/shm").is_dir():  # noqa: S108 - a folder of gunicorn's own is made in it
    worker_tmp_dir = "/dev/shm"  # noqa: S108


def on_starting(server: Any) -> None:
    """Refuse wrong settings with a sentence, before there are workers to fail over them."""
    package, _, rest = server.app.app_uri.partition(".")
    if package == "services":
        try:
            settings = read_web_settings(rest.partition(".")[0])
        except SettingsError as error:
            server.log.error(str(error))  # noqa: TRY400 - the sentence tells all
            sys.exit(1)
        if ANY_HOST in settings.allowed_hosts and ANY_HOST not in os.environ.get(
            "ALLOWED_HOSTS", ""
        ):
            log.warning("web.any_host_allowed", remedy="set ALLOWED_HOSTS to the service's names")


def when_ready(_server: Any) -> None:
    """Tell `settle` that this master has the port.

    For a moment after a master is killed, its workers hold the port and answer in its place.
    """
    directory = os.environ.get("HEALTH_DIR")
    if directory:
        path = Path(directory, f"{os.environ['SUPERVISOR_PROCESS_NAME']}.json")
        path.write_text(json.dumps({"pid": os.getpid()}), encoding="ascii")
