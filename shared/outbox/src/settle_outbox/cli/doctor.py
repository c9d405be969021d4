"""The command outbox-doctor, which checks a service that uses settle_outbox."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from settle_outbox.checks.check import Level, worst
from settle_outbox.checks.service import check_service
from settle_outbox.cli.command import EXIT_FAILED, Command, report_errors, version_option
from settle_outbox.cli.common import service_argument
from settle_outbox.cli.terminal import printable
from settle_outbox.log import configure_logging
from settle_outbox.service import load_service

if TYPE_CHECKING:
    from collections.abc import Iterable

    from settle_outbox.checks.check import Finding

COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}
EXIT_CODES = "Exit codes: 0 nothing fails; 1 something does; 2 wrong usage."

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
strict_option = click.option("--strict", is_flag=True, help="Exit with 1 for a warning, too.")


@click.command(cls=Command, epilog=EXIT_CODES)
@version_option("settle-outbox")
@service_argument
@strict_option
@json_option
@report_errors
def main(service: str, *, strict: bool, as_json: bool) -> None:
    r"""Check SERVICE: its database, topics, consumer group and clocks. Nothing is changed.

    Prints a line per check, with what to do about a fault. Settings come from the environment, as
    for outbox-relay and inbox-consumer. A server that does not answer is given up after 20 s.

    \b
    Example: outbox-doctor payments
    """
    configure_logging(level="CRITICAL", form="auto")  # a fault is reported by a check
    print_findings(check_service(load_service(service).name), strict=strict, as_json=as_json)


def print_findings(findings: Iterable[Finding], *, strict: bool, as_json: bool) -> None:
    """Print findings. End the process with exit code 1 if one fails.

    Args:
        findings: of the checks.
        strict: end with 1 for a warning as well.
        as_json: print one JSON list at the end, instead of each finding at once.
    """
    seen = []
    for finding in findings:
        seen.append(finding)
        if not as_json:
            click.echo(_line(finding))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in seen], indent=2))
    if worst(seen) is Level.FAIL or (strict and worst(seen) is Level.WARN):
        sys.exit(EXIT_FAILED)


def _line(finding: Finding) -> str:
    verdict = click.style(f"{finding.verdict:<4}", fg=COLOURS[finding.verdict])
    remedy = f" -> {finding.remedy}" if finding.remedy else ""
    return f"{verdict}  {printable(f'{finding.name:<25} {finding.found}{remedy}')}"
