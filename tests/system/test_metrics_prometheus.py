"""/metrics as promtool wants it, and what its histograms of turns say."""

import asyncio
import os
import re
import signal

import pytest

from lib.asks import gather
from lib.prometheus import histogram, promtool, read_metrics
from lib.provider import say

TURN = ("dac_turn_ttft_seconds", "dac_turn_latency_seconds", "dac_turn_queue_wait_seconds", "dac_turn_overhead_seconds")
OURS = 'provider="perplexity"'
CALL = 'gen_ai_operation_name="chat",gen_ai_provider_name="perplexity"'
# As OpenTelemetry's semantic conventions for generative AI want their buckets.
DURATION = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
FIRST_TOKEN = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]


async def metrics(dac):
    return read_metrics((await dac.get("/metrics")).text)[1]


async def sums(dac):
    """{name: (turns, seconds)} of all histograms of turns."""
    values = await metrics(dac)
    found = {name: histogram(values, name, OURS) for name in TURN}
    found["duration"] = histogram(values, "gen_ai_client_operation_duration_seconds", CALL)
    found["first token"] = histogram(values, "gen_ai_server_time_to_first_token_seconds", CALL)
    return {name: (buckets[-1][1], total) for name, (buckets, total) in found.items()}


async def test_promtool_has_nothing_to_say(dac, mock):
    """Neither of an idle instance nor of one that has answered."""
    thread = await dac.thread()
    for questions in ([], [say("kumquat", tokens=2), say("bad kumquat", status=400)]):
        for q in questions:
            await dac.ask_json(thread, q)
        code, said = await asyncio.to_thread(promtool, "check", "metrics", text=(await dac.get("/metrics")).text)
        assert (code, said) == (0, "")


def test_promtool_would_have_something_to_say():
    code, said = promtool("check", "metrics", text="# TYPE dac_wait_ms counter\ndac_wait_ms 1\n")
    assert code != 0 and "dac_wait_ms" in said


async def test_bounds(dac):
    values = await metrics(dac)

    def bounds(name, labels):
        return [le for le, _ in histogram(values, name, labels)[0]][:-1]

    assert bounds("gen_ai_client_operation_duration_seconds", CALL) == DURATION
    assert bounds("gen_ai_server_time_to_first_token_seconds", CALL) == FIRST_TOKEN
    for name, watched in zip(TURN, (1.5, 6, 1, 0.001), strict=True):
        assert watched in bounds(name, OURS), "what alerts watch must be a bound"


async def test_where_the_time_of_a_turn_goes(make_dac, mock):
    """Four turns, one call at a time: what the provider and the queue take is theirs; what is
    left is ours, and little."""
    dac = make_dac({"provider perplexity": {"concurrency": 1}})
    thread = await dac.thread()
    await dac.ask_json(thread, say("kumquat before", tokens=1))
    before = await sums(dac)
    questions = [say(f"kumquat {i}", ttft="200ms", tokens=3, gap="50ms") for i in range(4)]
    await gather(*[dac.ask_json(thread, q) for q in questions])
    after = await sums(dac)
    turns = {name: after[name][0] - before[name][0] for name in after}
    spent = {name: after[name][1] - before[name][1] for name in after}
    assert set(turns.values()) == {4}
    ttft, latency, queue, own = (spent[name] for name in TURN)
    assert 4 * 0.3 <= spent["duration"] < 4 * 0.45
    assert 4 * 0.2 <= spent["first token"] < 4 * 0.3
    assert (1 + 2 + 3) * 0.3 <= queue < 6 * 0.45
    assert ttft < latency and queue + spent["first token"] <= ttft + 0.01
    # All of it is somebody's; the rest is the store's, which found the thread.
    assert queue + spent["duration"] + own <= latency + 0.001
    assert latency - (queue + spent["duration"] + own) < 0.2
    assert 0 < own < 4 * 0.05


async def test_turns_that_end_badly(make_dac, mock):
    """The time until a provider fails is the provider's, and so is that until a client leaves;
    that before the one retry is in the queue's, and only the last call counts as the turn's."""
    dac = make_dac()
    thread = await dac.thread()
    s = await dac.open_ask(thread, say("left kumquat", tokens=2, barrier="never@1"))
    await s.until("delta")
    await dac.ask_json(thread, say("bad kumquat", status=400, ttft="300ms"))
    await mock.script({"status": 500, "ttft": "200ms", "match": "retried", "times": 1})
    await dac.ask_json(thread, say("retried kumquat", tokens=1))
    s.close()
    await dac.stored_turns(3)
    now = await sums(dac)
    assert {n for name, (n, _) in now.items() if name not in ("first token", TURN[0])} == {3}
    assert now["first token"][0] == now[TURN[0]][0] == 2, "the failed one had none"
    assert now["duration"][1] >= 0.3 + 0.3
    assert now["dac_turn_queue_wait_seconds"][1] >= 0.3, "a call that failed, and 100 ms"
    assert now["dac_turn_overhead_seconds"][1] < 0.1


@pytest.mark.limit(60)
async def test_no_figure_goes_back_over_deaths(make_dac, mock):
    """Workers and recorders are killed while questions are asked and the metrics are read."""
    dac = make_dac()
    dac.allow_log.append(r"worker|recorder|killed|died|signal|fetcher")
    thread = await dac.thread()
    over = asyncio.Event()
    asked = 0

    async def watch():
        last, reads = {}, 0
        while not over.is_set():
            try:
                kinds, values = read_metrics((await dac.get("/metrics")).text)
            except (OSError, EOFError, AssertionError, ValueError):
                continue  # that worker is no more
            for series, value in values.items():
                name = re.sub(r"\{.*", "", series)
                kind = kinds.get(name) or kinds.get(re.sub(r"_(bucket|sum|count)$", "", name))
                if kind[0] != "gauge":
                    assert value >= last.get(series, 0), f"{series} went back from {last[series]} to {value}"
            last, reads = values, reads + 1
        return reads

    async def keep_asking():
        nonlocal asked
        while not over.is_set():
            asked += 1
            try:
                await dac.ask_json(thread, say(f"kumquat {asked}", tokens=1), timeout=5)
            except (OSError, EOFError, AssertionError, ValueError, TimeoutError):
                pass

    watchers = [asyncio.create_task(watch()) for _ in range(3)]
    askers = [asyncio.create_task(keep_asking()) for _ in range(4)]
    for _ in range(4):
        for victim in (dac.workers()[0], dac.recorder()):
            os.kill(victim, signal.SIGKILL)
            while victim in dac.processes():
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.4)
    over.set()
    assert sum(await gather(*watchers)) > 100
    await gather(*askers)
