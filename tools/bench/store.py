"""What storing a turn costs: `make bench-store`, by way of tools/bench-store.sh.

For PostgreSQL, for the spool (PostgreSQL is stopped) and for SQLite: the time from the provider's last
byte to the client's `done`, beside a bare commit of as many bytes on the same disk, measured in turn by
`dac-bench store`. Then, under load: turns per second over the one connection; an outage, with the
recorder's memory over it; how fast the spool is drained. docs/performance.md tells how to read it.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "system"))

from lib import postgres as pg  # noqa: E402
from lib.dacd import BUILD, Dacd  # noqa: E402
from lib.provider import Provider  # noqa: E402

GOAL_MS = 1.0  # above the bare commit, p99
SERVER = {"max_connections": "60", "shared_buffers": "128MB", "max_wal_size": "1GB"}


class Bench:
    def __init__(self, args, folder):
        self.args = args
        self.folder = folder
        self.failed = []

    def dac_bench(self, command, dac, *options):
        """One run of dac-bench as {group: {name: value}}."""
        words = [
            BUILD / "dac-bench", command, "--url", f"http://127.0.0.1:{dac.port}",
            "--mock", f"http://127.0.0.1:{self.mock.port}", "--json", "--timeout", "900s",
            "--tokens", self.args.tokens, "--token-size", 16, "--gap", self.args.gap, "--ttft", 0, *options,
        ]  # fmt: skip
        p = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
        if p.returncode != 0:
            self.failed.append(f"dac-bench {command}: {p.stderr.strip()} {p.stdout.strip()}")
        return json.loads(p.stdout) if p.stdout else None

    def dacd(self, name, store):
        dac = Dacd(self.folder / name, self.mock.url, {"store": store}, workers=self.args.workers)
        dac.allow_log = ["PostgreSQL"]
        return dac.start()

    # --- one turn after the other ---

    def pairs(self, dac, bare):
        return self.dac_bench(
            "store", dac, "--bare", bare, "--asks", self.args.turns, "--threads", "new",
            "--clients", 20, "--pause", self.args.pause, "--warmup", 50,
        )  # fmt: skip

    def latency(self, server, on_postgres, on_sqlite):
        """{place: [run of dac-bench, ...]}; the rounds of the three places take turns."""
        runs = {"postgres": [], "spool": [], "sqlite": []}
        bare_pg = "postgres:" + server.conninfo("postgres", "postgres")
        bare_file = f"sqlite:{self.folder / 'bare.db'}"
        for _ in range(self.args.rounds):
            runs["postgres"].append(self.pairs(on_postgres, bare_pg))
            runs["sqlite"].append(self.pairs(on_sqlite, bare_file))
            server.stop()
            # The first turns find out that it is gone.
            runs["spool"].append(self.pairs(on_postgres, bare_file))
            server.start()
            self.wait_drained(on_postgres)
        return {place: [r for r in found if r and "added" in r] for place, found in runs.items()}

    # --- under load ---

    def metric(self, dac, name):
        text = dac.get_sync("/metrics")[1].decode()
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? ([0-9.eE+-]+)$", text, re.M)
        assert found, f"no metric {name}"
        return sum(map(float, found))

    def load(self, dac, turns, clients):
        """Turns per second, rows per commit, and the milliseconds of a commit."""
        names = ("dac_store_commit_seconds_count", "dac_store_commit_seconds_sum", "dac_store_rows_total")
        before = [self.metric(dac, n) for n in names]
        run = self.dac_bench(
            "burst", dac, "--distinct", "--clients", clients, "--asks", max(1, turns // clients),
            "--threads", "new",
        )  # fmt: skip
        time.sleep(0.3)
        commits, seconds, rows = (self.metric(dac, n) - b for n, b in zip(names, before))
        return run["burst"]["answered"] / run["burst"]["wall_s"], rows / commits, 1000 * seconds / commits

    def wait_drained(self, dac):
        deadline = time.monotonic() + 300
        time.sleep(0.6)  # figures are some moments old
        while self.metric(dac, "dac_spool_rows") > 0 or self.metric(dac, "dac_store_up") < 1:
            assert time.monotonic() < deadline, "the spool is not drained"
            time.sleep(0.1)

    @staticmethod
    def recorder_kib(dac):
        text = Path(f"/proc/{dac.recorder()}/status").read_text()
        return int(re.search(r"^RssAnon:\s+(\d+) kB", text, re.M)[1])

    @staticmethod
    def drained(dac):
        """(rows, seconds) of the last time, as the log has it."""
        begun = re.findall(r"^(\S+) INFO recorder.*the spool is drained", dac.log, re.M)[-1]
        ended, rows = re.findall(r"^(\S+) INFO recorder.*has all (\d+) rows of the spool", dac.log, re.M)[-1]
        took = datetime.datetime.fromisoformat(ended) - datetime.datetime.fromisoformat(begun)
        return int(rows), took.total_seconds()

    def outage(self, server, dac):
        """(KiB of the recorder before, in the middle, at the end), turns per second meanwhile,
        (rows, seconds) of draining."""
        before = self.recorder_kib(dac)
        server.stop()
        half = self.args.outage // 2
        self.load(dac, half, self.args.clients)
        middle = self.recorder_kib(dac)
        rate = self.load(dac, half, self.args.clients)[0]
        end = self.recorder_kib(dac)
        server.start()
        self.wait_drained(dac)
        return (before, middle, end), rate, self.drained(dac)

    # --- all of it ---

    def run(self):
        self.mock = Provider(self.folder / "mock").start()
        server = pg.Postgres(SERVER).start()
        on_postgres = self.dacd("postgres", {"postgres": server.conninfo(), "sqlite": None})
        on_sqlite = self.dacd("sqlite", {"spool": None})
        try:
            runs = self.latency(server, on_postgres, on_sqlite)
            met = self.show_latency(runs)
            if not self.args.latency_only:
                self.show_load("PostgreSQL", self.load(on_postgres, self.args.load, self.args.clients))
                self.show_load("SQLite", self.load(on_sqlite, self.args.load, self.args.clients))
                self.show_outage(*self.outage(server, on_postgres))
        finally:
            for dac in (on_postgres, on_sqlite):
                dac.stop()
            self.mock.stop()
            server.close()
            pg.remove_template()
        for problem in self.failed:
            print(f"FAILED: {problem}")
        return met and not self.failed

    # --- what is printed ---

    @staticmethod
    def median(runs, group, name):
        return statistics.median(r[group][name] for r in runs)

    def show_latency(self, runs):
        met = True
        print("\nprovider's end -> done, and a bare commit beside it, ms"
              f" ({self.args.rounds} x {self.args.turns} turns, medians of the rounds)\n")  # fmt: skip
        print("| stored in | p50 | bare | added | p99 | bare | added | goal: p99 | |")
        print("|---|--:|--:|--:|--:|--:|--:|--:|---|")
        for place, found in runs.items():
            if not found:
                self.failed.append(f"{place}: nothing measured")
                continue
            cells = []
            for q in ("p50_ms", "p99_ms"):
                cells += [self.median(found, "done_after_end", q), self.median(found, "bare_commit", q),
                          self.median(found, "added", q)]  # fmt: skip
            ok = cells[-1] <= GOAL_MS
            met = met and ok
            figures = " | ".join(f"{c:.2f}" for c in cells)
            print(f"| {place} | {figures} | at most +{GOAL_MS:.0f} | {'met' if ok else 'missed'} |")
        print("\nof each round, p99 - bare p99:")
        for place, found in runs.items():
            print(f"    {place:10}" + " ".join(f"{r['added']['p99_ms']:7.2f}" for r in found), flush=True)
        return met

    def show_load(self, place, figures):
        rate, rows, ms = figures
        print(f"\n{place} under load ({self.args.clients} clients): {rate:.0f} turns/s over one connection,"
              f" {rows:.1f} rows in a commit, which took {ms:.1f} ms", flush=True)  # fmt: skip

    def show_outage(self, kib, rate, drained):
        rows, seconds = drained
        print(f"\nan outage of {self.args.outage} turns: {rate:.0f} turns/s to the spool; the recorder's own memory"
              f" before, in the middle and at the end: {kib[0]}, {kib[1]}, {kib[2]} KiB")  # fmt: skip
        print(f"draining: {rows} rows in {seconds:.1f} s, {rows / seconds:.0f} rows/s")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=500, help="of each place in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pause", default="3ms", help="before each turn and each bare commit")
    parser.add_argument("--tokens", type=int, default=20, help="of an answer, 16 bytes each")
    parser.add_argument("--gap", default="1ms", help="between two tokens")
    parser.add_argument("--load", type=int, default=20000, help="turns under load")
    parser.add_argument("--outage", type=int, default=20000, help="turns while PostgreSQL is away")
    parser.add_argument("--clients", type=int, default=64, help="under load")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--latency-only", action="store_true")
    args = parser.parse_args()
    with open("/proc/loadavg") as f:
        load = f.read().split()[0]
    print(f"{os.cpu_count()} cores, load {load} before", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="dac-bench-store-"))
    try:
        met = Bench(args, folder).run()
    except Exception:
        print(f"its folder is kept: {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
