#!/usr/bin/env python3
"""Random troubles of PostgreSQL, recorder and workers under load: `make check-store-random SEEDS=50 SEED=1`.

Each seed has a dacd, a provider and a server of its own, and decides what befalls them. Checked all
the while: nothing overtakes within a thread. At the end: what was acknowledged is there, once, whole and
in order. A seed that fails is printed with the command that does the same again.
"""

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "system"))

from lib import postgres as pg  # noqa: E402
from lib.dacd import BUILD, Dacd  # noqa: E402
from lib.provider import Provider  # noqa: E402
from load import Load, drained  # noqa: E402

CLIENTS = 6
TROUBLES = 5  # of one seed


class Case:
    def __init__(self, seed, folder):
        self.seed = seed
        self.rng = random.Random(seed)
        self.folder = folder
        self.story = []

    def wait(self, most):
        return asyncio.sleep(self.rng.random() * most)

    # --- troubles ---

    async def restart_server(self):
        how = self.rng.choice(["fast", "immediate", "kill"])
        self.story.append(f"server {how}")
        await asyncio.to_thread(self.server.stop, how)
        await self.wait(1.5)
        if self.rng.random() < 0.3:
            self.kill("recorder")
            await self.wait(0.5)
        await asyncio.to_thread(self.server.start)

    async def terminate(self):
        self.story.append("terminate")
        for _ in range(self.rng.randrange(1, 5)):
            await asyncio.to_thread(self.server.terminate)
            await self.wait(0.2)

    async def freeze(self):
        self.story.append("freeze")
        with self.server.frozen():
            await self.wait(2)

    async def lock(self):
        table = self.rng.choice(["turns", "messages", "threads"])
        self.story.append(f"lock {table}")
        with self.server.locked(table):
            await self.wait(1.5)
            if self.rng.random() < 0.3:
                self.kill("recorder")
                await self.wait(0.5)

    async def read_only(self):
        self.story.append("read only")
        await asyncio.to_thread(self.server.read_only, True)
        await self.wait(1)
        await asyncio.to_thread(self.server.read_only, False)

    async def crowd(self):
        self.story.append("no connections")
        await asyncio.to_thread(self.server.limit_connections, 0)
        await asyncio.to_thread(self.server.terminate)
        await self.wait(1)
        await asyncio.to_thread(self.server.limit_connections, -1)

    def kill(self, kind):
        found = [p for p, t in self.dac.processes().items() if f"dacd: {kind}" in t]
        if found:
            self.story.append(f"kill {kind}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.rng.choice(found), signal.SIGKILL)

    async def kill_recorder(self):
        for _ in range(self.rng.randrange(1, 4)):
            self.kill("recorder")
            await self.wait(0.4)

    async def kill_worker(self):
        self.kill("worker")

    async def kill_all(self):
        self.story.append("kill all")
        await asyncio.to_thread(self.dac.kill_all)
        await self.wait(0.3)
        await asyncio.to_thread(self.dac.start)

    # --- a case ---

    async def befall(self):
        usual = [
            self.restart_server, self.restart_server, self.terminate, self.freeze, self.lock,
            self.read_only, self.crowd, self.kill_recorder, self.kill_worker, self.kill_all,
        ]  # fmt: skip
        await self.wait(0.5)
        for _ in range(TROUBLES):
            await self.rng.choice(usual)()
            await self.wait(1)

    async def watch(self, load):
        """Nothing overtakes, at no moment."""
        problems = []
        while not load.over:
            await asyncio.sleep(0.1)
            with contextlib.suppress(pg.psycopg.Error):
                rows = await asyncio.to_thread(self.ids)
                problems += load.gaps(rows)
        return problems

    def ids(self):
        with self.server.connect(connect_timeout=2, options="-c statement_timeout=1000") as db:
            return {str(row[0]) for row in db.execute("SELECT id FROM turns")}

    async def work(self):
        load = Load(self.dac)
        watching = asyncio.create_task(self.watch(load))
        running = asyncio.create_task(load.run(CLIENTS))
        try:
            await self.befall()
        finally:
            load.over = True
        async with asyncio.timeout(60):
            await running
        problems = await watching
        await drained(self.dac)
        problems += await asyncio.to_thread(load.lost, self.server)
        if load.count < CLIENTS * TROUBLES:
            problems.append(f"only {load.count} turns were stored")
        return load, problems

    def run(self):
        self.server = pg.Postgres({"max_connections": "60"}).start()
        mock = Provider(self.folder / "mock").start()
        store = {"postgres": self.server.conninfo(), "commit_timeout": "500ms", "done_timeout": "20s"}
        self.dac = Dacd(self.folder / "dacd", mock.url, {"store": store}, workers=3)
        self.dac.allow_log = ["."]
        load, problems = None, []
        try:
            self.dac.start()
            load, problems = asyncio.run(self.work())
        except (AssertionError, OSError, TimeoutError) as e:
            problems = [f"{type(e).__name__}: {e}"]
        try:
            self.dac.stop()
        except AssertionError as e:
            problems.append(str(e))
        mock.stop()
        self.server.close()
        return load, problems


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--seed", type=int, help="the first; else by the clock")
    args = parser.parse_args()
    first = args.seed if args.seed is not None else int(time.time())
    failed, turns, spooled = 0, 0, 0
    for seed in range(first, first + args.seeds):
        folder = Path(tempfile.mkdtemp(prefix="dac-troubles-"))
        case = Case(seed, folder)
        began = time.monotonic()
        load, problems = case.run()
        took = time.monotonic() - began
        story = ", ".join(case.story)
        if load:
            turns += load.count
            spooled += load.places.get("spool", 0)
            print(f"seed {seed}: {load.count} turns {load.places} {load.errors}, {took:.0f} s: {story}", flush=True)
        if not problems:
            shutil.rmtree(folder)
            continue
        failed += 1
        print(f"seed {seed} FAILED ({story}); its folder is kept: {folder}")
        for problem in problems[:10]:
            print(f"  {problem[:600]}")
        print(f"  again: make check-store-random SEEDS=1 SEED={seed}", flush=True)
    pg.remove_template()
    print(f"{args.seeds} seeds from {first}: {turns} turns acknowledged, {spooled} of them by the spool")
    print(f"{failed} seeds failed" if failed else "none lost, none twice, none out of order")
    line = f"store-random: {args.seeds - failed} passed, {failed} failed, 0 skipped"
    (BUILD / "results").mkdir(exist_ok=True)
    (BUILD / "results" / "store-random").write_text(line + "\n")
    print(line)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
