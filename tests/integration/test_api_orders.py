"""The orders API: exact fields, statuses, paging and filters."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from services.orders.listing import read_page
from support.plans import most_rows
from support.settle_orders import settle_one
from support.web import pages, problem_of

if TYPE_CHECKING:
    from flask.testing import FlaskClient
    from sqlalchemy.orm import Session
    from werkzeug.test import TestResponse

USER = "8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

UNKNOWN = "5b0c6c1e-8f0e-4c8e-9a63-0d5f3a3d7c11"  # no order has this id


def place(orders: FlaskClient, **changed: Any) -> TestResponse:
    body = {"user_id": str(uuid4()), "amount": 100, "description": "Lunch"} | changed
    response = orders.post(
        "/orders", json=body, headers={"X-Request-ID": "r-1", "traceparent": TRACEPARENT}
    )
    assert response.status_code == 202, response.text
    return response


def id_of(placed: TestResponse) -> str:
    return placed.headers["Location"].removeprefix("/order/")


def test_an_order_is_accepted(orders: FlaskClient) -> None:
    response = place(orders)
    assert response.data.strip() == b'{"message":"Order accepted"}'
    order_id = id_of(response)
    found = orders.get(response.headers["Location"])
    assert found.status_code == 200
    assert found.data.strip() == f'{{"id":"{order_id}","status":"created"}}'.encode()
    assert orders.get(f"/order/{order_id.upper()}").get_json()["id"] == order_id


@pytest.mark.parametrize("amount", [1, 2**63 - 1])
@pytest.mark.parametrize("description", ["", "x" * 10_000, "\N{PILE OF POO}" * 10_000, 'a"\\\n'])
def test_the_smallest_and_largest_values_are_accepted(
    orders: FlaskClient, amount: int, description: str
) -> None:
    place(orders, amount=amount, description=description)
    (listed,) = orders.get("/orders").get_json()
    assert (listed["Amount"], listed["Description"]) == (amount, description)


def test_a_description_may_be_left_out_and_unknown_fields_are_ignored(orders: FlaskClient) -> None:
    body = {"user_id": str(uuid4()), "amount": 1, "status": "success", "id": 7}
    assert orders.post("/orders", json=body).status_code == 202
    (listed,) = orders.get("/orders").get_json()
    assert (listed["Description"], listed["Status"]) == ("", "created")


def test_an_order_and_its_event_are_written_together(
    orders: FlaskClient, orders_session: Session
) -> None:
    user_id = str(uuid4())
    order_id = id_of(place(orders, user_id=user_id.upper(), amount=7))
    (event,) = orders_session.execute(text("SELECT * FROM outbox")).mappings()
    (listed,) = orders.get("/orders").get_json()
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


def test_an_unknown_order_is_not_found(orders: FlaskClient) -> None:
    problem_of(orders.get(f"/order/{uuid4()}"), 404)


@pytest.mark.parametrize("order_id", ["x", "", "%00", "%ff", "1" * 36, UNKNOWN[:-1]])
def test_a_malformed_order_id_is_not_found(orders: FlaskClient, order_id: str) -> None:
    problem_of(orders.get(f"/order/{order_id}"), 404)


def test_the_list_has_the_documented_fields_in_order(orders: FlaskClient) -> None:
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


def test_a_list_without_orders_is_an_empty_array(orders: FlaskClient) -> None:
    response = orders.get("/orders")
    assert response.data.strip() == b"[]"
    assert "Link" not in response.headers


def test_pages_hold_every_order_once_newest_first(orders: FlaskClient) -> None:
    placed = [id_of(place(orders, amount=number)) for number in range(1, 8)]
    found = pages(orders, "/orders?limit=3")
    assert [len(page) for page in found] == [3, 3, 1]
    assert [order["ID"] for page in found for order in page] == placed[::-1]


def test_a_full_last_page_has_no_next_link(orders: FlaskClient) -> None:
    for _ in range(4):
        place(orders)
    assert [len(page) for page in pages(orders, "/orders?limit=2")] == [2, 2]


def test_a_list_is_filtered_by_user(orders: FlaskClient) -> None:
    user_id = str(uuid4())
    mine = []
    for _ in range(3):
        mine.append(id_of(place(orders, user_id=user_id)))
        place(orders)
    found = pages(orders, f"/orders?limit=2&user_id={user_id.upper()}")
    assert [order["ID"] for page in found for order in page] == mine[::-1]
    assert orders.get(f"/orders?user_id={uuid4()}").json == []


def test_orders_with_one_timestamp_are_paged_by_id(
    orders: FlaskClient, orders_session: Session
) -> None:
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


def test_orders_placed_while_paging_do_not_move_the_pages(orders: FlaskClient) -> None:
    placed = [id_of(place(orders)) for _ in range(4)]
    first = orders.get("/orders?limit=2")
    place(orders)
    following = first.headers["Link"].partition(">")[0].removeprefix("<")
    assert [order["ID"] for order in orders.get(following).get_json()] == placed[1::-1]


def test_a_page_has_100_orders_by_default(orders: FlaskClient, orders_session: Session) -> None:
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
    assert len(orders.get("/orders").get_json()) == 100
    assert [len(page) for page in pages(orders, "/orders?limit=1000")] == [1000, 1]


@pytest.mark.parametrize("limit", ["", "0", "1001", "-1", "+5", "1.0", "x", "%D9%A3", "%00"])
def test_a_limit_outside_its_range_is_refused(orders: FlaskClient, limit: str) -> None:
    document = problem_of(orders.get(f"/orders?limit={limit}"), 422)
    assert [error["parameter"] for error in document["errors"]] == ["limit"]


@pytest.mark.parametrize("cursor", ["", "x", "A" * 31, "%00", "%ff", "AAAA%0A"])
def test_a_malformed_cursor_is_refused(orders: FlaskClient, cursor: str) -> None:
    document = problem_of(orders.get(f"/orders?cursor={cursor}"), 422)
    assert [error["parameter"] for error in document["errors"]] == ["cursor"]


@pytest.mark.parametrize("user_id", ["", "x", "%00", "00000000-0000-0000-0000-000000000000"])
def test_a_malformed_user_id_is_refused(orders: FlaskClient, user_id: str) -> None:
    problem_of(orders.get(f"/orders?user_id={user_id}"), 422)


def test_the_api_is_alive_and_ready(orders: FlaskClient) -> None:
    assert orders.get("/livez").json == {"status": "ok"}
    assert orders.get("/readyz").json == {"status": "ok"}


def test_the_api_is_not_ready_on_another_revision(
    orders: FlaskClient, orders_session: Session
) -> None:
    orders_session.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    orders_session.commit()
    document = problem_of(orders.get("/readyz"), 503)
    assert "0000" in document["detail"]
    assert orders.get("/livez").status_code == 200


def test_a_single_order_shows_its_failure_reason(
    orders: FlaskClient, orders_session: Session
) -> None:
    placed = id_of(place(orders, description="Grüße"))
    (listed,) = orders.get("/orders").get_json()
    assert list(listed) == [
        *("ID", "UserID", "Amount", "Description", "Status", "CreatedAt", "UpdatedAt")
    ]
    whole = orders.get(f"/orders/{placed.upper()}")
    assert list(whole.get_json().items()) == [*listed.items(), ("FailureReason", None)]
    settle_one(orders_session, placed, "failed")
    failed = orders.get(f"/orders/{placed}").get_json()
    assert (failed["Status"], failed["FailureReason"]) == ("failed", "insufficient_funds")
    assert failed["UpdatedAt"] > failed["CreatedAt"]
    assert orders.get(f"/order/{placed}").json == {"id": placed, "status": "failed"}
    assert "FailureReason" not in orders.get("/orders").get_json()[0]


@pytest.mark.parametrize("order_id", [UNKNOWN, "x", "%00", UNKNOWN[:-1]])
def test_a_single_order_with_an_unknown_or_malformed_id_is_not_found(
    orders: FlaskClient, order_id: str
) -> None:
    problem_of(orders.get(f"/orders/{order_id}"), 404)


def ids(orders: FlaskClient, **query: Any) -> list[str]:
    found = pages(orders, f"/orders?{urlencode({'limit': 2, **query})}")
    return [order["ID"] for page in found for order in page]


def test_a_list_is_filtered_by_status_and_user(
    orders: FlaskClient, orders_session: Session
) -> None:
    user_id = str(uuid4())
    placed = [id_of(place(orders, user_id=user_id)) for _ in range(6)]
    other = id_of(place(orders))
    for order_id in (*placed[:3], other):
        settle_one(orders_session, order_id, "failed")
    settle_one(orders_session, placed[3], "success")
    assert ids(orders, status="failed") == [other, *placed[2::-1]]
    assert ids(orders, status="failed", user_id=user_id) == placed[2::-1]
    assert ids(orders, status="success") == [placed[3]]
    assert ids(orders, status="created", user_id=user_id) == [placed[5], placed[4]]
    assert ids(orders, status="created", user_id=str(uuid4())) == []


def test_a_list_is_filtered_by_time(orders: FlaskClient) -> None:
    placed = [id_of(place(orders)) for _ in range(5)]
    times = {order["ID"]: order["CreatedAt"] for order in orders.get("/orders").get_json()}
    second, fourth = times[placed[1]], times[placed[3]]
    assert ids(orders, created_from=second, created_before=fourth) == [placed[2], placed[1]]
    assert ids(orders, created_from=fourth) == [placed[4], placed[3]]
    assert ids(orders, created_before=second) == [placed[0]]
    assert ids(orders, created_from=fourth, created_before=second) == []
    in_moscow = datetime.fromisoformat(fourth).astimezone(timezone(timedelta(hours=3)))
    assert ids(orders, created_from=in_moscow.isoformat()) == [placed[4], placed[3]]
    # 1 ns later than the fourth order, whose time is stored in microseconds.
    assert ids(orders, created_from=fourth.replace("Z", "001z")) == [placed[4]]
    assert ids(orders, status="failed", created_from=second) == []


@pytest.mark.parametrize("first", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+14:33"])
@pytest.mark.parametrize("last", ["9999-12-31T23:59:59.9999999Z", "9999-12-31T23:59:59-14:00"])
def test_the_earliest_and_latest_times_are_valid_filters(
    orders: FlaskClient, first: str, last: str
) -> None:
    """In UTC, some of these times are outside the years 1 to 9999, the range of Python."""
    placed = id_of(place(orders))
    assert ids(orders, created_from=first, created_before=last) == [placed]
    assert ids(orders, created_before=first) == []
    assert ids(orders, created_from=last) == []


@pytest.mark.parametrize("name", ["created_from", "created_before"])
@pytest.mark.parametrize(
    "value",
    ["", "x", "2025-06-17", "2025-06-17T20:55:35", "2025-06-17 20:55:35Z", "1750193735",
     "2025-02-30T00:00:00Z", "2025-06-17T24:00:00Z", "2025-06-17T20:55:60Z", "2025-06-17T20:55Z",
     "2025-06-17T20:55:35.Z", "2025-06-17T20:55:35+03:0", "2025-06-17T20:55:35+99:00",
     "٢025-06-17T20:55:35Z", "\0"],
)  # fmt: skip
def test_an_invalid_time_is_refused(orders: FlaskClient, name: str, value: str) -> None:
    document = problem_of(orders.get(f"/orders?{urlencode({name: value})}"), 422)
    assert [error["parameter"] for error in document["errors"]] == [name]


@pytest.mark.parametrize("status", ["", "x", "Failed", "success,failed", "\0"])
def test_an_unknown_status_is_refused(orders: FlaskClient, status: str) -> None:
    document = problem_of(orders.get(f"/orders?{urlencode({'status': status})}"), 422)
    assert [error["parameter"] for error in document["errors"]] == ["status"]
    assert "created, success, failed" in document["errors"][0]["detail"]


def test_a_cursor_is_refused_with_other_filters(orders: FlaskClient) -> None:
    for _ in range(2):
        place(orders)
    link = orders.get("/orders?limit=1&status=created").headers["Link"]
    following = link.partition(">")[0].removeprefix("<")
    assert "status=created" in following
    problem_of(orders.get(following.replace("status=created", "status=failed")), 422)


@pytest.mark.parametrize("of_user", [False, True], ids=["all-users", "one-user"])
@pytest.mark.parametrize("status", ["created", "failed"])
def test_a_list_of_a_rare_status_reads_only_its_orders(
    orders_session: Session, status: str, *, of_user: bool
) -> None:
    """Of 50,000 orders, only the oldest is `created`, and only the second oldest is `failed`."""
    orders_session.execute(
        text(
            """
            INSERT INTO orders (id, user_id, amount, description, status, failure_reason,
                                created_at, updated_at)
            SELECT gen_random_uuid(), :user_id, 1, '',
                   (ARRAY['created', 'failed', 'success'])[least(number, 3)],
                   CASE number WHEN 2 THEN 'x' END,
                   now() - (100000 - number) * interval '1 second', now()
            FROM generate_series(1, 50000) AS number
            """
        ),
        {"user_id": USER},
    )
    orders_session.execute(text("ANALYZE orders"))
    wanted = {"status": status} | ({"user_id": UUID(USER)} if of_user else {})

    def read() -> None:
        page = read_page(orders_session, limit=100, filters=wanted)
        assert (len(page.orders), page.more) == (1, False)

    assert most_rows(orders_session, read) <= 2
