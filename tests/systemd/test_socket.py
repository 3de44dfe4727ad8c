"""With the socket unit a restart loses no request, and no connection is refused."""

import asyncio
import time

from lib.provider import say
from machine import wait_for

CLIENTS = 20
SECONDS = 6


async def client(service, number, until, counts):
    """Asks one question after the other, each over a connection of its own."""
    thread = await service.thread()
    i = 0
    while time.monotonic() < until:
        i += 1
        body = service.question(say(f"Kumquat {number}, {i}?", tokens=4, gap="20ms"))
        r = await service.post(f"/api/threads/{thread}/messages", body, timeout=30)
        assert r.status == 200, r.text
        assert r.json()["status"] == "complete", r.text
        counts[number] = i


async def restarts_under_load(service, machine):
    counts = {}
    until = time.monotonic() + SECONDS
    load = asyncio.gather(*(client(service, n, until, counts) for n in range(CLIENTS)))
    seen = set()
    while time.monotonic() < until - 2:
        await asyncio.to_thread(machine.run, "systemctl", "restart", "dacd")
        seen.add(service.master())
        await asyncio.sleep(0.3)
    await load
    return sum(counts.values()), len(seen)


def test_a_restart_under_load_loses_no_request(service, machine):
    machine.run("systemctl", "stop", "dacd")
    service.drop_in("dacd.socket", f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{service.port}")
    try:
        machine.run("systemctl", "start", "dacd.socket")
        machine.run("systemctl", "start", "dacd")
        wait_for(service.is_up, "it is up")
        assert "systemd passes a socket" in service.log
        asked, masters = asyncio.run(restarts_under_load(service, machine))
        print(f"{asked} requests, {masters} restarts, 0 lost")
        assert masters >= 2 and asked >= 2 * CLIENTS
        assert len([t for t in service.turns() if t["status"] == "complete"]) == asked
    finally:
        machine.run("systemctl", "stop", "dacd.socket", "dacd")
        service.drop_in("dacd.socket", "")
        machine.run("systemctl", "start", "dacd")


def test_the_first_connection_starts_the_service(service, machine):
    machine.run("systemctl", "stop", "dacd")
    service.drop_in("dacd.socket", f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{service.port}")
    try:
        machine.run("systemctl", "start", "dacd.socket")
        assert service.show("ActiveState") == "inactive"
        assert asyncio.run(service.get("/livez")).status == 200
        assert service.show("ActiveState") == "active"
    finally:
        machine.run("systemctl", "stop", "dacd.socket", "dacd")
        service.drop_in("dacd.socket", "")
        machine.run("systemctl", "start", "dacd")
