"""Apache Kafka: one node in KRaft mode, on the installed Java.

Production runs Apache Kafka; the embedded broker only speaks its protocol. Maven downloads the jars
once, into the user's cache folder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import uuid
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from pathlib import Path

from settle.safe_folders import refuse_unsafe, take_folder
from settle.stack.embedded.environment import clean_environment
from settle_outbox.errors import SettleError

VERSION = "4.1.2"
LEAST_JAVA = 17
# The names of the packages of Debian and Ubuntu.
INSTALL = "default-jre-headless and maven"
MAVEN_TIMEOUT_S = 600
FORMAT_TIMEOUT_S = 60
_POM = f"""\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>settle</groupId><artifactId>kafka-node</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
      <version>{VERSION}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_LOGGER = "org.slf4j.simpleLogger"
_JAVA_OPTIONS = (
    # Small, and quick to start: this node serves one machine.
    *("-Xms96m", "-Xmx320m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
    *(f"-D{_LOGGER}.defaultLogLevel=warn", f"-D{_LOGGER}.showDateTime=true"),
    # The form of the other processes' logs, so that `settle logs` can sort all lines.
    *(f"-D{_LOGGER}.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS'Z'", "-Duser.timezone=UTC"),
)


class KafkaUnavailableError(SettleError):
    """Apache Kafka cannot run here."""


def why_missing() -> str | None:
    """Return why Apache Kafka cannot run here, as a sentence; None if it can."""
    java = shutil.which("java")
    if java is None:
        return f"Apache Kafka {VERSION} needs Java {LEAST_JAVA} or later: install {INSTALL}."
    output = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', output)
    if found is None or int(found[1]) < LEAST_JAVA:
        has = found[0] if found else "of no known version"
        return (
            f"Apache Kafka {VERSION} needs Java {LEAST_JAVA} or later, and {java} is {has}: "
            f"install {INSTALL}."
        )
    if not fetched() and shutil.which("mvn") is None:
        return (
            f"Apache Kafka {VERSION} is downloaded by Maven, and mvn is missing: install {INSTALL}."
        )
    return None


def path_problem(folder: Path) -> str | None:
    """Return why Kafka could not use its folder or the cache, as a sentence; None if it can."""
    # Kafka's log.dirs is a list with commas, and Java's class path one with colons.
    for path, character, variable in (
        (folder, ",", "SETTLE_HOME"),
        (_cache(), ":", "XDG_CACHE_HOME"),
    ):
        if character in str(path):
            return (
                f"Apache Kafka cannot use {path} because of the {character!r}: set {variable} to"
                " another folder."
            )
    return None


def fetched() -> bool:
    """Return whether Kafka's jars are in the cache."""
    return _cache().is_dir()


def fetch() -> Path:
    """Return the folder of Kafka's jars. Maven downloads them if they are not in the cache.

    Raises:
        KafkaUnavailableError: Java or Maven is missing, or Maven failed.
        UnsafeFolderError: another user could replace the jars.
    """
    why = why_missing()
    if why is not None:
        raise KafkaUnavailableError(why)
    jars = _cache()
    jars.parent.mkdir(parents=True, exist_ok=True)
    refuse_unsafe(jars.parent, variable="XDG_CACHE_HOME")  # the folder contains code
    if jars.is_dir():
        return jars
    with tempfile.TemporaryDirectory(dir=jars.parent) as name:
        building = Path(name)
        _run_maven(building)
        try:
            # Renamed when complete, so that an interrupted download is never used.
            (building / "jars").rename(jars)
        except OSError:
            if not jars.is_dir():  # otherwise, another process was faster
                raise
    return jars


def _cache() -> Path:
    """Return the folder of Kafka's jars in the user's cache.

    Raises:
        KafkaUnavailableError: the user has no home folder.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise KafkaUnavailableError(
            "There is no home folder for the files of Apache Kafka: set HOME or XDG_CACHE_HOME."
        ) from error
    return Path(base, "settle", f"kafka-{VERSION}")


def _run_maven(building: Path) -> None:
    (building / "pom.xml").write_text(_POM, encoding="utf-8")
    try:
        done = subprocess.run(
            # Strict: Maven otherwise only warns of a file that does not match its checksum.
            [
                *("mvn", "-q", "-B", "--strict-checksums"),
                *(_COPY, f"-DoutputDirectory={building}/jars"),
            ],
            cwd=building,
            capture_output=True,
            text=True,
            timeout=MAVEN_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise KafkaUnavailableError(
            f"Maven did not download Apache Kafka {VERSION} within {MAVEN_TIMEOUT_S} s: try again, "
            "or set KAFKA_BOOTSTRAP_SERVERS to another broker."
        ) from error
    if done.returncode != 0:
        said = (done.stdout or done.stderr).strip().partition("\n")[0]
        raise KafkaUnavailableError(f"Maven did not download Apache Kafka {VERSION}: {said[:500]}")


@dataclass(frozen=True, slots=True)
class Node:
    """A node and its data.

    Args:
        folder: the folder of the data and the configuration.
        port: the port for clients, on 127.0.0.1.
        controller_port: the port of the node's controller.
        advertised_port: the port that the node tells clients, such as a proxy's; None means `port`.
    """

    folder: Path
    port: int
    controller_port: int
    advertised_port: int | None = None

    def prepare(self) -> list[str]:
        """Write the configuration, and format the data folder if it is new.

        Returns:
            The node's command line. SIGTERM stops it; after a SIGKILL it starts on the same data.

        Raises:
            KafkaUnavailableError: Kafka cannot be downloaded, or refuses the folder.
            UnsafeFolderError: another user could replace the jars or the folder.
        """
        jars = fetch()
        take_folder(self.folder, 0o700)  # the events are private
        configuration = self.folder / "server.properties"
        configuration.write_text(self._configuration(), encoding="utf-8")
        java = ["java", *_JAVA_OPTIONS, "-cp", f"{jars}/*"]
        if not (self.folder / "data" / "meta.properties").exists():
            self._format(java, configuration)
        return [*java, "kafka.Kafka", str(configuration)]

    def delete_data(self) -> None:
        """Delete all topics and groups, as if the disk was lost. The node must not run."""
        shutil.rmtree(self.folder / "data", ignore_errors=True)

    def _format(self, java: list[str], configuration: Path) -> None:
        cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        done = subprocess.run(
            [
                *(*java, "kafka.tools.StorageTool", "format"),
                # An id may begin with a dash.
                *(f"--cluster-id={cluster_id}", "--config", str(configuration)),
            ],
            capture_output=True,
            text=True,
            timeout=FORMAT_TIMEOUT_S,
            check=False,
            env=clean_environment(),
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().partition("\n")[0]
            raise KafkaUnavailableError(f"Kafka cannot keep its data in {self.folder}: {said}")

    def _configuration(self) -> str:
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self.controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://127.0.0.1:{self.port},"
            f"CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.advertised_port or self.port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            # Our code creates the topics, with a partition count.
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            # Short, because after a kill the node waits until its former session ends.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "log.cleaner.dedupe.buffer.size": "10485760",
        }
        return "".join(f"{name}={_escaped(value)}\n" for name, value in settings.items())


def _escaped(value: str) -> str:
    """Escape a value of a properties file (java.util.Properties), which is in Latin-1."""
    return "".join(
        character if " " <= character <= "~" and character != "\\" else _in_utf16(character)
        for character in value
    )


def _in_utf16(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def main() -> None:
    """Become the node of ``$SETTLE_HOME``. supervisord runs this."""
    node = Node(
        Path(os.environ["SETTLE_HOME"], "kafka"),
        port=int(os.environ["KAFKA_PORT"]),
        controller_port=int(os.environ["KAFKA_CONTROLLER_PORT"]),
    )
    command = node.prepare()
    os.chdir("/")
    # exec: supervisord supervises the node itself
    os.execvpe(command[0], command, clean_environment())


if __name__ == "__main__":
    main()
