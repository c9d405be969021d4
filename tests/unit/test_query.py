"""A query has only its call's parameters, each at most once. All else is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.web import NO_DATABASE, open_app, problem_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flask.testing import FlaskClient

USER = "8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a"
ORDER = "01978007-3b5e-7c40-8f5a-3a2b1c0d9e8f"
TWICE = "The query has this parameter more than once."

# The parameters of each URL that accepts some.
PARAMETERS = {
    ("orders", "/orders"): [
        "user_id",
        "status",
        "created_from",
        "created_before",
        "limit",
        "cursor",
    ],
    ("payments", "/accounts/balance"): ["user_id"],
    ("payments", f"/accounts/{USER}/transfers"): ["limit", "cursor"],
}
WITHOUT_PARAMETERS = [
    ("orders", "/order/" + ORDER),
    ("orders", "/orders/" + ORDER),
    *(
        (service, path)
        for service in ("orders", "payments")
        for path in (
            "/livez",
            "/readyz",
            "/",
            "/docs",
            "/docs/start.js",
            "/docs/files/swagger-ui.css",
            "/openapi.json",
            "/problems",
            "/problems/not-json",
        )
    ),
]
POSTS = [
    ("orders", "/orders"),
    ("payments", "/accounts"),
    ("payments", f"/accounts/{USER}/deposit"),
]


@pytest.fixture(scope="module")
def clients() -> Iterator[dict[str, FlaskClient]]:
    """Return clients without a database, because invalid queries are refused without one."""
    with open_app("orders", NO_DATABASE) as orders, open_app("payments", NO_DATABASE) as payments:
        yield {"orders": orders.test_client(), "payments": payments.test_client()}


def refused(client: FlaskClient, address: str, method: str = "GET") -> list[tuple[str, str]]:
    """Return the parameters that the answer names as invalid, each with its message."""
    document = problem_of(client.open(address, method=method), 422)
    assert document["type"] == "/problems/invalid-input"
    return [(error["parameter"], error["detail"]) for error in document["errors"]]


@pytest.mark.parametrize(("service", "path"), PARAMETERS)
def test_an_unknown_parameter_is_named_with_those_that_are_known(
    clients: dict[str, FlaskClient], service: str, path: str
) -> None:
    known = PARAMETERS[service, path]

    for name in ("userid", "User_ID", "LIMIT", " limit", "limit[]", "unknown"):
        ((named, detail),) = refused(clients[service], f"{path}?{name}=A")

        assert named == name
        assert detail == f"This call has no such parameter. Its parameters are: {', '.join(known)}."


@pytest.mark.parametrize(("service", "path"), PARAMETERS)
def test_a_parameter_given_twice_is_named(
    clients: dict[str, FlaskClient], service: str, path: str
) -> None:
    """This includes equal values, and two spellings of one name."""
    for name in PARAMETERS[service, path]:
        for query in (
            f"{name}=A&{name}=B",
            f"{name}=1&{name}=1",
            f"{name}=&{name}=",
            f"{name}=1&%{ord(name[0]):02X}{name[1:]}=1",
        ):
            assert refused(clients[service], f"{path}?{query}") == [(name, TWICE)]


@pytest.mark.parametrize(("service", "path"), WITHOUT_PARAMETERS)
def test_a_path_without_parameters_refuses_every_parameter(
    clients: dict[str, FlaskClient], service: str, path: str
) -> None:
    detail = "This call has no parameters."

    for query in ("limit=1", "limit=1&limit=2", "limit"):
        assert refused(clients[service], f"{path}?{query}") == [("limit", detail)]


@pytest.mark.parametrize(("service", "path"), POSTS)
def test_a_post_takes_no_parameters(
    clients: dict[str, FlaskClient], service: str, path: str
) -> None:
    """The data of a POST is in its body. A client with an amount in the query is mistaken."""
    named = refused(clients[service], f"{path}?amount=1", method="POST")

    assert named == [("amount", "This call has no parameters.")]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("=1", [""]),
        ("%00=1", ["\0"]),
        ("limit%00=1", ["limit\0"]),
        ("%ff=1", ["%FF"]),
        ("%=1", ["%"]),
        ("limit;cursor=1", ["limit;cursor"]),
        ("li+mit=1", ["li mit"]),
        ("%D0%B0=1", ["\u0430"]),
        ("limit=1&x=1&limit=2&y=1&x=2", ["limit", "x", "y"]),
        ("x" * 3000, ["x" * 100]),
    ],
)
def test_the_answer_names_an_invalid_parameter_in_any_encoding(
    clients: dict[str, FlaskClient], query: str, names: list[str]
) -> None:
    named = refused(clients["orders"], f"/orders?{query}")

    assert [name for name, _ in named] == names


@pytest.mark.parametrize("separator", [";", "%26", "%3B", ",", "+", "%20"])
def test_only_an_ampersand_separates_parameters(
    clients: dict[str, FlaskClient], separator: str
) -> None:
    """A proxy that splits elsewhere could give a user the rows of another (WHATWG URL, 5.1)."""
    ((named, _),) = refused(clients["orders"], f"/orders?limit=1{separator}limit=2")

    assert named == "limit"


@pytest.mark.parametrize(("service", "path"), PARAMETERS)
def test_an_empty_value_is_refused(
    clients: dict[str, FlaskClient], service: str, path: str
) -> None:
    user = "" if "user_id" not in PARAMETERS[service, path] else f"&user_id={USER}"

    for name in PARAMETERS[service, path]:
        others = "" if name == "user_id" else user
        for query in (f"{name}={others}", f"{name}{others}"):
            assert [name for name, _ in refused(clients[service], f"{path}?{query}")] == [name]


def test_the_answer_lists_only_the_first_faults(clients: dict[str, FlaskClient]) -> None:
    query = "&".join(f"{number}{'x' * 200}" for number in range(1000))

    answer = clients["orders"].get(f"/orders?{query}")

    assert len(problem_of(answer, 422)["errors"]) == 20
    assert len(answer.data) < 8_000


def test_a_query_does_not_change_the_answer_of_an_unknown_path(
    clients: dict[str, FlaskClient],
) -> None:
    problem_of(clients["orders"].get("/nothing?x=1"), 404)
    problem_of(clients["orders"].delete("/orders?x=1"), 405)


def test_a_preflight_may_have_a_query(clients: dict[str, FlaskClient]) -> None:
    """Without an answer to the preflight, the page could not read what is wrong with the query."""
    assert clients["orders"].options("/orders?userid=A").status_code == 200


@pytest.mark.parametrize("query", ["", "&", "&&"])
def test_an_empty_query_is_allowed(clients: dict[str, FlaskClient], query: str) -> None:
    assert clients["orders"].get(f"/livez?{query}").status_code == 200
