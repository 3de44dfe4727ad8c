"""dacctl status, top, pacer, counters and turns tail: what an operator sees, problems first."""

import asyncio
import json
import os
import signal
import subprocess

import pytest

from lib.dacd import BUILD
from lib.provider import say
from lib.service import dacctl, until


def problems(dac):
    return dacctl(dac, "status", "--json")["problems"]


async def held(dac, mock, n, barrier="go"):
    asks = [asyncio.create_task(dac.chat(say(f"held {i}", tokens=4, barrier=barrier))) for i in range(n)]
    await mock.wait(waiting=n, barrier=barrier)
    return asks


@pytest.mark.smoke
def test_a_healthy_instance_has_no_problems(dac):
    text = dacctl(dac, "status")
    lines = text.splitlines()
    assert lines[0].startswith(f"instance   {dac.name}, DAC ")
    assert len(lines) < 30, "one screen"
    assert "store      takes turns" in text and "up " in lines[1]
    assert problems(dac) == []
    assert "requests" in dacctl(dac, "counters")
    until(lambda: dacctl(dac, "counters", "--json")["requests"] > 0, "a request that is counted")


async def test_problems_come_first(dac, mock):
    await mock.script({"status": 429, "retry_after": "60"}, {"status": 429, "retry_after": "60"})
    assert (await dac.chat(say("too much"))).status == 429
    victim = dac.workers()[1]
    os.kill(victim, signal.SIGSTOP)
    try:
        until(lambda: any("3 of 4 workers serve" in p for p in problems(dac)), "a worker that stands still")
        first = dacctl(dac, "status").splitlines()
        assert first[0].startswith("PROBLEM    ") and first[1].startswith("PROBLEM    ")
        (paused,) = [p for p in problems(dac) if p.startswith("provider perplexity is not called for ")]
        assert paused.endswith("it said 429")
    finally:
        os.kill(victim, signal.SIGCONT)
    until(lambda: not any("workers serve" in p for p in problems(dac)), "all serve")
    recorder = dac.recorder()
    os.kill(recorder, signal.SIGSTOP)
    os.kill(recorder, signal.SIGCONT)
    dac.kill_all()
    assert "is dead: start the service again" in problems(dac)[0]
    dac.start()


async def test_pacer_says_who_calls_and_who_waits(make_dac, mock):
    dac = make_dac({"provider perplexity": {"rps": 0.001, "burst": 3, "concurrency": 2}})
    asks = await held(dac, mock, 2)
    asks += [asyncio.create_task(dac.chat(say(f"waits {i}", tokens=2))) for i in range(3)]
    await asyncio.sleep(0.5)
    (p,) = until(
        lambda: [p for p in dacctl(dac, "pacer", "--json")["pacers"] if p["waiting"] == 3], "those who wait"
    )
    assert (p["name"], p["calls"], p["concurrency"], p["burst"], p["tokens"]) == ("perplexity", 2, 2, 3, 1)
    assert sum(w["calls"] for w in p["calls_by"]) == 2
    assert {w["pid"] for w in p["calls_by"]} <= set(dac.workers())
    assert p["paused_ms"] == 0 and p["pause_reason"] is None
    text = dacctl(dac, "pacer")
    assert "bursts of 3; 1 may start now" in text and "2 of 2, " in text and "3 questions" in text
    await mock.open("go")
    assert {r.status for r in await asyncio.gather(*asks[:2])} == {200}
    for a in asks[2:]:
        a.cancel()


async def test_turns_tail_shows_each_turn_that_ends(dac):
    await dac.chat(say("before", tokens=2))
    await dac.stored_turns(1)
    tail = subprocess.Popen(
        [BUILD / "dacctl", "-n", dac.name, "--json", "turns", "tail"], stdout=subprocess.PIPE, text=True
    )
    try:
        loop = asyncio.get_running_loop()

        async def line():
            return json.loads(await asyncio.wait_for(loop.run_in_executor(None, tail.stdout.readline), 10))

        assert (await line())["status"] == "complete"
        r = await dac.chat(say("after", tokens=2))
        seen = await line()
        assert seen["turn_id"] == r.get("x-dac-turn-id")
        assert seen["provider"] == "perplexity" and seen["latency_ms"] >= seen["ttft_ms"] >= 0
        text = subprocess.Popen([BUILD / "dacctl", "-n", dac.name, "turns", "tail"], stdout=subprocess.PIPE, text=True)
        shown = [await loop.run_in_executor(None, text.stdout.readline) for _ in range(2)]
        assert seen["turn_id"] in shown[1] and "kumquat" not in "".join(shown)
        text.stdout.close()  # whoever reads has gone: it goes, too
        assert await loop.run_in_executor(None, text.wait, 5) == 0
    finally:
        tail.kill()
        tail.wait()
        tail.stdout.close()


async def test_top_goes_on_until_the_service_ends(make_dac):
    dac = make_dac()
    top = subprocess.Popen([BUILD / "dacctl", "-n", dac.name, "top"], stdout=subprocess.PIPE, text=True)
    for i in range(20):
        await dac.chat(say(f"q {i}", tokens=2))
    await asyncio.sleep(1.5)
    dac.stop()
    out, _ = await asyncio.get_running_loop().run_in_executor(None, lambda: top.communicate(timeout=10))
    assert top.returncode == 0
    assert "a second" in out and "upstream calls" in out and "\033" not in out
    assert out.count("instance ") >= 2


def test_what_is_wrong_on_the_command_line(dac):
    p = subprocess.run([BUILD / "dacctl", "-n", dac.name, "turns"], capture_output=True, text=True, check=False)
    assert p.returncode == 2 and "turns takes the word tail" in p.stderr
    p = subprocess.run([BUILD / "dacctl", "-n", dac.name, "turns", "head"], capture_output=True, text=True, check=False)
    assert p.returncode == 2 and "tail" in p.stderr
