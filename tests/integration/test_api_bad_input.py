"""Every call of the APIs answers invalid input with a 4xx problem document, never with a 500."""

from __future__ import annotations

import codecs
import gzip
import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from shared.web.json_body import MAX_BYTES, MAX_DEPTH, NAME_MAX, POINTER_MAX
from support.web import open_app, problem_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flask.testing import FlaskClient
    from werkzeug.test import TestResponse

    from support.postgres import PostgresServer

USER = "8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a"
JSON = "application/json"
CALLS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "create": ("payments", "/accounts", {"user_id": USER}),
    "deposit": ("payments", f"/accounts/{USER}/deposit", {"user_id": USER, "amount": 5}),
    "order": ("orders", "/orders", {"user_id": USER, "amount": 5, "description": "x"}),
}
FIELDS = [(call, field) for call, (_, _, body) in CALLS.items() for field in body]

NOT_JSON = [
    b"",
    b" ",
    b"x",
    b"{",
    b"{'a': 1}",
    b'{"amount": 1,}',
    b'{"amount": 01}',
    b'{"amount": .5}',
    b'{"amount": NaN}',
    b'{"amount": Infinity}',
    b'{"amount": -Infinity}',
    b'{"unknown": NaN}',
    b'{"description": "\xff"}',
    b'{"description": "\xed\xa0\x80"}',  # UTF-8 must not encode a surrogate
    b'{"description": "\x00"}',  # a control character must be escaped
    b'\xef\xbb\xbf{"amount": 1}',
    '{"amount": 1}'.encode("utf-16"),
    b"[" * 100_000,
    b'{"a":' * 20_000,
    b'{"a":[' * 10_000 + b"]}" * 10_000,
    b"\x00",
    b"user_id=1&amount=2",
    b"<a/>",
]
NOT_AN_OBJECT = [b"null", b"true", b"1", b"1.5", b'"x"', b"[]", b'[{"amount": 1}]']

# Values that are invalid in every field of CALLS.
WRONG_ANYWHERE: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.0,
    1.5,
    -0.0,
    1e308,
    2**63,
    -(2**63) - 1,
    10**400,
    [],
    {},
    [1],
    {"a": 1},
    "\0",
    "a\0b",
    "\ud800",
    "\udfff x",
    "x" * 10_001,
]
WRONG_USERS = ["", "x", "1", USER[:-1], USER.replace("-", ""), f"{{{USER}}}", f" {USER}",
               f"urn:uuid:{USER}", "00000000-0000-0000-0000-000000000000"]  # fmt: skip
WRONG_AMOUNTS = ["", "5", "x", "1e3"]


@pytest.fixture(scope="module")
def clients(
    postgres: PostgresServer, databases: Callable[[str], str]
) -> Iterator[dict[str, FlaskClient]]:
    """Return clients on shared databases. No test here depends on the stored rows."""
    with ExitStack() as stack:
        made = {}
        for service in ("payments", "orders"):
            name = f"{service}_bad_input"
            url = postgres.create_database(name, template=databases(service))
            stack.callback(postgres.drop_database, name)
            made[service] = stack.enter_context(open_app(service, url)).test_client()
        yield made


def post(client: FlaskClient, path: str, body: object) -> TestResponse:
    # Escape non-ASCII: JSON can hold a lone surrogate, UTF-8 cannot.
    return client.post(path, data=json.dumps(body, ensure_ascii=True), content_type=JSON)


def shorten(value: object) -> str:
    return ascii(value)[:30]


@pytest.fixture(params=CALLS)
def call(
    request: pytest.FixtureRequest, clients: dict[str, FlaskClient]
) -> tuple[FlaskClient, str]:
    """Return the client and the path of a call that takes a body."""
    service, path, _ = CALLS[request.param]
    return clients[service], path


def test_a_body_that_is_not_json_is_a_bad_request(call: tuple[FlaskClient, str]) -> None:
    client, path = call
    for body in NOT_JSON:
        problem_of(client.post(path, data=body, content_type=JSON), 400)


def test_a_body_that_is_not_an_object_is_refused(call: tuple[FlaskClient, str]) -> None:
    client, path = call
    for body in NOT_AN_OBJECT:
        document = problem_of(client.post(path, data=body, content_type=JSON), 422)
        assert document["errors"] == [{"pointer": "#", "detail": "Must be a JSON object."}]


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        (b'{"amount": 1, "amount": 1}', ["#/amount"]),
        (b'{"user_id": 1, "amount": 1, "user_id": 2, "amount": 1}', ["#/user_id", "#/amount"]),
        (b'{"a": 1, "\\u0061": 2}', ["#/a"]),
        (b'{"x": {"y": [0, {"a": 1, "a": 2}]}}', ["#/x/y/1/a"]),
        (b'{"a/b~c": 1, "a/b~c": 2}', ["#/a~1b~0c"]),
        (b'{"a b": 1, "a b": 2}', ["#/a%20b"]),
        (b'{"\\ud800": 1, "\\ud800": 2}', ["#/%3F"]),
        (b'[{"a": 1, "a": 2}]', ["#/0/a"]),
    ],
)
def test_a_duplicate_name_in_an_object_is_refused(
    call: tuple[FlaskClient, str], body: bytes, pointers: list[str]
) -> None:
    """JSON parsers disagree about which of the duplicate values is used."""
    client, path = call
    document = problem_of(client.post(path, data=body, content_type=JSON), 422)
    assert [error["pointer"] for error in document["errors"]] == pointers


def test_only_the_first_20_duplicate_names_are_reported(call: tuple[FlaskClient, str]) -> None:
    client, path = call
    pairs = ",".join(f'"{number}{"x" * 200}": 1' for number in range(250))
    response = client.post(path, data=f"{{{pairs},{pairs}}}", content_type=JSON)
    assert len(problem_of(response, 422)["errors"]) == 20
    assert len(response.data) < 5_000


def test_a_duplicate_name_is_found_between_many_values(call: tuple[FlaskClient, str]) -> None:
    client, path = call
    body = b'{"x": [' + b"[]," * 20_000 + b'{"y": {"a": 1, "a": 2}}], "z": {"b": 1, "b": 2}}'

    document = problem_of(client.post(path, data=body, content_type=JSON), 422)

    pointers = [error["pointer"] for error in document["errors"]]
    assert pointers == ["#/x/20000/y/a", "#/z/b"]


def test_a_pointer_of_many_long_names_is_cut_short(call: tuple[FlaskClient, str]) -> None:
    """A pointer that would be too long names an enclosing value, so it is short but valid."""
    client, path = call
    name = "\U0001f600" * NAME_MAX
    body = f'{{"{name}":' * (MAX_DEPTH - 1) + '{"a": 1, "a": 2}' + "}" * (MAX_DEPTH - 1)

    response = client.post(path, data=body.encode(), content_type=JSON)

    (error,) = problem_of(response, 422)["errors"]
    assert error["pointer"] == f"#/{quote(name)}"
    assert len(error["pointer"]) <= POINTER_MAX


@pytest.mark.parametrize("number", [b"1e400", b"-1e400", b"1" * 400 + b".5"])
def test_a_number_that_is_too_large_is_refused(
    call: tuple[FlaskClient, str], number: bytes
) -> None:
    """Even a field that the API does not use must not have such a number."""
    client, path = call
    for field in (b"amount", b"x"):
        body = b'{"' + field + b'": ' + number + b"}"
        document = problem_of(client.post(path, data=body, content_type=JSON), 422)
        assert "is too large" in document["errors"][0]["detail"]


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_beyond_the_maximum_depth_is_refused(
    call: tuple[FlaskClient, str], opening: bytes, closing: bytes
) -> None:
    client, path = call

    def post_nested(depth: int) -> TestResponse:
        body = b'{"x": ' + opening * (depth - 1) + b"1" + closing * (depth - 1) + b"}"
        return client.post(path, data=body, content_type=JSON)

    problem_of(post_nested(MAX_DEPTH), 422)  # a required field is missing, but the depth is allowed
    for depth in (MAX_DEPTH + 1, 500, 5_000):
        document = problem_of(post_nested(depth), 400)
        assert document["type"] == "/problems/nested-too-deeply"
        assert str(MAX_DEPTH) in document["detail"]


def test_an_empty_object_is_refused_for_its_missing_fields(call: tuple[FlaskClient, str]) -> None:
    client, path = call
    document = problem_of(client.post(path, json={}), 422)
    assert document["errors"]


def test_a_number_of_5000_digits_is_refused(call: tuple[FlaskClient, str]) -> None:
    client, path = call
    body = b'{"amount": ' + b"9" * 5000 + b"}"
    problem_of(client.post(path, data=body, content_type=JSON), 422)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "x",
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
    ],
)
def test_a_body_without_a_json_content_type_is_refused(
    call: tuple[FlaskClient, str], content_type: str | None
) -> None:
    client, path = call
    body = json.dumps({"user_id": USER, "amount": 5})

    document = problem_of(client.post(path, data=body, content_type=content_type), 415)

    received = repr(content_type) if content_type else "none"
    assert document["detail"] == (
        f"The body must be JSON, with Content-Type: application/json. The request has {received}."
    )


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "it is empty."),
        (b" \t\r\n", "it is only white space."),
        (codecs.BOM_UTF8 + b"{}", "it begins with a byte order mark (U+FEFF). Leave the mark out"),
        ('{"amount": 1}'.encode("utf-16"), "it is in UTF-16, and must be in UTF-8."),
        ('{"amount": 1}'.encode("utf-16-be"), "it is in UTF-16, and must be in UTF-8."),
        ('{"amount": 1}'.encode("utf-16-le"), "it is in UTF-16, and must be in UTF-8."),
        ('{"amount": 1}'.encode("utf-32"), "it is in UTF-32, and must be in UTF-8."),
        ('{"amount": 1}'.encode("utf-32-be"), "it is in UTF-32, and must be in UTF-8."),
        ('{"description": "\xe9"}'.encode("latin-1"), "it is not UTF-8 (at byte 18)."),
    ],
)
def test_a_body_that_is_not_utf_8_is_refused_with_the_reason(
    call: tuple[FlaskClient, str], body: bytes, detail: str
) -> None:
    """See RFC 8259, section 8.1. A server may ignore or refuse a byte order mark."""
    client, path = call
    for content_type in (JSON, "application/json; charset=utf-16"):
        document = problem_of(client.post(path, data=body, content_type=content_type), 400)
        assert document["type"] == "/problems/not-json"
        assert document["detail"].startswith(f"The body is not JSON: {detail}")


@pytest.mark.parametrize("coding", ["gzip", "br", "GZIP, identity", "x"])
def test_a_compressed_body_is_refused(call: tuple[FlaskClient, str], coding: str) -> None:
    """See RFC 9110, section 15.5.16."""
    client, path = call
    body = gzip.compress(json.dumps({"user_id": USER, "amount": 5}).encode())

    response = client.post(path, data=body, content_type=JSON, headers={"Content-Encoding": coding})

    document = problem_of(response, 415)
    assert document["detail"] == (
        "The body must not be compressed: send it without Content-Encoding."
    )
    assert response.headers["Accept-Encoding"] == "identity"


def test_the_largest_order_is_accepted(clients: dict[str, FlaskClient]) -> None:
    """All characters are escaped. Each character of the description needs a pair of escapes."""

    def escaped(value: str) -> str:
        units = value.encode("utf-16-be")
        pairs = zip(units[::2], units[1::2], strict=True)
        return '"' + "".join(f"\\u{high:02x}{low:02x}" for high, low in pairs) + '"'

    fields = {
        escaped("user_id"): escaped(USER),
        escaped("amount"): str(2**63 - 1),
        escaped("description"): escaped("\U0001f600" * 10_000),
    }
    body = "{" + ", ".join(f"{name}: {value}" for name, value in fields.items()) + "}"

    response = clients["orders"].post("/orders", data=body, content_type=JSON)

    assert response.status_code == 202, response.text
    assert 120_000 < len(body) < MAX_BYTES


def test_a_large_body_is_refused(call: tuple[FlaskClient, str]) -> None:
    client, path = call
    body = b'{"description": "' + b"x" * 10_000_000 + b'"}'
    problem_of(client.post(path, data=body, content_type=JSON), 413)


def test_an_unsupported_method_is_refused(call: tuple[FlaskClient, str]) -> None:
    client, path = call
    for method in ("PUT", "PATCH", "DELETE", "TRACE", "FOO"):
        response = client.open(path, method=method, json={})
        problem_of(response, 405)
        assert "POST" in response.headers["Allow"]


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_a_wrong_value_is_refused_in_every_field(
    clients: dict[str, FlaskClient], name: str, field: str
) -> None:
    service, path, body = CALLS[name]
    wrong = WRONG_ANYWHERE + {"user_id": WRONG_USERS, "amount": WRONG_AMOUNTS}.get(field, [])
    for value in wrong:
        response = post(clients[service], path, body | {field: value})
        document = problem_of(response, 422)
        assert [error["pointer"] for error in document["errors"]] == [f"#/{field}"], shorten(value)


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_the_value_of_an_unknown_field_is_not_validated(
    clients: dict[str, FlaskClient], name: str, field: str
) -> None:
    """None of the values gives 422. Whether the account exists decides between the others."""
    service, path, body = CALLS[name]
    for value in WRONG_ANYWHERE:
        response = post(clients[service], path, body | {f"{field}_": value})
        assert response.status_code in {200, 201, 202, 404, 409}, shorten(value)


@pytest.mark.parametrize("service", ["payments", "orders"])
@pytest.mark.parametrize(
    "path",
    ["/x", "/accounts/", "/orders/", "/order", "/order/", "/accounts//deposit", "/.env", "/%00",
     "/%ff", "/%2e%2e/%2e%2e/etc/passwd", "/" + "x" * 3000],
)  # fmt: skip
def test_an_unknown_path_gets_a_problem_document(
    clients: dict[str, FlaskClient], service: str, path: str
) -> None:
    for method in ("GET", "POST", "FOO"):
        problem_of(clients[service].open(path, method=method), 404)


@pytest.mark.parametrize("user_id", [None, *WRONG_USERS, "\0", "\ud83d\ude00", "x" * 3000])
def test_a_balance_of_an_invalid_user_id_is_refused(
    clients: dict[str, FlaskClient], user_id: str | None
) -> None:
    query = {} if user_id is None else {"user_id": user_id.encode("utf-8", "surrogatepass")}
    document = problem_of(clients["payments"].get("/accounts/balance", query_string=query), 422)
    assert [error["parameter"] for error in document["errors"]] == ["user_id"]


def test_every_error_of_a_body_is_reported(clients: dict[str, FlaskClient]) -> None:
    body = {"user_id": 1, "amount": "5", "description": None}
    document = problem_of(clients["orders"].post("/orders", json=body), 422)
    assert {error["pointer"] for error in document["errors"]} == {
        "#/user_id",
        "#/amount",
        "#/description",
    }


def test_a_json_content_type_may_have_a_charset_or_a_suffix(
    clients: dict[str, FlaskClient],
) -> None:
    body = json.dumps({"user_id": USER, "amount": 5})
    for content_type in (
        "application/json; charset=utf-8",
        "application/json; charset=iso-8859-1",  # has no effect (RFC 8259, section 11)
        "application/vnd.order+json",
    ):
        response = clients["orders"].post("/orders", data=body, content_type=content_type)
        assert response.status_code == 202
