"""One instance under torture: a dacd with its provider, its clients, and the one who kills.

Runs as a process of its own. Prints `AT deaths`, `PROBLEM [kind, words]` and at the end `RESULT
{...}`; ends, with all that it started, as soon as its standard input is closed.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))

from clients import THREADS, Client, Crowd  # noqa: E402
from ledger import ENDLESS, Ledger  # noqa: E402
from lib import procs  # noqa: E402
from lib.dacd import BUILD, Dacd  # noqa: E402
from lib.provider import Provider  # noqa: E402
from schedule import DRAIN, profile, strikes  # noqa: E402
from verdict import Calls, judge  # noqa: E402

WORKERS = 4
THIN = 2.5  # seconds
ALONE = DRAIN + 15  # seconds in which all children of a dead master are gone


def alive(pid, sid):
    """Whether that process of a session is there, and no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            field = f.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return field[0] not in (b"Z", b"X") and int(field[3]) == sid


class Instance:
    def __init__(self, args):
        self.args = args
        self.ledger = Ledger()
        self.deaths = 0  # strikes that killed
        self.complete_at = time.monotonic()  # when all children were there
        self.stopped = {}  # pid: session
        self.leaving = set()  # tasks that watch the children of dead masters
        self.dac = self.mock = self.crowd = None

    # --- who is there ---

    def children(self):
        """[(pid, title)] of the living master's children."""
        pid = self.dac.pid
        try:
            with open(f"/proc/{pid}/task/{pid}/children") as f:
                found = [(int(p), procs.title(int(p))) for p in f.read().split()]
        except OSError:  # a kernel without it, or no master
            found = [(p, t) for p, t in procs.session(pid).items() if p != pid]
        return [(p, t) for p, t in found if alive(p, pid)]

    async def victims(self, kind, least=1):
        """Pids of a kind, once there are so many. Who has just been forked may be of any kind."""
        while True:
            found = [p for p, t in self.children() if kind in t or "dacd: master" in t or not t]
            if len(found) >= least:
                return found
            await asyncio.sleep(0.01)

    # --- strikes ---

    def died(self, what, n=1):
        self.deaths += 1
        self.ledger.count[f"killed: {what}"] += 1
        self.ledger.count["processes killed"] += n

    def kill(self, pids, what):
        n = 0
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                n += 1
        if n:
            self.died(what, n)

    async def stop_for(self, pids, lasting, what):
        """SIGSTOP, and SIGCONT later, if the watchdog was not quicker."""
        sid, began = self.dac.pid, time.monotonic()
        standstill = [began, began + 60]
        self.ledger.standstills.append(standstill)
        pids = [p for p in pids if p not in self.stopped]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                self.stopped[pid] = sid
        self.ledger.count[f"stopped: {what}"] += 1
        try:
            await asyncio.sleep(lasting)
        finally:
            ended = self.go_on(pids)
            standstill[1] = time.monotonic()
        # Killed by the watchdog, or by a strike at everybody: that one counts itself.
        if ended and lasting > 1 and self.dac.pid == sid and sid not in pids:
            self.died("by the watchdog", len(ended))

    def go_on(self, pids):
        """Continues them; those that died meanwhile."""
        ended = []
        for pid in pids:
            sid = self.stopped.pop(pid, None)
            if sid is None:
                continue
            if alive(pid, sid):
                os.kill(pid, signal.SIGCONT)
            else:
                ended.append(pid)
        return ended

    def instead(self, s):
        """Where somebody has not been started again for long, since the delays have grown: a new
        start makes them short again."""
        now = time.monotonic()
        if len(self.children()) == 1 + WORKERS:
            self.complete_at = now
        if now - self.complete_at < THIN:
            return s
        self.complete_at = now
        return s._replace(what="everything" if s.which % 3 else "master")

    async def strike(self, s):
        if s.what in ("worker", "recorder"):
            found = await self.victims(s.what)
            self.kill([found[s.which % len(found)]], s.what)
        elif s.what == "two at once":
            found = await self.victims("", 2)
            n = s.which % len(found)
            self.kill([found[n], found[(n + 1 + s.which // 64 % (len(found) - 1)) % len(found)]], s.what)
        elif s.what == "all workers":
            self.kill(await self.victims("worker", 2), s.what)
        elif s.what in ("worker stopped", "recorder stopped"):
            found = await self.victims(s.what.split()[0])
            self.crowd.also(self.stop_for([found[s.which % len(found)]], s.lasting, s.what))
        elif s.what in ("master stopped", "all stopped"):
            pids = [self.dac.pid] + [p for p, _ in self.children() if s.what == "all stopped"]
            self.master_gone()
            await self.stop_for(pids, s.lasting, s.what)
            self.master_back()
        elif s.what == "master":
            await self.kill_master(s)
        else:
            await self.kill_everything()

    def master_gone(self, memory=False):
        period = [time.monotonic(), ENDLESS]
        self.ledger.masterless.append(period)
        if memory:
            self.ledger.lost_memory.append(period)

    def master_back(self):
        self.ledger.masterless[-1][1] = time.monotonic()

    async def kill_everything(self):
        self.master_gone(memory=True)
        n = 1 + len(self.children())
        await asyncio.to_thread(self.dac.kill_all)
        self.died("everything", n)
        await self.check_dead("after everything was killed")
        await self.start()

    async def kill_master(self, s):
        """The master alone: its children end by themselves, and the next start needs no help."""
        sid = self.dac.pid
        children = self.children()
        self.master_gone(memory=True)
        os.kill(sid, signal.SIGKILL)
        await asyncio.to_thread(self.dac.process.wait)
        self.dac.retired.append(sid)
        n = 1
        for pid, title in children:
            first_worker = "worker" in title and n == 1
            if (
                (s.then == "a worker too" and first_worker)
                or (s.then == "the recorder too" and "recorder" in title)
                or (s.then == "the workers too" and "worker" in title)
            ):
                n += 1
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.died("master" if n == 1 else "master and children", n)
        period = [time.monotonic(), ENDLESS]
        gone = asyncio.create_task(self.until_gone(sid, s.then, period))
        if s.then == "at once":
            self.ledger.two_masters.append(period)
            self.leaving.add(gone)
            gone.add_done_callback(self.leaving.discard)
        elif await gone:
            await self.check_dead(f"after the master was killed, {s.then}")
        await self.start()

    async def until_gone(self, sid, then, period):
        deadline = time.monotonic() + ALONE
        while left := procs.session(sid):
            if time.monotonic() > deadline:
                self.ledger.problem("start", f"the master was killed ({then}), and {ALONE} s later: {left}")
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                return False
            await asyncio.sleep(0.05)
        period[1] = time.monotonic()
        return True

    async def start(self):
        try:
            await asyncio.to_thread(self.dac.start)
        except AssertionError as e:
            self.ledger.problem("start", str(e))
            raise SystemExit(f"the next start failed: {e}") from None
        self.master_back()

    # --- dacctl check ---

    async def dacctl(self, *words):
        p = await asyncio.create_subprocess_exec(
            BUILD / "dacctl", "-n", self.dac.name, *words,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await p.communicate()
        return p.returncode, out.decode().strip()

    async def check_dead(self, when):
        code, words = await self.dacctl("check")
        self.ledger.count["checks of a dead segment"] += 1
        if code:
            self.ledger.problem("check", f"{when}, dacctl check: {words}")

    async def check_living(self):
        """From time to time, while all goes on. What it says counts if no master was gone or stood
        still meanwhile, since then nobody sweeps."""
        while True:
            await asyncio.sleep(1)
            began = time.monotonic()
            code, words = await self.dacctl("check")
            if self.ledger.masterless_since(began - 1):
                continue
            self.ledger.count["checks of the living segment"] += 1
            if code:
                self.ledger.problem("check", f"dacctl check: {words}")

    # --- the run ---

    async def execute(self):
        told = time.monotonic()
        for s in strikes(self.args.seed, self.args.every):
            if self.deaths >= self.args.kills:
                break
            await asyncio.sleep(s.delay)
            await self.strike(self.instead(s))
            if time.monotonic() > told + 1:
                told = time.monotonic()
                print(f"AT {self.deaths}", flush=True)

    async def all_there(self):
        """Nobody is stopped, and all children are there and ready again."""
        self.go_on(list(self.stopped))
        for _ in range(300):
            code, text = await self.dacctl("status", "--json")
            if code == 0 and [p["state"] for p in json.loads(text)["processes"]] == ["ready"] * (1 + WORKERS):
                return
            await asyncio.sleep(0.1)
        self.ledger.problem("start", f"not all children are back: {text}")

    async def run(self):
        self.mock = Provider(self.args.folder / "mock")
        await asyncio.to_thread(self.mock.start)
        name, settings = profile(self.args.seed)
        self.ledger.count[f"instances, {name}"] += 1
        self.dac = Dacd(self.args.folder / "dac", self.mock.url, settings, workers=WORKERS)
        self.dac.allow_log.append(r"has not beaten for")
        # By chance, without its being the turn's fault.
        self.dac.allow_log.append(r"the recorder died twice with it in hand")
        self.master_gone()
        await self.start()
        self.crowd = Crowd(name == "small", [await self.dac.thread() for _ in range(THREADS)])
        self.ledger.threads.update(self.crowd.threads)
        clients = [Client(n, self.args.seed, self.dac, self.ledger, self.crowd) for n in range(self.args.clients)]
        tasks = [asyncio.create_task(c.run()) for c in clients]
        calls = Calls(self.mock, self.ledger)
        watchers = [asyncio.create_task(self.check_living()), asyncio.create_task(calls.follow())]
        try:
            executioner = asyncio.create_task(self.execute())
            await asyncio.wait([executioner, *tasks, *watchers], return_when=asyncio.FIRST_COMPLETED)
            self.crowd.over = True
            if not executioner.done():  # a client or a watcher can only have failed
                executioner.cancel()
            await self.end_of([executioner, *tasks])
        finally:
            for w in watchers:
                w.cancel()
        await self.all_there()
        await asyncio.gather(*self.leaving)
        await judge(self, calls)

    async def end_of(self, tasks):
        """Waits for clients and helpers of theirs; who is not back by then is stuck."""
        done, pending = await asyncio.wait([*tasks, *self.crowd.tasks], timeout=60)
        for t in pending:
            self.ledger.problem("stuck", f"did not end: {t.get_coro()}")
            t.cancel()
        for t in done:
            if not t.cancelled() and t.exception():
                raise t.exception()

    def clean_up(self):
        """Whatever happened: nothing of this instance stays behind."""
        if self.dac and self.dac.process:
            for sid in [self.dac.pid, *self.dac.retired]:
                for pid in procs.session(sid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            self.dac.process.wait()
            Path(f"/dev/shm/{self.dac.name}").unlink(missing_ok=True)
        if self.mock:
            self.mock.stop()


async def bounded(instance):
    """Runs it until it is over, or nobody wants to know any more."""
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    if instance.args.watch_stdin:
        loop.add_reader(sys.stdin, lambda: sys.stdin.read(1) or task.cancel())
    await instance.run()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--every", type=float, default=0.12)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--watch-stdin", action="store_true")
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    instance, interrupted = Instance(args), False
    ledger = instance.ledger
    began = time.monotonic()
    try:
        asyncio.run(bounded(instance))
    except (KeyboardInterrupt, asyncio.CancelledError):
        interrupted = True
    except (Exception, SystemExit) as e:
        import traceback

        traceback.print_exc()
        ledger.problem("harness", re.sub(r"\s+", " ", repr(e)))
    finally:
        instance.clean_up()
        (args.folder / "problems.txt").write_text("".join(f"{k}: {w}\n" for k, w in ledger.problems))
    if interrupted:
        if not ledger.problems:
            shutil.rmtree(args.folder)
        return 130
    result = {
        "seed": args.seed,
        "deaths": instance.deaths,
        "count": ledger.count,
        "answers": ledger.answers,
        "acknowledged": len(ledger.acknowledged),
        "questions": len(ledger.asked),
        "problems": ledger.problems,
        "seconds": time.monotonic() - began,
    }
    print("RESULT " + json.dumps(result), flush=True)
    return 1 if ledger.problems else 0


if __name__ == "__main__":
    sys.exit(main())
