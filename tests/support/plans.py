"""Count the rows in the plans of PostgreSQL, with EXPLAIN (ANALYZE, FORMAT JSON)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import event

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session


def most_rows(session: Session, call: Callable[[], object]) -> float:
    """Return the largest number of rows that a step of a plan returned or filtered out.

    The plans are those of all statements that `call` executes.
    """
    executed: list[tuple[str, Any]] = []

    def note(_: object, __: object, statement: str, parameters: Any, *___: object) -> None:
        executed.append((statement, parameters))

    connection = session.connection()
    event.listen(connection, "before_cursor_execute", note)
    try:
        call()
    finally:
        event.remove(connection, "before_cursor_execute", note)
    assert executed
    most = 0.0
    for statement, parameters in executed:
        explain = f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}"
        explained = connection.exec_driver_sql(explain, parameters).scalar_one()
        most = max(most, _most_rows(explained[0]["Plan"]))
    return most


def _most_rows(plan: dict[str, Any]) -> float:
    here = (plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)) * plan["Actual Loops"]
    return max([here, *map(_most_rows, plan.get("Plans", []))])
