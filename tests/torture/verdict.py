"""What must hold when all is over: nothing lost, nothing twice, nothing left in use."""

import asyncio
import collections
import datetime
import json
import re
import time

from ledger import ENDLESS

OVERLAP = 0.05  # seconds by which the provider may see an end late
OVERLAP_LEFT = 0.5  # the same, where a call was given up because nobody listened or one said stop
UNSTORED = 5  # seconds in which a recorder that lives so long has stored all that ended


class Calls:
    """Follows the provider's own log: which question was being answered from when to when."""

    def __init__(self, mock, ledger):
        self.mock, self.ledger = mock, ledger
        self.next = 0
        self.turn_over = asyncio.Lock()

    async def follow(self):
        while True:
            await asyncio.sleep(1)
            await self.look()

    async def look(self):
        async with self.turn_over:
            got = await self.mock.control("GET", f"log?since={self.next}")
            self.next = got["next"]
            for e in got["events"]:
                at = e["t_ns"] / 1e9
                if e["event"] == "request":
                    self.ledger.calls[e["call"]] = [e["user"], at, None, False]
                elif e["event"] in ("end", "closed_by_client", "reset_by_client", "cut"):
                    self.ledger.calls[e["call"]][2:] = [at, e["event"] == "end"]


async def all_free(instance):
    """Nothing is in use any more: no flight, block or permit, no call at the provider."""
    problem = instance.ledger.problem
    for _ in range(300):
        code, text = await instance.dacctl("status", "--json")
        status = json.loads(text)
        flights = status["flights"]
        if flights["free"] == flights["total"] and status["blocks"]["used"] == 0:
            break
        await asyncio.sleep(0.1)
    else:
        problem("leak", f"flights {flights}, blocks {status['blocks']}: {(await instance.dacctl('flights'))[1]}")
    for p in status["providers"]:
        if p["in_flight"]:
            problem("leak", f"{p['in_flight']} permits were not given back")
    code, words = await instance.dacctl("check")
    if code:
        problem("check", f"at the end, dacctl check: {words}")
    try:
        await instance.mock.wait(active=0)
    except AssertionError as e:
        problem("leak", str(e))


# --- the store ----------------------------------------------------------------------------


def judge_store(dac, ledger):
    """Every row is right by itself, and all that was acknowledged is there, once, as it was told."""
    rows = collections.defaultdict(list)
    messages = collections.defaultdict(list)
    for row in dac.turns():
        rows[row["id"]].append(row)
    for m in dac.messages():
        messages[m["turn_id"]].append(m)
    for turn in messages:
        if turn not in rows:
            ledger.problem("lost", f"messages of turn {turn}, which is not there")
    for turn, found in rows.items():
        if len(found) > 1:
            ledger.problem("duplicate", f"turn {turn} is there {len(found)} times")
        judge_row(ledger, found[0], messages[turn])
    for turn, (asked, status, text) in ledger.acknowledged.items():
        if turn not in rows:
            ledger.problem("lost", f"turn {turn} was told to be {status}: {asked.text}")
            continue
        row = rows[turn][0]
        said = "".join(m["content"] for m in messages[turn] if m["role"] == "assistant")
        if (row["status"], row["thread_id"], said) != (status, asked.thread, text):
            ledger.problem("lost", f"turn {turn} was told as {status}, {text!r}; stored: {row['status']}, {said!r}")
    threads = [row["id"] for row in dac.sql("SELECT id FROM threads")]
    for thread in ledger.threads - set(threads):
        ledger.problem("lost", f"thread {thread} was told to be stored")
    if len(threads) != len(set(threads)):
        ledger.problem("duplicate", "a thread is there twice")
    return [found[0] for found in rows.values()], messages


def judge_row(ledger, row, messages):
    """A turn has its question, and of the provider's text what its status says."""
    texts = collections.defaultdict(list)
    for m in messages:
        texts[m["role"]].append(m["content"])
    asked = ledger.asked.get(texts["user"][0]) if len(texts["user"]) == 1 else None
    if not asked:
        ledger.problem("lost", f"turn {row['id']} has the questions {texts['user']}")
        return
    answers = texts["assistant"]
    if row["status"] == "complete":
        right = answers == [asked.expected]
    else:
        right = len(answers) < 2 and asked.expected.startswith("".join(answers))
    if not right:
        kind = "duplicate" if len(answers) > 1 else "text"
        ledger.problem(kind, f"stored as {row['status']}: {answers}: {asked.text}")


# --- calls --------------------------------------------------------------------------------


def clock(text):
    """A wall clock's time, as time.monotonic() had it."""
    t = datetime.datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=datetime.timezone.utc)
    return t.timestamp() - time.time() + time.monotonic()


def meets(periods, begin, end):
    return any(a < end and begin < b for a, b in periods)


class Deaths:
    """What the masters logged of whom they reaped; who ended otherwise than by SIGKILL is a finding."""

    def __init__(self, dac, ledger):
        self.times = []
        self.recorderless = []  # [from, to]
        for line in dac.log.splitlines():
            m = re.match(r"(\S+Z) WARN \S+ (\w+).* (was ended by signal (\d+)|exited with code)", line)
            if m:
                at, delay = clock(m[1]), re.search(r"another in ([0-9.]+) s", line)
                self.times.append(at)
                if m[2] == "recorder":
                    self.recorderless.append((at, at + (float(delay[1]) if delay else 0)))
                if m[4] != "9":
                    ledger.problem("crash", line)
            elif "assertion" in line:
                ledger.problem("crash", line)

    def in_time(self, begin, end):
        return sum(begin < t < end for t in self.times)

    def kept_unstored(self, begin, end):
        """Whether no recorder lived long enough in that time to store what had ended before it."""
        since = begin
        for down, up in [*sorted(d for d in self.recorderless if begin < d[0] < end), (end, end)]:
            if down - since > UNSTORED:
                return False
            since = up
        return True


def judge_calls(dac, ledger, rows, messages):
    """One call a turn and one more at most for each death in its life; never two at a time."""
    deaths = Deaths(dac, ledger)
    turns = collections.defaultdict(list)
    for row in rows:
        for m in messages[row["id"]]:
            if m["role"] == "user":
                turns[m["content"]].append(row)
    calls = collections.defaultdict(list)
    for question, begin, end, whole in ledger.calls.values():
        calls[question].append((begin, end or begin, whole))
    found = dac.sql("SELECT data FROM rejected WHERE kind = 'turn' AND data IS NOT NULL")
    aside = [json.loads(r["data"])["question"] for r in found]
    for question in aside:
        ledger.count["turns set aside"] += 1
        turns.pop(question, None)
    for question, asked in ledger.asked.items():
        if question not in aside:
            judge_question(ledger, asked, turns[question], sorted(calls[question]), deaths)
    ledger.count["turns stored"] = len(rows)
    ledger.count["calls to the provider"] = len(ledger.calls)
    ledger.count["questions that were asked for again"] = sum(row["generation"] > 0 for row in rows)


def judge_question(ledger, asked, rows, calls, deaths):
    if len(rows) > asked.posts:
        ledger.problem("duplicate", f"asked {asked.posts} times, stored as {len(rows)} turns: {asked.text}")
    for row in rows:
        life = clock(row["created_at"]) - 0.5, clock(row["finished_at"]) + 0.5
        in_its_life = deaths.in_time(*life)
        if row["generation"] > in_its_life and not meets(ledger.lost_memory, *life):
            ledger.problem("call", f"generation {row['generation']} with {in_its_life} deaths: {asked.text}")
    # A flight that went with its segment is in no store.
    ended = max((c[1] for c in calls), default=asked.began)
    lost = min((a for a, b in ledger.lost_memory if b > asked.began), default=ENDLESS)
    may_be_lost = lost < ENDLESS and (lost < ended or deaths.kept_unstored(ended, lost))
    if not may_be_lost and len(calls) > sum(1 + row["generation"] for row in rows):
        generations = [row["generation"] for row in rows]
        ledger.problem("call", f"{len(calls)} calls for turns of generations {generations}: {asked.text}")
    for (began, end, whole), (begin, _, _) in zip(calls, calls[1:], strict=False):
        # Given up, and that not carried out yet: the provider is left, at once or when who stands still goes on.
        given_up = asked.cancelled or asked.left
        allowed = OVERLAP_LEFT if given_up and not whole else OVERLAP
        stood_still = given_up and meets(ledger.standstills, begin, end)
        if end - begin > allowed and not stood_still and not meets(ledger.two_masters, began, begin):
            ledger.problem("call", f"two calls at the same time for {end - begin:.3f} s: {asked.text}")


async def judge(instance, calls):
    await all_free(instance)
    await calls.look()
    try:
        await asyncio.to_thread(instance.dac.stop)
    except AssertionError as e:
        instance.ledger.problem("leak" if "left" in str(e) else "crash", str(e))
    rows, messages = judge_store(instance.dac, instance.ledger)
    judge_calls(instance.dac, instance.ledger, rows, messages)
