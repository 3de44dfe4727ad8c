"""A leader dies after its flight can be found and before its question is in the log: those who
joined it go on with the question that they brought themselves."""

import asyncio

import pytest

from lib.asks import connected, gather
from lib.provider import say
from test_deaths_under_load import all_free_again, crash_points

pytestmark = [
    pytest.mark.crashpoints,
    pytest.mark.skipif(not crash_points(), reason="needs a build with --enable-crashpoints"),
]

SETTINGS = {
    "server": {"watchdog_timeout": "1s"},
    "flight": {"result_ttl": "200ms", "error_ttl": "200ms", "reconnect_grace": "500ms"},
}


def dying(make_dac, folder, point, signal, **more):
    """A dacd of which one worker, and only one, is hit at its first pass of a point."""
    folder.chmod(0o777)
    env = {
        "DAC_CRASH_AT": point,
        "DAC_CRASH_ROLE": "worker",
        "DAC_CRASH_SIGNAL": signal,
        "DAC_CRASH_ONCE": str(folder / "hit"),
    }
    dac = make_dac({**SETTINGS, **more}, env=env, workers=3)
    dac.allow_log.append(r"has not beaten|worker|signal")
    return dac


async def native(dac, thread, question):
    return await dac.open_ask(thread, question)


async def chat(dac, thread, question):
    return await dac.open_chat(question)


async def end_of(task):
    """The stream that came of asking, read to its end; None if its worker died."""
    try:
        stream = await task
        if stream.status == 200:
            await stream.rest()
        return stream if stream.complete else None
    except (ConnectionError, asyncio.IncompleteReadError, OSError):
        return None


async def spread(dac):
    """Waits until newcomers go to more than one worker, which right after the start they may not."""
    while True:
        connections = [await dac.connect() for _ in range(12)]
        counts = await connected(dac, 12)
        for c in connections:
            c.close()
        if sum(n > 0 for n in counts) > 1:
            return
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("ask", [native, chat])
@pytest.mark.limit(60)
async def test_followers_go_on_in_the_leaders_place(make_dac, mock, tmp_path, ask):
    dac = dying(make_dac, tmp_path, "question_before", "STOP")
    thread = await dac.thread()
    question = say("Kumquat?", tokens=6)
    await spread(dac)
    # The leader's worker stands still with its claim indexed; the others join it and wait
    # until the watchdog has ended it.
    asked = [asyncio.create_task(end_of(ask(dac, thread, question))) for _ in range(24)]
    ended = await gather(*asked)
    text = await mock.text(question)
    kept = [s for s in ended if s]
    assert (tmp_path / "hit.question_before").exists() and kept
    for s in kept:
        assert s.status == 200, await s.body()
        assert (s.text if ask is native else s.chat_text) == text
        assert not s.named("reset", "error")
    assert await mock.calls() == 1
    turns = [t for t in await dac.stored_turns(1) if t["status"] != "failed"]
    assert [(t["status"], t["generation"]) for t in turns] == [("complete", 1)]
    assert await dac.counter("dac_takeovers_total") == 1
    await all_free_again(dac, mock)


@pytest.mark.parametrize("point", ["index_bucket", "index_linked", "question_before"])
@pytest.mark.limit(60)
async def test_newcomers_are_not_told_of_a_question_that_was_never_asked(
    make_dac, mock, tmp_path, point
):
    dac = dying(make_dac, tmp_path, f"{point}:2" if "index" in point else point, "KILL")
    thread = await dac.thread()
    for n in range(12):
        question = say(f"Kumquat {n}?", tokens=6)
        if not await end_of(dac.open_ask(thread, question)):
            break
    assert (tmp_path / f"hit.{point}").exists()
    for _ in range(3):  # within error_ttl of the dead one
        s = await dac.ask_stream(thread, question)
        assert s.text == await mock.text(question) and s.one("done")
    assert await mock.calls() == n + 1
    await all_free_again(dac, mock)


@pytest.mark.limit(60)
async def test_an_orphan_without_clients_is_let_go_at_once(make_dac, mock, tmp_path):
    dac = dying(make_dac, tmp_path, "question_before", "KILL")
    thread = await dac.thread()
    assert await end_of(dac.open_ask(thread, say("Kumquat?", tokens=3))) is None
    await connected(dac, 0)
    await all_free_again(dac, mock)
    assert await mock.calls() == 0
    assert [t for t in dac.turns() if t["status"] == "complete"] == []
