"""dacctl check: says what is wrong with the memory of a living and of a dead instance."""

import asyncio
import json
import mmap
import os
import signal
import struct
import subprocess
import time

import pytest

from lib.dacd import BUILD
from lib.provider import say
from lib.service import dacctl, until

PERMITS_AT = 64  # in a pacer
READERS_AT, STORED_AT = 8, 24  # in a flight


class Segment:
    """Writes single words into an instance's memory."""

    def __init__(self, dac):
        with open(f"/dev/shm/{dac.name}", "r+b") as f:
            self.memory = mmap.mmap(f.fileno(), 0)
        sizes = struct.unpack_from("<8I", self.memory, 8)
        self.flight_size, self.alias_size, self.block_size = sizes[5], sizes[6], 16
        (_, _, self.pacers, _, self.flights, self.aliases, _, _, self.blocks, _, _) = struct.unpack_from(
            "<11Q", self.memory, 104
        )

    def flight(self, n, field=0):
        return self.flights + n * self.flight_size + field

    def alias(self, n):
        return self.aliases + n * self.alias_size

    def block(self, n):
        return self.blocks + n * self.block_size

    def permit(self, n):
        return self.pacers + PERMITS_AT + n * 8

    def read(self, at):
        return struct.unpack_from("<Q", self.memory, at)[0]

    def write(self, at, value):
        struct.pack_into("<Q", self.memory, at, value)


def check(dac, *args):
    """(exit code, report) of a dacctl check."""
    p = subprocess.run(
        [BUILD / "dacctl", "-n", dac.name, "--json", "check", *args],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert p.returncode in (0, 1), p.stderr
    report = json.loads(p.stdout)
    assert report["wrong"] == len(report["problems"]) and (report["wrong"] > 0) == p.returncode
    return p.returncode, report


def words(report):
    return [f"{p['object']} {p.get('index', '')}: {p['words']}" for p in report["problems"]]


def bury(dac):
    os.unlink(f"/dev/shm/{dac.name}")
    dac.process = None


async def some_flights(dac):
    """A finished flight, and one that streams, each with a key; returns the running stream."""
    thread = await dac.thread()
    first, second = {"Idempotency-Key": "first"}, {"Idempotency-Key": "second"}
    await dac.ask_stream(thread, say("First kumquat?", tokens=3), headers=first)
    stream = await dac.open_ask(thread, say("Second kumquat?", tokens=9, barrier="go@3"), second)
    await stream.until("delta")
    return stream


def flights(dac):
    listed = dacctl(dac, "flights", "--json")["flights"]
    return {f["state"]: f["flight"] for f in listed if f["kind"] == "turn"}


@pytest.mark.smoke
async def test_a_busy_instance_is_sound(dac):
    """Flights begin and end meanwhile, a worker and the recorder die: nothing is wrong."""
    done = asyncio.Event()
    thread = await dac.thread()

    async def ask(n):
        i = 0
        while not done.is_set():
            i += 1
            try:
                key = {"Idempotency-Key": f"{n // 2} {i}"} if i % 2 else None
                await dac.ask_stream(thread, say(f"Kumquat {n // 2} {i}?", tokens=4, gap_ms=2), headers=key)
            except (OSError, AssertionError, EOFError):
                await asyncio.sleep(0.05)

    asking = [asyncio.create_task(ask(n)) for n in range(8)]
    for n in range(4):
        await asyncio.sleep(0.3)
        code, report = await asyncio.to_thread(check, dac)
        assert code == 0 and report["state"] == "live", words(report)
        if n < 2:
            os.kill([dac.workers()[1], dac.recorder()][n], signal.SIGKILL)
    done.set()
    await asyncio.wait(asking, timeout=20)
    text = dacctl(dac, "check")
    assert "nothing is wrong" in text and "live" in text


async def test_what_all_died_of_is_no_damage(dac):
    stream = await some_flights(dac)
    dac.kill_all()
    code, report = check(dac)
    assert code == 0 and report["state"] == "dead", words(report)
    notes = [n["words"] for n in report["notes"]]
    assert any(n.startswith("5 died unswept; they owned 1 flights and ") for n in notes), notes
    assert any("not stored yet" in n for n in notes), notes
    stream.close()
    bury(dac)


async def test_damage_of_a_dead_instance_is_named(dac):
    stream = await some_flights(dac)
    by_state = flights(dac)
    dac.kill_all()
    memory = Segment(dac)
    done, running = by_state["done"], by_state["streaming"]
    # Bytes 7 and 6 of a flight's word are its state and its owner.
    memory.write(memory.flight(done), memory.read(memory.flight(done)) | 0x7F << 56)
    memory.write(memory.flight(running, READERS_AT), 1 << 60)
    memory.write(memory.block(5000), 99999 << 32)
    memory.write(memory.alias(1), 60000 << 32)
    memory.write(memory.permit(9), 60 << 56 | running << 32 | 77)
    code, report = check(dac)
    assert code == 1
    said = words(report)
    for want in (
        f"flight {done}: its state 127 does not exist",
        f"flight {running}: slot 60 reads it, but no process is there",
        "block 5000: flight 99998 has it, which does not exist",
        "alias 1: it is bound to flight 59999, which does not exist",
        f"flight {running}: alias 1 is on its list but belongs to another use",
        f"provider 0: permit 9 is held for flight {running}, which slot 59 has left",
    ):
        assert want in said, said
    p = subprocess.run([BUILD / "dacctl", "-n", dac.name, "check"], capture_output=True, text=True)
    assert p.returncode == 1 and f"WRONG      flight {done}: its state" in p.stdout
    assert "kumquat" not in p.stdout.lower()
    # Looking changed nothing.
    assert check(dac)[1]["problems"] == report["problems"]
    stream.close()
    bury(dac)


async def test_damage_of_a_living_instance_is_named(dac, mock):
    stream = await some_flights(dac)
    memory = Segment(dac)
    running = flights(dac)["streaming"]
    # What cannot be seen in one load is looked at three times.
    memory.write(memory.permit(200), 60 << 56 | running << 32 | 77)
    began = time.monotonic()
    code, report = check(dac)
    assert code == 1 and time.monotonic() - began > 1.9 and report["passes"] == 3
    assert words(report) == [
        f"provider 0: permit 200 is held for flight {running}, which slot 59 has left"
    ]
    # One that goes away meanwhile does not count.
    busy = asyncio.create_task(asyncio.to_thread(check, dac))
    await asyncio.sleep(1.3)
    memory.write(memory.permit(200), 0)
    code, report = await busy
    assert code == 0 and report["passes"] > 1, words(report)
    # One load says it all: no need to wait.
    memory.write(memory.block(5000), 99999 << 32)
    code, report = check(dac)
    assert code == 1 and report["passes"] == 1
    assert words(report) == ["block 5000: flight 99998 has it, which does not exist"]
    memory.write(memory.block(5000), 0)
    assert check(dac)[0] == 0
    await mock.open("go")
    await stream.rest()


async def test_an_instance_on_its_way_out_is_not_dead(make_dac, mock):
    dac = make_dac({"server": {"drain_timeout": "8s"}})
    stream = await some_flights(dac)
    os.kill(dac.pid, signal.SIGKILL)
    dac.process.wait()
    dac.retired.append(dac.pid)
    code, report = await asyncio.to_thread(check, dac)
    assert code == 0 and report["state"] == "leaving", words(report)
    await mock.open("go")
    await stream.rest()
    assert stream.one("done")
    until(lambda: not dac.processes(), "the end of its children")
    code, report = check(dac)
    assert code == 0 and report["state"] == "dead", words(report)
    bury(dac)


def test_a_stopped_instance_can_be_looked_at(dac):
    pids = list(dac.processes())
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        code, report = check(dac)
        assert code == 0 and report["state"] == "live", words(report)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_nothing_to_look_at_is_exit_code_2(tmp_path):
    for name in ("no-such-instance", "../../etc/passwd"):
        p = subprocess.run([BUILD / "dacctl", "-n", name, "check"], capture_output=True, text=True)
        assert p.returncode == 2 and p.stdout == "" and name in p.stderr
