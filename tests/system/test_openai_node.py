"""The stock OpenAI client for Node, streaming and not."""

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from lib.dacd import ROOT
from lib.provider import say

MODULES = Path(os.environ.get("NODE_PATH") or ROOT / ".venv/node/node_modules")
NODE = shutil.which("node", path=f"{ROOT}/.venv/bin:{os.environ['PATH']}")


@pytest.mark.skipif(
    not NODE or not (MODULES / "openai").is_dir(), reason="Node or its openai package is missing"
)
async def test_stock_client(make_dac, mock):
    dac = make_dac({"provider perplexity": {"models": "sonar-pro, *"}})
    question = say(tokens=8, utf8=True, gap="2ms")
    process = await asyncio.create_subprocess_exec(
        NODE,
        str(Path(__file__).parent / "lib/openai_client.cjs"),
        f"http://127.0.0.1:{dac.port}/v1",
        question,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "NODE_PATH": str(MODULES)},
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    got = json.loads(out)
    text = await mock.text(question)
    assert got["whole"] == text and got["wholeFinish"] == "stop"
    assert got["wholeUsage"]["completion_tokens"] == 8
    deltas = [c["choices"][0] for c in got["chunks"] if c["choices"]]
    assert "".join(d["delta"].get("content") or "" for d in deltas) == text
    assert [d["finish_reason"] for d in deltas if d["finish_reason"]] == ["stop"]
    assert got["chunks"][-1]["choices"] == []
    assert got["chunks"][-1]["usage"]["completion_tokens"] == 8
    assert got["models"] == ["sonar-pro"]
    assert got["error"]["name"] == "BadRequestError" and got["error"]["status"] == 400
    assert "messages" in got["error"]["message"]
    assert got["brokenText"] and got["broken"] == "APIError" and "brokenEnded" not in got
