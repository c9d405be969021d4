"""compose.yaml and the image, as far as they can be tested without a Docker engine.

Docker Compose's own parser reads the file. The steps of the Dockerfile are carried out in a clean
folder. The services' commands run in that folder, with a real PostgreSQL and broker.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.engine import make_url

from settle.stack.embedded import kafka
from support.dockerfile import Build
from support.ports import free_port
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.broker import Broker
    from support.postgres import PostgresServer

ROOT = Path(__file__).resolve().parents[2]
PASSWORDS = {
    "POSTGRES_PASSWORD": "one",
    "PAYMENTS_DB_PASSWORD": "two",
    "ORDERS_DB_PASSWORD": "three",
}
MIGRATIONS = {"migrate-payments", "migrate-orders"}
OWN_SERVICES = {*MIGRATIONS, "image", "payments", "orders", "settle"}
# Settings that the file itself decides, or that only `settle up` reads.
NOT_FROM_ENV = {
    *("PAYMENTS_DATABASE_URL", "ORDERS_DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS"),
    *("BIND_ADDRESS", "HEALTH_DIR", "PAYMENTS_PORT", "ORDERS_PORT"),
    *("BROKER", "POSTGRES_PORT", "KAFKA_PORT", "KAFKA_CONTROLLER_PORT", "SETTLE_HOME"),
}
API_SETTINGS = {
    *("ALLOWED_HOSTS", "TRUSTED_PROXIES", "CORS_ORIGINS", "CURSOR_SECRET"),
    *("API_WORKERS", "API_THREADS"),
}

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


def _services(**environ: str) -> dict[str, Any]:
    parsed = _parse(**PASSWORDS, **environ)
    assert parsed.returncode == 0, parsed.stderr
    found: dict[str, Any] = json.loads(parsed.stdout)["services"]
    for service in found.values():
        given = service.get("environment", {}).items()
        # Compose does not pass a variable without a value.
        service["environment"] = {name: value for name, value in given if value is not None}
    return found


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return _services()


def _settings() -> set[str]:
    """Return the names in the table of settings of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[A-Z].*?) \|", text.partition("## Settings")[2], re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Build:
    built = Build(ROOT, tmp_path_factory.mktemp("image"))
    built.run(ROOT / "deploy" / "Dockerfile")
    return built


def test_the_file_has_no_password_and_no_default_for_one() -> None:
    """Without the variables of the passwords, the file is refused, and the error names them."""
    missing = _parse(**dict.fromkeys(PASSWORDS, ""))
    assert missing.returncode == 1
    for name in PASSWORDS:
        assert f"required variable {name} is missing" in missing.stderr


def test_versions_limits_and_health(services: dict[str, Any]) -> None:
    assert services["postgres"]["image"].split(":")[1].split(".")[0] == "18"
    assert services["kafka"]["image"] == f"apache/kafka:{kafka.VERSION}"
    for name in ("postgres", "kafka", "payments", "orders"):
        assert services[name]["healthcheck"]["test"], name
        limits = services[name]["deploy"]["resources"]["limits"]
        assert limits["memory"], name
        assert "cpus" not in limits, "Docker refuses more CPUs than the machine has"
    for name, service in services.items():
        assert service["logging"]["driver"] == "local", name
        assert service["logging"]["options"]["max-size"], name
    assert {volume["source"] for volume in services["kafka"]["volumes"]} == {"kafka"}


def test_one_service_builds_the_image_and_the_others_wait_for_it(
    services: dict[str, Any],
) -> None:
    builders = [name for name, service in services.items() if "build" in service]

    assert builders == ["image"]
    for name in OWN_SERVICES:
        assert services[name]["image"] == "settle:latest"
        assert services[name]["pull_policy"] == "never"
    for name in OWN_SERVICES - {"image"}:
        waits_for = services[name]["depends_on"]["image"]
        assert waits_for["condition"] == "service_completed_successfully"


def test_the_start_order(services: dict[str, Any]) -> None:
    """No service waits for Kafka, or for the migrations of the other service."""

    def waits_for(name: str) -> dict[str, str]:
        others = services[name]["depends_on"].items()
        return {other: how["condition"] for other, how in others if other != "image"}

    for name in ("payments", "orders"):
        assert waits_for(name) == {f"migrate-{name}": "service_completed_successfully"}
        assert waits_for(f"migrate-{name}") == {"postgres": "service_healthy"}


def test_a_service_has_only_the_url_of_its_own_database(services: dict[str, Any]) -> None:
    for mine, other in (("payments", "ORDERS"), ("orders", "PAYMENTS")):
        assert f"{other}_DATABASE_URL" not in services[mine]["environment"]
        assert f"{other}_DATABASE_URL" not in services[f"migrate-{mine}"]["environment"]


def test_the_tools_have_both_urls_and_start_only_when_asked(
    services: dict[str, Any],
) -> None:
    tool = services["settle"]

    assert tool["profiles"] == ["tools"]
    assert tool["entrypoint"] == ["settle"]
    assert {"PAYMENTS_DATABASE_URL", "ORDERS_DATABASE_URL"} < tool["environment"].keys()


def test_each_setting_of_the_environment_reaches_the_services(services: dict[str, Any]) -> None:
    given = {name: f"given-{name}" for name in _settings() - NOT_FROM_ENV}

    received = {name: service["environment"] for name, service in _services(**given).items()}

    for name, value in given.items():
        prefix = name.partition("_")[0].lower()
        users = {prefix} if prefix in {"payments", "orders"} else {"payments", "orders"}
        users |= set() if name in API_SETTINGS else {"settle"}
        for user in users:
            assert received[user].get(name) == value, (user, name)
        if value not in received["payments"].values():
            assert name.startswith("ORDERS_")
    unset = given.keys() - {"ALLOWED_HOSTS", "LOG_FORMAT"}
    for name in ("payments", "orders", "settle"):
        assert not unset & services[name]["environment"].keys()


def test_the_example_of_the_environment_names_each_setting() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")

    named = set(re.findall(r"^#([A-Z_]+)=", text, re.MULTILINE))

    ports = {"PAYMENTS_PORT", "ORDERS_PORT", "PUBLISH_ADDRESS"}
    assert named == (_settings() - NOT_FROM_ENV) | ports
    assert all(line.startswith("#") for line in text.splitlines() if line)


def test_ports_are_published_to_this_machine_unless_told_otherwise(
    services: dict[str, Any],
) -> None:
    changed = _services(PUBLISH_ADDRESS="0.0.0.0", ORDERS_PORT="9081")

    (by_default,) = services["orders"]["ports"]
    assert (by_default["host_ip"], by_default["published"]) == ("127.0.0.1", "8081")
    assert services["orders"]["environment"]["ALLOWED_HOSTS"] == "localhost"
    (asked_for,) = changed["orders"]["ports"]
    assert (asked_for["host_ip"], asked_for["published"]) == ("0.0.0.0", "9081")
    assert asked_for["target"] == by_default["target"] == 8081
    assert "ports" not in services["postgres"]
    assert "ports" not in services["kafka"]


def test_passwords_are_made_once(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "deploy").mkdir(parents=True)
    shutil.copy2(ROOT / "deploy" / "make-env", checkout / "deploy")
    shutil.copy2(ROOT / ".env.example", checkout)
    made = checkout / ".env"

    subprocess.run([checkout / "deploy" / "make-env"], check=True, capture_output=True)
    first = made.read_text()
    subprocess.run([checkout / "deploy" / "make-env"], check=True, capture_output=True)

    assert made.read_text() == first
    assert made.stat().st_mode & 0o077 == 0
    passwords = re.findall(r"^(\w+_PASSWORD)=([0-9a-f]{32})$", first, re.MULTILINE)
    assert {name for name, _ in passwords} == PASSWORDS.keys()
    assert len({value for _, value in passwords}) == 3


def test_a_password_that_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    shutil.copy2(ROOT / "deploy" / "make-env", tmp_path / "deploy")
    (tmp_path / ".env").write_text("POSTGRES_PASSWORD=mine\nORDERS_PORT=9081")

    subprocess.run([tmp_path / "deploy" / "make-env"], check=True, capture_output=True)

    lines = (tmp_path / ".env").read_text().splitlines()
    assert lines[:2] == ["POSTGRES_PASSWORD=mine", "ORDERS_PORT=9081"]
    assert [line.partition("=")[0] for line in lines[2:]] == [
        "PAYMENTS_DB_PASSWORD",
        "ORDERS_DB_PASSWORD",
    ]


def test_every_variable_is_one_that_the_project_reads(services: dict[str, Any]) -> None:
    known = _settings()
    deployed = [*(ROOT / "deploy").rglob("*.conf"), ROOT / "deploy" / "gunicorn.conf.py"]
    for path in deployed:
        text = path.read_text(encoding="utf-8")
        known |= set(re.findall(r"ENV_([A-Z_]+)", text))
        known |= set(re.findall(r"environ(?:\.get\(|\[)['\"]([A-Z_]+)", text))
    for name in OWN_SERVICES:
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


def test_the_image_runs_as_an_unprivileged_user(image: Build, services: dict[str, Any]) -> None:
    assert re.fullmatch(r"python:3\.1[123]-slim", image.base)
    (step,) = image.machine_steps
    uid, gid = image.user.split(":")
    assert f"groupadd --system --gid {gid} settle " in step
    assert f"useradd --system --uid {uid} --gid settle --home-dir /srv/settle" in step
    for name in OWN_SERVICES:
        assert "user" not in services[name], "the container must run as the image's user"
    for name in ("payments", "orders"):
        assert f"/run/settle:uid={uid},gid={gid},mode=0700" in services[name]["tmpfs"]


@pytest.fixture
def environ(payments_url: str, orders_url: str, broker: Broker) -> dict[str, str]:
    """Return the addresses of a real PostgreSQL and broker, to replace those of the file."""
    return {
        "PAYMENTS_DATABASE_URL": payments_url,
        "ORDERS_DATABASE_URL": orders_url,
        "KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap,
    }


def _environment(service: dict[str, Any], environ: dict[str, str]) -> dict[str, str]:
    """Return the environment that the file gives a service, with these addresses replaced."""
    return {name: environ.get(name, value) for name, value in service["environment"].items()}


def test_the_migrations_can_run_twice(
    image: Build, services: dict[str, Any], environ: dict[str, str]
) -> None:
    for name in sorted(MIGRATIONS):
        command = shlex.join(services[name]["command"])
        for _ in range(2):
            image.shell(command, **_environment(services[name], environ))


@pytest.mark.parametrize("name", ["payments", "orders"])
def test_a_service_becomes_healthy(
    image: Build, services: dict[str, Any], environ: dict[str, str], name: str
) -> None:
    """The image's command runs in the file's environment, and passes the file's health check."""
    service = services[name]
    port, run = str(free_port()), image.root / "run"
    run.mkdir(exist_ok=True)
    inside = str(service["ports"][0]["target"])
    environment = {
        variable: value.replace("/run/settle", str(run)).replace("0.0.0.0", "127.0.0.1")
        for variable, value in _environment(service, environ).items()
    }
    assert environment[f"{name.upper()}_PORT"] == inside
    environment[f"{name.upper()}_PORT"] = port
    kind, *words = service["healthcheck"]["test"]
    assert kind == "CMD"
    assert inside in words
    check = shlex.join(port if word == inside else word for word in words)
    for _ in _running(image, environment):
        wait_until(
            lambda: _passes(image, check, environment),
            timeout_s=60,
            what=f"{name} to be healthy",
        )


def test_a_database_is_healthy_when_its_initialisation_is_complete(
    services: dict[str, Any], own_postgres: PostgresServer, tmp_path: Path
) -> None:
    """PostgreSQL's image runs the script at its first start only, even if that is interrupted."""
    url = make_url(own_postgres.url())
    binaries = own_postgres.cluster.binaries
    environ = {
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "PGHOST": str(url.host),
        "PGPORT": str(url.port),
        "PGPASSWORD": PASSWORDS["ORDERS_DB_PASSWORD"],
    }
    as_superuser = {
        **environ,
        **PASSWORDS,
        "POSTGRES_USER": str(url.username),
        "PGPASSWORD": str(url.password),
    }
    script = (ROOT / "deploy" / "postgres" / "create-databases.sh").read_text(encoding="utf-8")
    # Leaves each database as if the script were killed before its last statement.
    interrupted = script.replace("ALTER DATABASE", "\\q\n")
    _, *check = services["postgres"]["healthcheck"]["test"]
    check[check.index("127.0.0.1")] = str(url.host)

    def is_healthy() -> bool:
        done = subprocess.run(check, env=environ, capture_output=True, check=False)
        return done.returncode == 0

    subprocess.run(["bash", "-c", interrupted], env=as_superuser, check=True)
    assert not is_healthy()

    for database in ("payments", "orders"):
        own_postgres.execute(f"DROP DATABASE {database}")
        own_postgres.execute(f"DROP ROLE {database}")
    subprocess.run(["bash", "-c", script], env=as_superuser, check=True)
    assert is_healthy()


def test_a_broker_is_healthy_when_it_answers(services: dict[str, Any], broker: Broker) -> None:
    _, *check = services["kafka"]["healthcheck"]["test"]
    script = check[-1].replace("$$", "$").replace("timeout 5", "timeout 1")
    host, _, port = broker.bootstrap.partition(":")

    def is_healthy(port: int) -> bool:
        asked = script.replace("127.0.0.1/9092", f"{host}/{port}")
        return subprocess.run([*check[:-1], asked], check=False).returncode == 0

    with socket.create_server((host, 0)) as silent:
        assert not is_healthy(silent.getsockname()[1])
    assert not is_healthy(free_port())
    assert is_healthy(int(port))


def _running(image: Build, environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        [str(image.here("/opt/settle/bin") / image.command[0]), *image.command[1:]],
        cwd=image.here(image.workdir),
        env=image.environment() | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(60) == 0


def _passes(image: Build, check: str, environment: dict[str, str]) -> bool:
    try:
        image.shell(check, **environment)
    except AssertionError:
        return False
    return True
