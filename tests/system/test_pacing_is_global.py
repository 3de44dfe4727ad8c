"""Rate and concurrency are limited over all workers together, by the provider's own count."""

import time

import pytest

from lib.asks import ask, gather, kinds
from lib.provider import say


def most_in_a_window(times, seconds):
    return max(sum(t <= u < t + seconds for u in times) for t in times)


@pytest.mark.smoke
async def test_requests_per_second(make_dac, mock):
    """24 questions at once at 10 a second, burst 3: nobody is refused, the provider never
    sees more than it allows."""
    dac = make_dac({"provider perplexity": {"rps": 10, "burst": 3}})
    await mock.limits(rps=10, burst=3, slack="60ms")
    thread = await dac.thread()
    began = time.monotonic()
    questions = [say(f"kumquat {i}", tokens=2) for i in range(24)]
    await gather(*[ask(dac, thread, q, k) for q, k in zip(questions, kinds("mixed", 24), strict=True)])
    took = time.monotonic() - began
    stats = await mock.stats()
    assert stats["rate_limited"] == 0 and stats["calls"] == 24
    times = [e["t_ns"] / 1e9 for e in await mock.log("request")]
    assert most_in_a_window(times, 1.0) <= 13 + 1
    assert most_in_a_window(times, 0.05) <= 4
    assert 1.9 < took < 4, f"{took:.2f} s"


@pytest.mark.smoke
async def test_calls_at_a_time(make_dac, mock):
    dac = make_dac({"provider perplexity": {"concurrency": 3}})
    thread = await dac.thread()
    asks = [ask(dac, thread, say(f"kumquat {i}", tokens=5, gap="20ms"), "stream") for i in range(15)]
    await gather(*asks)
    stats = await mock.stats()
    assert stats["max_concurrent"] == 3
    assert stats["calls"] == 15


async def test_limits_from_the_environment_and_the_env_file(make_dac, mock):
    """The file wins over the environment, that over dac.conf."""
    dac = make_dac(
        {"provider perplexity": {"concurrency": 5}},
        env={"PERPLEXITY_CONCURRENCY": "4"},
        start=False,
    )
    dac.env_file.write_text("PERPLEXITY_CONCURRENCY=2\n")
    dac.start()
    thread = await dac.thread()
    await gather(*[ask(dac, thread, say(f"k {i}", tokens=5, gap="20ms"), "json") for i in range(12)])
    assert (await mock.stats())["max_concurrent"] == 2


async def test_waiting_is_not_latency_of_the_first_token(make_dac, mock):
    """What waits for the pacer says so: queue_wait_ms."""
    dac = make_dac({"provider perplexity": {"rps": 2, "burst": 1}})
    thread = await dac.thread()
    one, two = await gather(
        ask(dac, thread, say("first kumquat", tokens=2), "stream"),
        ask(dac, thread, say("second kumquat", tokens=2), "stream"),
    )
    waits = sorted(a.raw.one("first_token").data["queue_wait_ms"] for a in (one, two))
    assert waits[0] < 100 and 350 < waits[1] < 700
    late = max((one, two), key=lambda a: a.raw.one("first_token").data["queue_wait_ms"]).raw
    assert late.one("ping").at - late.started < 0.2, "ping does not wait for the queue"
    assert late.one("first_token").data["ttft_ms"] > 350


async def test_a_429_pauses_all_calls(make_dac, mock):
    """After the provider said 429 with Retry-After, no worker calls before."""
    dac = make_dac()
    thread = await dac.thread()
    await mock.script({"status": 429, "retry_after": "1"})
    questions = [say(f"kumquat {i}", tokens=2) for i in range(3)]
    first = await gather(ask(dac, thread, questions[0], "json"))
    stats = await mock.stats()
    assert first[0].text == await mock.text(questions[0]) and stats["calls"] == 2
    times = [e["t_ns"] / 1e9 for e in await mock.log("request")]
    assert 0.95 < times[1] - times[0] < 2
    await mock.script({"status": 429, "retry_after": "1"})

    async def later(q):
        await mock.wait(calls=3)
        return await ask(dac, thread, q, "json")

    await gather(ask(dac, thread, questions[1], "json"), later(questions[2]))
    times = [e["t_ns"] / 1e9 for e in await mock.log("request")]
    assert len(times) == 5
    assert all(t - times[2] > 0.95 for t in times[3:]), times
