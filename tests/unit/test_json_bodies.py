"""The memory to parse a body is proportional to its length, for any content."""

from __future__ import annotations

import tracemalloc

import pytest
from flask import Request
from werkzeug.exceptions import HTTPException
from werkzeug.test import EnvironBuilder

from shared.web.json_body import MAX_BYTES, read_json

# Maximum memory per byte of the body. 26 bytes were measured for empty objects: each is a dict of
# 64 bytes in a list.
BYTES_PER_BYTE = 32
NAME = b'{"' + "\U0001f600".encode() * 100 + b'":'


def array(item: bytes, size: int) -> bytes:
    return b"[" + b",".join([item] * (size // (len(item) + 1))) + b"]"


BODIES = {
    "empty arrays": array(b"[]", MAX_BYTES - 2),
    "empty objects": array(b"{}", MAX_BYTES - 2),
    "names given twice": array(b'{"a":1,"a":2}', MAX_BYTES - 2),
    "long names around arrays": NAME * 29 + array(b"[]", 100_000) + b"}" * 29,
    "long names around names given twice": NAME * 29 + array(b'{"a":1,"a":2}', 100_000) + b"}" * 29,
    "many levels": b"[" * MAX_BYTES,
    "many levels that end": b"[" * (MAX_BYTES // 2) + b"]" * (MAX_BYTES // 2),
    "a string that does not end": b'"' + b'\\"' * (MAX_BYTES // 2 - 1),
    "quotation marks": b'"' * MAX_BYTES,
    "backslashes": b"\\" * MAX_BYTES,
    "digits": b"9" * MAX_BYTES,
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_costs_memory_in_proportion_to_its_length(name: str) -> None:
    body = BODIES[name]
    environ = EnvironBuilder(method="POST", data=body, content_type="application/json")
    request = Request(environ.get_environ())

    tracemalloc.start()
    try:
        read_json(request)
    except HTTPException as error:
        assert error.code in {400, 422}  # noqa: PT017 - some bodies are accepted
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert peak < BYTES_PER_BYTE * len(body)
