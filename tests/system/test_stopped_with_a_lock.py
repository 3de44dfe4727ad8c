"""A worker stands still with a bucket's lock: those who want that bucket are refused at once and
nobody else notices, until the watchdog has ended it and the next one mends the bucket."""

import asyncio
import os
import re
import signal
import time

import pytest

from lib import persistent
from lib.asks import gather, until
from lib.provider import say
from test_dacctl_check import check, words
from test_deaths_under_load import crash_points

pytestmark = [
    pytest.mark.crashpoints,
    pytest.mark.skipif(not crash_points(), reason="needs a build with --enable-crashpoints"),
]

CROWD = 300


async def stop_with_the_lock(dac, thread, question, note):
    """Gives the finished answer away until a worker stops over it; returns its pid."""
    lost = []
    while not note.exists():
        asked = asyncio.create_task(dac.ask_json(thread, question))
        await asyncio.wait([asked], timeout=0.2)
        if not asked.done():
            lost.append(asked)
    return int(note.read_text()), lost


@pytest.mark.limit(60)
async def test_nobody_waits_for_a_lock_that_is_not_given_back(make_dac, mock, tmp_path):
    env = {"DAC_CRASH_AT": "worker/reader_set:6=STOP", "DAC_CRASH_ONCE": str(tmp_path / "stopped")}
    dac = make_dac({"server": {"watchdog_timeout": "30s"}}, env=env, workers=3)
    before = dac.processes()
    thread = await dac.thread()
    question = say(tokens=3)
    text = await mock.text(question)
    stopped, lost = await stop_with_the_lock(dac, thread, question, tmp_path / "stopped.reader_set")
    await asyncio.sleep(1.3)  # from then on the others accept for the one that stands still

    slowest = 0.0
    over = asyncio.Event()

    async def others_go_on():
        nonlocal slowest
        while not over.is_set():
            at = time.monotonic()
            s = await dac.ask_stream(thread, say(f"Another kumquat {at}?", tokens=3))
            assert s.one("done")
            slowest = max(slowest, time.monotonic() - at)

    going = asyncio.create_task(others_go_on())
    answers = await gather(*[dac.ask_json(thread, question) for _ in range(CROWD)])
    over.set()
    await going
    assert {r.status for r in answers} == {503}
    assert all(r.get("retry-after") and r.json()["code"] == "busy" for r in answers)
    # Two workers wait 20 ms now and then, and not once for each of them, which makes 3 s.
    assert slowest < 1.5, slowest
    assert dac.processes() == before

    os.kill(stopped, signal.SIGKILL)
    told = await persistent.whole(dac, thread, question)
    assert (told.end, told.text) == ("done", text)
    await asyncio.wait(lost)
    assert await dac.counter("dac_lock_recoveries_total") >= 1
    code, report = await asyncio.to_thread(check, dac)
    assert code == 0, words(report)


async def test_who_waits_for_the_lock_is_not_killed_for_it(make_dac, mock, tmp_path):
    """A crowd for the locked bucket keeps the others busy all the while that the watchdog counts."""
    env = {"DAC_CRASH_AT": "worker/reader_set:6=STOP", "DAC_CRASH_ONCE": str(tmp_path / "stopped")}
    dac = make_dac({"server": {"watchdog_timeout": "1s"}}, env=env, workers=3)
    dac.allow_log.append("has not beaten")
    thread = await dac.thread()
    question = say(tokens=3)
    crowd = []
    stopped, lost = await stop_with_the_lock(dac, thread, question, tmp_path / "stopped.reader_set")
    alive = asyncio.create_task(until(lambda: gone(stopped), "the end of what stopped"))
    while not alive.done():
        crowd += [asyncio.create_task(persistent.whole(dac, thread, question)) for _ in range(60)]
        await asyncio.sleep(0.1)
    text = await mock.text(question)
    assert {t.text for t in await gather(*crowd)} == {text}
    await asyncio.wait(lost)
    killed = re.findall(r"pid (\d+) \(slot \d+\) has not beaten", dac.log)
    assert killed == [str(stopped)]
    code, report = await asyncio.to_thread(check, dac)
    assert code == 0, words(report)


async def gone(pid):
    return not os.path.exists(f"/proc/{pid}")
