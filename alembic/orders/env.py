"""Run the migrations of orders: ``alembic -n orders upgrade head``."""

from __future__ import annotations

from services.orders.models import Base
from settle_outbox.storage import tables
from shared import cursor_secrets, migrations
from shared.web.idempotency import tables as idempotency_tables

migrations.run(
    [Base.metadata, tables.metadata, idempotency_tables.metadata, cursor_secrets.metadata]
)
