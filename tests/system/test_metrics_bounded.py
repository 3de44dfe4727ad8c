"""Metrics don't grow with traffic, are the same from every worker, and cover the last n turns."""

import asyncio
import os
import re

import pytest

from lib import procs
from lib.asks import ask, gather, until
from lib.dacd import BUILD
from lib.prometheus import histogram, read_metrics
from lib.provider import say

SHAPE = {
    "last_n", "turns", "ttft_ms", "latency_ms", "queue_wait_ms", "coalesce", "error_rate",
    "started_us", "uptime_s", "span_s", "newest_age_s", "burst",
}  # fmt: skip


def private_bytes(pids):
    """Memory that no other process shares: the segment is not in it."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as f:
            for line in f:
                if line.startswith("Private_Dirty:"):
                    total += int(line.split()[1]) * 1024
    return total


async def many(dac, thread, n, tag):
    for start in range(0, n, 50):
        await gather(
            *[
                ask(dac, thread, say(f"kumquat {tag} {i}", tokens=1), "json", model=f"m-{tag}-{i}")
                for i in range(start, min(start + 50, n))
            ]
        )


@pytest.mark.smoke
async def test_shape_and_last_n(dac, mock):
    empty = await dac.performance()
    assert set(empty) == SHAPE and empty["turns"] == 0 and empty["error_rate"] == 0
    thread = await dac.thread()
    await many(dac, thread, 12, "a")
    p = await dac.performance()
    assert set(p) == SHAPE and p["last_n"] == 100 and p["turns"] == 12
    for name in ("ttft_ms", "latency_ms", "queue_wait_ms"):
        q = p[name]
        assert set(q) == {"p50", "p95", "p99", "max"}
        assert 0 <= q["p50"] <= q["p95"] <= q["p99"] <= q["max"]
    assert p["coalesce"] == {"leaders": 12, "followers": 0, "hits": 0}
    assert (await dac.performance(5))["turns"] == 5
    for bad in ("0", "-1", "x", "1e3", ""):
        assert (await dac.get(f"/api/metrics/performance?last_n={bad}")).status == 400
    assert (await dac.get("/api/metrics/performance")).json()["last_n"] == 100


async def test_error_rate_counts_failed_and_incomplete_not_cancelled(make_dac, mock):
    dac = make_dac({"provider perplexity": {"retry_deadline": "0s"}})
    thread = await dac.thread()
    await dac.ask_json(thread, say("good kumquat", tokens=2))
    await dac.ask_json(thread, say("failed kumquat", status=500))
    await dac.ask_json(thread, say("incomplete kumquat", cut=1))
    s = await dac.open_ask(thread, say("cancelled kumquat", barrier="never@1"))
    await s.until("delta")
    s.close()
    await dac.stored_turns(4)
    p = await dac.performance()
    assert p["turns"] == 4 and p["error_rate"] == 0.5


async def test_every_worker_tells_the_same(dac, mock):
    thread = await dac.thread()
    await many(dac, thread, 5, "a")
    for r in await gather(*[dac.performance() for _ in range(24)]):
        assert r["turns"] == 5 and r["coalesce"]["leaders"] == 5
    assert await dac.counter("dac_leaders_total") == 5
    assert await dac.counter("dac_upstream_calls_total") == 5
    assert await dac.counter("dac_turns_complete_total") == 5


async def test_counters_survive_the_death_of_a_worker(dac, mock):
    thread = await dac.thread()
    await many(dac, thread, 20, "a")
    dac.allow_log.append(r"worker|killed|died|signal")
    victim = dac.workers()[0]
    os.kill(victim, 9)
    while victim in dac.workers() or len(dac.workers()) < 4:
        pass
    dac.wait_ready()
    assert await dac.counter("dac_leaders_total") == 20
    assert (await dac.performance())["turns"] == 20


# AddressSanitizer keeps freed memory back for a while, so growth says nothing there.
SANITIZED = (BUILD / "dacd").exists() and b"__asan_init" in (BUILD / "dacd").read_bytes()


@pytest.mark.skipif(SANITIZED, reason="memory is measured in the plain build")
@pytest.mark.limit(100)
async def test_nothing_grows(dac, mock):
    """2,000 turns with as many model names: the text of /metrics and the memory stay."""
    thread = await dac.thread()
    await many(dac, thread, 500, "warm")
    before = (await dac.get("/metrics")).text
    names_before = {line.rsplit(" ", 1)[0] for line in before.splitlines()}
    memory_before = private_bytes(dac.processes())
    await many(dac, thread, 2000, "more")
    after = (await dac.get("/metrics")).text
    assert {line.rsplit(" ", 1)[0] for line in after.splitlines()} == names_before
    assert "m-more" not in after and "org_demo" not in after
    assert len(after) < len(before) + 500
    grown = private_bytes(dac.processes()) - memory_before
    if "ASAN_OPTIONS" not in os.environ:  # it keeps freed memory on purpose
        assert grown < 8 << 20, f"{grown >> 10} KiB more in all processes"
    assert all(procs.open_descriptors(pid) < 200 for pid in dac.processes())


async def test_prometheus_text(dac, mock):
    thread = await dac.thread()
    await many(dac, thread, 3, "a")
    r = await dac.get("/metrics")
    assert r.get("content-type").startswith("text/plain; version=0.0.4")
    typed = set()
    for line in r.text.splitlines():
        if line.startswith("# TYPE "):
            name, kind = line[7:].split(" ")
            assert name not in typed and kind in ("counter", "gauge", "histogram", "summary")
            typed.add(name)
        elif not line.startswith("#"):
            name = line.split("{")[0].split(" ")[0]
            if name not in typed:  # a series of a histogram
                name = re.sub("_(bucket|sum|count)$", "", name)
            assert name in typed, f"{name} without TYPE"
            float(line.rsplit(" ", 1)[1])


# --- the store's ---


@pytest.mark.store
async def test_batches_of_the_store(dac, mock):
    thread = await dac.thread()
    _, before = read_metrics((await dac.get("/metrics")).text)
    for n in range(6):
        await dac.ask_json(thread, say(f"kumquat alone {n}"))

    async def go():
        await mock.wait(waiting=40, barrier="go")
        await mock.open("go")

    await gather(go(), *[dac.ask_json(thread, say(f"kumquat {n}", barrier="go@1")) for n in range(40)])
    metrics, values = read_metrics((await dac.get("/metrics")).text)
    rows, rows_sum = histogram(values, "dac_store_batch_rows")
    seconds, seconds_sum = histogram(values, "dac_store_commit_seconds")
    assert [le for le, _ in rows] == [1, 4, 16, 64, 256, float("inf")]
    assert rows[-1][1] == seconds[-1][1]
    assert rows_sum - before["dac_store_batch_rows_sum"] >= 46
    ones = values['dac_store_batch_rows_bucket{le="1"}'] - before['dac_store_batch_rows_bucket{le="1"}']
    assert 6 <= ones < 46, "some were alone, and of forty at once some were together"
    assert rows[-1][1] <= rows_sum and 0 < seconds_sum < 60
    assert metrics["dac_store_batch_rows"][0] == "histogram"


async def test_names_and_help_of_metrics(dac):
    """Counters say _total, nothing else does; help for each; units are base units and whole words."""
    metrics, values = read_metrics((await dac.get("/metrics")).text)
    for name, (kind, text) in metrics.items():
        assert re.fullmatch(r"(dac|gen_ai)(_[a-z0-9]+)+", name), name
        assert (kind == "counter") == name.endswith("_total"), name
        assert not re.search(r"_(count|sum|bucket|info)$|_(counter|gauge|histogram)(_|$)", name), name
        assert text and not text.endswith("."), name
        assert not re.search(r"_(ms|us|ns|s|sec|b|kb|mb|milliseconds|kilobytes)(_|$)", name), name
    names = {series.split("{")[0] for series in values}
    series_of = {n if n in metrics else re.sub(r"_(bucket|sum|count)$", "", n) for n in names}
    assert series_of == set(metrics), series_of ^ set(metrics)


@pytest.mark.own_store
async def test_outages_of_the_store(postgres, make_dac, mock):
    dac = make_dac({"store": {"postgres": postgres.conninfo(), "commit_timeout": "500ms"}})
    dac.allow_log += ["PostgreSQL"]
    thread = await dac.thread()
    await dac.ask_json(thread, say("kumquat before"))
    _, values = read_metrics((await dac.get("/metrics")).text)
    assert values["dac_store_up"] == 1 and values["dac_store_reconnects_total"] == 0
    assert values["dac_spool_rows"] == values["dac_spool_oldest_seconds"] == values["dac_spool_full"] == 0
    for outage in (1, 2):
        await asyncio.to_thread(postgres.stop)
        for n in range(3):
            r = await dac.ask_json(thread, say(f"kumquat {outage} {n}"))
            assert r.json()["stored"] == "spool"
        await asyncio.sleep(1)
        _, values = read_metrics((await dac.get("/metrics")).text)
        assert values["dac_store_up"] == 0 and values["dac_spool_rows"] >= 3
        assert values["dac_spool_oldest_seconds"] >= 0.9 and values["dac_spool_bytes"] > 4096
        assert values["dac_store_spooled_total"] >= 3 * outage
        await asyncio.to_thread(postgres.start)

        async def back():
            _, now = read_metrics((await dac.get("/metrics")).text)
            return now["dac_store_up"] == 1 and now["dac_spool_rows"] == 0 and now

        values = await until(back, "the spool is empty", 20)
        assert values["dac_store_reconnects_total"] >= outage
        assert values["dac_spool_oldest_seconds"] == 0
