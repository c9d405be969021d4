"""Paged lists of the API: each row once, the same cost for every page, and signed cursors."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import pytest
from sqlalchemy import NullPool, create_engine, event, text

from services.orders import listing
from services.orders.listing import PAGE_BYTES_MAX
from support.web import open_app, pages, problem_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flask.testing import FlaskClient
    from sqlalchemy import Engine

    from support.postgres import PostgresServer

DATABASE = "orders_paging"
ROWS = 100_000
USER = UUID(int=1)
SECRET = "0123456789abcdef0123456789abcdef"

# Every 100th order is of one user, and every 10th failed. The tests place newer orders.
_FILL = text(
    """
    INSERT INTO orders
        (id, user_id, amount, description, status, failure_reason, created_at, updated_at)
    SELECT gen_random_uuid(), CASE WHEN n % 100 = 0 THEN :user_id ELSE gen_random_uuid() END, n, '',
        CASE WHEN n % 10 = 5 THEN 'failed' ELSE 'success' END,
        CASE WHEN n % 10 = 5 THEN 'insufficient_funds' END, moment, moment
    FROM generate_series(1, :rows) AS n,
        LATERAL (SELECT timestamptz '2025-01-01' + n * interval '1 second' AS moment) AS at
    """
)


@pytest.fixture(scope="module")
def url(postgres: PostgresServer, databases: Callable[[str], str]) -> Iterator[str]:
    """Create a database with 100,000 orders, and yield its URL."""
    url = postgres.create_database(DATABASE, template=databases("orders"))
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(_FILL, {"rows": ROWS, "user_id": USER})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE orders"))
    yield url
    postgres.drop_database(DATABASE)


@pytest.fixture
def client(url: str) -> Iterator[FlaskClient]:
    with open_app("orders", url) as app:
        yield app.test_client()


def get_page(client: FlaskClient, address: str) -> tuple[list[dict[str, Any]], str | None]:
    """Return a page, and the address of the next page."""
    response = client.get(address)
    assert response.status_code == 200, response.text
    link = response.headers.get("Link")
    assert link is None or link.endswith('>; rel="next"')
    return response.get_json(), link and link.partition(">")[0].removeprefix("<")


def place(client: FlaskClient, user_id: object) -> None:
    assert client.post("/orders", json={"user_id": str(user_id), "amount": 1}).status_code == 202


def explain(engine: Engine, get: Callable[[], object]) -> dict[str, Any]:
    """Return the executed plan of the last query of a request."""
    queries: list[tuple[str, Any]] = []

    def note(*sent: Any) -> None:
        queries.append((sent[2], sent[3]))

    event.listen(engine, "before_cursor_execute", note)
    get()
    event.remove(engine, "before_cursor_execute", note)
    statement, parameters = queries[-1]
    explained = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
    with engine.connect() as connection:
        found = connection.exec_driver_sql(explained, parameters).scalar_one()
    plan = found if isinstance(found, list) else json.loads(found)
    return dict(plan[0]["Plan"])


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from nodes(inner)


def buffers(plan: dict[str, Any]) -> int:
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "rows", "limit"),
    [
        ("", ROWS, 1000),
        (f"user_id={USER}&", ROWS // 100, 100),
        ("status=failed&", ROWS // 10, 1000),
    ],
    ids=["all", "user", "status"],
)
def test_every_page_costs_the_same_and_every_row_comes_once(
    client: FlaskClient, query: str, rows: int, limit: int
) -> None:
    """The last page costs as much as the first, although many rows come before the last page."""
    engine = client.application.extensions["settle-sessions"].kw["bind"]
    first = f"/orders?{query}limit={limit}&created_before=2025-06-01T00:00:00Z"
    pages: list[str] = []
    seen: list[int] = []
    following: str | None = first
    while following is not None:
        pages.append(following)
        page, following = get_page(client, following)
        seen += [order["Amount"] for order in page]
        place(client, USER)  # a newer order, which does not move the pages
    assert len(seen) == rows
    assert seen == sorted(set(seen), reverse=True)

    costs = [
        explain(engine, partial(client.get, address.replace(f"limit={limit}", "limit=10")))
        for address in (pages[0], pages[-1])
    ]
    for plan in costs:
        assert max(node["Actual Rows"] for node in nodes(plan)) <= 11
        assert not [node for node in nodes(plan) if node.get("Rows Removed by Filter", 0) > 11]
    assert [node["Node Type"] for node in nodes(costs[0])] == [
        node["Node Type"] for node in nodes(costs[1])
    ]
    assert buffers(costs[1]) <= buffers(costs[0]) + 5


def second_page(client: FlaskClient, query: str = "") -> str:
    _, following = get_page(client, f"/orders?{query}limit=1")
    assert following is not None
    return following


def check_refused(client: FlaskClient, address: str) -> None:
    document = problem_of(client.get(address), 422)
    (error,) = document["errors"]
    assert error["parameter"] == "cursor"
    assert "next link" in error["detail"]


def test_a_cursor_with_other_filters_or_a_changed_letter_is_refused(client: FlaskClient) -> None:
    of_user = second_page(client, f"user_id={USER}&")
    assert client.get(of_user).status_code == 200
    assert client.get(of_user.replace("limit=1", "limit=7")).status_code == 200
    check_refused(client, of_user.replace(str(USER), str(uuid4())))
    check_refused(client, of_user.replace(f"user_id={USER}&", ""))
    check_refused(client, second_page(client) + f"&user_id={USER}")
    (cursor,) = parse_qs(urlsplit(of_user).query)["cursor"]
    other = "A" if cursor[20] != "A" else "B"
    check_refused(client, of_user.replace(cursor, cursor[:20] + other + cursor[21:]))


def test_a_cursor_is_valid_after_a_restart_and_bound_to_the_secret(
    client: FlaskClient, url: str
) -> None:
    address = second_page(client)
    with open_app("orders", url) as another:
        assert another.test_client().get(address).status_code == 200
    with open_app("orders", url, CURSOR_SECRET=SECRET) as another:
        check_refused(another.test_client(), address)
        signed = second_page(another.test_client())
    # The URL of the database does not matter.
    same_database = url.replace("@127.0.0.1", "@localhost")
    with open_app("orders", same_database, CURSOR_SECRET=SECRET) as another:
        assert another.test_client().get(signed).status_code == 200


def test_a_link_has_the_forwarded_host_of_a_trusted_proxy_only(
    client: FlaskClient, url: str
) -> None:
    """Forwarded headers set the host of a link only if a proxy is trusted."""
    headers = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "pay.example"}
    untrusted = client.get("/orders?limit=1", headers=headers).headers["Link"]
    assert untrusted.startswith("<http://localhost/orders?")
    with open_app("orders", url, TRUSTED_PROXIES="1") as behind_proxy:
        trusted = behind_proxy.test_client().get("/orders?limit=1", headers=headers).headers["Link"]
    assert trusted.startswith("<https://pay.example/orders?")


def test_a_time_in_the_filters_is_the_same_on_every_page(client: FlaskClient) -> None:
    """The link repeats the time as the client wrote it, with the plus sign escaped."""
    moment = datetime(2025, 1, 1, 5, tzinfo=UTC).isoformat().replace("+", "%2B")
    page, following = get_page(client, f"/orders?limit=2&created_before={moment}")
    assert following is not None
    following_page, _ = get_page(client, following)
    amounts = [order["Amount"] for order in [*page, *following_page]]
    assert amounts == [17999, 17998, 17997, 17996]


def test_a_page_has_a_size_limit_and_a_link_to_the_rest(
    orders_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each order comes once. An order above the limit has a separate page."""
    monkeypatch.setattr(listing, "PAGE_BYTES_MAX", 20_000)
    lengths = [10, 9_000, 9_000, 9_000, 10, 10_000, 10_000, 10]
    with open_app("orders", orders_url) as app:
        client = app.test_client()
        for length in lengths:
            body = {"user_id": str(USER), "amount": 1, "description": "\N{SNOWMAN}" * length}
            assert client.post("/orders", json=body).status_code == 202

        found = [
            [len(order["Description"]) for order in page]
            for page in pages(client, f"/orders?user_id={USER}&limit=3")
        ]

    # The newest order is first. A snowman has three bytes.
    assert found == [[10], [10_000], [10_000], [10], [9_000], [9_000], [9_000], [10]]


def test_a_page_of_1000_usual_orders_is_below_the_size_limit(client: FlaskClient) -> None:
    answer = client.get("/orders?limit=1000&created_before=2025-06-01T00:00:00Z")

    assert len(answer.get_json()) == 1000
    assert len(answer.data) < PAGE_BYTES_MAX
