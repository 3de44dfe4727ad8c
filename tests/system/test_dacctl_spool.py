"""`dacctl spool` brings what waits in a spool that was set aside to the database, each turn once, also
out of a file that was torn."""

import asyncio
import contextlib
import json
import shutil
import sqlite3
import subprocess

import pytest

from lib.dacd import BUILD
from lib.database import dacctl
from lib.provider import say

pytestmark = pytest.mark.own_store


@pytest.fixture
def spooling(postgres, make_dac):
    """A service that is on its spool, and what it was told."""

    async def make(threads=3, turns=4):
        dac = make_dac({"store": {"postgres": postgres.conninfo(), "commit_timeout": "500ms"}})
        dac.allow_log += ["PostgreSQL"]
        before = await dac.thread("before")
        told = [(await dac.ask_json(before, say("Kumquat before?"))).json()["turn_id"]]
        await asyncio.to_thread(postgres.stop)
        for _ in range(threads):
            thread = await dac.thread("in between")
            for n in range(turns):
                r = await dac.ask_json(thread, say(f"Kumquat {n}?", tokens=3))
                assert r.json()["stored"] == "spool", r.text
                told.append(r.json()["turn_id"])
        chat = await dac.chat(say("Kumquat chat?"))
        told.append(chat.get("x-dac-turn-id"))
        r = await dac.ask_json(before, say("Kumquat after?"))
        assert r.json()["stored"] == "spool"
        told.append(r.json()["turn_id"])
        await asyncio.to_thread(dac.stop)
        await asyncio.to_thread(postgres.start)
        return dac, told

    return make


def spool_of(dac, name="spool.db.aside-1"):
    """The spool under another name, as the service gives it to one that is of no use."""
    aside = dac.folder / name
    for suffix in ("", "-wal", "-shm"):
        path = dac.folder / f"spool.db{suffix}"
        if path.exists():
            shutil.move(path, f"{aside}{suffix}")
    return aside


def check(postgres, told):
    rows = postgres.sql("SELECT id FROM turns ORDER BY created_at, id")
    assert [str(r["id"]) for r in rows] == told
    assert postgres.value("SELECT count(*) FROM messages") == 2 * len(told)
    assert postgres.value("SELECT count(*) FROM rejected") == 0


async def test_what_waits_is_moved_once(spooling, postgres, mock):
    dac, told = await spooling()
    aside = spool_of(dac)
    p = dacctl("-c", dac.conf, "spool", "--dry-run", aside)
    assert p.stdout == "to be moved: 17 rows\n"  # three threads, and turns
    assert postgres.value("SELECT count(*) FROM turns") == 1
    p = dacctl("-c", dac.conf, "spool", aside)
    assert p.stdout == "moved 17 rows of 17\n" and p.stderr == ""
    check(postgres, told)
    assert postgres.value("SELECT count(*) FROM threads WHERE title = 'in between'") == 3
    p = dacctl("-d", postgres.conninfo(), "spool", aside)
    assert p.stdout == "moved 0 rows of 0\n"
    p = dacctl("-d", postgres.conninfo(), "--json", "spool", aside)
    assert json.loads(p.stdout) == {"dry_run": False, "rows": 0, "moved": 0, "refused": 0, "left_in": None}
    # Also what the spool had only kept is there once.
    p = dacctl("-d", postgres.conninfo(), "spool", "--all", aside)
    assert p.returncode == 0 and "of 0" not in p.stdout
    check(postgres, told)


async def test_it_may_be_interrupted_and_run_again(spooling, postgres, mock):
    dac, told = await spooling()
    aside = spool_of(dac)
    await asyncio.to_thread(postgres.stop)
    p = await asyncio.to_thread(dacctl, "-c", dac.conf, "spool", aside, check=False)
    assert p.returncode == 1 and "dacctl:" in p.stderr
    p = await asyncio.to_thread(dacctl, "-c", dac.conf, "--json", "spool", aside, check=False)
    assert p.returncode == 1 and "dacctl:" in p.stderr
    left = {"dry_run": False, "rows": 17, "moved": 0, "refused": 0, "left_in": str(aside)}
    assert json.loads(p.stdout) == left
    p = dacctl("-c", dac.conf, "--json", "spool", "--dry-run", aside)
    assert json.loads(p.stdout) == {**left, "dry_run": True}
    await asyncio.to_thread(postgres.start)
    with postgres.locked("turns"), pytest.raises(subprocess.TimeoutExpired):
        args = [BUILD / "dacctl", "-c", dac.conf, "spool", aside]
        subprocess.run(args, timeout=2, capture_output=True, check=False)
    p = dacctl("-c", dac.conf, "spool", aside)
    assert p.stdout == "moved 17 rows of 17\n"
    check(postgres, told)


def tear(path, table, leaf=False):
    """A page of a table or an index, its first one or one further on."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (root,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    data = path.read_bytes()
    page = root
    if leaf:  # the middle one of an inner page's children
        at = (root - 1) * size
        assert data[at] == 5, "not large enough for a second level"
        cells = int.from_bytes(data[at + 3 : at + 5], "big")
        cell = at + 12 + 2 * (cells // 2)
        pointer = at + int.from_bytes(data[cell : cell + 2], "big")
        page = int.from_bytes(data[pointer : pointer + 4], "big")
    with open(path, "r+b") as f:
        f.seek((page - 1) * size)
        f.write(b"\x5a" * size)
    return path.read_bytes()


@pytest.mark.parametrize("table", ["spool_queue", "spool_queue_by_id", "spool_threads", "threads", "turns_by_end"])
async def test_of_a_torn_file_all_is_found_that_is_there(spooling, postgres, mock, table):
    """What the queue has lost is found among what is kept."""
    dac, told = await spooling()
    aside = spool_of(dac)
    torn = tear(aside, table)
    if table == "spool_queue":
        p = dacctl("-c", dac.conf, "spool", aside, check=False)
        assert p.returncode == 2 and "dacctl: --all moves what can be read" in p.stderr
    p = dacctl("-c", dac.conf, "spool", "--all", aside)
    assert "is damaged: parts of it cannot be read" in p.stderr or table.endswith(("_by_id", "_by_end", "_threads"))
    check(postgres, told)
    assert aside.read_bytes() == torn
    assert sorted(x.name for x in dac.folder.glob("*.copy*")) == []


async def test_a_torn_page_costs_its_turns_and_no_others(spooling, postgres, mock):
    dac, told = await spooling(3, 40)
    aside = spool_of(dac)
    tear(aside, "messages", leaf=True)
    p = dacctl("-c", dac.conf, "spool", "--all", aside)
    assert "is damaged" in p.stderr
    rows = [str(r["id"]) for r in postgres.sql("SELECT id FROM turns ORDER BY created_at, id")]
    assert rows == [t for t in told if t in set(rows)]  # in order
    assert len(told) - 20 <= len(rows) < len(told)
    assert postgres.value("SELECT count(*) FROM messages") == 2 * len(rows)
    assert postgres.value("SELECT count(*) FROM rejected") == 0


async def test_a_copy_is_kept_until_all_is_moved(spooling, postgres, mock):
    dac, told = await spooling()
    aside = spool_of(dac)
    tear(aside, "spool_queue")
    await asyncio.to_thread(postgres.stop)
    p = await asyncio.to_thread(dacctl, "-c", dac.conf, "spool", "--all", aside, check=False)
    copy = f"{aside}.copy"
    assert p.returncode == 1 and f'the others are in "{copy}": run dacctl spool with that again' in p.stdout
    await asyncio.to_thread(postgres.start)
    p = dacctl("-c", dac.conf, "spool", "--all", aside, check=False)
    assert p.returncode == 2 and f'"{copy}" is there already' in p.stderr
    dacctl("-c", dac.conf, "spool", copy)
    check(postgres, told)


async def test_a_row_that_is_refused_is_told(spooling, postgres, mock):
    dac, told = await spooling()
    aside = spool_of(dac)
    postgres.sql("ALTER TABLE messages ADD CHECK (content NOT LIKE '%Kumquat chat%')")
    p = dacctl("-c", dac.conf, "spool", aside)
    assert p.stdout == "moved 17 rows of 17\n1 of them were refused; they are in table rejected\n"
    assert "dacctl: a row was refused: PostgreSQL" in p.stderr and "Kumquat" not in p.stderr
    (row,) = postgres.sql("SELECT id FROM rejected")
    assert str(row["id"]) == told[-2]


async def test_what_is_no_spool_is_left_alone(spooling, postgres, make_dac, mock, tmp_path):
    dac, _ = await spooling(1, 1)
    live = dac.folder / "spool.db"
    p = dacctl("-c", dac.conf, "spool", live, check=False)
    assert p.returncode == 2 and "which drains it itself" in p.stderr
    other = tmp_path / "other.db"
    dacctl("-d", other, "migrate", check=False)
    with contextlib.closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE t (v)")
        db.commit()
    before = other.read_bytes()
    for path, words in (
        (other, "is no spool"),
        (tmp_path / "missing.db", "No such file"),
    ):
        p = dacctl("-c", dac.conf, "spool", path, check=False)
        assert p.returncode == 2 and words in p.stderr, p.stderr
    assert other.read_bytes() == before and not (tmp_path / "missing.db").exists()
    junk = tmp_path / "junk.db"
    junk.write_bytes(b"\x5a" * 9000)
    p = dacctl("-c", dac.conf, "spool", junk, check=False)
    assert p.returncode == 2 and "--all" in p.stderr and junk.read_bytes() == b"\x5a" * 9000
    p = dacctl("-c", dac.conf, "spool", "--all", junk, check=False)
    assert p.returncode == 2 and "can be read" in p.stderr and junk.read_bytes() == b"\x5a" * 9000
    assert [x.name for x in tmp_path.glob("*.copy*")] == []
    assert dacctl("spool", check=False).returncode == 2
    assert dacctl("status", "more", check=False).returncode == 2
