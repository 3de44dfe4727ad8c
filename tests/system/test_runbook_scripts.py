"""The runbook's scripts against a real instance: smoke, suite, acceptance, in their order, and that
each of them fails where something is wrong."""

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import tempfile

import pytest

from lib.dacd import BUILD, ROOT, free_port

TOOLS = ROOT / "tools"
LIMITS = {"rps": 2, "burst": 1, "concurrency": 2}
QUICK = {
    "DAC_TTFT_N": "5", "DAC_CANCEL_N": "2", "ACCEPT_N": "5", "ACCEPT_IDENTICAL": "20",
    "SMOKE_PING_MS": "1000",  # on a machine that does other things, too
}  # fmt: skip
LINES = (
    r"TTFT \(streaming\) p95: ([\d.]+|n/a) ms \(target ≤ 1,500 ms\) — (PASS|FAIL)\n"
    r"Cancel latency: ([\d.]+|n/a) ms \(target < 300 ms\) — (PASS|FAIL)\n"
    r"Queue wait p95 \(TTFT run\): ([\d.]+|n/a) ms — (OK \(~0\)|FAIL \(not ~0\))\n"
)


async def script(dac, command, **env):
    """(exit status, stdout, stderr) of a command in the folder `tools`, which leaves no file of its
    own behind."""
    temporary = tempfile.mkdtemp()
    port = {"DAC_CONF": str(dac.conf)} if dac else {}
    p = await asyncio.create_subprocess_exec(
        "bash", "-c", command, stdin=subprocess.DEVNULL, cwd=TOOLS,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={
            "PATH": os.environ["PATH"], "LANG": "de_DE.UTF-8", "TMPDIR": temporary, "DACD": str(BUILD / "dacd"),
            "DACCTL": str(BUILD / "dacctl"), **port, **QUICK, **env,
        },
    )  # fmt: skip
    out, err = await p.communicate()
    os.rmdir(temporary)
    return p.returncode, out.decode(), err.decode()


@pytest.fixture
def report(tmp_path):
    return tmp_path / "PHASE1_GO_NO_GO.md"


@pytest.mark.store
async def test_in_the_order_of_the_runbook(make_dac, report):
    """With the instance's own limits calls wait; between prep and restore they do not."""
    dac = make_dac({"provider perplexity": LIMITS}, workers=2)
    dac.env_file.write_text("COALESCE_ENABLED=1\n")
    env = {"DAC_REPORT": str(report)}
    status, out, err = await script(dac, "./run_ttft_suite.sh", **env)
    assert status == 1 and "— FAIL (not ~0)" in out, err
    assert report.read_text().startswith("# Phase 1: NO-GO\n")
    status, out, err = await script(dac, "source prep_ttft_test.sh")
    assert status == 0 and "PERPLEXITY_RPS 2 -> 1000" in out, err
    assert "values have changed in place" in dac.reload()
    status, out, err = await script(dac, "./smoke_ttft.sh")
    assert status == 0 and out.count("PASS") == 8 and "FAIL" not in out, out + err
    status, out, err = await script(dac, "./run_ttft_suite.sh", **env)
    assert status == 0, out + err
    found = re.fullmatch(LINES, out)
    assert found and found[2] == found[4] == "PASS" and found[6].startswith("OK")
    assert float(found[3]) < 300
    text = report.read_text()
    assert text.startswith("# Phase 1: GO\n") and out in text
    assert "dac-mock" in text and dac.name in text and re.search(r"Version: dacd \d", text)
    status, out, err = await script(dac, "source restore_prod_settings.sh")
    assert status == 0 and "PERPLEXITY_RPS 2\n" in out, err
    assert dac.env_file.read_text() == "COALESCE_ENABLED=1\n"
    assert "values have changed in place" in dac.reload()
    assert (await dac.get("/api/threads/", org="ttft-test")).json()["threads"] == []


async def test_as_they_are_installed(dac, tmp_path, report):
    """All that they need is beside them."""
    makefile = (ROOT / "Makefile").read_text()
    names = " ".join(re.findall(r"^RUNBOOK_\w+ := ((?:.*\\\n)*.*)$", makefile, re.M)).replace("\\\n", " ").split()
    for name in names:
        (tmp_path / "dac").mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "dac")
    assert "tools/run_ttft_suite.sh" in names
    for command in ("source prep_ttft_test.sh", "./smoke_ttft.sh", "./run_ttft_suite.sh", "./acceptance.sh"):
        status, out, err = await script(dac, f"cd {tmp_path}/dac; {command}", DAC_REPORT=str(report))
        assert status == 0, out + err
    status, out, err = await script(dac, f"cd {tmp_path}/dac; source restore_prod_settings.sh")
    assert status == 0 and "as it was before" in out, err


async def test_a_slow_provider_fails_the_suite(dac, mock, report):
    await mock.default(ttft="1600ms", tokens=2)
    status, out, _ = await script(dac, "./run_ttft_suite.sh", DAC_TTFT_N="2", DAC_REPORT=str(report))
    found = re.fullmatch(LINES, out)
    assert status == 1 and found[2] == "FAIL" and 1600 <= float(found[1]) < 3000
    assert found[4] == "PASS" and "# Phase 1: NO-GO" in report.read_text()


async def test_no_answers_are_no_pass(dac, mock, report):
    await mock.default(status=401)
    status, out, err = await script(dac, "./run_ttft_suite.sh", DAC_TTFT_N="2", DAC_CANCEL_N="1", DAC_REPORT=str(report))
    found = re.fullmatch(LINES, out)
    assert status == 1 and found[1] == "n/a" and found[2] == "FAIL" and found[3] == "n/a", out
    assert "provider_auth" in err and "provider_auth" in report.read_text()
    status, out, err = await script(dac, "./acceptance.sh", ACCEPT_N="2", DAC_CANCEL_N="1")
    assert status == 1 and out.count("FAIL") == 6, out + err
    status, out, err = await script(dac, "./smoke_ttft.sh")
    assert status == 1 and "FAIL  end: no done event -> error provider_auth" in out


@pytest.mark.parametrize("name", ["smoke_ttft.sh", "run_ttft_suite.sh", "acceptance.sh"])
async def test_nobody_there(name, report):
    report.write_text("# Phase 1: GO\n")
    url = f"http://127.0.0.1:{free_port()}"
    status, out, err = await script(None, f"./{name}", DAC_URL=url, DAC_REPORT=str(report))
    assert status == 2 and out == "" and f"no answer at {url}" in err and "->" in err
    if name == "run_ttft_suite.sh":
        assert not report.exists(), "an old verdict is left"
    status, out, _ = await script(None, f"./{name} --help")
    assert status == 0 and name in out and "Exit status" in out
    assert (await script(None, f"./{name} --nonsense"))[0] == 2


async def test_a_key_is_on_no_command_line(dac, tmp_path):
    curl = tmp_path / "curl"
    curl.write_text(
        f"""#!/bin/sh
printf '%s\\n' "$*" >>{tmp_path}/lines
for word; do case $word in @*/key) cat "${{word#@}}" >>{tmp_path}/keys ;; esac; done
exec {shutil.which("curl")} "$@"
"""
    )
    curl.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    status, out, err = await script(dac, "./smoke_ttft.sh", PATH=path, DAC_API_KEY="kumquat-key")
    assert status == 0, out + err
    assert "/messages" in (tmp_path / "lines").read_text() and "kumquat-key" not in (tmp_path / "lines").read_text()
    assert set((tmp_path / "keys").read_text().splitlines()) == {"authorization: Bearer kumquat-key"}


async def test_a_report_that_cannot_be_written(dac, tmp_path):
    for wrong in (tmp_path, tmp_path / "none/report.md"):
        status, out, err = await script(dac, "./run_ttft_suite.sh", DAC_REPORT=str(wrong))
        assert status == 2 and out == "" and f"suite: {wrong} cannot be written" in err, err


async def test_cancelling_is_seen_at_the_upstream_socket(dac, mock, report):
    """Where the provider says nothing about it; and where its end cannot be seen, that is said."""
    await mock.script({"match": "bridges", "tokens": 5000, "gap": "10ms", "times": 0})
    env = {"DAC_MOCK_URL": "none", "DAC_MODEL": "m", "DAC_REPORT": str(report)}
    status, out, err = await script(dac, "./run_ttft_suite.sh", **env)
    found = re.fullmatch(LINES, out)
    assert status == 0 and found[4] == "PASS" and float(found[3]) < 300, out + err
    assert "at the upstream socket" in report.read_text()
    assert (await mock.stats())["client_gone"] == 4
    await mock.control("POST", "script?clear=1", [])
    status, out, err = await script(dac, "./run_ttft_suite.sh", **env, DAC_CANCEL_N="1")
    assert status == 1 and "Cancel latency: n/a ms" in out and "too short" in err


@pytest.mark.store
async def test_the_acceptance_table(dac, mock):
    status, out, err = await script(dac, "./acceptance.sh")
    assert status == 0, out + err
    whats = [re.fullmatch(r"PASS  ([^:]+): .* \(target .*\)", line)[1] for line in out.splitlines()]
    assert whats == [
        "TTFT p95", "cancel, slowest of 2", "latency p95", "queue wait p95", "errors of 5", "20 identical",
    ]  # fmt: skip


async def test_each_line_of_the_table_can_fail(make_dac, mock):
    dac = make_dac({"provider perplexity": {"rps": 0.9, "burst": 1}}, env={"COALESCE_ENABLED": "0"})
    await mock.script({"match": "number 1 ", "status": 500, "times": 2}, {"ttft": "1600ms", "match": "number 2 "})
    status, out, err = await script(dac, "./acceptance.sh", ACCEPT_N="2", ACCEPT_IDENTICAL="2", DAC_CANCEL_N="1")
    failed = re.findall(r"^FAIL  ([a-zA-Z0-9 ]+)", out, re.M)
    assert status == 1 and set(failed) >= {"TTFT p95", "queue wait p95", "errors of 2", "2 identical"}, out + err


class Front:
    """A proxy of the test's: `serve` is what it does with a connection."""

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.guarded, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_):
        self.server.close()

    async def guarded(self, reader, writer):
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            await self.serve(head, reader, writer)
        writer.close()


class Careless(Front):
    """What it makes of a stream: compressed by its header, other headers lost, all of it at once
    and late."""

    async def serve(self, head, reader, writer):
        if length := re.search(rb"content-length: (\d+)", head, re.I):
            await reader.readexactly(int(length[1]))
        extra, body = b"", b'{"thread_id":"0-1","data":[]}'
        if b"/stream" in head.split(b"\r\n")[0]:
            await asyncio.sleep(1.2)
            extra = b"content-type: text/event-stream\r\ncontent-encoding: gzip\r\n"
            body = b"".join(
                f"event: {e}\nid: 0-0\ndata: {{}}\n\n".encode() for e in ("ping", "delta", "done")
            )
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n" + extra)
        writer.write(f"content-length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()


class Sluggish(Front):
    """Hands everything on, but a request to cancel half a second late."""

    def __init__(self, port):
        self.port = port

    async def serve(self, head, reader, writer):
        if b"/cancel" in head:
            await asyncio.sleep(0.5)
        there, here = await asyncio.open_connection("127.0.0.1", self.port)
        here.write(head)

        async def pump(source, sink):
            while piece := await source.read(65536):
                sink.write(piece)
            sink.close()

        await asyncio.gather(pump(reader, here), pump(there, writer))


async def test_late_cancelling_fails(dac, mock, report):
    async with Sluggish(dac.port) as url:
        env = {"DAC_URL": url, "DAC_REPORT": str(report), "DAC_CANCEL_N": "1"}
        status, out, err = await script(dac, "./run_ttft_suite.sh", **env)
        found = re.fullmatch(LINES, out)
        assert status == 1 and found[4] == "FAIL" and 500 <= float(found[3]) < 2000, out + err
        assert found[2] == "PASS" and found[6].startswith("OK")


async def test_smoke_notices_what_a_proxy_does():
    async with Careless() as url:
        status, out, err = await script(None, "./smoke_ttft.sh", DAC_URL=url, DAC_MODEL="m")
    assert status == 1, err
    assert re.findall(r"^FAIL  ([a-z -]+):", out, re.M) == [
        "cache-control", "x-accel-buffering", "content-encoding", "ping", "ping before text",
    ], out  # fmt: skip


async def test_the_figure_by_node(dac, mock):
    """sse_ttft_p95.mjs says the same line, and fails the same way."""
    command = "node ./sse_ttft_p95.mjs --model m --n 4 --concurrency 4"
    env = {"DAC_URL": f"http://127.0.0.1:{dac.port}", "PATH": f"{ROOT}/.venv/bin:{os.environ['PATH']}"}
    await mock.default(ttft="100ms", tokens=3)
    status, out, err = await script(dac, command, **env)
    found = re.fullmatch(LINES.split("\\n")[0] + "\n", out)
    assert status == 0 and 100 <= float(found[1]) < 1000 and found[2] == "PASS", out + err
    await mock.default(ttft="1600ms", tokens=3)
    status, out, err = await script(dac, command, **env)
    found = re.fullmatch(LINES.split("\\n")[0] + "\n", out)
    assert status == 1 and 1600 <= float(found[1]) and found[2] == "FAIL", out + err
    await mock.default(cut=1, tokens=3)
    status, out, err = await script(dac, command, **env)
    assert status == 1 and out.endswith("p95: n/a ms (target ≤ 1,500 ms) — FAIL\n"), out + err
    status, out, err = await script(dac, command, **{**env, "DAC_URL": f"http://127.0.0.1:{free_port()}"})
    assert status == 2 and out == "" and "no answer" in err
