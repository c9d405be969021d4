"""The orders API, to the letter."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from support.web import problem_of

if TYPE_CHECKING:
    from sqlalchemy.orm import Session
    from werkzeug.test import Client, TestResponse

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def place(orders: Client, **changed: Any) -> TestResponse:
    body = {"user_id": str(uuid4()), "amount": 100, "description": "Lunch"} | changed
    response = orders.post(
        "/orders", json=body, headers={"X-Request-ID": "r-1", "traceparent": TRACEPARENT}
    )
    assert response.status_code == 202, response.text
    return response


def id_of(placed: TestResponse) -> str:
    return placed.headers["Location"].removeprefix("/order/")


def pages(orders: Client, path: str) -> list[list[dict[str, Any]]]:
    """Every page of a list, by its `next` links."""
    found = []
    while True:
        response = orders.get(path)
        assert response.status_code == 200
        found.append(response.json)
        link = response.headers.get("Link")
        if link is None:
            return found
        (path,) = re.fullmatch(r'<(http://localhost/orders\?[^>]+)>; rel="next"', link).groups()


def test_an_order_is_accepted(orders: Client) -> None:
    response = place(orders)
    assert response.data.strip() == b'{"message":"Order accepted"}'
    order_id = id_of(response)
    found = orders.get(response.headers["Location"])
    assert found.status_code == 200
    assert found.data.strip() == f'{{"id":"{order_id}","status":"created"}}'.encode()
    assert orders.get(f"/order/{order_id.upper()}").json["id"] == order_id


@pytest.mark.parametrize("amount", [1, 2**63 - 1])
@pytest.mark.parametrize("description", ["", "x" * 10_000, "\N{PILE OF POO}" * 10_000, 'a"\\\n'])
def test_the_ends_of_every_range_are_accepted(
    orders: Client, amount: int, description: str
) -> None:
    place(orders, amount=amount, description=description)
    (listed,) = orders.get("/orders").json
    assert (listed["Amount"], listed["Description"]) == (amount, description)


def test_a_description_may_be_left_out_and_unknown_fields_are_ignored(orders: Client) -> None:
    body = {"user_id": str(uuid4()), "amount": 1, "status": "success", "id": 7}
    assert orders.post("/orders", json=body).status_code == 202
    (listed,) = orders.get("/orders").json
    assert (listed["Description"], listed["Status"]) == ("", "created")


def test_an_order_and_its_event_are_written_together(
    orders: Client, orders_session: Session
) -> None:
    user_id = str(uuid4())
    order_id = id_of(place(orders, user_id=user_id.upper(), amount=7))
    (event,) = orders_session.execute(text("SELECT * FROM outbox")).mappings()
    (listed,) = orders.get("/orders").json
    assert event["aggregatetype"] == "orders"
    assert event["aggregateid"] == user_id
    assert event["type"] == "order.created"
    assert (event["requestid"], event["traceparent"]) == ("r-1", TRACEPARENT)
    assert json.loads(bytes(event["payload"])) == {
        "order_id": order_id,
        "user_id": user_id,
        "amount": 7,
        "created_at": listed["CreatedAt"],
    }


def test_an_unknown_order_is_not_found(orders: Client) -> None:
    problem_of(orders.get(f"/order/{uuid4()}"), 404)


@pytest.mark.parametrize("order_id", ["x", "", "%00", "%ff", "1" * 36, str(uuid4())[:-1]])
def test_a_malformed_order_is_not_found(orders: Client, order_id: str) -> None:
    problem_of(orders.get(f"/order/{order_id}"), 404)


def test_the_list_has_these_fields_in_this_order(orders: Client) -> None:
    before = datetime.now(UTC)
    user_id = str(uuid4())
    order_id = id_of(place(orders, user_id=user_id, amount=7, description="Grüße"))
    (listed,) = json.loads(orders.get("/orders").data)
    created_at = listed["CreatedAt"]
    assert list(listed.items()) == [
        ("ID", order_id),
        ("UserID", user_id),
        ("Amount", 7),
        ("Description", "Grüße"),
        ("Status", "created"),
        ("CreatedAt", created_at),
        ("UpdatedAt", created_at),
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", created_at)
    assert before <= datetime.fromisoformat(created_at) <= before + timedelta(seconds=10)


def test_an_empty_list_is_a_list(orders: Client) -> None:
    response = orders.get("/orders")
    assert response.data.strip() == b"[]"
    assert "Link" not in response.headers


def test_pages_hold_every_order_once_newest_first(orders: Client) -> None:
    placed = [id_of(place(orders, amount=number)) for number in range(1, 8)]
    found = pages(orders, "/orders?limit=3")
    assert [len(page) for page in found] == [3, 3, 1]
    assert [order["ID"] for page in found for order in page] == placed[::-1]


def test_a_last_page_that_is_full_has_no_next(orders: Client) -> None:
    for _ in range(4):
        place(orders)
    assert [len(page) for page in pages(orders, "/orders?limit=2")] == [2, 2]


def test_pages_of_one_user(orders: Client) -> None:
    user_id = str(uuid4())
    mine = []
    for _ in range(3):
        mine.append(id_of(place(orders, user_id=user_id)))
        place(orders)
    found = pages(orders, f"/orders?limit=2&user_id={user_id.upper()}")
    assert [order["ID"] for page in found for order in page] == mine[::-1]
    assert orders.get(f"/orders?user_id={uuid4()}").json == []


def test_orders_of_one_moment_are_paged_by_id(orders: Client, orders_session: Session) -> None:
    orders_session.execute(
        text(
            """
            INSERT INTO orders (id, user_id, amount, description, status, created_at, updated_at)
            SELECT gen_random_uuid(), gen_random_uuid(), 1, '', 'created', now(), now()
            FROM generate_series(1, 10)
            """
        )
    )
    orders_session.commit()
    found = [order["ID"] for page in pages(orders, "/orders?limit=3") for order in page]
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 10


def test_orders_placed_while_paging_do_not_move_the_pages(orders: Client) -> None:
    placed = [id_of(place(orders)) for _ in range(4)]
    first = orders.get("/orders?limit=2")
    place(orders)
    following = first.headers["Link"].partition(">")[0].removeprefix("<")
    assert [order["ID"] for order in orders.get(following).json] == placed[1::-1]


def test_a_page_has_100_orders_when_not_told(orders: Client, orders_session: Session) -> None:
    orders_session.execute(
        text(
            """
            INSERT INTO orders (id, user_id, amount, description, status, created_at, updated_at)
            SELECT gen_random_uuid(), gen_random_uuid(), 1, '', 'created', now(), now()
            FROM generate_series(1, 1001)
            """
        )
    )
    orders_session.commit()
    assert len(orders.get("/orders").json) == 100
    assert [len(page) for page in pages(orders, "/orders?limit=1000")] == [1000, 1]


@pytest.mark.parametrize("limit", ["", "0", "1001", "-1", "+5", "1.0", "x", "%D9%A3", "%00"])
def test_a_limit_outside_its_range_is_refused(orders: Client, limit: str) -> None:
    document = problem_of(orders.get(f"/orders?limit={limit}"), 422)
    assert [error["parameter"] for error in document["errors"]] == ["limit"]


@pytest.mark.parametrize("cursor", ["", "x", "A" * 31, "%00", "%ff", "AAAA%0A"])
def test_a_malformed_cursor_is_refused(orders: Client, cursor: str) -> None:
    document = problem_of(orders.get(f"/orders?cursor={cursor}"), 422)
    assert [error["parameter"] for error in document["errors"]] == ["cursor"]


@pytest.mark.parametrize("user_id", ["", "x", "%00", "00000000-0000-0000-0000-000000000000"])
def test_a_malformed_user_is_refused(orders: Client, user_id: str) -> None:
    problem_of(orders.get(f"/orders?user_id={user_id}"), 422)


def test_it_lives_and_is_ready(orders: Client) -> None:
    assert orders.get("/livez").json == {"status": "ok"}
    assert orders.get("/readyz").json == {"status": "ok"}


def test_it_is_not_ready_on_another_revision(orders: Client, orders_session: Session) -> None:
    orders_session.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    orders_session.commit()
    document = problem_of(orders.get("/readyz"), 503)
    assert "0000" in document["detail"]
    assert orders.get("/livez").status_code == 200
