"""Run the migrations of payments: ``alembic -n payments upgrade head``."""

from __future__ import annotations

from services.payments.models import Base
from settle_outbox.storage import tables
from shared import cursor_secrets, migrations
from shared.web.idempotency import tables as idempotency_tables

migrations.run(
    [Base.metadata, tables.metadata, idempotency_tables.metadata, cursor_secrets.metadata]
)
