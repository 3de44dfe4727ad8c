"""No prompt, answer or key is ever logged, at any level, whatever goes wrong; nor is one in what
else comes out of the service but its answers and its store."""

import asyncio
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lib.asks import gather
from lib.dacd import API_KEY, BUILD, CANARIES
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


async def test_of_requests_that_are_all_told(make_dac, mock):
    """A line names the route, not the path; no query, no header, no body."""
    dac = make_dac({"server": {"log_level": "debug", "log_requests": "all", "log_format": "json"}})
    thread = await dac.thread(title="a thread about a kumquat")
    key = {"authorization": f"Bearer {API_KEY}", "x-api-key": API_KEY, "cookie": "kumquat=1", "idempotency-key": "kumquat"}
    for path in (
        "/kumquat",
        "/What%20is%20a%20kumquat%3F",
        f"/livez?api_key={API_KEY}",
        f"/api/threads/kumquat/messages?api_key={API_KEY}&q=kumquat",
        "/api/turns/kumquat",
        f"/api/turns/{API_KEY}/stream?from=kumquat",
        f"/%00kumquat/{API_KEY}",
        f"/{API_KEY}%0a2026-01-01T00:00:00.000Z ERROR kumquat[1] forged",
    ):
        for method in ("GET", "POST", "PUT"):
            await dac.request(method, path, headers=key, body=b"kumquat " + API_KEY.encode())
    for bad in ("kumquat sk", f'kumquat"{API_KEY}', "kumquat\u00e9", "kumquat" * 30, ""):
        r = await dac.get("/livez", headers={**key, "x-request-id": bad})
        assert bad == "" or bad not in r.get("x-request-id")
    await gather(
        dac.ask_json(thread, say(tokens=2), headers=key),
        dac.ask_stream(thread, say("stream kumquat", cut=1), headers={"authorization": API_KEY}),
        dac.chat(say("kumquat", status=500), headers=key, user="kumquat"),
    )
    lines = [json.loads(line) for line in dac.log.splitlines() if line.startswith("{")]
    told = [o for o in lines if "route" in o]
    assert len(told) >= 24 and {"-", "/livez", "/api/turns/{id}"} <= {o["route"] for o in told}
    shown(dac.log, "the log", names=())


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


def shown(text, where, names=("org_demo",)):
    for word in (*CANARIES, *names):
        assert word not in text.lower(), f"{where} shows {word!r}"


@pytest.mark.parametrize("form", ["human", "json"])
async def test_of_other_sinks(make_dac, mock, form):
    """Metrics, dacctl, what /proc says, and the log in either format."""
    dac = make_dac({"server": {"log_level": "debug"}}, workers=2)
    dac.sections["server"]["log_format"] = form
    dac.reload()
    thread = await dac.thread(title="a thread about a kumquat")
    running = await dac.open_ask(thread, say("running kumquat", tokens=3, barrier="go@2"))
    await running.until("delta")
    await gather(dac.ask_json(thread, say(tokens=2)), dac.chat(say("kumquat", status=500)))
    for path in ("/metrics", "/api/metrics/performance", "/readyz", "/livez"):
        shown((await dac.get(path)).text, path)
    for command in (["status"], ["flights"], ["check"], ["config", "show"]):
        for more in ([], ["--json"]):
            args = [BUILD / "dacctl", "-n", dac.name, "-c", dac.conf, *more, *command]
            p = await asyncio.to_thread(subprocess.run, args, capture_output=True, text=True, check=False)
            assert p.stdout, (command, p.stderr)
            shown(p.stdout + p.stderr, command)
    for pid in dac.processes():
        for name in ("cmdline", "environ", "comm"):
            shown(Path(f"/proc/{pid}/{name}").read_text(errors="replace"), name)
    await mock.open("go")
    await running.rest()
    shown(dac.log, "the log", names=())  # whose a turn is it does say
    if form == "json":
        assert json.loads(dac.log.splitlines()[-1])["level"] in ("debug", "info", "warn")


PATTERN = Path("/proc/sys/kernel/core_pattern").read_text().strip()


@pytest.mark.skipif(
    (BUILD / "dacd").exists() and b"__asan_init" in (BUILD / "dacd").read_bytes(),
    reason="a sanitizer takes the signal for itself",
)
@pytest.mark.parametrize("allowed", [False, True])
async def test_of_core_dumps(make_dac, mock, allowed):
    """There are none, unless somebody wants them; then it is all in there."""
    if allowed and PATTERN != "core":
        pytest.skip(f"core dumps go to {PATTERN}")
    dac = make_dac({"server": {"core_dumps": "on" if allowed else None}}, workers=2, start=False)
    dac.wrapper = ["sh", "-c", 'ulimit -c unlimited && exec "$@"', "sh"]
    dac.allow_log.append("signal 11")
    dac.start()
    thread = await dac.thread()
    streams = [await dac.open_ask(thread, say(f"kumquat {i}", tokens=3, barrier="never@2")) for i in range(4)]
    for s in streams:
        await s.until("delta")
    victims = [*dac.workers(), dac.recorder()]
    for victim in victims:
        os.kill(victim, signal.SIGSEGV)
    deadline = time.monotonic() + 10
    while any(v in dac.processes() for v in victims):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    for s in streams:
        s.close()
    cores = list(dac.folder.glob("core*"))
    assert ("core dumped" in dac.log) == allowed == bool(cores)
    if allowed:
        assert any(API_KEY.encode() in core.read_bytes() for core in cores)
    for core in cores:
        core.unlink()
    dac.wait_ready()
