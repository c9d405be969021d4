"""Run the migrations, in one history for the service's tables and those of settle_outbox."""

import os

from alembic import context
from notifications.models import Base
from sqlalchemy import create_engine

from settle_outbox.storage.migrations import include_object

with create_engine(os.environ["NOTIFICATIONS_DATABASE_URL"]).connect() as connection:
    context.configure(connection, target_metadata=Base.metadata, include_object=include_object)
    with context.begin_transaction():
        context.run_migrations()
