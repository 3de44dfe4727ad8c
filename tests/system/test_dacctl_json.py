"""Every command of dacctl speaks JSON with --json, and exits with what its help and page promise."""

import asyncio
import json
import os
import re
import signal
import subprocess

import pytest

from lib.dacd import BUILD, write_ini
from lib.provider import say
from lib.service import fetcher_of

NO_TURN = "01a21392-012b-7714-b282-127fefbcad32"


def run(*args):
    p = subprocess.run(
        [BUILD / "dacctl", *map(str, args)], capture_output=True, text=True, timeout=30, check=False
    )
    return p.returncode, p.stdout, p.stderr


def first_line(*args):
    """Of what goes on until its reader leaves."""
    p = subprocess.Popen([BUILD / "dacctl", *map(str, args)], stdout=subprocess.PIPE, text=True)
    try:
        return json.loads(p.stdout.readline())
    finally:
        p.kill()
        p.wait()
        p.stdout.close()


def named_in_help():
    out = run("--help")[1]
    return set(re.findall(r"^  ([a-z]+)(?: tail)?  ", out, re.M))


@pytest.mark.sqlite
async def test_every_command_speaks_it(make_dac, mock, tmp_path):
    dac = make_dac()
    turn = (await dac.chat(say("a finished one", tokens=3))).get("x-dac-turn-id")
    said = {}

    def ask(*args, code=0):
        rc, out, err = run("--json", *args)
        assert rc == code, (args, rc, err)
        assert out.endswith("}\n") and out.count("\n") == 1, (args, out)
        said.setdefault(next(a for a in args if a in named), []).append(json.loads(out))

    named = named_in_help()
    for command in ("status", "counters", "pacer", "flights", "check", "reload"):
        ask("-n", dac.name, command)
    ask("-n", dac.name, "cancel", turn)
    for *command, member in (("top", "processes"), ("turns", "tail", "turn_id")):
        line = await asyncio.to_thread(first_line, "--json", "-n", dac.name, *command)
        assert member in line
        said[command[0]] = [line]
    for words in (("show",), ("explain",), ("explain", "workers"), ("sample",)):
        ask("-c", dac.conf, "config", *words)
    ask("-n", dac.name, "config", "show")
    ask("-c", dac.conf, "config", "diff", dac.conf)
    ask("-c", dac.conf, "config", "diff", code=1)
    ask("-c", dac.conf, "migrate", "--dry-run")
    ask("-c", dac.conf, "migrate")
    ask("migrate", "--print-roles")
    ask("-c", dac.conf, "prune", "--older-than", "1d", "--dry-run")
    ask("-c", dac.conf, "prune", "--older-than", "1d")
    ask("-n", dac.name, "drain")
    dac.process.wait(5)
    assert set(said) | {"spool"} == named  # spool needs PostgreSQL: test_dacctl_spool.py


def test_what_migrate_says(tmp_path):
    path = tmp_path / "new.db"
    path.touch()
    missing = json.loads(run("-d", path, "--json", "migrate", "--dry-run")[1])
    assert missing["version"] == 0 and len(missing["missing"]) == missing["newest"]
    assert "CREATE TABLE threads" in missing["missing"][0]["sql"]
    assert json.loads(run("-d", path, "--json", "migrate")[1]) == {
        "version": missing["newest"],
        "applied": missing["newest"],
    }
    assert json.loads(run("-d", path, "--json", "migrate")[1])["applied"] == 0
    assert json.loads(run("-d", path, "--json", "migrate", "--dry-run")[1])["missing"] == []
    code, out, err = run("-d", tmp_path / "none.db", "--json", "migrate")
    assert (code, out) == (1, "") and "none.db" in err


# --- exit codes ---


def test_a_wrong_command_line_is_1():
    for args in ([], ["nonsense"], ["--nonsense", "status"], ["status", "more"], ["prune"], ["spool"]):
        code, out, err = run(*args)
        assert code == 1 and out == "" and err, args


def test_without_an_instance():
    for command, expected in (
        ("status", 1),
        ("top", 1),
        ("counters", 1),
        ("pacer", 1),
        ("flights", 1),
        ("check", 2),
        ("reload", 2),
        ("drain", 2),
    ):
        code, out, err = run("-n", "dactest-none", command, "--json")
        assert (code, out) == (expected, "") and "dactest-none" in err, command
    assert run("-n", "dactest-none", "turns", "tail")[0] == 1
    assert run("-n", "dactest-none", "config", "show")[0] == 2
    assert run("-n", "dactest-none", "cancel", NO_TURN)[0] == 2


def test_config_diff_has_three(make_dac, tmp_path):
    dac = make_dac(start=False)
    write_ini(dac.conf, dac.sections)
    dac.env_file.touch()
    assert run("-c", dac.conf, "config", "diff", dac.conf)[0] == 0
    assert run("-c", dac.conf, "config", "diff")[0] == 1
    assert run("-c", dac.conf, "config", "diff", tmp_path / "none")[0] == 2


async def test_of_what_is_asked_of_the_master(make_dac, mock):
    dac = make_dac()
    dac.allow_log.append(r"refused|dac.conf:|worker|watchdog")
    assert run("-n", dac.name, "reload")[0] == 0
    assert run("-n", dac.name, "cancel", NO_TURN)[0] == 1
    dac.sections["server"]["nonsense"] = 1
    write_ini(dac.conf, dac.sections)
    assert run("-n", dac.name, "reload")[0] == 1
    stream = await dac.open_ask(await dac.thread(), say("runs on", tokens=10, barrier="go@2"))
    await stream.until("delta")
    turn = stream.one("meta").data["turn_id"]
    fetcher = fetcher_of(dac)
    os.kill(fetcher, signal.SIGSTOP)  # it hears of nothing
    try:
        code, out, _ = await asyncio.to_thread(run, "-n", dac.name, "--json", "cancel", turn)
    finally:
        os.kill(fetcher, signal.SIGCONT)
    assert code == 3 and json.loads(out) == {"ok": False, "turn_id": turn, "status": "running"}
    await stream.rest()
    assert run("-n", dac.name, "cancel", turn)[0] == 0
