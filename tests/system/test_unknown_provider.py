"""Providers and models that are not configured: the answer lists those that are."""

import pytest

from lib.provider import say


@pytest.mark.smoke
async def test_unknown_names_are_told_what_there_is(make_dac, mock):
    dac = make_dac(
        {
            "provider perplexity": {"models": "sonar-*, m-1"},
            "provider second": {"base_url": mock.url, "models": "other"},
        }
    )
    thread = await dac.thread()
    for more in ({"provider": "nobody"}, {"provider": "Perplexity"}, {"provider": "p" * 100}):
        for r in (await dac.ask_json(thread, say(), **more), await dac.chat(say(), **more)):
            assert r.status in (400, 404), r.text
            assert "perplexity" in r.text and "second" in r.text
    for more in ({"model": "nothing"}, {"model": "sonar"}):
        for r in (await dac.ask_json(thread, say(), **more), await dac.chat(say(), provider="perplexity", **more)):
            assert r.status in (400, 404), r.text
            assert "sonar-*" in r.text and "m-1" in r.text
    s = await dac.open_ask(thread, say(), provider="nobody")
    assert s.status in (400, 404)
    await s.body()
    assert await mock.calls() == 0 and dac.turns() == []


@pytest.mark.smoke
async def test_the_first_provider_that_matches_serves_a_request_that_names_none(make_dac, mock):
    dac = make_dac(
        {
            "provider perplexity": {"models": "sonar-*"},
            "provider second": {"base_url": mock.url, "models": "other, *"},
        }
    )
    for model, provider in (("sonar-pro", "perplexity"), ("other", "second"), ("any", "second")):
        r = await dac.chat(say(f"{model} kumquat", tokens=1), model=model)
        assert r.status == 200, r.text
        assert dac.turns()[-1]["provider"] == provider and dac.turns()[-1]["model"] == model
    models = (await dac.get("/v1/models")).json()
    assert models["object"] == "list"
    assert [(m["id"], m["owned_by"]) for m in models["data"]] == [("other", "second")]  # no patterns


@pytest.mark.smoke
async def test_no_provider_is_a_clear_503_and_a_line_at_start(make_dac):
    dac = make_dac(provider=None, start=False)
    dac.start(wait=False)
    dac.wait_listening()
    assert "provider" in dac.log.lower()
    assert (await dac.get("/livez")).status == 200
    assert (await dac.get("/readyz")).status == 503
    thread = await dac.thread()
    for r in (await dac.ask_json(thread, say()), await dac.chat(say())):
        assert r.status == 503, r.text
        assert "provider" in r.json()["detail"]
