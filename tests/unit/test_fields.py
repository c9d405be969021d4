"""The strict fields refuse values that marshmallow would convert."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from marshmallow import ValidationError

from settle_outbox.event import format_time
from shared.fields import Amount, CanonicalUUID, OpenSchema, Text, Time, UserId

SOME_UUID = "8f14e45f-ceea-467f-a0e6-4a3e2c1b5d7a"


@pytest.mark.parametrize("amount", [1, 100, 2**63 - 1])
def test_amount_takes_positive_int64(amount: int) -> None:
    assert Amount().deserialize(amount) == amount


@pytest.mark.parametrize(
    "amount",
    [0, -1, 2**63, 10**40, 1.0, 1.5, 1e300, float("inf"), "1", "", True, False, None, [], {}],
)
def test_amount_refuses_everything_else(amount: object) -> None:
    with pytest.raises(ValidationError):
        Amount().deserialize(amount)


@pytest.mark.parametrize("spelling", [SOME_UUID, SOME_UUID.upper()])
def test_uuids_in_upper_and_lower_case_are_equal(spelling: str) -> None:
    assert UserId().deserialize(spelling) == UUID(SOME_UUID)


@pytest.mark.parametrize(
    "spelling",
    [
        "",
        "x",
        SOME_UUID.replace("-", ""),
        f"{{{SOME_UUID}}}",
        f"urn:uuid:{SOME_UUID}",
        f" {SOME_UUID}",
        f"{SOME_UUID}\n",
        SOME_UUID[:-1],
        SOME_UUID[:-1] + "g",
        SOME_UUID[:-1] + "\N{FULLWIDTH DIGIT ONE}",
        "8f14e45fc-eea-467f-a0e6-4a3e2c1b5d7a",
        "8f14e4_f-ceea-467f-a0e6-4a3e2c1b5d7a",
        "\ud800",
        "\0" * 36,
        None,
        12,
        True,
        [SOME_UUID],
    ],
)
def test_uuids_in_other_spellings_are_refused(spelling: object) -> None:
    with pytest.raises(ValidationError):
        CanonicalUUID().deserialize(spelling)


def test_the_nil_uuid_is_not_a_user() -> None:
    nil = str(UUID(int=0))
    assert CanonicalUUID().deserialize(nil) == UUID(int=0)
    with pytest.raises(ValidationError, match="nil"):
        UserId().deserialize(nil)


@pytest.mark.parametrize("text", ["", "Lunch", "Grüße \N{PILE OF POO}", "x" * 10])
def test_text_is_kept_unchanged(text: str) -> None:
    assert Text(max_length=10).deserialize(text) == text


@pytest.mark.parametrize(
    "text", ["x" * 11, "a\0b", "\ud800", "\ude00\ud83d", 1, True, None, [], {}, b"x"]
)
def test_text_that_cannot_be_stored_is_refused(text: object) -> None:
    with pytest.raises(ValidationError):
        Text(max_length=10).deserialize(text)


def test_text_can_be_required() -> None:
    with pytest.raises(ValidationError):
        Text(min_length=1, max_length=10).deserialize("")


def test_unknown_fields_are_ignored() -> None:
    class Schema(OpenSchema):
        amount = Amount()

    assert Schema().load({"amount": 1, "colour": "\ud800"}) == {"amount": 1}


@pytest.mark.parametrize(
    ("moment", "written"),
    [
        (datetime(2025, 6, 17, 20, 55, 35, 806222, UTC), "2025-06-17T20:55:35.806222Z"),
        (datetime(2025, 6, 17, 20, 55, 35, 0, UTC), "2025-06-17T20:55:35.000000Z"),
        (
            datetime(2025, 6, 17, 22, 55, 35, 1, timezone(timedelta(hours=2))),
            "2025-06-17T20:55:35.000001Z",
        ),
    ],
)
def test_times_are_utc_with_microseconds(moment: datetime, written: str) -> None:
    assert format_time(moment) == written
    assert Time().serialize("at", {"at": moment}) == written
