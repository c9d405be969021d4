"""Structured logs: static event names with key-values; JSON unless a person watches."""

from __future__ import annotations

import io
import logging
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO, cast

import structlog

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Libraries whose own lines repeat, many times over, what this project says once.
_QUIET = {"kafka": logging.CRITICAL, "alembic": logging.WARNING, "urllib3": logging.WARNING}


# Characters of a value, or of a line of a text: much of it comes from clients and topics, and what
# they send must not push everything else out of the logs. Lines of a text.
VALUE_MAX = 200
LINES_MAX = 200
# These may have many lines: tracebacks, and a library's own words.
_TEXTS = frozenset({"event", "exception", "stack"})
_SHORT = frozenset({int, float, bool, type(None)})


class _Output(io.TextIOBase):
    """Standard error, where a line that cannot be written is lost, and nothing else.

    A full disk, or a supervisor that died and left a pipe that nobody reads, must not fail what
    the line tells of: an event would be parked for it, or a request refused.
    """

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()


_output = cast("TextIO", _Output())


def configure_logging(*, level: str, form: str) -> None:
    """Send every log line of the process, libraries' included, to stderr in one form.

    Args:
        level: the least severe level shown.
        form: ``json``, ``console``, or ``auto``: console on a terminal.
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    describing: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.MaybeTimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.StackInfoRenderer(),
    ]
    rendering = _console() if console else _json()
    # Straight to stderr: by way of `logging` a line takes 20 us, so 9; a request writes one.
    structlog.configure(
        processors=[*describing, *rendering],
        logger_factory=structlog.WriteLoggerFactory(_output),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
    )
    _configure_libraries(level, [*describing, structlog.stdlib.add_logger_name], rendering)


def write_together(event: str, lines: Iterable[tuple[int, Mapping[str, object]]]) -> None:
    """Write several lines of one event with a single system call.

    Args:
        event: its name.
        lines: the level and the key-values of each, ``at`` among them.
    """
    renderer = structlog.wrap_logger(structlog.ReturnLogger())
    rendered = (renderer.log(level, event, **values) for level, values in lines)
    text = "".join(f"{line}\n" for line in rendered if line is not None)
    if text:
        _output.write(text)


def _json() -> list[structlog.typing.Processor]:
    return [
        structlog.processors.format_exc_info,
        _bound,
        structlog.processors.JSONRenderer(default=str),
    ]


def _console() -> list[structlog.typing.Processor]:
    return [
        _escape,
        structlog.processors.format_exc_info,
        _bound,
        structlog.dev.ConsoleRenderer(
            timestamp_key="at",
            colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"),
            # The fancy kind shows local variables, and secrets among them.
            exception_formatter=structlog.dev.plain_traceback,
        ),
    ]


def _escape(
    _: object, __: str, event_dict: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Keep what a client sent, a path say, from steering the terminal."""
    return {
        key: repr(value) if isinstance(value, str) and not value.isprintable() else value
        for key, value in event_dict.items()
    }


def _bound(
    _: object, __: str, event_dict: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Cut every value that is long."""
    for key, value in event_dict.items():
        kind = type(value)
        if kind in _SHORT or (kind is str and len(value) <= VALUE_MAX):
            continue
        event_dict[key] = _bound_lines(str(value)) if key in _TEXTS else _bound_value(value)
    return event_dict


def _bound_value(value: object) -> object:
    """A value of at most `VALUE_MAX` characters; of several, each."""
    if type(value) in _SHORT:
        return value
    if isinstance(value, list | tuple):
        return [_bound_value(each) for each in value]
    text = str(value)
    return text if len(text) <= VALUE_MAX else f"{text[: VALUE_MAX - 1]}\N{HORIZONTAL ELLIPSIS}"


def _bound_lines(text: str) -> str:
    """A text's first and last lines: a traceback begins with the cause, and ends with the error."""
    lines = text.split("\n")
    if len(lines) > LINES_MAX:
        half = LINES_MAX // 2
        lines = [*lines[:half], f"({len(lines) - 2 * half} lines left out)", *lines[-half:]]
    return "\n".join(str(_bound_value(line)) for line in lines)


def _configure_libraries(
    level: str,
    describing: list[structlog.typing.Processor],
    rendering: list[structlog.typing.Processor],
) -> None:
    """Give the lines of `logging` the form that ours have."""
    handler = logging.StreamHandler(_output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=describing,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    for name, quiet in _QUIET.items():
        logging.getLogger(name).setLevel(quiet)
