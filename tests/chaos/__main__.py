"""Cause random faults on the whole stack under load, and then check all results.

`make chaos ARGS="--seed 7 --seconds 60"`. The same seed gives the same schedule. The effect of a
fault depends on its exact moment, so it may take some runs to see a violation again.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections import Counter

import click

from chaos.faults import Injector
from chaos.schedule import plan
from support.broker import chosen_broker
from support.clients import Clients
from support.final_checks import audit, check_accounts, wait_final
from support.system import System

SETTLE_TIMEOUT_S = 180.0


@click.command()
@click.option(
    "--seed", type=int, help="The seed of the schedule. By default, a random one, which is printed."
)
@click.option("--seconds", type=click.FloatRange(min=5), default=60.0, show_default=True)
@click.option("--users", type=click.IntRange(1, 50), default=6, show_default=True)
@click.option("--dry-run", is_flag=True, help="Show the schedule only.")
def main(seed: int | None, seconds: float, users: int, dry_run: bool) -> None:  # noqa: FBT001
    """Cause random faults on a separate stack under load, and then check all results."""
    seed = secrets.randbelow(1_000_000) if seed is None else seed
    faults = plan(seed, seconds)
    if dry_run:
        for fault in faults:
            click.echo(str(fault))
        return
    click.echo(f"seed {seed}: {len(faults)} faults in {seconds:g} s, {users} users")
    click.echo(f"broker: {' - '.join(chosen_broker())}")
    with System() as system:
        violations = _run(system, seed, seconds, users)
        if violations:
            click.echo(f"kept: {', '.join(map(str, system.keep()))}")
    sys.exit(1 if violations else 0)


def _run(system: System, seed: int, seconds: float, users: int) -> list[str]:
    injector = Injector(system, seed, click.echo)
    with Clients(system.stack, count=users, seed=seed) as clients:
        injector.run(plan(seed, seconds), seconds)
    system.stack.up()  # start what is not running after the faults
    click.echo(f"healed; {clients.accepted} orders were accepted")
    began = time.monotonic()
    violations = [f"fault failed: {failed}" for failed in injector.failed]
    violations += wait_final(system, timeout_s=SETTLE_TIMEOUT_S)
    settled_s = time.monotonic() - began
    violations += check_accounts(system, clients.accounts)
    violations += audit(system)
    _report(system, injector, clients, settled_s, seed)
    for violation in violations:
        click.echo(f"VIOLATION: {violation}")
    click.echo(f"seed {seed}: {len(violations)} violations")
    return violations


def _report(
    system: System, injector: Injector, clients: Clients, settled_s: float, seed: int
) -> None:
    for kind, count in sorted(injector.counted.items()):
        click.echo(f"  {count:3} x {kind}")
    statuses = system.delivery.statuses()
    summary = ", ".join(f"{count} {status}" for status, count in sorted(statuses.items()))
    maybe_ordered = sum(
        (account.maybe_ordered for account in clients.accounts), Counter[int]()
    ).total()
    click.echo(
        f"seed {seed}: {injector.counted.total()} faults; {clients.accepted} orders accepted, "
        f"{maybe_ordered} without an answer; {summary}; all final {settled_s:.1f} s after healing"
    )


if __name__ == "__main__":
    main()
