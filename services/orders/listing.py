"""Use case: list orders. Each list is read by one index; a page has a maximum size in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, func, literal, or_, select, tuple_, union_all
from sqlalchemy.orm import Session, aliased

from services.orders.models import STATUSES, Order

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import ColumnElement, FromClause, Select, Subquery

# Maximum size of a page. A page ends before the order that would exceed it, but has at least one.
PAGE_BYTES_MAX = 512 * 1024
# An order counts as its description's bytes plus this: about the size of its other fields in JSON.
_ROW_BYTES = 256
_NEWEST_BY = ("created_at", "id")


@dataclass(frozen=True, slots=True)
class Page:
    """A page of orders, newest first, and whether there are more."""

    orders: Sequence[Order]
    more: bool


def read_page(
    session: Session,
    *,
    limit: int,
    filters: Mapping[str, Any],
    after: tuple[datetime, UUID] | None = None,
) -> Page:
    """Return a page of orders, newest first.

    Args:
        session: reads them.
        limit: maximum number of orders.
        filters: any of `user_id`, `status`, `created_from` (inclusive) and `created_before`
            (exclusive).
        after: created_at and id of the last order of the previous page with these filters; None
            for the first page.
    """
    values = {**filters, "bytes_max": PAGE_BYTES_MAX, "limit": limit, "read_limit": limit + 1}
    if after is not None:
        values["after_at"], values["after_id"] = after
    query = _page_query(frozenset(filters), is_first=after is None)
    rows = session.execute(query, values).all()
    return Page([order for order, _ in rows], more=bool(rows) and rows[0].found > len(rows))


# Built once for each combination of filters: building takes longer than executing.
@cache
def _page_query(filters: frozenset[str], *, is_first: bool) -> Select[Order, int]:
    """Make the query of a page. Its parameters have the names of the filters that are used.

    `is_first` is for the first page. Only further pages have the parameters `after_at` and
    `after_id`.
    """
    listed, order = _matching_orders(filters, is_first=is_first)
    # The database sums the sizes, so it returns no more than a page. It reads only the length of a
    # description, not its text.
    size = func.octet_length(listed.c.description) + _ROW_BYTES
    total = func.sum(size).over(order_by=_newest_first(listed, order), rows=(None, 0))
    sized = select(
        listed, size.label("size"), total.label("total"), func.count().over().label("found")
    ).subquery()
    fits = or_(sized.c.total <= bindparam("bytes_max"), sized.c.total == sized.c.size)
    query = select(aliased(Order, sized), sized.c.found).where(fits)
    query = query.order_by(*_newest_first(sized, order)).limit(bindparam("limit"))
    # The first use of an aliased class fills an index of columns (`_init_proxy_index` in SQLAlchemy
    # 2.1). If another thread used the class at that moment, that and all later requests would miss
    # columns. So the first use is here, before other threads get the query.
    query.compile()
    return query


def _matching_orders(filters: frozenset[str], *, is_first: bool) -> tuple[Subquery, Sequence[str]]:
    """Select the newest orders that pass the filters. Return also the columns that sort them."""
    fixed: dict[str, ColumnElement[Any]] = {
        name: bindparam(name) for name in ("user_id", "status") if name in filters
    }
    if list(fixed) != ["user_id"]:
        return _index_range(fixed, filters, is_first=is_first).subquery(), (*fixed, *_NEWEST_BY)
    # The index sorts a user's orders by status first. One range per status is read, and the ranges
    # are merged.
    runs = [
        _index_range(fixed | {"status": literal(status)}, filters, is_first=is_first)
        for status in STATUSES
    ]
    merged = union_all(*runs).subquery()
    query = select(merged).order_by(*_newest_first(merged, _NEWEST_BY))
    return query.limit(bindparam("read_limit")).subquery(), _NEWEST_BY


def _index_range(
    fixed: Mapping[str, ColumnElement[Any]], filters: frozenset[str], *, is_first: bool
) -> Select[Any]:
    """Select one contiguous range of the index that begins with the fixed columns.

    The conditions compare rows, such as (status, created_at) < (:status, :before), and ORDER BY
    begins with the same columns. With `status = :status`, the planner could choose another index,
    such as the one by time, and filter row by row. With old statistics or uneven data it would then
    read most of the table.
    """

    def columns(*further: str) -> ColumnElement[Any]:
        return tuple_(*(Order.__table__.c[name] for name in (*fixed, *further)))

    def values(*further: str) -> ColumnElement[Any]:
        return tuple_(*fixed.values(), *(bindparam(name) for name in further))

    conditions = []
    if "created_from" in filters:
        conditions.append(columns("created_at") >= values("created_from"))
    elif fixed:
        conditions.append(columns() >= values())
    if not is_first:
        # `created_before` would add nothing: the previous page ended before it.
        conditions.append(columns(*_NEWEST_BY) < values("after_at", "after_id"))
    elif "created_before" in filters:
        conditions.append(columns("created_at") < values("created_before"))
    elif fixed:
        conditions.append(columns() <= values())
    query = select(Order.__table__).where(*conditions)
    query = query.order_by(*_newest_first(Order.__table__, (*fixed, *_NEWEST_BY)))
    return query.limit(bindparam("read_limit"))


def _newest_first(source: FromClause, names: Sequence[str]) -> list[ColumnElement[Any]]:
    return [source.c[name].desc() for name in names]
