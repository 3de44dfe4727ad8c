"""The timer of alerts runs the script, and its service fails when one fires."""

import asyncio

import pytest
from lib.provider import say
from machine import wait_for

UNIT = "dac-alerts.service"


@pytest.fixture
def alerts(service, machine):
    """Starts the script; what became of it, and its line."""
    service.drop_in(UNIT, f"[Service]\nEnvironment=DAC_URL=http://127.0.0.1:{service.port}")

    def look():
        machine.run("systemctl", "start", UNIT, check=False)
        # A service that has ended well is forgotten, and its number with it.
        line = machine.run("journalctl", "-t", "check_alerts.sh", "-n", "1", "-o", "cat", "--no-pager")
        return machine.show(UNIT, "Result"), machine.show(UNIT, "ExecMainStatus"), line.strip()

    yield look
    service.drop_in(UNIT, "")


def test_all_is_well_an_alert_fires_nobody_answers(service, machine, alerts):
    async def some(count, **how):
        for i in range(count):
            await service.post(
                f"/api/threads/{await service.thread()}/messages", service.question(say(f"Kumquat {i}?", tokens=2, **how))
            )

    asyncio.run(some(1))
    result, status, line = alerts()
    assert (result, status) == ("success", "0"), line
    assert "OK" in line
    asyncio.run(some(2, ttft="1700ms"))
    result, status, line = alerts()
    assert (result, status) == ("exit-code", "2"), line
    assert "ttft" in line.lower()
    machine.run("systemctl", "stop", "dacd")
    result, status, line = alerts()
    assert (result, status) == ("exit-code", "3"), line


def test_the_timer_starts_it(service, machine, alerts):
    service.drop_in("dac-alerts.timer", "[Timer]\nOnActiveSec=\nOnActiveSec=1s\nAccuracySec=1ms")
    def looks():
        return machine.run("journalctl", "-t", "check_alerts.sh", "-o", "cat", "--no-pager").count("\n")

    before = looks()
    try:
        machine.run("systemctl", "start", "dac-alerts.timer")
        wait_for(lambda: looks() > before, "a look", 15)
    finally:
        machine.run("systemctl", "stop", "dac-alerts.timer")
        service.drop_in("dac-alerts.timer", "")


def test_the_units_are_in_order(machine):
    machine.run("systemd-analyze", "--man=no", "verify", UNIT, "dac-alerts.timer", "dacd.socket")
    machine.run("systemd-analyze", "security", "--threshold=15", UNIT)
