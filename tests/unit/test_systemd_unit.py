"""The systemd unit restarts Settle without limit, refuses a reload, and has few rights."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "systemd" / "settle.service"

# `systemd-analyze security --offline=true deploy/systemd/settle.service` rates these settings.
ON = {
    *("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "PrivateUsers", "ProtectHome"),
    *("ProtectClock", "ProtectControlGroups", "ProtectHostname", "ProtectKernelLogs"),
    *("ProtectKernelModules", "ProtectKernelTunables", "LockPersonality"),
    *("RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID"),
}


@pytest.fixture
def unit() -> dict[tuple[str, str], list[str]]:
    """Return the values of each setting, by section and name. A setting may be given twice."""
    values: dict[tuple[str, str], list[str]] = defaultdict(list)
    section = ""
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            values[section, name].append(value)
    return dict(values)


def test_settle_is_restarted_without_limit(unit: dict[tuple[str, str], list[str]]) -> None:
    assert unit["Service", "Restart"] == ["always"]
    # In another section, systemd ignores this setting.
    assert unit["Unit", "StartLimitIntervalSec"] == ["0"]


def test_a_reload_does_not_restart_everything(unit: dict[tuple[str, str], list[str]]) -> None:
    """SIGHUP makes supervisord restart everything. Without ExecReload, systemd refuses a reload."""
    assert ("Service", "ExecReload") not in unit


def test_settle_has_few_rights(unit: dict[tuple[str, str], list[str]]) -> None:
    off = {name for name in ON if unit.get(("Service", name)) != ["yes"]}

    assert off == set()
    assert unit["Service", "User"] == ["settle"]
    assert unit["Service", "CapabilityBoundingSet"] == [""]
    assert unit["Service", "ProtectSystem"] == ["strict"]
    assert unit["Service", "ProtectProc"] == ["invisible"]
    assert unit["Service", "SystemCallArchitectures"] == ["native"]
    # The order counts: the last line allows again what supervisord needs.
    assert unit["Service", "SystemCallFilter"] == [
        "@system-service",
        "~@privileged @resources",
        "@chown",
    ]
    assert unit["Service", "SystemCallErrorNumber"] == ["EPERM"]
