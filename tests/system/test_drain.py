"""Stopping lets running streams end, within bounds, and loses nothing that ended."""

import asyncio
import os
import signal

import pytest

from lib.dacd import STORED
from lib.provider import say
from lib.service import answers


async def begin(dac, mock, **more):
    """A stream that waits at a barrier with some of its text received."""
    thread = await dac.thread()
    question = say(tokens=20, barrier="go@5", **more)
    stream = await dac.open_ask(thread, question)
    await stream.until("delta")
    await mock.wait(waiting=1, barrier="go")
    return stream, question


async def ended(dac, within=10.0):
    return await asyncio.get_running_loop().run_in_executor(None, dac.process.wait, within)


@pytest.mark.smoke
async def test_a_running_stream_ends_in_peace(dac, mock):
    stream, question = await begin(dac, mock)
    os.kill(dac.pid, signal.SIGTERM)
    await asyncio.sleep(0.3)
    assert answers(dac.port)[0] is False
    await mock.open("go")
    await stream.rest()
    assert stream.one("done").data["stored"] == STORED
    assert stream.text == await mock.text(question)
    assert await ended(dac, 2) == 0
    assert [t["status"] for t in dac.turns()] == ["complete"]


async def test_what_does_not_end_is_cut_honestly(make_dac, mock):
    dac = make_dac({"server": {"drain_timeout": "1s"}})
    stream, _ = await begin(dac, mock)
    began = asyncio.get_running_loop().time()
    os.kill(dac.pid, signal.SIGTERM)
    await stream.rest()
    assert await ended(dac) == 0
    took = asyncio.get_running_loop().time() - began
    assert 0.9 < took < 4, took
    assert stream.named("done") == []
    assert stream.one("error").data["code"] == "shutting_down"
    (turn,) = dac.turns()
    assert turn["status"] == "incomplete"
    assert stream.text and stream.text in [m["content"] for m in dac.messages()]


async def test_idle_connections_do_not_hold_it_up(dac):
    idle = [await dac.connect() for _ in range(20)]
    os.kill(dac.pid, signal.SIGTERM)
    assert await ended(dac, 2) == 0
    for conn in idle:
        assert await conn.eof() == b""
        conn.close()


async def test_a_second_signal_stops_at_once_and_keeps_what_had_ended(dac, mock):
    thread = await dac.thread()
    await dac.ask_stream(thread, say(tokens=3))
    stream, _ = await begin(dac, mock)
    os.kill(dac.pid, signal.SIGTERM)
    await asyncio.sleep(0.2)
    began = asyncio.get_running_loop().time()
    os.kill(dac.pid, signal.SIGINT)
    assert await ended(dac) == 0
    assert asyncio.get_running_loop().time() - began < 2.5
    await stream.rest()
    assert stream.complete is False and stream.named("done") == []
    assert sorted(t["status"] for t in dac.turns()) == ["complete", "incomplete"]


async def test_a_worker_told_to_go_is_replaced(dac, mock):
    """SIGTERM to one worker drains that one; the service goes on."""
    stream, question = await begin(dac, mock)
    before = dac.workers()
    for pid in before:
        os.kill(pid, signal.SIGTERM)
    await asyncio.sleep(0.7)
    for _ in range(20):
        assert answers(dac.port)[0]
    await mock.open("go")
    await stream.rest()
    assert stream.text == await mock.text(question)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_to_the_whole_group_is_one_stop(dac, mock, sig):
    """As a terminal sends SIGINT, or a service manager SIGTERM, to every process at once."""
    stream, question = await begin(dac, mock)
    os.killpg(dac.pid, sig)
    await asyncio.sleep(0.5)
    await mock.open("go")
    await stream.rest()
    assert stream.one("done").data["stored"] == STORED
    assert stream.text == await mock.text(question)
    assert await ended(dac, 3) == 0
    assert [t["status"] for t in dac.turns()] == ["complete"]
