"""Fifty clients ask a real small model the same thing: its server generates once, says its own log."""

import asyncio
import subprocess
import time
import urllib.request

import pytest

from lib.asks import ask, gather, kinds
from lib.dacd import STORED, free_port

ROOT = __file__.rsplit("/tests/", 1)[0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(base URL, log) of llama.cpp's server with SmolLM2-135M, as in `make demo`."""
    got = subprocess.run(["tools/install-deps.sh", "model"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    if got.returncode:
        pytest.skip("no real model here: " + (got.stdout + got.stderr).strip().splitlines()[-1])
    port = free_port()
    log = tmp_path_factory.mktemp("model") / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [f"{ROOT}/.demo/llm/bin/python", f"{ROOT}/tools/llm_server.py", "--port", str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(300):
            assert server.poll() is None, log.read_text()[-2000:]
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1", log
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.limit(150)
@pytest.mark.timeout(400)
async def test_fifty_clients_are_one_generation(make_dac, model):
    url, log = model
    dac = make_dac({"provider perplexity": {"base_url": url, "models": "smollm2-135m"}})
    thread = await dac.thread()
    more = {"model": "smollm2-135m", "system": "You are a helpful assistant.", "max_tokens": 60}
    before = log.read_text().count("launch_slot_")
    answers = await gather(
        *[ask(dac, thread, "What is HTTP?", kind, timeout=120, **more) for kind in kinds("mixed", 50)]
    )
    assert len({a.text for a in answers}) == 1 and len(answers[0].text) > 20
    assert {a.stored for a in answers} == {STORED}
    await asyncio.sleep(0.2)
    assert log.read_text().count("launch_slot_") - before == 1
    assert len(dac.messages(thread)) == 2 and len(dac.turns()) == 1


