"""The kernel ends a worker for want of memory: the service goes on, and other clients notice nothing.

The kill is a real one, in a control group with a limit: where this machine has the memory controller in
version 2 the service's own, which systemd sees (and would stop all of it, but for OOMPolicy=continue);
where it has that in version 1 a group made for one worker, of which systemd knows nothing.
"""

import asyncio
import contextlib
import os
import socket
import time
from pathlib import Path

import pytest

from lib import procs
from lib.provider import say
from machine import wait_for

MIB = 1 << 20
VERSION_1 = Path("/sys/fs/cgroup/memory")
ROOM = 20 * MIB


def numbers(text):
    return dict(line.split() for line in text.splitlines())


class ServiceGroup:
    """The unit's own control group, with MemoryMax= a little above what it has now."""

    def __init__(self, service, machine):
        self.unit = "dacd.service"
        self.machine = machine
        self.folder = "/sys/fs/cgroup" + service.show("ControlGroup")

    def read(self, name):
        return self.machine.run("cat", f"{self.folder}/{name}")

    def limit(self, pid):
        room = int(self.read("memory.current")) + ROOM
        self.machine.run(
            "systemctl", "set-property", "--runtime", self.unit, f"MemoryMax={room}", "MemorySwapMax=0"
        )

    def kills(self):
        return int(numbers(self.read("memory.events"))["oom_kill"])

    def remove(self):
        self.machine.run("systemctl", "revert", self.unit)


class WorkerGroup:
    """A group of version 1 with one process in it; what that has already is not counted."""

    def __init__(self, machine):
        self.folder = VERSION_1 / machine.group
        self.folder.mkdir()

    def limit(self, pid):
        (self.folder / "memory.limit_in_bytes").write_text(str(ROOM))
        with contextlib.suppress(OSError):  # no swap is counted here
            (self.folder / "memory.memsw.limit_in_bytes").write_text(str(ROOM))
        (self.folder / "cgroup.procs").write_text(str(pid))

    def kills(self):
        return int(numbers((self.folder / "memory.oom_control").read_text())["oom_kill"])

    def remove(self):
        wait_for(lambda: not (self.folder / "cgroup.procs").read_text(), "it is empty")
        self.folder.rmdir()


@pytest.fixture
def group(service, machine):
    if "memory" in machine.run("cat", "/sys/fs/cgroup/cgroup.controllers").split():
        made = ServiceGroup(service, machine)
    elif (VERSION_1 / "memory.oom_control").exists():
        made = WorkerGroup(machine)
    else:
        pytest.skip("no memory controller here: neither of version 2 in the machine nor of version 1")
    print(f"control group: {made.__class__.__name__}")
    yield made
    made.remove()


def test_systemd_leaves_such_deaths_to_the_master(service):
    assert service.show("OOMPolicy") == "continue"


def connect_to(service, worker):
    """A connection that this worker has accepted, and more than that it has not asked yet."""
    others = []
    try:
        for _ in range(100):
            before = procs.connections(worker, service.port)
            s = socket.create_connection(("127.0.0.1", service.port))
            time.sleep(0.05)
            if procs.connections(worker, service.port) > before:
                return s
            others.append(s)
    finally:
        for s in others:
            s.close()
    raise AssertionError("none of 100 connections")


def eat(s):
    """Sends a body that the worker has to keep, until it is gone."""
    head = f"POST /api/threads/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {60 * MIB}\r\n\r\n"
    with contextlib.suppress(OSError):
        s.sendall(head.encode() + b'{"title":"')
        for _ in range(59):
            s.sendall(b"x" * MIB)
        return s.recv(1) == b""
    return True


async def open_streams(service, victim):
    """Six, on other workers."""
    kept = []
    while len(kept) < 6:
        thread = await service.thread()
        await asyncio.sleep(0.1)
        before = procs.connections(victim, service.port)
        question = say(f"Kumquat {len(kept)}?", tokens=9, barrier="go@3")
        stream = await service.open_ask(thread, question)
        await stream.until("delta")
        if procs.connections(victim, service.port) == before:
            kept.append((stream, question))
        else:
            stream.close()
    return kept


def test_a_worker_that_the_kernel_ends_is_replaced(service, machine, mock, group):
    service.sections["server"]["body_max"] = "64m"
    service.configure()
    machine.run("systemctl", "restart", "dacd")

    async def scene():
        master, victim = service.master(), service.workers()[0]
        streams = await open_streams(service, victim)
        hungry = connect_to(service, victim)
        before = group.kills()
        group.limit(victim)
        with hungry:
            assert eat(hungry), "it was all eaten"
        wait_for(lambda: victim not in service.processes(), "it is gone")
        assert group.kills() == before + 1, "the kernel's doing"
        wait_for(lambda: len(service.processes()) == 5 and service.is_up(), "another one")
        assert service.master() == master
        await mock.open("go")
        for stream, question in streams:
            await stream.rest()
            assert stream.one("done") and stream.text == await mock.text(question)
            assert not [e for e in stream.events if e.name in ("reset", "error")]
        stream = await service.ask_stream(await service.thread(), say("And now, kumquat?", tokens=3))
        assert stream.one("done")

    asyncio.run(scene())
    assert "was ended by signal 9" in service.log
    assert (service.show("NRestarts"), service.show("ActiveState")) == ("0", "active")
    assert len([t for t in service.turns() if t["status"] == "complete"]) >= 7
