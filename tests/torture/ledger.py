"""What the clients were told, what they asked, and what was wrong: all that a verdict needs."""

import collections
import hashlib
import json
import re
import time

ENDLESS = float("inf")

# Errors that a death may cause. Anything else that a client is told is a finding.
CODES = {
    "fetcher_died",  # nobody could take it over, or too often
    "shutting_down",  # the master died
    "not_stored",  # the recorder was away for longer than done_timeout
    "store_unavailable",  # the same, for a reader of the store
    "busy",  # a lock's holder died
    "no_room",
}


class Asked:
    """One question in one scope: a thread, or stateless chat."""

    def __init__(self, text, tokens, size, thread):
        h = hashlib.sha256(text.encode()).hexdigest()[:8]
        self.text = text
        if size:  # bytes of a token
            self.expected = "".join(f"tok-{h}-{i}".ljust(size - 1, "x") + " " for i in range(tokens))
        else:
            self.expected = " ".join(f"tok-{h}-{i}" for i in range(tokens))
        self.thread = thread  # None: chat
        self.posts = 0
        self.key = None  # what its Idempotency-Keys begin with; None: it is asked without
        self.cancelled = False  # somebody said stop
        self.left = False  # somebody left it or was cut off: it may end as cancelled by itself
        self.began = time.monotonic()

    @property
    def may_be_cancelled(self):
        """Whether a request of its own may find it cancelled: a key stands for what came of it."""
        return self.cancelled or (self.key is not None and self.left)


class Ledger:
    def __init__(self):
        self.asked = {}  # text: Asked
        self.acknowledged = {}  # turn: (Asked, status, text)
        self.keys = {}  # Idempotency-Key: the turn that it was told to stand for
        self.threads = set()  # ids of threads that were said to be stored
        self.running = collections.deque(maxlen=16)  # (turn, Asked) that began of late
        self.count = collections.Counter()
        self.answers = collections.Counter()
        self.problems = []
        self.masterless = []  # [from, to], times in which no master lived, or it stood still
        self.lost_memory = []  # those of them in which the segment was given up
        self.two_masters = []  # [from, to], in which the children of a dead one still ended their calls
        self.standstills = []  # [from, to], times of stopped processes
        self.calls = {}  # the provider's number of a call: [question, from, to, whole]

    def problem(self, kind, words):
        """kind: stuck, lost, duplicate, leak, text, order, code, call, crash, check, start, harness."""
        words = re.sub(r"x{40,}", "x...x", words)
        self.problems.append((kind, words))
        print(f"PROBLEM {json.dumps([kind, words])}", flush=True)

    def ask(self, asked):
        self.asked[asked.text] = asked
        return asked

    def acknowledge(self, turn, asked, status, text):
        """A client was told that this is stored."""
        known = self.acknowledged.setdefault(turn, (asked, status, text))
        if known[0] is not asked or known[1:] != (status, text):
            self.problem("duplicate", f"turn {turn} was told twice, not alike: {known[1:]}, {status}, {text!r}")

    def told(self, key, turn, asked):
        """A request with this key was told that its turn is stored. Where the children of a dead
        master still ended what they had, that and another turn may have had it."""
        if key is None:
            return
        self.count["answers by key"] += 1
        if self.keys.setdefault(key, turn) == turn or any(to >= asked.began for _, to in self.two_masters):
            return
        self.problem("duplicate", f"a key stood for turn {self.keys[key]}, then for {turn}: {asked.text}")

    def refused(self, code, where):
        self.answers[f"error {code}"] += 1
        if code not in CODES:
            self.problem("code", f"{where} was told {code}")

    def memory_lost_since(self, when):
        return any(to >= when for _, to in self.lost_memory)

    def masterless_since(self, when):
        return any(to >= when for _, to in self.masterless)


class Answer:
    """A native client's view of one answer, over as many connections as it took."""

    def __init__(self, ledger, asked):
        self.ledger = ledger
        self.asked = asked
        self.turn = None
        self.text = ""
        self.last_id = None
        self.at = (0, 0)
        self.stream = None  # the present connection
        self.connections = 0
        self.key = None  # of the request that it is the answer of, while nobody resumed it
        self.ended = None  # the event that ended it
        self.began = time.monotonic()

    def wrong(self, kind, words):
        self.ledger.problem(kind, f"{words}; turn {self.turn}, connection {self.connections}: {self.asked.text}")

    def take(self, e):
        """The next event. Ids never go back, and count the bytes that this client has."""
        if e.name is None:
            if isinstance(e.data, dict):
                self.wrong("order", f"an event without a name: {e.raw[:100]}")
            return
        if self.ended:
            self.wrong("order", f"{e.name} behind {self.ended.name}")
        generation, at = map(int, e.id.split("-"))
        if e.name == "reset":
            self.text = ""
            self.ledger.count["resets"] += 1
        elif e.name == "delta":
            self.text += e.data["text"]
            if not self.asked.expected.startswith(self.text):
                self.wrong("text", f"{self.text!r} is not how the provider's text begins")
        elif e.name == "meta":
            if self.turn not in (None, e.data["turn_id"]):
                self.wrong("order", f"another turn: {e.data}")
            self.turn = e.data["turn_id"]
        elif e.name in ("done", "error"):
            self.end(e)
        if at != len(self.text) or generation < self.at[0]:
            self.wrong("order", f"{e.name} has id {e.id} behind {self.at}, {len(self.text)} bytes are here")
        self.at = (generation, at)
        self.last_id = e.id

    def end(self, e):
        self.ended = e
        if e.name == "done" and self.connections == 1:
            self.ledger.told(self.key, self.turn, self.asked)
        if e.name == "error":
            self.ledger.refused(e.data["code"], "a stream")
        elif e.data["finish_reason"] == "cancelled":
            # It never happens to one who listened all the time, unless somebody said stop.
            if not self.asked.may_be_cancelled and not (self.asked.left and self.connections > 1):
                self.wrong("order", "cancelled, though nobody said stop")
            self.ledger.answers["native stream, cancelled"] += 1
            self.ledger.acknowledge(self.turn, self.asked, "cancelled", self.text)
        else:
            if self.text != self.asked.expected:
                self.wrong("text", f"done, but the text is {self.text!r}")
            self.ledger.answers["native stream, done"] += 1
            self.ledger.acknowledge(self.turn, self.asked, "complete", self.text)
