"""A call for memory, a descriptor or a mapping fails while the service starts: it serves, or it ends
with a message and an exit code; nothing is left behind."""

import asyncio
import time
from pathlib import Path

import pytest

from lib import procs
from lib.dacd import Dacd
from lib.provider import say
from load import crashes
from shim import numbers

PATIENCE = 30


async def start(dac):
    """Whether it came up; else it has ended."""
    dac.start(wait=False)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if dac.process.poll() is not None:
            return False
        if f"master[{dac.pid}] ready: " in dac.log:
            return True
        await asyncio.sleep(0.01)
    raise AssertionError(f"neither ready nor ended in {PATIENCE} s")


def ended_well(dac, sid):
    """Of one that did not come up: code, message, nothing left."""
    code = dac.process.returncode
    assert code > 0, f"exit code {code}"
    assert any(f" {level} " in dac.log for level in ("ERROR", "WARN")) or "dacd: " in dac.log, "no message"
    assert not procs.session(sid), procs.session(sid)
    assert not list(Path("/dev/shm").glob(f"*{dac.name}*"))
    # What is wrong before there is a log, it prints like any command.
    problems = [p for p in dac.log_problems() if "not a log line: 'dacd: " not in p]
    assert not problems, problems
    dac.process = None


@pytest.mark.limit(800)
@pytest.mark.parametrize("count", [1, 30])
@pytest.mark.parametrize(
    ("kind", "role", "samples"),
    [
        ("alloc", "master", 16),
        ("alloc", "recorder", 12),
        ("alloc", "worker", 16),
        ("fd", "any", 30),
        ("mmap", "any", 12),
    ],
)
async def test_it_serves_or_says_why_not(tmp_path, mock, faults, kind, role, samples, count):
    made = []

    def new():
        dac = Dacd(tmp_path / f"d{len(made)}", mock.url, env=faults.env, workers=2)
        dac.allow_log.append(".")
        made.append(dac)
        return dac

    first = new()
    faults.arm(kind, role)
    assert await start(first)
    seen, _ = faults.disarm()
    first.stop()
    served = 0
    for n in numbers(seen, samples):
        dac = new()
        try:
            faults.arm(kind, role, n, count)
            up = await start(dac)
            faults.disarm()
            assert not crashes(dac), crashes(dac)
            if up:
                served += 1
                question = say(f"After kumquat {n}?", tokens=3)
                s = await dac.ask_stream(await dac.thread(), question)
                assert s.text == await mock.text(question) and s.one("done")
                dac.stop()
            else:
                ended_well(dac, dac.pid)
        except BaseException as e:
            faults.disarm()
            e.add_note(
                f"{kind} {n} (+{count - 1}) in {role}:\n" + "\n".join(faults.traces()) + "\n" + dac.log[-3000:]
            )
            dac.stop(check=False)
            raise
    print(f"{kind} in {role}, {count} in a row: {seen} calls, {served} of {len(made) - 1} served")
