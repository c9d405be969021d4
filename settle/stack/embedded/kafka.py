"""Apache Kafka, one node in KRaft mode, from its jars on the Java that is here.

It is what production runs, where the embedded broker only speaks its protocol: what is proved
here is proved on it. The jars come through Maven, once, into a cache folder of the user's.
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
# What Debian and Ubuntu call them.
INSTALL = "openjdk-17-jre-headless and maven"
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
    # As the other processes write it, so that `settle logs` can put all of it in order.
    *(f"-D{_LOGGER}.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS'Z'", "-Duser.timezone=UTC"),
)


class KafkaUnavailableError(SettleError):
    """Apache Kafka cannot be run here."""


def missing() -> str | None:
    """What keeps Apache Kafka from running here, in a sentence; None when nothing does."""
    java = shutil.which("java")
    if java is None:
        return f"Apache Kafka {VERSION} needs Java {LEAST_JAVA} or later: install {INSTALL}."
    told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
    found = re.search(r'version "(\d+)', told)
    if found is None or int(found[1]) < LEAST_JAVA:
        has = found[0] if found else "of no known version"
        return (
            f"Apache Kafka {VERSION} needs Java {LEAST_JAVA} or later, and {java} is {has}: "
            f"install {INSTALL}."
        )
    if not fetched() and shutil.which("mvn") is None:
        return (
            f"Apache Kafka {VERSION} is fetched by Maven, and there is no mvn: install {INSTALL}."
        )
    return None


def fetched() -> bool:
    """Whether Kafka's jars are here."""
    return _cache().is_dir()


def fetch() -> Path:
    """The folder of Kafka's jars; fetched by Maven unless they are there.

    Raises:
        KafkaUnavailableError: Java or Maven is missing, or Maven failed.
        UnsafeFolderError: another user could replace the jars.
    """
    lacking = missing()
    if lacking is not None:
        raise KafkaUnavailableError(lacking)
    jars = _cache()
    jars.parent.mkdir(parents=True, exist_ok=True)
    refuse_unsafe(jars.parent, variable="XDG_CACHE_HOME")  # what lies there is run
    if jars.is_dir():
        return jars
    with tempfile.TemporaryDirectory(dir=jars.parent) as name:
        building = Path(name)
        _run_maven(building)
        try:
            # Renamed when whole, so that what was interrupted is never taken for complete.
            (building / "jars").rename(jars)
        except OSError:
            if not jars.is_dir():  # else another process was faster
                raise
    return jars


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
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
            f"Maven did not get Apache Kafka {VERSION} within {MAVEN_TIMEOUT_S} s: try again, "
            "or have KAFKA_BOOTSTRAP_SERVERS name a broker of your own."
        ) from error
    if done.returncode != 0:
        said = (done.stdout or done.stderr).strip().partition("\n")[0]
        raise KafkaUnavailableError(f"Maven did not get Apache Kafka {VERSION}: {said[:500]}")


@dataclass(frozen=True, slots=True)
class Node:
    """One node and its data; everything is kept in a folder of ours.

    Args:
        folder: holds the data and the configuration.
        port: where clients connect, on 127.0.0.1.
        controller_port: where the node talks to itself.
        advertised_port: where clients are told to connect; `port` unless something stands between.
    """

    folder: Path
    port: int
    controller_port: int
    advertised_port: int | None = None

    def prepare(self) -> list[str]:
        """Write the configuration, format the data folder if it is new, and give the command.

        Returns:
            The node's command line. SIGTERM stops it; after a SIGKILL it starts on the same data.

        Raises:
            KafkaUnavailableError: Kafka is not to be had, or refuses the folder.
            UnsafeFolderError: another user could replace the jars or the folder.
        """
        jars = fetch()
        take_folder(self.folder, 0o700)  # what users ordered is nobody else's business
        configuration = self.folder / "server.properties"
        configuration.write_text(self._configuration(), encoding="utf-8")
        java = ["java", *_JAVA_OPTIONS, "-cp", f"{jars}/*"]
        if not (self.folder / "data" / "meta.properties").exists():
            self._format(java, configuration)
        return [*java, "kafka.Kafka", str(configuration)]

    def forget(self) -> None:
        """Lose all topics and offsets, as a node does whose disk was lost. It must not run."""
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
            # Topics are created by code of ours, with a partition count.
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            # After a kill, the node waits for its own former session to end before it serves.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "log.cleaner.dedupe.buffer.size": "10485760",
        }
        return "".join(f"{name}={value}\n" for name, value in settings.items())


def main() -> None:
    """Become the node of ``$SETTLE_HOME``; what supervisord runs."""
    node = Node(
        Path(os.environ["SETTLE_HOME"], "kafka"),
        port=int(os.environ["KAFKA_PORT"]),
        controller_port=int(os.environ["KAFKA_CONTROLLER_PORT"]),
    )
    command = node.prepare()
    os.chdir("/")
    # supervisord then watches the node itself
    os.execvpe(command[0], command, clean_environment())


if __name__ == "__main__":
    main()
