"""SIGHUP: what has changed takes effect and nobody notices, or nothing does and the log says why."""

import asyncio
import os
import signal
import socket
import threading
import time

import pytest

from lib.dacd import STORED
from lib.provider import Provider, say
from lib.service import answers, dacctl, until


def states(dac):
    return [p["state"] for p in dacctl(dac, "status", "--json")["processes"]]


def settled(dac, workers):
    """Until old workers are gone and new ones serve."""
    return until(lambda: states(dac) == ["ready"] * (workers + 1), "only new workers")


async def running(dac, mock, name="go", **more):
    """A stream that waits at a barrier in the middle."""
    question = say(f"held at {name}", tokens=12, barrier=f"{name}@5", **more)
    stream = await dac.open_ask(await dac.thread(), question)
    await stream.until("delta")
    await mock.wait(waiting=1, barrier=name)
    return stream, question


async def ends_well(stream, mock, question, name="go"):
    await mock.open(name)
    await stream.rest()
    assert stream.one("done").data["stored"] == STORED
    assert stream.text == await mock.text(question)


# --- what changes in place ---


@pytest.mark.smoke
async def test_values_change_in_place(dac, mock):
    before = dac.workers()
    stream, question = await running(dac, mock)
    dac.sections["server"].update(body_max="2k", log_level="debug")
    dac.sections["flight"] = {"result_ttl": "0s"}
    dac.sections["provider perplexity"]["concurrency"] = 1
    log = dac.reload()
    assert "server.body_max: 1m -> 2k" in log and "values have changed in place" in log
    assert dac.workers() == before
    r = await dac.post("/v1/chat/completions", dac.chat_question("x" * 3000))
    assert r.status == 413
    until(lambda: dacctl(dac, "status", "--json")["providers"][0]["concurrency"] == 1, "the limit")
    waits = asyncio.create_task(dac.chat(say("waits for the permit", tokens=2)))
    await asyncio.sleep(0.3)
    assert not waits.done() and await mock.calls() == 1
    await ends_well(stream, mock, question)
    assert (await waits).status == 200
    thread = await dac.thread()
    for _ in range(2):
        assert (await dac.ask_json(thread, say("no hits any more", tokens=2))).json()["coalesce"] == "leader"


async def test_who_waits_for_a_limit_goes_when_it_is_raised(make_dac, mock):
    dac = make_dac({"provider perplexity": {"rps": 0.01, "burst": 1}})
    assert (await dac.chat(say("first", tokens=2))).status == 200
    waits = [asyncio.create_task(dac.chat(say(f"waits {i}", tokens=2))) for i in range(5)]
    await asyncio.sleep(0.4)
    assert not any(w.done() for w in waits)
    began = time.monotonic()
    dac.env_file.write_text("PERPLEXITY_RPS=100\nPERPLEXITY_BURST=10\n")
    log = dac.reload()
    assert "provider.perplexity.rps: 0.01 -> 100" in log
    assert {r.status for r in await asyncio.gather(*waits)} == {200}
    assert time.monotonic() - began < 10


# --- what is refused ---


@pytest.mark.smoke
async def test_a_bad_configuration_changes_nothing(dac, mock):
    dac.allow_log.append("reload refused|dac.conf:")
    before = dac.workers()
    stream, question = await running(dac, mock)
    good = {k: dict(v) for k, v in dac.sections.items()}
    dac.sections["server"].update(body_max="2k", worker=3, log_level="loud")
    dac.sections["provider perplexity"]["api_key_file"] = "/nowhere"
    log = dac.reload()
    assert "reload refused, everything stays as it is" in log
    for word in ('"worker"', '"workers"?', "log_level", "/nowhere"):
        assert word in log, word
    assert dac.workers() == before
    r = await dac.chat("x" * 3000)
    assert r.status == 200
    dac.sections = good
    assert "0 values" in dac.reload()
    await ends_well(stream, mock, question)


async def test_what_takes_a_restart_is_named_and_stays(dac):
    dac.sections["memory"] = {"shm_size": "64m"}
    dac.sections["server"]["body_max"] = "2k"
    log = dac.reload()
    assert 'memory.shm_size changes only with a restart: "48m" stays, not "64m"' in log
    assert "server.body_max: 1m -> 2k" in log
    assert (await dac.chat("x" * 3000)).status == 413
    log = dac.reload()  # it is said each time
    assert "memory.shm_size changes only with a restart" in log


async def test_new_workers_that_cannot_start_change_nothing(dac, mock):
    """The database's file is away for a moment: those that serve have it open."""
    if STORED != "sqlite":
        pytest.skip("of the SQLite store")
    dac.allow_log.append("reload refused|could not set up")
    before = dac.workers()
    stream, question = await running(dac, mock)
    away = dac.db_path.with_suffix(".away")
    dac.db_path.rename(away)
    dac.db_path.mkdir()
    dac.sections["server"]["workers"] = 8  # they give up one after the other
    log = dac.reload()
    assert "reload refused, everything stays as it is: new worker" in log
    dac.db_path.rmdir()
    away.rename(dac.db_path)
    until(lambda: dac.workers() == before, "those that came are gone")
    dac.sections["server"]["workers"] = 2
    assert all(answers(dac.port)[0] for _ in range(20))
    # However late the others of them give up: the service does not depend on them.
    await asyncio.sleep(0.3)
    assert dac.process.poll() is None and "cannot go on" not in dac.log
    await ends_well(stream, mock, question)
    assert "2 new workers serve" in dac.reload()
    settled(dac, 2)


async def test_an_address_that_cannot_be_had_changes_nothing(dac):
    dac.allow_log.append("reload refused")
    before = dac.workers()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        dac.sections["server"]["listen"] = f"127.0.0.1:{dac.port}, 127.0.0.1:{s.getsockname()[1]}"
        log = dac.reload()
    assert "reload refused" in log and "already in use" in log
    assert dac.workers() == before and answers(dac.port)[0]
    assert "new workers serve" in dac.reload()


# --- new workers ---


@pytest.mark.smoke
async def test_streams_outlive_the_workers_that_serve(dac, mock):
    before = dac.workers()
    stream, question = await running(dac, mock)
    dac.sections["server"]["workers"] = 3
    log = dac.reload()
    assert "3 new workers serve" in log
    now = until(lambda: [w for w in dac.workers() if w not in before], "new ones")
    assert len(now) == 3
    assert all(answers(dac.port)[0] for _ in range(30))
    assert (await dac.chat(say("asked of a new one", tokens=2))).status == 200
    # Somebody who joins now is served by a new worker from the old one's call.
    joined = asyncio.create_task(dac.chat(say("own", tokens=3)))
    assert (await joined).status == 200
    await asyncio.sleep(0.7)
    old = [w for w in dac.workers() if w in before]
    assert len(old) == 1, "only the one with the stream is left"
    await ends_well(stream, mock, question)
    settled(dac, 3)
    assert "the old workers have ended" in dac.log
    assert dacctl(dac, "status", "--json")["restarts"] == 0


async def test_those_who_join_stay_on_one_call_over_a_reload(dac, mock):
    thread = await dac.thread()
    question = say("shared", tokens=12, barrier="go@5")
    first = await dac.open_ask(thread, question)
    await first.until("delta")
    dac.sections["server"]["workers"] = 2
    dac.reload()
    later = [await dac.open_ask(thread, question) for _ in range(6)]
    for s in later:
        await s.until("delta")
    await mock.open("go")
    for s in [first, *later]:
        await s.rest()
        assert s.text == await mock.text(question)
        assert s.one("done").data["stored"] == STORED
    assert await mock.calls() == 1
    assert len(dac.turns()) == 1


async def test_another_provider_and_another_key(make_dac, mock, tmp_path):
    dac = make_dac()
    stream, question = await running(dac, mock)
    other = Provider(tmp_path / "other", ["--api-key", "sk-canary-other"]).start()
    try:
        key = tmp_path / "other.key"
        key.write_text("sk-canary-other\n")
        key.chmod(0o600)
        first = dac.sections.pop("provider perplexity")
        dac.sections["provider other"] = {"base_url": other.url, "api_key_file": key, "models": "m-*"}
        dac.sections["provider perplexity"] = {**first, "models": "p-*"}
        log = dac.reload()
        assert "provider.other: gone -> there" in log and "provider.perplexity.models: * -> p-*" in log
        assert (await dac.chat(say("of the new one", tokens=2))).status == 200
        assert await other.calls() == 1
        # Only what is in the key's file changes.
        other.stop()
        other.options = ["--api-key", "sk-canary-renewed"]
        other.start()
        key.write_text("sk-canary-renewed\n")
        await ends_well(stream, mock, question)
        settled(dac, 4)
        assert "provider.other API key: *** -> ***" in dac.reload()
        assert (await dac.chat(say("with the new key", tokens=2))).status == 200
        # It goes; the number of its pacer is not given to another one.
        settled(dac, 4)
        del dac.sections["provider other"]
        dac.sections["provider perplexity"]["models"] = "*"
        assert "provider.other: there -> gone" in dac.reload()
        assert (await dac.chat(say("of the old one again", tokens=2))).status == 200
        names = [p["name"] for p in dacctl(dac, "status", "--json")["providers"]]
        assert names == ["perplexity", "other"]
    finally:
        other.stop()


async def test_addresses_come_and_go(dac, tmp_path):
    path = tmp_path / "dac.sock"
    before = dac.port
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        new = s.getsockname()[1]
    dac.sections["server"]["listen"] = f"127.0.0.1:{before}, 127.0.0.1:{new}, unix:{path}"
    dac.reload()
    assert answers(before)[0] and answers(new)[0] and path.is_socket()
    settled(dac, 4)
    dac.sections["server"]["listen"] = f"127.0.0.1:{new}"
    dac.reload()
    until(lambda: not answers(before, 0.5)[0], "the address that went")
    assert all(answers(new)[0] for _ in range(10)) and not path.exists()
    settled(dac, 4)
    dac.sections["server"].update(listen=f"0.0.0.0:{new}", workers=6)  # of all interfaces in place of one
    dac.reload()
    assert all(answers(new)[0] for _ in range(20))
    settled(dac, 6)
    assert all(answers(new)[0] for _ in range(20))
    dac.sections["server"].update(listen=f"127.0.0.1:{new}", workers=4)  # and back
    dac.reload()
    settled(dac, 4)
    assert all(answers(new)[0] for _ in range(10))
    assert "could not accept" not in dac.log
    dac.port = new


async def test_nobody_is_reset_when_one_address_becomes_all(dac):
    """Clients that come and go all the time, while the listening sockets change."""
    stop, failed, asked = threading.Event(), [], [0]

    def ask():
        while not stop.is_set():
            asked[0] += 1
            if not answers(dac.port)[0]:
                failed.append(time.monotonic())

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for t in askers:
        t.start()
    for listen in (f"0.0.0.0:{dac.port}", f"127.0.0.1:{dac.port}") * 3:
        dac.sections["server"]["listen"] = listen
        await asyncio.get_running_loop().run_in_executor(None, dac.reload)
        settled(dac, 4)
    stop.set()
    for t in askers:
        t.join()
    assert failed == [] and asked[0] > 100, (len(failed), asked)


async def test_new_workers_wait_for_old_ones(dac, mock):
    stream, question = await running(dac, mock)
    dac.sections["server"]["workers"] = 2
    assert "2 new workers serve" in dac.reload()
    dac.sections["server"].update(workers=3, body_max="2k")
    log = dac.reload()
    assert "waits for old ones to end" in log
    assert (await dac.chat("x" * 3000)).status == 413, "what changes in place does not wait"
    for _ in range(5):
        dac.reload()
    until(lambda: len(states(dac)) == 4, "the recorder, two that serve, one with a stream")
    await ends_well(stream, mock, question)
    settled(dac, 3)
    assert dac.log.count("new workers serve") == 2, "many reloads have become one"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_old_workers_may_die_and_the_service_may_stop(dac, mock, how):
    before = dac.workers()
    stream, question = await running(dac, mock)
    dac.sections["server"]["workers"] = 2
    dac.reload()
    old = until(lambda: [w for w in dac.workers() if w in before], "old ones")
    if how == signal.SIGKILL:
        # The others go at once: only the one with the stream stays.
        old = until(lambda: len(w := [w for w in dac.workers() if w in before]) == 1 and w, "the one with the stream")
        os.kill(old[0], how)
        await stream.rest()
        assert not stream.complete
        settled(dac, 2)
        assert dacctl(dac, "status", "--json")["restarts"] == 0, "nobody takes its place"
        await mock.open("go")
        return
    os.kill(dac.pid, how)
    await asyncio.sleep(0.3)
    await ends_well(stream, mock, question)
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(None, dac.process.wait, 5) == 0


@pytest.mark.limit(110)
async def test_a_thousand_streams_and_fifty_reloads(make_dac, mock):
    """Configuration of all three classes changes back and forth under load: nothing breaks."""
    dac = make_dac(workers=2)
    ended = {"done": 0, "broken": 0}
    stop = asyncio.Event()

    async def ask(i):
        question = say(f"stream {i}", tokens=30, gap="20ms", ttft="50ms")
        s = await dac.open_chat(question)
        assert s.status == 200, await s.body()
        await s.rest(90)
        ended["done" if s.complete and s.chat_done else "broken"] += 1

    async def reload():
        for k in range(50):
            dac.sections["server"].update(workers=2 + k % 2, body_max=f"{64 + k}k")
            dac.sections["memory"] = {"shm_size": f"{48 + k % 3}m"}
            await asyncio.get_running_loop().run_in_executor(None, dac.reload, False)
            await asyncio.sleep(0.1)
        stop.set()

    reloads = asyncio.create_task(reload())
    tasks, i = [], 0
    while i < 1000:
        for _ in range(25):
            tasks.append(asyncio.create_task(ask(i)))
            i += 1
        await asyncio.sleep(0.15)
    await asyncio.gather(*tasks)
    await reloads
    assert ended == {"done": 1000, "broken": 0}
    assert stop.is_set()
    until(lambda: len(states(dac)) in (3, 4) and set(states(dac)) == {"ready"}, "one set", 20)
    assert dacctl(dac, "status", "--json")["restarts"] == 0
