"""Another project's alembic history creates the engine's tables (docs/library-migrations.md)."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import NullPool, create_engine, text

from settle_outbox.storage import migrations, tables
from settle_outbox.storage.partition_maintenance import maintain
from settle_outbox.storage.partitions import inbox_partitions, outbox_partitions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgres import PostgresServer

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).parents[2] / "docs" / "library-migrations.md"
DATABASE = "library_migrations"
TABLE = "CREATE TABLE notifications (id serial PRIMARY KEY, text varchar NOT NULL)"
FIRST_REVISION = """
revision = "first"
down_revision = None
"""
MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase):
    pass

class Notification(Base):
    __tablename__ = "notifications"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
"""


@dataclass
class Project:
    """A project folder with models and an alembic history from `alembic init`."""

    folder: Path
    url: str

    def alembic(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def revise(self, message: str, *options: str) -> Path:
        """Make a revision, and return its file."""
        before = set(self.versions.iterdir())
        self.alembic("revision", "-m", message, *options)
        (made,) = set(self.versions.glob("*.py")) - before
        return made

    @property
    def versions(self) -> Path:
        return self.folder / "history" / "versions"


def documented(number: int) -> str:
    """Return the Python block of the document with this number, which counts from 0."""
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[number]


def replace_in(path: Path, *changes: tuple[str, str]) -> None:
    content = path.read_text()
    for old, new in changes:
        assert old in content
        content = content.replace(old, new)
    path.write_text(content)


def operations_of(revision: Path) -> str:
    """Return the operations of a revision."""
    body = revision.read_text().partition("def upgrade()")[2]
    return "\n".join(line for line in body.splitlines() if line.startswith("    op."))


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    """Create a database with the project's table, and yield its URL."""
    url = postgres.create_database(DATABASE)
    postgres.execute(TABLE, database=DATABASE)
    yield url
    postgres.drop_database(DATABASE)


@pytest.fixture
def project(database: str, tmp_path: Path) -> Project:
    """Return a project that followed the document."""
    project = Project(tmp_path, database)
    project.alembic("init", "history")
    (tmp_path / "models.py").write_text(MODELS)
    replace_in(tmp_path / "alembic.ini", ("driver://user:pass@localhost/dbname", project.url))
    import_line, filter_argument = (
        next(line.strip() for line in documented(0).splitlines() if word in line)
        for word in ("import", "include_object")
    )
    replace_in(
        tmp_path / "history" / "env.py",
        (
            "target_metadata = None",
            f"{import_line}\nfrom models import Base\ntarget_metadata = Base.metadata",
        ),
        ("target_metadata=target_metadata", f"{filter_argument} target_metadata=target_metadata"),
    )
    (project.versions / "first.py").write_text(FIRST_REVISION + documented(1))
    project.alembic("upgrade", "head")
    return project


def test_autogenerate_leaves_the_tables_and_their_partitions_alone(project: Project) -> None:
    engine = create_engine(project.url, poolclass=NullPool)
    for partitioned in (outbox_partitions(86_400), inbox_partitions(86_400)):
        assert maintain(engine, partitioned) == []
    with engine.connect() as connection:
        partitions = text("SELECT count(*) FROM pg_inherits")
        assert connection.scalar(partitions) > len(("outbox_default", "inbox_default"))

    revision = project.revise("Nothing", "--autogenerate")

    assert operations_of(revision) == ""


def test_autogenerate_finds_the_changes_of_the_projects_own_tables(project: Project) -> None:
    (project.folder / "models.py").write_text(MODELS + "    sent: Mapped[bool]\n")

    revision = project.revise("Sent", "--autogenerate")

    upgrade, downgrade = operations_of(revision).splitlines()
    assert upgrade.startswith("    op.add_column('notifications', sa.Column('sent'")
    assert downgrade == "    op.drop_column('notifications', 'sent')"


def test_the_history_creates_all_tables_and_drops_them(project: Project) -> None:
    engine = create_engine(project.url, poolclass=NullPool)
    count = text("SELECT count(*) FROM pg_tables WHERE tablename = ANY(:names)")
    names = {"names": list(tables.metadata.tables)}
    with engine.connect() as connection:
        created = connection.scalar(count, names)

    script = project.alembic("upgrade", "head", "--sql")
    project.alembic("downgrade", "base")

    with engine.connect() as connection:
        left = connection.scalar(count, names)
    assert (created, left) == (len(tables.metadata.tables), 0)
    assert "CREATE TABLE outbox (" in script


def test_the_document_lists_every_operation() -> None:
    operations = {
        name
        for name, _ in inspect.getmembers(migrations, inspect.isfunction)
        if re.fullmatch(r"create_v\d+", name)
    }

    in_table = set(re.findall(r"^\| `(create_v\d+)` \|", DOCUMENT.read_text(), re.MULTILINE))
    in_example = set(re.findall(r"create_v\d+", documented(1)))

    assert in_table == in_example == operations
