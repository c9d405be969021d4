"""Generated requests get only answers that the service's OpenAPI description documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from contract.runs import run, statuses
from support.web import serve

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.slow


@pytest.mark.timeout(300)
@pytest.mark.parametrize("service", ["orders", "payments"])
def test_a_service_conforms_to_its_openapi_description(
    service: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The test sends a few hundred requests. ``make fuzz`` sends more."""
    database_url = request.getfixturevalue(f"{service}_url")
    log = tmp_path / "api.log"
    with serve(service, database_url, log, LOG_FORMAT="json", LOG_LEVEL="INFO") as url:
        found = run(url, "--max-examples", "10", "--seed", "1")
    assert found.returncode == 0, found.stdout
    seen = statuses(log)
    assert seen.total() > 100
    assert {status for status in seen if status >= 500} == set()
