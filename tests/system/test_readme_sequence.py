"""The sequence of the README: make a thread with curl, 50 asks over 10 connections with
autocannon, read the metrics; it leaves 2 messages and 1 upstream call."""

import asyncio
import json
import os
import re
import shutil
import subprocess

import pytest

from lib.asks import gather
from lib.dacd import ROOT
from lib.wire import encode_request

PATH = f"{ROOT}/.venv/bin:{os.environ['PATH']}"
ASK = (
    '{"role":"user","content":"Give me 5 bullets about DAC.",'
    '"provider":"perplexity","model":"llama-3.1-sonar-small-128k-online"}'
)


def readme_sequence():
    """The block of README.md that begins with THREAD=."""
    text = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"```[a-z]*\n(THREAD=.*?)```", text, re.S)
    return block


def sample_provider():
    """Settings of [provider perplexity] in the sample configuration, comments left out."""
    sample = (ROOT / "etc/dac.conf.sample").read_text()
    section = re.split(r"^\[provider perplexity\].*$", sample, flags=re.M)[1]
    return dict(re.findall(r"^(\w+)\s*=\s*(\S+)", section, re.M))


def autocannon_is_there():
    if not all(shutil.which(tool, path=PATH) for tool in ("npx", "curl", "jq")):
        return False
    try:
        probe = subprocess.run(
            ["npx", "--yes", "autocannon", "--version"],
            env={**os.environ, "PATH": PATH}, capture_output=True, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0


def sample_dac(make_dac, mock):
    settings = {k: v for k, v in sample_provider().items() if k not in ("base_url", "api_key_file")}
    return make_dac({"provider perplexity": settings})


async def check(dac, mock):
    assert await mock.calls() == 1
    assert [m["role"] for m in dac.messages()] == ["user", "assistant"]
    assert len(dac.turns()) == 1


@pytest.mark.limit(110)
async def test_as_written(make_dac, mock):
    if not await asyncio.to_thread(autocannon_is_there):
        pytest.skip("npx cannot get autocannon here, or curl or jq is missing")
    dac = sample_dac(make_dac, mock)
    script = readme_sequence().replace("localhost:8000", f"127.0.0.1:{dac.port}")
    script = script.replace("npx autocannon", "npx --yes autocannon --json")
    process = await asyncio.create_subprocess_exec(
        "bash", "-euo", "pipefail", "-c", script,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PATH": PATH},
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    decoder = json.JSONDecoder()
    cannon, end = decoder.raw_decode(out.decode().lstrip())
    metrics, _ = decoder.raw_decode(out.decode().lstrip()[end:].lstrip())
    assert cannon["2xx"] == 50 and cannon["non2xx"] == 0
    assert cannon["errors"] == 0 and cannon["timeouts"] == 0
    assert metrics["turns"] == 1
    shared = metrics["coalesce"]
    assert shared["leaders"] == 1 and shared["followers"] + shared["hits"] == 49
    await check(dac, mock)


@pytest.mark.smoke
async def test_the_same_by_hand(make_dac, mock):
    """Ten kept connections that ask five times each."""
    dac = sample_dac(make_dac, mock)
    r = await dac.post("/api/threads/", {"title": "Burst"})
    path = f"/api/threads/{r.json()['thread_id']}/messages"
    raw = encode_request("POST", path, {"x-org-id": "org_demo"}, ASK)

    async def connection():
        conn = await dac.connect()
        for _ in range(5):
            await conn.send(raw)
            r = await conn.read_response()
            assert r.status == 200 and r.get("connection") != "close"
        conn.close()

    await gather(*[connection() for _ in range(10)])
    shared = (await dac.performance())["coalesce"]
    assert shared["leaders"] == 1 and shared["followers"] + shared["hits"] == 49
    await check(dac, mock)
