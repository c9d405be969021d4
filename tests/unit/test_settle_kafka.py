"""Maven fetches Apache Kafka once. If Maven fails, no file is kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from settle.stack.embedded import kafka
from support.environ import environment

if TYPE_CHECKING:
    from collections.abc import Iterator

JAVA = "#!/bin/sh\necho 'openjdk version \"17.0.1\"' >&2\n"
MAVEN = '#!/bin/sh\nprintf "%s\\n" "$@" >> "$0.arguments"\nmkdir jars && touch jars/kafka.jar\n'
REFUSING = "#!/bin/sh\necho '[ERROR] Checksum validation failed'\nmkdir jars\nexit 1\n"


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Path]:
    """Create a folder for programs that replace Java and Maven, with an empty cache."""
    install(tmp_path / "java", JAVA)
    install(tmp_path / "mvn", MAVEN)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    with environment({"PATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache")}):
        yield tmp_path


def install(program: Path, script: str) -> None:
    program.write_text(script, encoding="ascii")
    program.chmod(0o755)


def test_maven_verifies_downloads_and_runs_once(programs: Path) -> None:
    jars = kafka.fetch()
    again = kafka.fetch()

    arguments = (programs / "mvn.arguments").read_text(encoding="ascii").splitlines()
    assert arguments.count("--strict-checksums") == 1
    assert again == jars
    assert [path.name for path in jars.iterdir()] == ["kafka.jar"]


def test_no_file_is_kept_when_maven_fails(programs: Path) -> None:
    install(programs / "mvn", REFUSING)

    with pytest.raises(kafka.KafkaUnavailableError, match="Checksum validation failed"):
        kafka.fetch()

    assert not kafka.fetched()


def test_a_cache_of_another_version_is_not_used(programs: Path) -> None:
    (programs / "cache" / "settle" / "kafka-4.1.0").mkdir(parents=True)

    assert not kafka.fetched()


def test_the_error_without_a_home_folder_names_the_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)

    with (
        environment({"XDG_CACHE_HOME": ""}),
        pytest.raises(kafka.KafkaUnavailableError, match="set HOME or XDG_CACHE_HOME"),
    ):
        kafka.fetched()


@pytest.mark.parametrize(
    ("home", "cache", "named"),
    [
        ("/srv/a b 50%", "/srv/c d", None),
        ("/srv/a,b", "/srv/c", "/srv/a,b/kafka because of the ','"),
        ("/srv/a", "/srv/c:d", "kafka-4.1.2 because of the ':'"),
    ],
)
def test_a_path_that_kafka_would_split_is_named(home: str, cache: str, named: str | None) -> None:
    with environment({"XDG_CACHE_HOME": cache}):
        problem = kafka.path_problem(Path(home, "kafka"))

    assert (problem is None) == (named is None)
    assert named is None or named in str(problem)


def test_the_configuration_is_escaped_as_java_reads_it() -> None:
    """java.util.Properties uses Latin-1, with backslashes and UTF-16 escapes."""
    node = kafka.Node(Path("/srv/größe 50%\\n 🙂"), port=1, controller_port=2)

    assert (
        "log.dirs=/srv/gr\\u00f6\\u00dfe 50%\\u005cn \\ud83d\\ude42/data\n" in node._configuration()  # noqa: SLF001
    )
