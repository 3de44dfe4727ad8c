"""No prompt, answer or key is ever logged, at any level, whatever goes wrong."""

import pytest

from lib.asks import gather
from lib.dacd import API_KEY, CANARIES
from lib.provider import say


@pytest.mark.smoke
async def test_at_debug_level_through_all_kinds_of_trouble(make_dac, mock):
    dac = make_dac(
        {
            "server": {"log_level": "debug"},
            "provider perplexity": {
                "retry_deadline": "0s",
                "stall_timeout": "300ms",
                "first_token_timeout": "300ms",
            },
            "flight": {"error_ttl": "0s"},
        }
    )
    thread = await dac.thread(title="a thread about a kumquat")
    told = 'You sent \\"What is a kumquat?\\" with key ' + API_KEY
    error = '{"error":{"message":"' + told + '","type":"x","code":"kumquat"}}'
    trouble = [
        dict(tokens=3),
        dict(tokens=3, text="the answer is kumquat"),
        dict(status=400, body=error),
        dict(status=401, body=error),
        dict(status=500, body=error),
        dict(status=200, wrong_type=True, body="<p>kumquat " + API_KEY),
        dict(redirect="http://127.0.0.1:9/kumquat"),
        dict(error_event=1, body=error),
        dict(junk=1),
        dict(cut=1),
        dict(stall=1),
        dict(ttft="9s"),
        dict(empty=True),
    ]
    for i, directives in enumerate(trouble):
        # In scripts, not in the questions, which come back to clients as they were asked.
        await mock.script({"match": f"kumquat {i}.", "times": 0, **directives})
        question = f"kumquat {i}."
        answers = await gather(dac.ask_json(thread, question), dac.chat(question))
        s = await dac.ask_stream(thread, f"stream kumquat {i}.")
        for text in (*[r.text for r in answers], *[e.raw for e in s.events]):
            assert API_KEY not in text, "the key reached a client"
    for raw in (b'{"content":"kumquat', b'{"content":"kumquat","x":NaN}', b"kumquat"):
        headers = {"content-type": "application/json"}
        await dac.request("POST", f"/api/threads/{thread}/messages", body=raw, headers=headers)
    await dac.get("/api/threads/kumquat?kumquat=kumquat", headers={"x-kumquat": "kumquat"})
    await dac.ask_json(thread, say(), provider="kumquat", model="kumquat")
    s = await dac.open_ask(thread, say("last kumquat", barrier="never@1"))
    await s.until("delta")
    s.reset()
    await mock.wait(active=0)
    for word in CANARIES:
        assert word not in dac.log.lower()
    sent = (await mock.log("request"))[0]["headers"]
    assert sent["authorization"] == f"Bearer {API_KEY}", "the provider gets the key"


# What people write where it does not belong, or where it must not be shown.
SPILT = [
    ("provider perplexity", {"api_key_file": "sk-canary-0123456789"}),
    ("provider perplexity", {"api_key": "sk-canary-0"}),
    ("provider perplexity", {"base_url": "https://me:sk-canary-0@example.com/v1"}),
    ("provider perplexity", {"base_url": "https://example.com/v1?key=sk-canary-0"}),
    ("provider perplexity", {"models": '"sk-canary-0'}),
    ("store", {"postgres": "host=a passwort=sk-canary-0"}),
    ("store", {"postgres": "postgresql://me:sk-canary-0@h:99999/"}),
]


async def test_of_reloads_good_and_bad(make_dac, mock, tmp_path):
    folder = tmp_path / "credentials"
    folder.mkdir(mode=0o700)
    (folder / "acme").write_text("sk-canary-old")
    dac = make_dac(
        {"server": {"log_level": "debug"}, "provider perplexity": {"api_key_file": "credential:acme"}},
        env={"CREDENTIALS_DIRECTORY": str(folder)},
        workers=1,
    )
    dac.allow_log = ["dac.conf:", "reload refused"]
    for section, settings in SPILT:
        good = dict(dac.sections.get(section, {}))
        dac.sections.setdefault(section, {}).update(settings)
        said = dac.reload()
        assert "reload refused" in said and "dac.conf:" in said, settings
        dac.sections[section] = good
    (folder / "acme").write_text("sk-canary-new")
    assert "API key: *** -> ***" in dac.reload()
    await dac.ask_json(await dac.thread(), say(tokens=1))
    assert "sk-canary" not in dac.log
    sent = (await mock.log("request"))[0]["headers"]
    assert sent["authorization"] == "Bearer sk-canary-new"
