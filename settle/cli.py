"""The command `settle`: the whole stack on one machine."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sys
import sysconfig
import time
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from settle.audit.print_report import print_report
from settle.audit.run import SECOND_LOOK_S
from settle.audit.run import audit as run_audit
from settle.audit.targets import find_settings
from settle.demo import Demo
from settle.doctor.examine import configured_services, examine
from settle.progress import shown_steps
from settle.stack.databases import create_database
from settle.stack.definition import BOOTSTRAP, running_stack
from settle.stack.down import take_down
from settle.stack.logs import NAMES, find_logs, follow, last_lines
from settle.stack.reset import reset as remove_all
from settle.stack.state import find_state, open_state
from settle.stack.status import read_status
from settle.stack.supervisor import Supervisor
from settle.stack.up import bring_up
from settle.trace.command import orders, trace
from settle_outbox.cli import doctor as service_doctor
from settle_outbox.cli.command import (
    EXIT_FAILED,
    EXPECTED,
    Group,
    error_sentence,
    fail,
    report_errors,
    version_option,
)
from settle_outbox.cli.terminal import printable
from settle_outbox.errors import SettleError
from settle_outbox.log import configure_logging
from settle_outbox.service import load_service, service_names
from settle_outbox.settings import service_variable

if TYPE_CHECKING:
    from settle.stack.definition import Stack
    from settle.stack.logs import Line

EXIT_NOT_AUDITED = 3  # an audit that could not read everything
NAME_COLOURS = ("cyan", "magenta", "green", "yellow", "blue")


@click.group(cls=Group)
@version_option("settle")
def main() -> None:
    r"""Run both services, and the servers that they need, on this machine.

    Docker is not needed: PostgreSQL and a broker come from Python packages. To use other servers,
    set PAYMENTS_DATABASE_URL, ORDERS_DATABASE_URL or KAFKA_BOOTSTRAP_SERVERS.
    BROKER=kafka runs Apache Kafka instead; it needs Java 17 or later, and Maven.

    \b
    Ports: PAYMENTS_PORT (8080), ORDERS_PORT (8081), POSTGRES_PORT (15432), KAFKA_PORT (19092).
    All data is in one folder: .settle, or the folder that SETTLE_HOME names.

    \b
    Examples:
      settle up
      settle logs orders-relay --follow
      settle doctor
    """


@main.command()
@report_errors
def up() -> None:
    r"""Start everything, and return when all of it is ready.

    On a running stack, start what has stopped, and restart what runs older code than the files.
    Migrates both databases. If you interrupt it, it stops a stack that did not run before.

    \b
    Example: settle up
    Example: PAYMENTS_PORT=9080 ORDERS_PORT=9081 settle up
    Example: BROKER=kafka settle up
    """
    configure_logging(level="WARNING", form="auto")
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores SIGHUP
            signal.signal(number, signal.default_int_handler)
    began = time.monotonic()
    with shown_steps() as steps:
        stack = bring_up(open_state(), steps)
    click.echo(f"\nSettle is up after {time.monotonic() - began:.1f} s.\n")
    click.echo(_next_steps(stack))


def _next_steps(stack: Stack) -> str:
    settle = _displayed_command("settle")
    payments, orders = stack.base_url("payments"), stack.base_url("orders")
    return f"""\
  payments   {payments}   (documentation: {payments}/docs)
  orders     {orders}   (documentation: {orders}/docs)
  logs       {stack.state.logs}

Try next:
  {settle} demo
  {settle} logs --follow
  {settle} status
  curl -i {shlex.quote(payments)}/accounts -H 'Content-Type: application/json' \\
       -d '{{"user_id": "{uuid.uuid4()}"}}'
  curl {shlex.quote(orders)}/orders
  {settle} down"""


@main.command()
@report_errors
def down() -> None:
    r"""Stop everything. Data stays; open orders settle after the next start.

    If nothing runs, this is not an error.

    \b
    Example: settle down
    """
    stopped = take_down(open_state(), click.echo)
    click.echo("Settle is down." if stopped else "Settle is not running.")


@main.command(
    epilog="Exit codes: 0 all ready; 1 something is not ready; 2 wrong usage; 3 nothing runs."
)
@service_doctor.json_option
@report_errors
def status(*, as_json: bool) -> None:
    r"""Show every process: state, pid, uptime, address.

    \b
    Example: settle status
    Example: settle status --json
    """
    found = read_status(open_state())
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2))
    else:
        for line in found.as_lines():
            click.echo(printable(line))
    sys.exit(found.health)


@main.command()
@report_errors
def demo() -> None:
    r"""Open an account, deposit, and place two orders. One is paid, one fails: too little money.

    \b
    Example: settle demo
    """
    Demo(_running(), click.echo).run()


@main.command()
@click.argument("name", metavar="SERVICE")
@report_errors
def database(name: str) -> None:
    r"""Create a database for your own service, and print the settings for it and the broker.

    The database is on the embedded PostgreSQL, with a role of the same name. An existing database
    is kept. To set the variables in a shell, run: eval "$(settle database NAME)".

    \b
    Example: settle database notifications
    """
    stack = _running()
    if stack.cluster is None:
        raise SettleError("This stack uses your own PostgreSQL: create the database there.")
    url = create_database(stack.cluster, stack.ports["POSTGRES_PORT"], name)
    click.echo(f"export {service_variable(name, 'DATABASE_URL')}={shlex.quote(url)}")
    click.echo(f"export {BOOTSTRAP}={shlex.quote(stack.bootstrap)}")


def _running() -> Stack:
    state = open_state()
    stack = running_stack(state)
    if stack is None or Supervisor(state.socket).pid() is None:
        raise SettleError(f"Settle is not running: run {_displayed_command('settle')} up first.")
    return stack


@main.command(
    epilog="Exit codes: 0 nothing is wrong; 1 something is; 2 wrong usage; 3 it could not read"
    " everything; 130 interrupted."
)
@click.option(
    "--second-look",
    "second_look_s",
    default=SECOND_LOOK_S,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(0, 3600),
    help="Time that an event under way may take before it counts as wrong.",
)
@service_doctor.json_option
@report_errors
def audit(second_look_s: float, *, as_json: bool) -> None:
    r"""Reconcile both databases and both topics: is everything delivered and paid exactly once?

    It only reads, and may run while orders are placed. It reads the servers that
    PAYMENTS_DATABASE_URL, ORDERS_DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS name. If they are not
    set, it reads the stack that runs here.

    \b
    Example: settle audit
    Example: settle audit --json --second-look 60
    """
    try:
        with shown_steps(err=True) as steps:
            report = run_audit(**find_settings(), second_look_s=second_look_s, steps=steps)
    except EXPECTED as error:
        fail(error_sentence(error), code=EXIT_NOT_AUDITED)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        print_report(report)
    if not report.clean:
        sys.exit(EXIT_FAILED)


def _complete_process(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in NAMES if name.startswith(incomplete)]


@main.command()
@click.argument("process", required=False, shell_complete=_complete_process)
@click.option("-f", "--follow", "following", is_flag=True, help="Print new lines, until Ctrl-C.")
@click.option(
    "-n",
    "lines",
    default=100,
    show_default=True,
    type=click.IntRange(0, 1_000_000),
    help="Number of last lines to begin with.",
)
@report_errors
def logs(process: str | None, lines: int, *, following: bool) -> None:
    r"""Show the log of PROCESS, or of all processes, merged by time.

    PROCESS is a name that settle status shows. It also shows the folder of the files.

    \b
    Example: settle logs orders-relay --follow
    Example: settle logs -n 1000 | grep 7808585c-4dcb-4d25-9750-7095259f0bbf
    """
    found = find_logs(open_state(), process)
    log_line = partial(_log_line, alone=process is not None)
    try:
        for line in last_lines(found, lines):
            click.echo(log_line(line))
        if following:
            for line in follow(found):
                click.echo(log_line(line))
    except KeyboardInterrupt:
        return  # the way to stop --follow


def _log_line(line: Line, *, alone: bool) -> str:
    text = printable(line.text)
    if alone:
        return text
    colour = NAME_COLOURS[NAMES.index(line.process) % len(NAME_COLOURS)]
    width = max(map(len, NAMES))
    return f"{click.style(f'{line.process:<{width}}', fg=colour)}  {text}"


@main.command()
@click.option("--yes", is_flag=True, help="Do not ask; for scripts.")
@report_errors
def reset(*, yes: bool) -> None:
    r"""Stop everything, and remove all data: accounts, orders, topics, logs.

    \b
    Example: settle reset
    Example: settle reset --yes
    """
    state = open_state()
    if not yes:
        click.confirm(f"Remove every account, order and log in {state.home}?", abort=True)
    removed = remove_all(state, click.echo)
    for path in removed:
        click.echo(f"Removed {path}")
    if not removed:
        click.echo("There is nothing to remove.")


def _complete_service(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in service_names() if name.startswith(incomplete)]


@main.command(epilog=service_doctor.EXIT_CODES)
@click.argument("service", required=False, shell_complete=_complete_service)
@click.option("--quick", is_flag=True, help="Only check what keeps the stack from starting.")
@service_doctor.strict_option
@service_doctor.json_option
@report_errors
def doctor(service: str | None, *, quick: bool, strict: bool, as_json: bool) -> None:
    r"""Find out what is wrong, and what to do about it: a line per check.

    Checks all services or SERVICE: the stack that runs here, or the servers that
    PAYMENTS_DATABASE_URL, ORDERS_DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS name. Nothing is
    changed. A server that does not answer is given up after 20 s.

    \b
    Example: settle doctor
    Example: settle doctor orders --json
    Example: settle doctor --quick
    """
    configure_logging(level="CRITICAL", form="auto")  # a fault is reported by a check
    state = find_state()
    services = configured_services(state) if service is None else [load_service(service).name]
    findings = examine(state, quick=quick, services=services)
    service_doctor.print_findings(findings, strict=strict, as_json=as_json)


main.add_command(trace)
main.add_command(orders)


def _displayed_command(command: str) -> str:
    """Return the command as the user must type it: by its name alone if PATH finds it."""
    script = Path(sysconfig.get_path("scripts"), command)
    found = shutil.which(command)
    if found is not None and Path(found).absolute() == script:
        return command
    try:
        return str(script.relative_to(Path.cwd()))
    except (ValueError, FileNotFoundError):  # elsewhere, or the current folder was removed
        return str(script)
