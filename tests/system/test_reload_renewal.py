"""A reload and the renewal of shared memory at the same time: one waits for the other, and neither
breaks a stream."""

import pytest

from lib.dacd import STORED
from lib.provider import say
from lib.service import dacctl
from lib.service import until as wait_until
from test_lost_locks import LOST, break_locks, renewed, status


async def running(dac, mock):
    question = say("held", tokens=12, barrier="go@5")
    stream = await dac.open_ask(await dac.thread(), question)
    await stream.until("delta")
    await mock.wait(waiting=1, barrier="go")
    return stream, question


async def ends_well(stream, mock, question):
    await mock.open("go")
    await stream.rest()
    assert stream.one("done").data["stored"] == STORED
    assert stream.text == await mock.text(question)


def alone(dac, workers):
    """Until there is a master, a recorder and that many workers."""
    wait_until(
        lambda: len(dac.processes()) == 2 + workers and [p["state"] for p in status(dac)["processes"]] == ["ready"] * (1 + workers),
        "one generation, one set",
        15,
    )


@pytest.mark.smoke
async def test_new_workers_wait_for_the_old_memory_s_end(make_dac, mock):
    dac = make_dac({"server": {"drain_timeout": "20s"}})
    dac.allow_log.append(LOST)
    stream, question = await running(dac, mock)
    break_locks(dac)
    await renewed(dac)
    dac.sections["server"].update(workers=2, body_max="2k")
    dac.sections["provider perplexity"]["concurrency"] = 7
    assert "waits for old ones to end" in dac.reload()
    assert (await dac.chat("x" * 3000)).status == 413
    assert dacctl(dac, "pacer", "--json")["pacers"][0]["concurrency"] in (6, 7), "one is used by the old memory"
    assert (await dac.chat(say("asked meanwhile", tokens=2))).status == 200
    await ends_well(stream, mock, question)
    wait_until(lambda: "2 new workers serve" in dac.log, "the reload's turn", 15)
    alone(dac, 2)
    assert dacctl(dac, "pacer", "--json")["pacers"][0]["concurrency"] == 7
    assert (await dac.chat(say("asked after it", tokens=2))).status == 200


async def test_memory_is_renewed_while_old_workers_leave(make_dac, mock):
    dac = make_dac({"server": {"drain_timeout": "20s"}})
    dac.allow_log.append(LOST)
    stream, question = await running(dac, mock)
    dac.sections["server"]["workers"] = 2
    dac.sections["provider other"] = {"base_url": mock.url, "models": "other-*"}
    assert "2 new workers serve" in dac.reload()
    break_locks(dac)
    await renewed(dac)
    assert (await dac.chat(say("asked meanwhile", tokens=2))).status == 200
    r = await dac.post("/v1/chat/completions", {**dac.chat_question(say("other", tokens=2)), "model": "other-1"})
    assert r.status == 200
    await ends_well(stream, mock, question)
    alone(dac, 2)
    del dac.sections["provider other"]
    dac.sections["server"]["workers"] = 3
    assert "3 new workers serve" in dac.reload()
    alone(dac, 3)
    names = [p["name"] for p in dacctl(dac, "pacer", "--json")["pacers"]]
    assert names == ["perplexity", "other"]
    break_locks(dac)
    await renewed(dac, 2)
    assert [p["name"] for p in dacctl(dac, "pacer", "--json")["pacers"]] == names
    assert (await dac.chat(say("asked at last", tokens=2))).status == 200
    alone(dac, 3)
