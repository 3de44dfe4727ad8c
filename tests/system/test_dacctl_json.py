"""Every command of dacctl speaks JSON with --json, and exits with what its help and page promise."""

import asyncio
import json
import os
import re
import signal
import subprocess

import pytest

from lib.dacd import BUILD, ROOT, write_ini
from lib.database import Sqlite, add_turn
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
    turn = (await dac.ask_json(await dac.thread(), say("a finished one", tokens=3))).json()["turn_id"]
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
    assert (code, out) == (2, "") and "none.db" in err


# --- exit codes; 0 and 1 of check are in test_dacctl_check.py ---


def exits(code, *args):
    """A command exits so, with --json too, and then prints an object, which it may spare itself with 2."""
    for more in ([], ["--json"]):
        exited, out, err = run(*more, *args)
        assert exited == code, f"{args}: {exited}, {out}{err}"
        assert err != "" or code != 2, args
        if more and (out or code != 2):
            json.loads(out)


def test_0_and_1_of_config(tmp_path):
    conf, other = tmp_path / "dac.conf", tmp_path / "other.conf"
    text = "[server]\nenv_file =\n[provider p]\nbase_url = http://127.0.0.1:9/v1\n"
    conf.write_text(text)
    other.write_text(text + "rps = 7\n")
    exits(0, "-c", conf, "config", "show")
    exits(0, "-c", conf, "config", "diff", conf)
    exits(1, "-c", conf, "config", "diff", other)
    exits(0, "config", "explain", "workers")
    exits(1, "config", "explain", "wrokers")
    exits(0, "config", "sample")


def test_0_and_1_of_the_database(tmp_path):
    db = Sqlite(tmp_path / "some.db")
    db.path.touch()
    exits(0, "-d", db.name, "migrate", "--dry-run")
    exits(0, "-d", db.name, "migrate")
    exits(0, "-d", db.name, "prune", "--older-than", "1d")
    add_turn(db)
    db.sql("UPDATE turns SET finished_at = '2020-01-01 00:00:00.000000'")
    db.script("CREATE TRIGGER no BEFORE DELETE ON turns BEGIN SELECT RAISE(ABORT, 'never'); END;")
    exits(1, "-d", db.name, "prune", "--older-than", "1d")
    db.sql("INSERT INTO schema_migrations (version, name, applied_at) VALUES (99, 'future', '2026-01-01 00:00:00.000000')")
    db.sql("PRAGMA user_version = 99")
    exits(1, "-d", db.name, "migrate")
    exits(1, "-d", db.name, "prune", "--older-than", "1d")


def test_2_is_nothing_to_work_on(tmp_path):
    none = ("-n", "dactest-none")
    for command in sorted(named_in_help() - {"turns", "cancel", "migrate", "prune", "spool", "config"}):
        exits(2, *none, command)
    exits(2, *none, "turns", "tail")
    exits(2, *none, "config", "show")
    exits(2, *none, "cancel", NO_TURN)
    missing = tmp_path / "missing"
    bad = tmp_path / "bad.conf"
    bad.write_text("[server]\nnonsense = 1\n")
    for where in (("-d", missing), ("-c", missing), ("-c", bad), ("-d", f"host={tmp_path} dbname=none")):
        exits(2, *where, "migrate")
        exits(2, *where, "prune", "--older-than", "1d")
    for where in (("-d", missing), ("-c", missing), ("-c", bad)):
        exits(2, *where, "spool", missing)
    for conf in (missing, bad):
        exits(2, "-c", conf, "status")
        exits(2, "-c", conf, "config", "show")
        exits(2, "-c", conf, "config", "diff")


def test_2_is_a_wrong_command_line():
    for args in (
        [], ["nonsense"], ["--nonsense", "status"], ["status", "more"], ["cancel"], ["turns"], ["prune"], ["spool"],
        ["prune", "--older-than", "soon"], ["config"], ["config", "nonsense"], ["config", "show", "more"],
        ["config", "diff", "one", "more"],
    ):  # fmt: skip
        code, out, err = run(*args)
        assert code == 2 and out == "" and err, args


def test_2_is_what_could_not_be_written():
    with open("/dev/full", "w") as full:
        for args in (["config", "sample"], ["--json", "config", "sample"], ["--json", "migrate", "--print-roles"]):
            p = subprocess.run([BUILD / "dacctl", *args], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            assert p.returncode == 2 and "could not write" in p.stderr, args


def test_the_codes_are_written_where_one_looks():
    page = (ROOT / "docs/man/dacctl.1").read_text().split(".SH EXIT STATUS")[1].split(".SH ")[0]
    assert re.findall(r"^\.B (\d)$", page, re.M) == ["0", "1", "2", "3"]
    assert re.findall(r"^  (\d)  ", run("--help")[1].split("Exit codes")[1], re.M) == ["0", "1", "2", "3"]


async def test_of_what_is_asked_of_the_master(make_dac, mock):
    dac = make_dac({"flight": {"error_ttl": "30s"}})
    dac.allow_log.append(r"refused|dac.conf:|worker|watchdog")
    exits(0, "-n", dac.name, "reload")
    exits(1, "-n", dac.name, "cancel", NO_TURN)
    exits(2, "-n", dac.name, "cancel", "kumquats")
    exits(2, "-n", dac.name, "turns", "head")
    dac.sections["server"]["nonsense"] = 1
    write_ini(dac.conf, dac.sections)
    exits(1, "-n", dac.name, "reload")
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
    code, _, err = run("-n", dac.name, "cancel", turn)
    assert code == 0 or (code == 1 and "not in memory" in err), err
    (dac.folder / "control.sock").unlink()  # nobody can reach the master any more
    exits(2, "-n", dac.name, "reload")
