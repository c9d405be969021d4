"""The pauses between attempts in an outage, and the stop of a process."""

from __future__ import annotations

import os
import resource
import threading
import time

import psycopg2
import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError
from structlog.testing import capture_logs

from settle_outbox.consume import consumer
from settle_outbox.publish import relay
from settle_outbox.runtime.process import BACKOFF_MAX_S, Backoff, Stop
from support.logs import events


def test_an_outage_is_logged_when_it_starts_and_when_it_ends() -> None:
    backoff = Backoff(relay.EVENTS.broker)
    with capture_logs() as lines:
        backoff.succeeded()
        waits = [backoff.failed(OSError("gone")) for _ in range(20)]
        backoff.succeeded()
        backoff.succeeded()
        again = backoff.failed(OSError("gone"))
    assert events(lines, "relay") == [
        "relay.broker_down",
        "relay.broker_up",
        "relay.broker_down",
    ]
    # Each pause is longer, up to a limit. After a success it is short again.
    assert 0.05 <= waits[0] <= 0.1
    assert again <= 0.1
    assert all(BACKOFF_MAX_S / 2 <= wait <= BACKOFF_MAX_S for wait in waits[8:])


def test_a_stop_ends_every_wait() -> None:
    stop = Stop()
    timer = threading.Timer(0.1, stop.request)
    timer.start()
    started = time.monotonic()
    assert stop.wait(30) == []
    assert stop.wait(30) == []  # later waits end at once
    assert time.monotonic() - started < 5
    assert stop.requested
    timer.join()


def test_a_stop_waits_for_descriptors_above_1023() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    high = 2000
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, high + 1), hard))
    read, write = os.pipe()
    os.dup2(read, high)
    with open(high, "rb", closefd=True) as readable:
        stop = Stop()

        assert stop.wait(0, readable) == []
        os.write(write, b"x")
        assert stop.wait(30, readable) == [readable]
        os.close(write)
        os.read(high, 1)
        assert stop.wait(30, readable) == [readable]  # the end of a pipe is readable

    os.close(read)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_each_new_reason_of_an_outage_is_logged_once() -> None:
    backoff = Backoff(consumer.EVENTS.database)
    refused, unknown_host = "connection to port 5432 refused", "unknown host"
    other_port = refused.replace("5432", "5433")

    with capture_logs() as lines:
        for text in (refused, other_port, unknown_host, refused, unknown_host):
            backoff.failed(OperationalError("SELECT 1", None, psycopg2.OperationalError(text)))

    assert events(lines, "consumer") == [
        "consumer.database_down",
        "consumer.database_still_down",
    ]


def test_a_database_that_answers_but_refuses_is_not_down() -> None:
    backoff = Backoff(consumer.EVENTS.database)
    refusal = ProgrammingError("SELECT 1", None, psycopg2.ProgrammingError("no such table"))

    with capture_logs() as lines:
        backoff.failed(refusal)

    assert events(lines, "consumer") == ["consumer.database_refused"]


@pytest.mark.parametrize(
    "text",
    [
        'FATAL:  password authentication failed for user "orders"',
        'FATAL:  role "orders" does not exist',
        'FATAL:  role "orders" is not permitted to log in',
        'FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "orders", database "orders"',
        "fe_sendauth: no password supplied",
    ],
)
def test_a_refused_login_is_logged_as_such(text: str) -> None:
    backoff = Backoff(relay.EVENTS.database)
    error = psycopg2.OperationalError(f'connection to server at "db", port 5432 failed: {text}')

    with capture_logs() as lines:
        backoff.failed(OperationalError("SELECT 1", None, error))

    (line,) = lines
    assert line["event"] == "relay.database_refused"
    assert line["reason"] == "login"


def test_a_server_that_starts_up_does_not_refuse_the_login() -> None:
    backoff = Backoff(relay.EVENTS.database)
    error = psycopg2.OperationalError("FATAL:  the database system is starting up")

    with capture_logs() as lines:
        backoff.failed(OperationalError("SELECT 1", None, error))

    (line,) = lines
    assert line["event"] == "relay.database_down"
    assert line["reason"] is None
