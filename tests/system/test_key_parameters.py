"""Every parameter that changes the answer is part of the key; those that don't are not; two
orgs never share."""

import pytest

from lib.asks import gather
from lib.provider import say

NATIVE = [
    {"temperature": 0.3},
    {"temperature": 0.4},
    {"top_p": 0.5},
    {"max_tokens": 11},
    {"system": "Be brief."},
    {"system": "Be verbose."},
    {"model": "m-2"},
    {"provider": "other"},
    {"parent_turn_id": "018f0000-0000-7000-8000-000000000001"},
    {"parent_turn_id": "018f0000-0000-7000-8000-000000000002"},
    {"content": "another kumquat"},
]

CHAT = [
    {"temperature": 0},
    {"temperature": 1},
    {"top_p": 0.5},
    {"max_tokens": 11},
    {"max_completion_tokens": 11},
    {"stop": ["x"]},
    {"stop": ["y"]},
    {"seed": 7},
    {"presence_penalty": 0.5},
    {"frequency_penalty": 0.5},
    {"logit_bias": {"50256": -100}},
    {"response_format": {"type": "json_object"}},
    {"reasoning_effort": "low"},
    {"search_domain_filter": ["example.org"]},
    {"model": "m-2"},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "kumquat"}]},
    {"messages": [{"role": "user", "content": "kumquat "}]},
    {"messages": [{"role": "user", "content": "kum"}, {"role": "user", "content": "quat"}]},
]


def with_other(make_dac, mock):
    return make_dac(
        {"provider other": {"base_url": mock.url}, "flight": {"chat_result_ttl": "30s"}}
    )


@pytest.mark.smoke
async def test_parameters_of_a_question_in_a_thread(make_dac, mock):
    dac = with_other(make_dac, mock)
    thread = await dac.thread()
    base = {"content": "a kumquat"}
    for n, more in enumerate([{}, *NATIVE], 1):
        body = {**base, **more}
        r = await dac.ask_json(thread, **body)
        assert r.status == 200, f"{more}: {r.text}"
        assert r.json()["coalesce"] == "leader", f"{more} was answered from another question"
        assert await mock.calls() == n
    for more in [{}, *NATIVE]:
        r = await dac.ask_json(thread, **{**base, **more})
        assert r.json()["coalesce"] == "hit", f"{more} was not found again"
    assert await mock.calls() == 1 + len(NATIVE)


@pytest.mark.smoke
async def test_parameters_of_a_chat(make_dac, mock):
    dac = with_other(make_dac, mock)
    base = {"messages": [{"role": "user", "content": "kumquat"}], "model": "m-1"}
    for n, more in enumerate([{}, *CHAT], 1):
        r = await dac.post("/v1/chat/completions", {**base, **more})
        assert r.status == 200, f"{more}: {r.text}"
        assert r.get("cache-status").startswith("dac; fwd=miss"), more
        assert await mock.calls() == n, more
    for more in [{}, *CHAT]:
        r = await dac.post("/v1/chat/completions", {**base, **more})
        assert r.get("cache-status").startswith("dac; hit"), more
    assert await mock.calls() == 1 + len(CHAT)


async def test_parameters_reach_the_provider(make_dac, mock):
    dac = with_other(make_dac, mock)
    thread = await dac.thread()
    await dac.ask_json(thread, "kumquat", temperature=0.3, top_p=0.5, max_tokens=11, system="Be brief.")
    (sent,) = await mock.requests()
    assert (sent["temperature"], sent["top_p"], sent["max_tokens"]) == (0.3, 0.5, 11)
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert sent["model"] == "m-1" and sent["stream"] is True
    await dac.chat("kumquat", seed=7, stop=["x"], logit_bias={"1": 2}, reasoning_effort="low")
    sent = (await mock.requests())[-1]
    assert (sent["seed"], sent["stop"], sent["logit_bias"]) == (7, ["x"], {"1": 2})
    assert sent["reasoning_effort"] == "low"


@pytest.mark.smoke
async def test_what_does_not_change_the_answer_is_shared(make_dac, mock):
    dac = with_other(make_dac, mock)
    thread = await dac.thread()
    question = say(tokens=3)
    same = [
        {},
        {"stream": False},
        {"abandon_grace_ms": 1000},
        {"provider": "perplexity", "model": "m-1"},
    ]
    for more in same:
        assert (await dac.ask_json(thread, question, **more)).status == 200
    assert (await dac.ask_stream(thread, question)).one("meta").data["role"] == "hit"
    body = dac.question(question)
    backwards = dict(reversed(list(body.items())))
    await dac.post(f"/api/threads/{thread}/messages", backwards)
    assert await mock.calls() == 1
    await dac.chat(question)
    await dac.chat_stream(question, stream_options={"include_usage": True})
    assert await mock.calls() == 2


@pytest.mark.smoke
async def test_threads_and_orgs_never_share(make_dac, mock):
    dac = with_other(make_dac, mock)
    one, two = await dac.thread(), await dac.thread()
    other = await dac.thread(org="org_other")
    question = say(tokens=3, ttft="100ms")
    asks = [dac.ask_json(one, question), dac.ask_json(two, question)]
    asks += [dac.ask_json(other, question, org="org_other")]
    asks += [dac.chat(question), dac.chat(question, org="org_other")]
    answers = await gather(*asks)
    assert {r.status for r in answers} == {200}
    assert await mock.calls() == 5


async def test_the_thread_counts_not_its_history(dac, mock):
    """The same words again within the TTL are the same question, whatever was asked between."""
    thread = await dac.thread()
    first = await dac.ask_json(thread, say("continue, kumquat", tokens=2))
    await dac.ask_json(thread, say("something else", tokens=2))
    again = await dac.ask_json(thread, say("continue, kumquat", tokens=2))
    assert again.json()["coalesce"] == "hit"
    assert again.json()["turn_id"] == first.json()["turn_id"]
    fresh = await dac.ask_json(
        thread, say("continue, kumquat", tokens=2), parent_turn_id=first.json()["turn_id"]
    )
    assert fresh.json()["coalesce"] == "leader"
    assert await mock.calls() == 3
