#!/usr/bin/env python3
"""Random deaths under a mixed load: `make torture KILLS=10000 SEED=1 JOBS=3`.

Shares the deaths out to instances, each a process of its own with its own seed, which the given
one decides, and each started afresh. A seed that fails is printed with the command that does
the same to the same again; the log and the store of its dacd are kept.
"""

import argparse
import asyncio
import collections
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = Path(os.environ.get("DAC_BUILD") or HERE.parents[1] / "build").resolve()
PER_INSTANCE = 250  # deaths, then it starts afresh
LANES = 4  # the first lane of ports; the system tests have those before

# How problems are added up in the summary.
VERDICTS = {
    "stuck clients": ["stuck"],
    "acknowledged and lost": ["lost"],
    "duplicates": ["duplicate"],
    "wrong texts or order": ["text", "order", "code"],
    "calls too many": ["call"],
    "leaks, bad segments": ["leak", "check"],
    "crashes, failed starts": ["crash", "start", "harness"],
}


def shares(kills, seed, jobs):
    """[(seed, deaths)] of the instances. One instance has the seed itself: so one can be run again."""
    n = max(-(-kills // PER_INSTANCE), jobs)
    if n == 1:
        return [(seed, kills)]
    rng = random.Random(seed)
    return [(rng.randrange(1 << 31), kills // n + (i < kills % n)) for i in range(n)]


def table(rows):
    for name, n in sorted(rows.items()):
        print(f"  {name:36} {n}")


class Run:
    def __init__(self, args):
        self.args = args
        self.waiting = shares(args.kills, args.seed, args.jobs)
        self.instances = len(self.waiting)
        self.results = []
        self.at = {}  # seed: deaths so far
        self.problems = 0
        self.began = time.monotonic()

    async def job(self, lane):
        while self.waiting:
            seed, kills = self.waiting.pop(0)
            await self.instance(lane, seed, kills)

    async def instance(self, lane, seed, kills):
        folder = BUILD / "torture" / f"seed-{seed}"
        env = {**os.environ, "DAC_BUILD": str(BUILD), "DAC_TEST_LANE": str(LANES + lane)}
        p = await asyncio.create_subprocess_exec(
            sys.executable, HERE / "instance.py", "--kills", str(kills), "--seed", str(seed),
            "--folder", folder, "--clients", str(self.args.clients), "--every", str(self.args.every),
            "--watch-stdin", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=env,
            start_new_session=True, limit=1 << 26,
        )  # fmt: skip
        result = None
        try:
            async for line in p.stdout:
                word, _, rest = line.decode().partition(" ")
                if word == "AT":
                    self.at[seed] = int(rest)
                elif word == "PROBLEM":
                    self.problems += 1
                    if self.problems <= 20:
                        kind, words = json.loads(rest)
                        print(f"PROBLEM (seed {seed}) {kind}: {words[:600]}", flush=True)
                elif word == "RESULT":
                    result = json.loads(rest)
            code = await p.wait()
        finally:
            if p.returncode is None:
                p.stdin.close()  # it cleans up and ends
                await asyncio.wait_for(p.wait(), 20)
        self.at.pop(seed, None)
        if result is None:
            result = {"seed": seed, "deaths": 0, "problems": [["harness", f"ended with code {code}"]]}
        self.results.append(result)
        if result["problems"]:
            print(f"FAILED seed {seed}: again with  make torture KILLS={kills} SEED={seed}", flush=True)
            print(f"  what it left: {folder}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)

    async def progress(self):
        while True:
            await asyncio.sleep(10)
            done = sum(r["deaths"] for r in self.results) + sum(self.at.values())
            rate = done / (time.monotonic() - self.began)
            left = (self.args.kills - done) / rate / 60 if rate else 0
            print(
                f"  {done} of {self.args.kills} deaths, {rate:.1f}/s, {left:.0f} min left,"
                f" {self.problems} problems",
                flush=True,
            )

    async def run(self):
        progress = asyncio.create_task(self.progress())
        for signo in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signo, asyncio.current_task().cancel)
        try:
            async with asyncio.TaskGroup() as group:
                for n in range(self.args.jobs):
                    group.create_task(self.job(n))
        finally:
            progress.cancel()

    # --- the summary ---

    def summary(self):
        count, answers, kinds = collections.Counter(), collections.Counter(), collections.Counter()
        for r in self.results:
            count.update(r.get("count", {}))
            answers.update(r.get("answers", {}))
            kinds.update(kind for kind, _ in r["problems"])
        deaths = sum(r["deaths"] for r in self.results)
        acknowledged = sum(r.get("acknowledged", 0) for r in self.results)
        print(f"\n{'deaths':38} {deaths}")
        events = {name: n for name, n in count.items() if name.startswith(("killed: ", "stopped: "))}
        table(events)
        print("answers")
        table(answers)
        print("and")
        table({name: n for name, n in count.items() if name not in events})
        print(f"{'acknowledged turns':38} {acknowledged}")
        for name, of in VERDICTS.items():
            print(f"{name:38} {sum(kinds[k] for k in of)}")
        failed = sum(bool(r["problems"]) for r in self.results)
        seconds = time.monotonic() - self.began
        line = (
            f"torture: {len(self.results) - failed} passed, {failed} failed, 0 skipped"
            f" (instances; {deaths} deaths, {acknowledged} acknowledged turns, seed {self.args.seed},"
            f" {seconds:.0f} s)"
        )
        (BUILD / "results").mkdir(exist_ok=True)
        (BUILD / "results" / "torture").write_text(line + "\n")
        print(line)
        return 1 if failed or len(self.results) < self.instances else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--every", type=float, default=0.12, help="seconds between two strikes, on average")
    parser.add_argument("--clients", type=int, default=16, help="of each instance")
    args = parser.parse_args()
    print(f"torture: {args.kills} deaths, seed {args.seed}, {args.jobs} at a time", flush=True)
    run = Run(args)
    try:
        asyncio.run(run.run())
    except asyncio.CancelledError:
        print("torture: interrupted")
        return 130
    return run.summary()


if __name__ == "__main__":
    sys.exit(main())
