#!/usr/bin/env python3
"""PostgreSQL is away for minutes while clients go on asking: `make soak-outage MINUTES=10`.

Prints the memory of every process over the time, what the spool grew to, and how fast it was drained.
Fails if a turn was lost, doubled or overtaken, if anybody got an error, or if a process grew.
"""

import argparse
import asyncio
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "system"))

from lib import postgres as pg  # noqa: E402
from lib.dacd import Dacd  # noqa: E402
from lib.provider import Provider  # noqa: E402
from load import Load, drained  # noqa: E402

WARM_UP = 20  # seconds with PostgreSQL, and then without it, before memory is looked at
FILLS_KIB = 20480  # by so much a process may grow at all: SQLite's cache fills, 16 MiB of it
GROWS_KIB = 2048  # and by so much, or
GROWS = 0.1  # by this part of what it had, in the second half


def memory(dac):
    """{title: KiB} of what processes have for themselves; of several of a title the most."""
    found = {}
    for pid, title in dac.processes().items():
        try:
            text = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        m = re.search(r"^RssAnon:\s+(\d+) kB", text, re.M)
        if m:
            found[title] = max(found.get(title, 0), int(m[1]))
    return found


def show(what, mem):
    print(f"  {what:>16}: " + ", ".join(f"{t.removeprefix('dacd: ')} {k}" for t, k in sorted(mem.items())), flush=True)


async def outage(dac, load, minutes):
    """Memory at its beginning, in the middle and at the end."""
    await asyncio.sleep(WARM_UP)
    first = memory(dac)
    show("away 0 min", first)
    began = time.monotonic()
    middle = None
    while (left := began + minutes * 60 - time.monotonic()) > 0:
        await asyncio.sleep(min(60, left, minutes * 30))
        if middle is None and time.monotonic() - began >= minutes * 30:
            middle = memory(dac)
        rows, size = await dac.counter("dac_spool_rows"), await dac.counter("dac_spool_bytes")
        show(f"away {(time.monotonic() - began) / 60:.1f} min", memory(dac))
        print(f"{'':20}{load.count} turns, the spool: {rows:.0f} rows, {size / 1e6:.1f} MB", flush=True)
    return first, middle, memory(dac)


async def work(dac, server, args):
    load = Load(dac, tokens=20, pause=0.05)
    running = asyncio.create_task(load.run(args.clients))
    problems = []
    await asyncio.sleep(WARM_UP)
    show("PostgreSQL there", memory(dac))
    await asyncio.to_thread(server.stop)
    first, middle, last = await outage(dac, load, args.minutes)
    for title, kib in last.items():
        was, half = first.get(title, kib), middle.get(title, kib)
        if kib - half > max(GROWS_KIB, half * GROWS) or kib - was > FILLS_KIB:
            problems.append(f"{title} has grown: {was}, {half}, {kib} KiB")
    waiting = await dac.counter("dac_spool_rows")
    asked = load.count
    began = time.monotonic()
    await asyncio.to_thread(server.start)
    await drained(dac, 600)
    took = time.monotonic() - began
    print(f"  {waiting:.0f} rows were drained in {took:.1f} s while {load.count - asked} turns came:"
          f" {waiting / took:.0f} rows/s")  # fmt: skip
    await asyncio.sleep(5)
    show("PostgreSQL again", memory(dac))
    load.over = True
    await running
    await drained(dac)
    problems += await asyncio.to_thread(load.lost, server)
    if load.errors:
        problems.append(f"clients heard {load.errors}")
    print(f"  {load.count} turns were said to be stored: {load.places}")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=16)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="dac-soak-"))
    server = pg.Postgres({"max_connections": "60"}).start()
    mock = Provider(folder / "mock").start()
    dac = Dacd(folder / "dacd", mock.url, {"store": {"postgres": server.conninfo()}})
    dac.allow_log = ["PostgreSQL"]
    print(f"an outage of {args.minutes:g} minutes, {args.clients} clients; memory in KiB, without what is shared")
    try:
        dac.start()
        problems = asyncio.run(work(dac, server, args))
    finally:
        try:
            dac.stop()
        except AssertionError as e:
            print(e)
            problems = ["dacd"]
        mock.stop()
        server.close()
        pg.remove_template()
    for problem in problems:
        print(f"  FAILED: {problem[:600]}")
    if problems:
        print(f"  the folder is kept: {folder}")
        return 1
    shutil.rmtree(folder)
    print("none lost, none twice, none out of order, no growth")
    return 0


if __name__ == "__main__":
    sys.exit(main())
