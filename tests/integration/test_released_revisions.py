"""A released revision never changes, neither its file nor its effect on a database.

``schemas/`` has a text file for each revision: the digest of the revision's code, and its changes
of the schema and of rows. The test writes a missing text file and fails. Review that file, and
commit it with the revision.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from sqlalchemy import NullPool, create_engine, inspect, text

from shared import migrations
from support.schema import schema_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from support.postgres import PostgresServer

DATABASE = "released_revisions"
SCHEMAS = Path(__file__).parent / "schemas"


@pytest.fixture
def engine(postgres: PostgresServer) -> Iterator[Engine]:
    """Return an engine of an empty database."""
    engine = create_engine(postgres.create_database(DATABASE), poolclass=NullPool)
    yield engine
    postgres.drop_database(DATABASE)


def content_of(engine: Engine) -> set[str]:
    """Return the lines of the schema, and the rows that revisions insert."""
    with engine.connect() as connection:
        # Each database has another random secret.
        tables = set(inspect(connection).get_table_names()) - {"alembic_version", "cursor_secrets"}
        return schema_of(connection) | {
            f"row {table} {row}"
            for table in tables
            for row in connection.scalars(text(f"SELECT t::text FROM {table} t"))
        }


def digest_of(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.mark.parametrize("service", ["payments", "orders"])
def test_released_revisions_are_unchanged(engine: Engine, service: str) -> None:
    config = migrations.config_of(service)
    config.attributes["database_url"] = engine.url.render_as_string(hide_password=False)
    script = ScriptDirectory.from_config(config)
    written = []
    before = content_of(engine)
    for revision in reversed(list(script.walk_revisions())):
        command.upgrade(config, revision.revision)
        after = content_of(engine)
        lines = [f"sha256 of the file: {digest_of(revision.path)}"]
        lines += [f"- {line}" for line in sorted(before - after)]
        lines += [f"+ {line}" for line in sorted(after - before)]
        before = after

        record = SCHEMAS / f"{service}-{revision.revision}.txt"
        if not record.exists():
            record.write_text("\n".join(lines) + "\n")
            written.append(record.name)

        assert lines == record.read_text().splitlines(), f"{revision.path} changed"
    assert not written, "new revisions: review these files, and commit them"
