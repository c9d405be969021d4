"""The schema of problem documents in the API description."""

from __future__ import annotations

from marshmallow import fields

from shared.fields import OpenSchema
from shared.web.problems import problem_types


class FaultSchema(OpenSchema):
    """One fault in a request: `pointer` into the body, `parameter` of the query, or `header`."""

    pointer = fields.String(
        metadata={
            "description": "The place in the body: a JSON Pointer (RFC 6901).",
            "examples": ["#/amount"],
        }
    )
    parameter = fields.String(
        metadata={"description": "The name of the query parameter.", "examples": ["limit"]}
    )
    header = fields.String(
        metadata={"description": "The name of the header.", "examples": ["Idempotency-Key"]}
    )
    detail = fields.String(
        required=True,
        metadata={
            "description": "What is wrong there.",
            "examples": ["Must be an integer, in minor units."],
        },
    )


class ProblemSchema(OpenSchema):
    """A problem document (RFC 9457)."""

    type = fields.String(
        required=True,
        metadata={
            "description": "The problem type. It never changes. It is also the address of a page"
            " that says what it means and what to do.",
            "format": "uri-reference",
            "examples": [problem_types.INVALID_INPUT.type],
        },
    )
    title = fields.String(
        required=True, metadata={"description": "The problem type in a few words."}
    )
    status = fields.Integer(required=True, metadata={"description": "The HTTP status."})
    detail = fields.String(
        required=True, metadata={"description": "A sentence about this occurrence."}
    )
    instance = fields.String(
        required=True,
        metadata={
            "description": "This occurrence: the request's path and id.",
            "format": "uri-reference",
        },
    )
    request_id = fields.String(
        required=True,
        metadata={"description": "The request's id. The log has the request under this id."},
    )
    errors = fields.List(
        fields.Nested(FaultSchema),
        metadata={"description": "For the type `invalid-input`: all faults that were found."},
    )
