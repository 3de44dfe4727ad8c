#!/usr/bin/env python3
"""Random deaths under a mixed load, for as long as it takes: `make torture KILLS=200 SEED=1`.

Workers and the recorder are killed, or stopped and continued, at random; now and then the master
dies with everybody and is started again. Meanwhile clients ask identical and distinct questions,
streaming and not, join, leave and cancel; a stream that breaks off goes on by its Last-Event-ID.

At the end: no client is stuck; each text is the provider's; each turn that was said to be stored is
there once, as it was said; `dacctl check` finds nothing; flights, blocks and permits are all back.
The seed decides what is done to whom and when (not how the machine interleaves it).
"""

import argparse
import asyncio
import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))

from lib.dacd import BUILD, Dacd  # noqa: E402
from lib.provider import Provider, say  # noqa: E402
from lib.service import dacctl  # noqa: E402
from lib.wire import Stream  # noqa: E402

SETTINGS = {
    "server": {"watchdog_timeout": "1s", "drain_timeout": "3s"},
    "flight": {"result_ttl": "300ms", "error_ttl": "100ms", "reconnect_grace": "1s", "takeover_max": "5"},
}
BROKEN = (ConnectionError, asyncio.IncompleteReadError, OSError)


class Torture:
    def __init__(self, dac, mock, args):
        self.dac, self.mock, self.args = dac, mock, args
        self.rng = random.Random(args.seed)
        self.count = collections.Counter()
        self.acknowledged = {}  # turn id: text
        self.problems = []
        self.over = False

    # --- clients ---

    def question(self, rng):
        n = rng.randrange(1, 30)
        if rng.random() < 0.5:
            return say(f"Shared kumquat {rng.randrange(4)} {int(time.monotonic())}", tokens=n, gap="5ms")
        return say(f"Kumquat of my own {rng.random()}", tokens=n, gap="3ms")

    async def resume(self, stream):
        """Goes on where a broken stream ended, as EventSource does; the text it ends with, or None."""
        ids = [e.id for e in stream.events if e.id]
        metas = stream.named("meta")
        if not metas:
            return None
        headers = {"x-org-id": "org_demo", "Last-Event-ID": ids[-1]}
        path = f"/api/turns/{metas[0].data['turn_id']}/stream"
        more = await Stream.open("127.0.0.1", self.dac.port, path, headers, method="GET")
        if more.status != 200:
            await more.body()
            return None
        await more.rest(timeout=30)
        if not more.complete or not more.named("done"):
            return None
        if more.one("done").data["finish_reason"] == "cancelled":
            return None  # somebody else said stop
        self.count["resumed"] += 1
        return more.text if more.named("reset") else stream.text + more.text

    async def stream_once(self, thread, question, rng):
        s = await self.dac.open_ask(thread, question)
        if s.status != 200:
            await s.body()
            self.count[f"status {s.status}"] += 1
            return
        if rng.random() < 0.1:
            await asyncio.wait_for(s.next(), 30)
            s.close()
            self.count["left"] += 1
            return
        if rng.random() < 0.05:
            meta = await s.until("meta")
            await self.dac.post(f"/api/turns/{meta.data['turn_id']}/cancel")
            self.count["cancelled"] += 1
        await s.rest(timeout=30)
        text = s.text
        if not s.complete:
            self.count["broken"] += 1
            text = await self.resume(s)
        elif not s.named("done"):
            self.count["error"] += 1
            return
        elif s.one("done").data["finish_reason"] == "cancelled":
            return
        if text is None:
            return
        self.count["done"] += 1
        self.acknowledged[s.one("meta").data["turn_id"]] = text
        if text != await self.mock.text(question):
            self.problems.append(f"a client's text is not the provider's: {question}")

    async def json_once(self, thread, question):
        r = await self.dac.ask_json(thread, question, timeout=40)
        self.count["json" if r.status == 200 else f"status {r.status}"] += 1
        if r.status == 200 and r.json()["status"] == "complete":
            answer = r.json()
            self.acknowledged[answer["turn_id"]] = answer["assistant_message"]["content"]
            if answer["assistant_message"]["content"] != await self.mock.text(question):
                self.problems.append(f"an answer is not the provider's: {question}")

    async def client(self, n):
        rng = random.Random(self.args.seed * 1000 + n)
        while not self.over:
            question = self.question(rng)
            thread = self.threads[rng.randrange(len(self.threads))]
            try:
                if rng.random() < 0.3:
                    await self.json_once(thread, question)
                else:
                    await self.stream_once(thread, question, rng)
            except BROKEN:
                self.count["connection broke"] += 1
                await asyncio.sleep(0.02)
            except TimeoutError:
                self.problems.append(f"a client was stuck: {question}")

    # --- deaths ---

    async def hurt(self):
        """One death or standstill."""
        victims = [p for p, t in self.dac.processes().items() if "worker" in t or "recorder" in t]
        if not victims:
            return
        pid = self.rng.choice(victims)
        what = self.rng.random()
        try:
            if what < 0.80:
                os.kill(pid, signal.SIGKILL)
                self.count["killed"] += 1
            else:
                os.kill(pid, signal.SIGSTOP)
                self.count["stopped"] += 1
                await asyncio.sleep(self.rng.choice([0.05, 0.3, 2.5]))
                os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass

    async def kill_everything(self):
        self.dac.kill_all()
        self.count["everything killed"] += 1
        await asyncio.to_thread(self.dac.start)

    async def executioner(self):
        while self.count["killed"] + self.count["stopped"] < self.args.kills:
            await asyncio.sleep(self.rng.random() * 2 * self.args.every)
            await self.hurt()
            if self.rng.random() < self.args.master:
                await self.kill_everything()
            done = self.count["killed"] + self.count["stopped"]
            if done % 50 == 0 and done:
                print(f"  {done} of {self.args.kills}: {self.count['done']} answers whole", flush=True)
        self.over = True

    # --- the verdict ---

    async def verify(self):
        for _ in range(300):
            status = dacctl(self.dac, "status", "--json")
            if status["flights"]["free"] == status["flights"]["total"] and status["blocks"]["used"] == 0:
                break
            await asyncio.sleep(0.1)
        else:
            self.problems.append(f"not all is free again: {status['flights']} {status['blocks']}")
        if status["providers"][0]["in_flight"]:
            self.problems.append("a permit was not given back")
        check = subprocess.run(
            [str(BUILD / "dacctl"), "-n", self.dac.name, "check"], capture_output=True, text=True, timeout=60
        )
        if check.returncode:
            self.problems.append("dacctl check: " + (check.stdout + check.stderr).strip())
        turns = {t["id"]: t["status"] for t in self.dac.turns()}
        texts = collections.defaultdict(list)
        for m in self.dac.messages():
            if m["role"] == "assistant":
                texts[m["turn_id"]].append(m["content"])
        for turn, text in self.acknowledged.items():
            if turns.get(turn) != "complete" or texts[turn] != [text]:
                self.problems.append(f"turn {turn} is not stored as it was said: {turns.get(turn)}")
        await self.mock.wait(active=0)

    async def run(self):
        self.threads = [await self.dac.thread() for _ in range(4)]
        clients = [asyncio.create_task(self.client(n)) for n in range(self.args.clients)]
        await self.executioner()
        try:
            async with asyncio.timeout(60):
                await asyncio.gather(*clients)
        except TimeoutError:
            self.problems.append("clients did not end within 60 s")
        await self.verify()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--every", type=float, default=0.1, help="seconds between two, on average")
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--master", type=float, default=0.01, help="share of deaths that take everybody")
    args = parser.parse_args()
    print(f"torture: seed {args.seed}, {args.kills} deaths", flush=True)
    with tempfile.TemporaryDirectory(prefix="dac-torture.") as folder:
        mock = Provider(Path(folder) / "mock").start()
        dac = Dacd(Path(folder) / "dac", mock.url, SETTINGS, workers=args.workers)
        dac.allow_log.append(r".")
        dac.start()
        torture = Torture(dac, mock, args)
        try:
            asyncio.run(torture.run())
        finally:
            dac.stop(check=False)
            mock.stop()
    for name, n in sorted(torture.count.items()):
        print(f"  {name:20} {n}")
    print(f"  {'acknowledged turns':20} {len(torture.acknowledged)}")
    for problem in torture.problems[:20]:
        print("PROBLEM:", problem)
    print(f"torture: seed {args.seed}: {'FAILED' if torture.problems else 'all promises kept'}")
    return 1 if torture.problems else 0


if __name__ == "__main__":
    sys.exit(main())
