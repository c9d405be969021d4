"""The manifests in deploy/kubernetes are valid, and their containers run, without a cluster.

kustomize makes the manifests. They are compared with the schemas of the Kubernetes API. Their
containers run in Linux namespaces.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from openapi_schema_validator import OAS30Validator

from support.container import Container, require_namespaces
from support.doctor import UNDURABLE
from support.ports import free_port
from support.waiting import wait_until

if TYPE_CHECKING:
    from support.delivery import Delivery

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "deploy" / "kubernetes"
# This Go module has the OpenAPI documents of Kubernetes 1.23 to 1.30. The test uses the newest.
SCHEMAS = "sigs.k8s.io/kubectl-validate@v0.0.4"
SCHEMAS_SUM = "h1:tGKuv0awYHn11Cb6KPsZKxUmHgavF46K3NvVH0Nse9U="
SERVICES = ("orders", "payments")
PRICE = 3

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]


def _go(*arguments: str) -> str:
    go = shutil.which("go")
    if go is None:
        pytest.skip("kustomize is written in Go, and there is no Go here")
    done = subprocess.run(
        [go, *arguments],
        cwd=ROOT / "tests" / "kubernetes",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def manifests() -> dict[str, dict[str, Any]]:
    """Return what `kubectl apply -k` sends, by kind and name."""
    made = json.loads(_go("run", ".", str(MANIFESTS)))
    return {f"{each['kind']} {_name(each)}": each for each in made}


def _name(manifest: dict[str, Any]) -> str:
    name: str = manifest["metadata"]["name"]  # kustomize adds a hash to a ConfigMap's name
    return name.split("-", maxsplit=1)[0] if manifest["kind"] == "ConfigMap" else name


def _pods(manifests: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, manifest in manifests.items():
        spec = manifest.get("spec", {})
        template = spec.get("jobTemplate", {}).get("spec", spec).get("template")
        if template is not None:
            found[name] = template["spec"]
    return found


def test_the_manifests_obey_the_schemas_of_the_api(manifests: dict[str, dict[str, Any]]) -> None:
    downloaded = json.loads(_go("mod", "download", "-json", SCHEMAS))
    assert downloaded["Sum"] == SCHEMAS_SUM
    versions = Path(downloaded["Dir"], "pkg", "openapiclient", "builtins", "1.30")

    faults = {name: _faults(manifest, versions) for name, manifest in manifests.items()}

    assert {name: found for name, found in faults.items() if found} == {}


def _faults(manifest: dict[str, Any], versions: Path) -> list[str]:
    group, _, version = manifest["apiVersion"].rpartition("/")
    path = versions / "apis" / group if group else versions / "api"
    document = json.loads((path / f"{version}.json").read_text(encoding="utf-8"))
    kinds = {
        kind["kind"]: name
        for name, schema in document["components"]["schemas"].items()
        for kind in schema.get("x-kubernetes-group-version-kind", [])
        if (kind["group"], kind["version"]) == (group, version)
    }
    for schema in document["components"]["schemas"].values():
        if "properties" in schema:
            schema["additionalProperties"] = False  # a misspelled name is refused
    root = {"$ref": f"#/components/schemas/{kinds[manifest['kind']]}", **document}
    errors = OAS30Validator(root).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in errors]


def test_both_services_are_deployed_in_the_same_way() -> None:
    orders, payments = (
        (MANIFESTS / f"{service}.yaml").read_text(encoding="utf-8") for service in SERVICES
    )

    renamed = orders.replace("orders", "payments").replace("ORDERS", "PAYMENTS")
    assert _without_head(renamed) == _without_head(payments)


def _without_head(text: str) -> str:
    """Leave out the comments, because the first ones name the service."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("# "))


def test_each_pod_is_locked_down(manifests: dict[str, dict[str, Any]]) -> None:
    image = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    (user,) = re.findall(r"^USER (\d+):(\d+)$", image, re.MULTILINE)
    pods = _pods(manifests)

    # API, relay, consumer and migrations of both services, and the audit.
    assert len(pods) == 4 * len(SERVICES) + 1
    for name, pod in pods.items():
        (container,) = pod["containers"]
        context = pod["securityContext"]
        assert context["runAsNonRoot"], name
        assert (str(context["runAsUser"]), str(context["runAsGroup"])) == user
        assert not pod["automountServiceAccountToken"], name
        # With service links, ORDERS_PORT would be tcp://..., because a Service is named orders.
        assert not pod["enableServiceLinks"], name
        locked = container["securityContext"]
        assert locked["readOnlyRootFilesystem"], name
        assert not locked["allowPrivilegeEscalation"], name
        assert locked["capabilities"] == {"drop": ["ALL"]}, name
        assert container["resources"]["limits"].keys() == {"memory"}, name


def test_no_secret_is_in_a_manifest(manifests: dict[str, dict[str, Any]]) -> None:
    """Each service mounts its own Secret as files. Only an API gets more than the URL."""
    settings = manifests["ConfigMap settle"]["data"]

    assert not {name for name in settings if "URL" in name or "SECRET" in name}
    assert "Secret" not in {manifest["kind"] for manifest in manifests.values()}
    for name, pod in _pods(manifests).items():
        (container,) = pod["containers"]
        assert "env" not in container, name
        mounted = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
        if name != "CronJob audit":
            (service,) = [each for each in SERVICES if each in name]
            assert [each["secretName"] for each in mounted] == [service]
            keys = [item["key"] for each in mounted for item in each.get("items", [])]
            assert keys == ([] if name.endswith("-api") else [f"{service.upper()}_DATABASE_URL"])


def test_each_setting_is_one_that_the_project_reads(manifests: dict[str, dict[str, Any]]) -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Settings")[2]

    settings = manifests["ConfigMap settle"]["data"].keys() - {"PORT"}

    assert {name for name in settings if f"`{name}`" not in table} == set()


def test_the_grace_period_is_longer_than_what_happens_in_it(
    manifests: dict[str, dict[str, Any]],
) -> None:
    gunicorn = (ROOT / "deploy" / "gunicorn.conf.py").read_text(encoding="utf-8")
    (graceful_s,) = re.findall(r"^graceful_timeout = (\d+)$", gunicorn, re.MULTILINE)

    for service in SERVICES:
        pod = _pods(manifests)[f"Deployment {service}-api"]
        (_, sleep_s) = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert pod["terminationGracePeriodSeconds"] > int(graceful_s) + int(sleep_s)


class _System:
    """All Deployments, each as one container."""

    def __init__(
        self, manifests: dict[str, dict[str, Any]], delivery: Delivery, folder: Path
    ) -> None:
        self._manifests = manifests
        self._folder = folder
        self._ports = {service: str(free_port()) for service in SERVICES}
        self._settings = {
            **manifests["ConfigMap settle"]["data"],
            "KAFKA_BOOTSTRAP_SERVERS": delivery.bootstrap,
            "TOPIC_REPLICATION": "1",
        }
        for service in SERVICES:
            (folder / service).mkdir()
            secret = folder / service / f"{service.upper()}_DATABASE_URL"
            secret.write_text(delivery.url(service))

    def url(self, service: str) -> str:
        return f"http://127.0.0.1:{self._ports[service]}"

    def start(self, stack: ExitStack, *parts: str) -> dict[str, Container]:
        """Start these parts of both services, and wait until their probes pass."""
        started = {}
        for name in (f"{service}-{part}" for service in SERVICES for part in parts):
            service = name.partition("-")[0]
            started[name] = stack.enter_context(
                Container(
                    self._manifests[f"Deployment {name}"],
                    {**self._settings, "PORT": self._ports[service]},
                    self._folder / service,
                    self._folder / f"{name}.log",
                )
            )
        for name, container in started.items():
            if name.endswith("-api"):
                wait_until(partial(self._is_ready, name), timeout_s=200, what=name)
            else:
                container.wait_started()
        return started

    def audit(self) -> int:
        """Run the Job of the CronJob, and return its exit code."""
        secrets = self._folder / "both"
        secrets.mkdir()
        for service in SERVICES:
            (secret,) = (self._folder / service).iterdir()
            shutil.copy(secret, secrets)
        job = self._manifests["CronJob audit"]["spec"]["jobTemplate"]
        with Container(job, self._settings, secrets, self._folder / "audit.log") as container:
            return container.wait()

    def _is_ready(self, name: str) -> bool:
        (container,) = self._manifests[f"Deployment {name}"]["spec"]["template"]["spec"][
            "containers"
        ]
        probe = container["readinessProbe"]["httpGet"]
        try:
            url = f"{self.url(name.partition('-')[0])}{probe['path']}"
            return requests.get(url, timeout=5).ok
        except requests.RequestException:
            return False


@pytest.fixture
def system(manifests: dict[str, dict[str, Any]], delivery: Delivery, tmp_path: Path) -> _System:
    require_namespaces()
    return _System(manifests, delivery, tmp_path)


def test_containers_that_are_stopped_under_load_lose_nothing(
    system: _System, delivery: Delivery
) -> None:
    user = delivery.open_account(1_000_000)
    accepted: list[str] = []
    is_over = threading.Event()

    def place_orders() -> None:
        body = {"user_id": str(user), "amount": PRICE}
        while not is_over.is_set():
            try:
                answer = requests.post(f"{system.url('orders')}/orders", json=body, timeout=30)
            except requests.ConnectionError:
                continue  # the API has stopped, so the client has no answer
            if answer.status_code == 202:
                accepted.append(answer.headers["Location"].rpartition("/")[2])

    load = threading.Thread(target=place_orders)
    with ExitStack() as stack:
        containers = system.start(stack, "api", "relay", "consumer")
        read_only = containers["orders-relay"].run("touch", "/srv/settle/file")
        load.start()
        stack.callback(load.join)
        stack.callback(is_over.set)
        wait_until(lambda: len(accepted) > 20, what="orders")
        doctor = containers["orders-relay"].run(
            "/srv/settle/deploy/with-secrets", "settle", "doctor", "orders", "--json"
        )

        for container in containers.values():
            container.stop()
        codes = {name: container.wait() for name, container in containers.items()}
        is_over.set()
        system.start(stack, "relay", "consumer")
        wait_until(lambda: _open_orders(delivery) == 0, timeout_s=60, what="orders to settle")

    assert "Read-only file system" in read_only.stderr
    findings = {each["name"]: each for each in json.loads(doctor.stdout)}
    failed = {name for name, each in findings.items() if each["verdict"] == "fail"}
    assert failed <= UNDURABLE, doctor.stdout
    assert not {name for name in findings if name.startswith(("port", "folder", "supervisord"))}
    assert codes == dict.fromkeys(codes, 0)
    stored = delivery.query("orders", "SELECT id::text FROM orders WHERE status = 'success'")
    assert {row[0] for row in stored} >= set(accepted)
    assert delivery.balance(user) == 1_000_000 - PRICE * len(stored)
    assert system.audit() == 0


def _open_orders(delivery: Delivery) -> int:
    count: int = delivery.query("orders", "SELECT count(*) FROM orders WHERE status = 'created'")[
        0
    ][0]
    return count
