"""After any steps in any order, the services agree with a model in plain Python.

The steps are in `machine`, the model in `expected`. A failure shows the fewest steps that cause it.
``MODEL_EXAMPLES=2000`` runs more examples, with another seed each time. So does `make model`.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from model.machine import Machine
from model.system import open_system

EXAMPLES = os.environ.get("MODEL_EXAMPLES")

SETTINGS = settings(
    max_examples=int(EXAMPLES or 60),
    stateful_step_count=30,
    # Without MODEL_EXAMPLES, the examples are the same each time.
    derandomize=EXAMPLES is None,
    database=None,
    print_blob=True,
    # On a slow machine a step may take long.
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)


@pytest.mark.timeout(0 if EXAMPLES else 900)
def test_the_services_do_what_the_model_says(payments_url: str, orders_url: str) -> None:
    with (
        ThreadPoolExecutor(2) as threads,
        open_system(payments_url, orders_url, threads) as system,
    ):
        # Hypothesis documents any callable that returns a machine. Its types allow only a class.
        run_state_machine_as_test(
            lambda: Machine(system),  # type: ignore[arg-type]
            settings=SETTINGS,
        )
