"""Writes gunicorn's log lines in the format of all other lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gunicorn import glogging

from settle_outbox.log import configure_logging
from settle_outbox.settings import SettingsError, read_log_settings

if TYPE_CHECKING:
    from gunicorn.config import Config


class Logger(glogging.Logger):  # type: ignore[misc]  # it has no type information
    """Passes gunicorn's lines to structlog."""

    def setup(self, cfg: Config) -> None:
        """Set up the logs of the process.

        Raises:
            RuntimeError: a setting is invalid. gunicorn prints the message and exits.
        """
        self.cfg = cfg
        try:
            level, form = read_log_settings()
        except SettingsError as error:
            raise RuntimeError(str(error)) from error
        configure_logging(level=level, form=form)
        # gunicorn turns this off. Its access log stays off, because the app logs the requests.
        self.error_log.propagate = True
