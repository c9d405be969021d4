"""Every problem type of a service has a page at the service."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

import services
import shared
from shared.web.problems import problem_types
from shared.web.problems.problem_types import ProblemType
from support.web import NO_DATABASE, open_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient

SERVICES = ["payments", "orders"]


@pytest.fixture(scope="module", params=SERVICES)
def service(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def client(service: str) -> Iterator[FlaskClient]:
    with open_app(service, NO_DATABASE) as app:
        yield app.test_client()


def declared(package: Any) -> set[ProblemType]:
    """Return every problem type that a module of a package declares."""
    modules = [
        import_module(found.name)
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ]
    return {
        each
        for module in modules
        for each in vars(module).values()
        if isinstance(each, ProblemType)
    }


def problems_in(part: Any) -> Iterator[dict[str, Any]]:
    """Yield the problem documents among the examples of a description."""
    if isinstance(part, dict):
        if {"type", "title", "detail"} <= set(part) and isinstance(part["type"], str):
            yield part
        for each in part.values():
            yield from problems_in(each)
    elif isinstance(part, list):
        for each in part:
            yield from problems_in(each)


def test_every_problem_type_has_a_page(client: FlaskClient) -> None:
    listed = client.get("/problems").get_json()
    assert {kind.name for kind in problem_types.COMMON} < {kind["name"] for kind in listed}
    overview = client.get("/problems", headers={"Accept": "text/html"})
    for kind in listed:
        assert kind["type"] == f"/problems/{kind['name']}"
        assert client.get(kind["type"]).json == kind
        page = client.get(kind["type"], headers={"Accept": "text/html"})
        assert (page.status_code, page.mimetype) == (200, "text/html")
        assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
        assert page.headers["Referrer-Policy"] == "no-referrer"
        assert kind["type"] in overview.text


def test_every_problem_type_has_a_meaning_and_a_remedy(client: FlaskClient) -> None:
    for kind in client.get("/problems").get_json():
        assert len(kind["meaning"]) > 20, kind
        assert len(kind["remedy"]) > 10, kind
        assert kind["title"], kind


def test_every_described_problem_is_a_problem_type_of_the_service(client: FlaskClient) -> None:
    listed = {kind["type"]: kind for kind in client.get("/problems").get_json()}
    described = list(problems_in(client.get("/openapi.json").json))
    assert len(described) > 8
    for document in described:
        kind = listed[document["type"]]
        assert (document["status"], document["title"]) == (kind["status"], kind["title"])


def test_every_declared_problem_type_is_listed_by_a_service() -> None:
    listed = set()
    for service in SERVICES:
        with open_app(service, NO_DATABASE) as app:
            listed |= {kind["name"] for kind in app.test_client().get("/problems").get_json()}
    found = declared(shared) | declared(services)
    assert {kind.name for kind in found} == listed
    assert len({kind.name for kind in found}) == len(found), "two problem types have the same name"
