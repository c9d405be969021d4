"""Structured logs: static event names with key-value pairs, as JSON or for a terminal."""

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

# Libraries that log many times what this project logs once.
_QUIET = {"kafka": logging.CRITICAL, "alembic": logging.WARNING, "urllib3": logging.WARNING}


# Maximum characters of a value, or of a line of a text. Clients and topics are the source of many
# values, and must not fill the logs.
VALUE_MAX = 200
# Maximum lines of a text.
LINES_MAX = 200
# Keys whose values may have many lines, such as tracebacks.
_TEXTS = frozenset({"event", "exception", "stack"})
# Types whose values are never cut.
_SHORT_TYPES = frozenset({int, float, bool, type(None)})


class _Output(io.TextIOBase):
    """Standard error. A line that cannot be written is dropped.

    A full disk or a dead supervisor must not fail the work that is logged. Otherwise an event would
    become a dead letter, or a request would fail, because of a log line.
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
    """Write all log lines of the process, including those of libraries, to stderr in one form.

    Args:
        level: the minimum level.
        form: ``json``, ``console``, or ``auto``, which is console on a terminal and json elsewhere.
    """
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    describing: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.MaybeTimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.StackInfoRenderer(),
    ]
    rendering = _console() if console else _json()
    # Write to stderr directly, because each HTTP request writes a line. `logging` would take twice
    # the time (benchmarks/README.md).
    structlog.configure(
        processors=[*describing, *rendering],
        logger_factory=structlog.WriteLoggerFactory(_output),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
    )
    _configure_libraries(level, [*describing, structlog.stdlib.add_logger_name], rendering)


def write_together(event: str, lines: Iterable[tuple[int, Mapping[str, object]]]) -> None:
    """Write several lines of one event with one system call.

    Args:
        event: the name of the event.
        lines: the level and the key-value pairs of each line, including ``at``.
    """
    renderer = structlog.wrap_logger(structlog.ReturnLogger()).bind()
    rendered = (renderer.log(level, event, **values) for level, values in lines)
    text = "".join(f"{line}\n" for line in rendered if line is not None)
    if text:
        _output.write(text)


def _json() -> list[structlog.typing.Processor]:
    return [
        structlog.processors.format_exc_info,
        _cut_long_values,
        structlog.processors.JSONRenderer(default=str),
    ]


def _console() -> list[structlog.typing.Processor]:
    return [
        _escape,
        structlog.processors.format_exc_info,
        _cut_long_values,
        structlog.dev.ConsoleRenderer(
            timestamp_key="at",
            colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"),
            # Other formatters show local variables, which may be secrets.
            exception_formatter=structlog.dev.plain_traceback,
        ),
    ]


def _escape(
    _: object, __: str, event_dict: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Escape control characters. A client's value, such as a path, must not reach the terminal."""
    return {
        key: repr(value) if isinstance(value, str) and not value.isprintable() else value
        for key, value in event_dict.items()
    }


def _cut_long_values(
    _: object, __: str, event_dict: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Cut the values that are longer than `VALUE_MAX` or `LINES_MAX`."""
    for key, value in event_dict.items():
        value_type = type(value)
        if value_type in _SHORT_TYPES or (value_type is str and len(value) <= VALUE_MAX):
            continue
        event_dict[key] = _cut_lines(str(value)) if key in _TEXTS else _cut_value(value)
    return event_dict


def _cut_value(value: object) -> object:
    """Cut a value to `VALUE_MAX` characters. In a list, cut each item."""
    if type(value) in _SHORT_TYPES:
        return value
    if isinstance(value, list | tuple):
        return [_cut_value(item) for item in value]
    text = str(value)
    return text if len(text) <= VALUE_MAX else f"{text[: VALUE_MAX - 1]}\N{HORIZONTAL ELLIPSIS}"


def _cut_lines(text: str) -> str:
    """Keep the first and last lines of a text. A traceback has the cause first, the error last."""
    lines = text.split("\n")
    if len(lines) > LINES_MAX:
        half = LINES_MAX // 2
        lines = [*lines[:half], f"({len(lines) - 2 * half} lines left out)", *lines[-half:]]
    return "\n".join(str(_cut_value(line)) for line in lines)


def _configure_libraries(
    level: str,
    describing: list[structlog.typing.Processor],
    rendering: list[structlog.typing.Processor],
) -> None:
    """Write the lines of `logging` in the form of structlog's lines."""
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
