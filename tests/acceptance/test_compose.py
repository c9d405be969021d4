"""compose.yaml and the image, as far as they can be proven without a Docker engine.

The file is read by the parser that Docker Compose uses itself; the image's steps are carried out
in a clean folder; and what the file says is run from there, against a real PostgreSQL and broker.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from settle.stack.embedded import kafka
from support.dockerfile import Build
from support.ports import free_port
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.broker import Broker

ROOT = Path(__file__).resolve().parents[2]
PASSWORDS = {
    "POSTGRES_PASSWORD": "one",
    "PAYMENTS_DB_PASSWORD": "two",
    "ORDERS_DB_PASSWORD": "three",
}
ONE_SHOT = {"migrate-payments", "migrate-orders"}
OWN = {*ONE_SHOT, "payments", "orders"}

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(400)]


def _parse(**environ: str) -> subprocess.CompletedProcess[str]:
    go = shutil.which("go")
    if go is None:
        pytest.skip("Docker Compose's parser is written in Go, and there is no Go here")
    return subprocess.run(
        [go, "run", ".", str(ROOT / "compose.yaml")],
        cwd=ROOT / "tests" / "compose",
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    parsed = _parse(**PASSWORDS)
    assert parsed.returncode == 0, parsed.stderr
    found: dict[str, Any] = json.loads(parsed.stdout)["services"]
    return found


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Build:
    built = Build(ROOT, tmp_path_factory.mktemp("image"))
    built.run(ROOT / "deploy" / "Dockerfile")
    return built


def test_no_password_is_in_the_file_and_none_is_made_up() -> None:
    """Without its variables the file is refused, naming them."""
    missing = _parse(**dict.fromkeys(PASSWORDS, ""))
    assert missing.returncode == 1
    for name in PASSWORDS:
        assert f"required variable {name} is missing" in missing.stderr


def test_versions_limits_and_health(services: dict[str, Any]) -> None:
    assert services["postgres"]["image"].split(":")[1].split(".")[0] == "18"
    assert services["kafka"]["image"] == f"apache/kafka:{kafka.VERSION}"
    for name in ("postgres", "kafka", "payments", "orders"):
        assert services[name]["healthcheck"]["test"], name
        assert services[name]["deploy"]["resources"]["limits"]["memory"], name
    assert {volume["source"] for volume in services["kafka"]["volumes"]} == {"kafka"}


def test_the_start_order(services: dict[str, Any]) -> None:
    def waits_for(name: str) -> dict[str, str]:
        return {other: how["condition"] for other, how in services[name]["depends_on"].items()}

    for name in ("payments", "orders"):
        assert waits_for(name) == dict.fromkeys(ONE_SHOT, "service_completed_successfully")
    assert waits_for("migrate-payments") == {"postgres": "service_healthy"}
    assert waits_for("migrate-orders") == {"postgres": "service_healthy"}


def test_a_service_knows_its_own_database_alone(services: dict[str, Any]) -> None:
    for mine, other in (("payments", "ORDERS"), ("orders", "PAYMENTS")):
        assert f"{other}_DATABASE_URL" not in services[mine]["environment"]
        assert f"{other}_DATABASE_URL" not in services[f"migrate-{mine}"]["environment"]


def test_every_variable_is_one_that_the_project_reads(services: dict[str, Any]) -> None:
    files = ("shared/settings.py", "shared/outbox/src/settle_outbox/settings.py")
    settings = "".join((ROOT / each).read_text(encoding="utf-8") for each in files)
    known = set(re.findall(r'"([A-Z][A-Z_]+)"', settings))
    known |= {"PAYMENTS_DATABASE_URL", "ORDERS_DATABASE_URL"}
    deployed = [*(ROOT / "deploy").rglob("*.conf"), ROOT / "deploy" / "gunicorn.conf.py"]
    for path in deployed:
        text = path.read_text(encoding="utf-8")
        known |= set(re.findall(r"ENV_([A-Z_]+)", text))
        known |= set(re.findall(r"environ(?:\.get\(|\[)['\"]([A-Z_]+)", text))
    for name in OWN:
        assert set(services[name]["environment"]) <= known, name


def test_databases_are_made_with_the_names_that_the_addresses_use(
    services: dict[str, Any],
) -> None:
    script = (ROOT / "deploy" / "postgres" / "create-databases.sh").read_text(encoding="utf-8")
    for service in ("payments", "orders"):
        variable = f"{service.upper()}_DB_PASSWORD"
        assert f'create {service} "${variable}"' in script
        url = services[service]["environment"][f"{service.upper()}_DATABASE_URL"]
        password = PASSWORDS[variable]
        assert url == f"postgresql+psycopg2://{service}:{password}@postgres/{service}"
        assert services["postgres"]["environment"][variable] == password
    (mounted,) = [one for one in services["postgres"]["volumes"] if one["type"] == "bind"]
    assert Path(mounted["source"]) == ROOT / "deploy" / "postgres" / "create-databases.sh"
    assert os.access(mounted["source"], os.X_OK)


def test_the_image_runs_as_a_user_of_its_own(image: Build, services: dict[str, Any]) -> None:
    assert re.fullmatch(r"python:3\.1[123]-slim", image.base)
    (step,) = image.machine_steps
    assert f"--uid 10001 --home-dir /srv/settle --shell /usr/sbin/nologin {image.user} " in step
    for name in OWN:
        assert "user" not in services[name], "the image's user is the one that is meant"
        assert any("uid=10001" in mount for mount in services[name]["tmpfs"])


@pytest.fixture
def environ(payments_url: str, orders_url: str, broker: Broker) -> dict[str, str]:
    """Real neighbours in place of those that the file names."""
    return {
        "PAYMENTS_DATABASE_URL": payments_url,
        "ORDERS_DATABASE_URL": orders_url,
        "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap,
    }


def _told(service: dict[str, Any], environ: dict[str, str]) -> dict[str, str]:
    """A service's environment as the file gives it, its neighbours' addresses replaced."""
    return {name: environ.get(name, value) for name, value in service["environment"].items()}


def test_the_one_shot_services_do_their_work_twice(
    image: Build, services: dict[str, Any], environ: dict[str, str]
) -> None:
    for name in sorted(ONE_SHOT):
        command = shlex.join(services[name]["command"])
        for _ in range(2):
            image.shell(command, **_told(services[name], environ))


@pytest.mark.parametrize("name", ["payments", "orders"])
def test_a_service_becomes_healthy(
    image: Build, services: dict[str, Any], environ: dict[str, str], name: str
) -> None:
    """What the image runs, told what the file says, passes the health check that the file has."""
    service = services[name]
    port, run = str(free_port()), image.root / "run"
    run.mkdir(exist_ok=True)
    inside = str(service["ports"][0]["target"])
    told = {
        variable: value.replace("/run/settle", str(run)).replace("0.0.0.0", "127.0.0.1")
        for variable, value in _told(service, environ).items()
    }
    assert told[f"{name.upper()}_PORT"] == inside
    told[f"{name.upper()}_PORT"] = port
    kind, check = service["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    assert f":{inside}/readyz" in check
    for _ in _running(image, told):
        wait_until(
            lambda: _passes(image, check.replace(inside, port), told),
            timeout_s=60,
            what=f"{name} to be healthy",
        )


def _running(image: Build, told: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        [str(image.here("/opt/settle/bin") / image.command[0]), *image.command[1:]],
        cwd=image.here(image.workdir),
        env=image.environment() | told,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(60) == 0


def _passes(image: Build, check: str, told: dict[str, str]) -> bool:
    try:
        image.shell(check, **told)
    except AssertionError:
        return False
    return True
