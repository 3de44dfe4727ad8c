"""The load: what each of many clients does again and again, checking each answer as it comes."""

import asyncio
import random
import time
import zlib

from ledger import Answer, Asked
from lib import wire

STUCK = 30  # seconds in which a connection is over, deaths or not: done_timeout is 10 of them
GIVE_UP = 150  # seconds in which all is over, however often a client came back
CUT_OFF = (ConnectionError, asyncio.IncompleteReadError)
THREADS = 6  # in which questions are asked at a time; histories do not grow without end


class Client:
    def __init__(self, number, seed, dac, ledger, crowd):
        self.rng = random.Random(seed * 1000 + number)
        self.dac = dac
        self.ledger = ledger
        self.crowd = crowd

    async def run(self):
        acts = {
            self.native_stream: 38,
            self.native_json: 18,
            self.chat_stream: 18,
            self.chat_json: 10,
            self.attach: 7,
            self.read_again: 5,
            self.new_thread: 2,
            self.read_thread: 2,
        }
        while not self.crowd.over:
            act = self.rng.choices(list(acts), acts.values())[0]
            began = time.monotonic()
            try:
                async with asyncio.timeout(GIVE_UP):
                    await act()
            except TimeoutError:
                self.ledger.problem("stuck", f"{act.__name__} for {time.monotonic() - began:.0f} s")
            except CUT_OFF:
                self.ledger.count["cut off"] += 1
                await self.pause()
            except wire.WireError as e:
                self.ledger.problem("order", f"{act.__name__}: {e}")

    async def pause(self):
        await asyncio.sleep(0.01 + self.rng.random() * 0.1)

    # --- questions ---

    def new_question(self, thread, shared):
        kind = self.rng.random()
        if kind < 0.75:
            tokens, gap = self.rng.randrange(1, 30), self.rng.choice(["5ms", "3ms", "0ms"])
        elif kind < 0.93:
            tokens, gap = self.rng.randrange(60, 150), "2ms"
        else:
            tokens, gap = self.rng.randrange(300, 600), self.rng.choice(["0ms", "1ms"])
        size = None
        if self.crowd.long_answers and self.rng.random() < 0.2:
            tokens, gap, size = self.rng.randrange(20, 150), "1ms", 2000
        more = " ttft=60ms" if self.rng.random() < 0.2 else ""
        more += f" token_size={size}" if size else ""
        name = f"{'Shared' if shared else 'My own'} kumquat {self.rng.getrandbits(48):012x}?"
        text = f"{name} [mock tokens={tokens} gap={gap}{more}]"
        asked = Asked(text, tokens, size, thread)
        if self.rng.random() < 0.3:
            asked.key = name
        return self.ledger.ask(asked)

    def question(self, chat):
        if self.rng.random() < 0.5:
            return self.new_question(None if chat else self.crowd.thread(self.rng), False)
        return self.crowd.shared(chat, self)

    def body(self, asked, **more):
        if asked.thread:
            return self.dac.question(asked.text, **more)
        return self.dac.chat_question(asked.text, **more)

    async def post(self, asked, path, body, stream):
        """Asks, and asks again where the connection was lost or there was a 503; the open stream
        or the response, None if it was given up. Of some questions each request has a key."""
        key = asked.key and f"{asked.key} {zlib.crc32(repr(body).encode()):08x}"
        headers = {"Idempotency-Key": key} if key else {}
        for _ in range(60):
            asked.posts += 1
            try:
                async with asyncio.timeout(STUCK):
                    r = await (self.dac.stream if stream else self.dac.post)(path, body, headers=headers)
            except CUT_OFF:
                asked.left = True
                self.ledger.count["cut off before an answer"] += 1
                r = None
            if r and r.status == 200 and (stream or r.complete):
                r.key = key
                return r
            if r and stream:
                r = wire.Response(r.head, await r.body(), True)
            if r and not r.complete:
                asked.left = True
            elif r:
                self.refusal(r, asked)
            if self.rng.random() < 0.2:
                return None
            await self.pause()
            if asked.cancelled or self.rng.random() < 0.2:
                return None
            self.ledger.count["asked again"] += 1
        return None

    def refusal(self, r, asked):
        """An answer that is a problem: its code is one that deaths cause, its text is pure."""
        problem = r.json()
        if "code" not in problem:
            self.ledger.problem("code", f"{r.status} without a code: {r.text[:300]}")
            return
        if problem["code"] == "cancelled" and r.status == 409:
            self.ledger.answers["chat JSON, cancelled"] += 1
            if not asked.may_be_cancelled:
                self.ledger.problem("order", f"cancelled, though nobody said stop: {asked.text}")
            return
        self.ledger.refused(problem["code"], f"{r.status}")
        if "turn" in problem:
            text = problem["turn"]["assistant_message"]["content"]
            if not asked.expected.startswith(text):
                self.ledger.problem("text", f"{text!r} is not how the provider's text begins: {asked.text}")

    # --- native streams ---

    async def native_stream(self):
        asked = self.question(chat=False)
        path = f"/api/threads/{asked.thread}/messages/stream"
        s = await self.post(asked, path, self.body(asked), True)
        if not s:
            return
        answer = Answer(self.ledger, asked)
        answer.key = s.key
        how = self.rng.random()
        if how < 0.10:
            await self.read(s, answer, leave=self.rng.randrange(1, 12))
            self.ledger.answers["left"] += 1
            return
        if how < 0.18 and await self.read(s, answer, leave=self.rng.randrange(2, 12)):
            await self.pause()
            s = None
        elif how < 0.24 and await self.read(s, answer, leave=2, stay=True):
            self.crowd.also(self.cancel(answer.turn, asked))
        if not answer.ended:
            await self.follow(answer, s)

    async def read(self, s, answer, leave=None, stay=False):
        """Reads until the answer ended, or broke off (True). With `leave`: closes after so many
        events, or stays and only returns."""
        slow = self.rng.random() < 0.05
        if s is not answer.stream:
            answer.stream = s
            answer.connections += 1
        ends = asyncio.get_running_loop().time() + STUCK
        while True:
            async with asyncio.timeout_at(ends):
                e = await s.next()
            if e is None:
                break
            answer.take(e)
            if answer.turn and e.name == "meta":
                self.ledger.running.append((answer.turn, answer.asked))
            if slow:
                await asyncio.sleep(0.02)
            if leave and len(s.events) >= leave and answer.turn and not answer.ended:
                if not stay:
                    answer.asked.left = True
                    self.rng.choice([s.close, s.reset])()
                return True
        s.close()
        if answer.ended:
            return False
        if s.complete:
            answer.wrong("order", "the stream is over without done or error")
        answer.asked.left = True
        self.ledger.count["broken streams"] += 1
        return True

    async def follow(self, answer, s):
        """As EventSource does: reads on, connects again by Last-Event-ID, until there is an end."""
        while not answer.ended:
            if s is None:
                s = await self.resume(answer)
                if s is None:
                    return
            await self.read(s, answer)
            s = None
        if answer.connections > 1:
            self.ledger.count["resumed to the end"] += 1

    async def resume(self, answer):
        """The stream behind the last event; None where the turn went with the segment."""
        if not answer.turn:
            return None
        headers = {"x-org-id": "org_demo"}
        if answer.last_id:
            headers["Last-Event-ID"] = answer.last_id
        while True:
            await self.pause()
            try:
                async with asyncio.timeout(STUCK):
                    s = await self.dac.stream(f"/api/turns/{answer.turn}/stream", None, headers, method="GET")
            except CUT_OFF:
                continue
            if s.status == 200:
                return s
            body = await s.body()
            if s.status == 404:
                self.ledger.answers["gone"] += 1
                # What was asked for is remembered, unless the segment went before the recorder did.
                if answer.text and not self.ledger.memory_lost_since(answer.began):
                    answer.wrong("lost", "404 for a turn that had begun")
                return None
            if s.status != 503:
                answer.wrong("order", f"resuming at {answer.last_id}: {s.status} {body[:200]}")
                return None
            self.ledger.count["resumed later"] += 1

    async def cancel(self, turn, asked):
        asked.cancelled = True
        try:
            r = await self.dac.post(f"/api/turns/{turn}/cancel", timeout=STUCK)
        except TimeoutError:
            self.ledger.problem("stuck", f"cancelling {turn}")
            return
        except CUT_OFF:
            return
        self.ledger.count[f"cancel: {r.status}"] += 1
        if r.status not in (200, 404, 503) and r.complete:
            self.ledger.problem("order", f"cancelling {turn}: {r.status} {r.text[:200]}")

    async def attach(self):
        """Listens to a turn of somebody else's, from its beginning or from somewhere."""
        if not self.ledger.running:
            await self.native_stream()
            return
        turn, asked = self.rng.choice(self.ledger.running)
        answer = Answer(self.ledger, asked)
        answer.turn = turn
        asked.left = True  # it may be resumed behind its end by nobody's listening
        answer.connections = 1
        await self.follow(answer, None)

    # --- the others ---

    async def native_json(self):
        asked = self.question(chat=False)
        r = await self.post(asked, f"/api/threads/{asked.thread}/messages", self.body(asked), False)
        if not r:
            return
        turn = r.json()
        text = turn["assistant_message"]["content"]
        self.ledger.told(r.key, turn["turn_id"], asked)
        if turn["status"] == "cancelled" and asked.may_be_cancelled:
            self.ledger.answers["native JSON, cancelled"] += 1
            pure = asked.expected.startswith(text)
        else:
            self.ledger.answers["native JSON, done"] += 1
            pure = turn["status"] == "complete" and text == asked.expected
        if not pure:
            self.ledger.problem("text", f"{turn['status']}, {text!r}: {asked.text}")
        self.ledger.acknowledge(turn["turn_id"], asked, turn["status"], text)

    async def chat_json(self):
        asked = self.question(chat=True)
        r = await self.post(asked, "/v1/chat/completions", self.body(asked), False)
        if not r:
            return
        text = r.json()["choices"][0]["message"]["content"]
        self.ledger.told(r.key, r.get("x-dac-turn-id"), asked)
        self.ledger.answers["chat JSON, done"] += 1
        if text != asked.expected:
            self.ledger.problem("text", f"chat: {text!r}: {asked.text}")
        self.ledger.acknowledge(r.get("x-dac-turn-id"), asked, "complete", text)

    async def chat_stream(self):
        asked = self.question(chat=True)
        s = await self.post(asked, "/v1/chat/completions", self.body(asked, stream=True), True)
        if not s:
            return
        leave = self.rng.randrange(1, 12) if self.rng.random() < 0.12 else None
        text, finish, error = "", None, None
        ends = asyncio.get_running_loop().time() + STUCK
        while True:
            async with asyncio.timeout_at(ends):
                e = await s.next()
            if e is None:
                break
            if isinstance(e.data, dict):
                error = e.data.get("error", error)
                for choice in e.data.get("choices", []):
                    text += choice["delta"].get("content") or ""
                    finish = choice.get("finish_reason") or finish
            if not asked.expected.startswith(text):
                self.ledger.problem("text", f"chat: {text!r} is not how it begins: {asked.text}")
                break
            if leave and len(s.events) >= leave:
                asked.left = True
                self.ledger.answers["left"] += 1
                self.rng.choice([s.close, s.reset])()
                return
        s.close()
        self.chat_ended(asked, s, text, finish, error)

    def chat_ended(self, asked, s, text, finish, error):
        if s.chat_done:
            self.ledger.told(s.key, s.head.get("x-dac-turn-id"), asked)
            self.ledger.answers["chat stream, done"] += 1
            if text != asked.expected or finish != "stop" or error:
                self.ledger.problem("text", f"[DONE] behind {text!r}, {finish}, {error}: {asked.text}")
            self.ledger.acknowledge(s.head.get("x-dac-turn-id"), asked, "complete", text)
        elif error and s.complete:
            if error["code"] in ("cancelled", "abandoned"):  # or: nobody listened any more
                self.ledger.answers["chat stream, cancelled"] += 1
                if not asked.may_be_cancelled:
                    self.ledger.problem("order", f"cancelled, though nobody said stop: {asked.text}")
            else:
                self.ledger.refused(error["code"], "a chat stream")
        elif s.complete:
            self.ledger.problem("order", f"a chat stream without [DONE] or error: {asked.text}")
        else:
            asked.left = True
            self.ledger.count["broken streams"] += 1

    async def new_thread(self):
        r = await self.dac.post("/api/threads/", timeout=STUCK, body={"title": f"kumquat {self.rng.getrandbits(32)}"})
        if r.complete and r.status == 201:
            self.ledger.threads.add(r.json()["thread_id"])
            self.crowd.threads.append(r.json()["thread_id"])
            del self.crowd.threads[:-THREADS]
        elif r.complete:
            self.ledger.refused(r.json()["code"], "a new thread")

    async def read_again(self):
        """What was said to be stored can be read, at once and later."""
        if not self.ledger.acknowledged:
            return
        # Of late, most often: where memory and store meet.
        turns = list(self.ledger.acknowledged)
        turn = self.rng.choice(turns[-20:] if self.rng.random() < 0.7 else turns)
        asked, status, text = self.ledger.acknowledged[turn]
        if self.rng.random() < 0.4:
            answer = Answer(self.ledger, asked)
            answer.turn, answer.connections = turn, 2
            answer.asked.left = True
            await self.follow(answer, None)
            if not answer.ended or answer.text != text:
                answer.wrong("lost", f"it was told to be stored as {text!r}, and reads {answer.text!r}")
            return
        r = await self.dac.get(f"/api/turns/{turn}", timeout=STUCK)
        if not r.complete or r.status == 503:
            return
        got = r.json()
        if r.status != 200 or (got["status"], got["assistant_message"]["content"]) != (status, text):
            self.ledger.problem("lost", f"turn {turn} was stored as {status}, {text!r}, and reads {r.text}")

    async def read_thread(self):
        thread = self.crowd.thread(self.rng)
        r = await self.dac.get(f"/api/threads/{thread}/messages", timeout=STUCK)
        if not r.complete or r.status == 503:
            return
        if r.status != 200:
            self.ledger.problem("lost", f"thread {thread}: {r.status} {r.text[:200]}")
            return
        roles = set()
        for m in r.json()["messages"]:
            known = self.ledger.acknowledged.get(m["turn_id"])
            if (m["turn_id"], m["role"]) in roles:
                self.ledger.problem("duplicate", f"two messages of {m['role']} of turn {m['turn_id']}")
            roles.add((m["turn_id"], m["role"]))
            if known and m["role"] == "assistant" and m["content"] != known[2]:
                self.ledger.problem("lost", f"turn {m['turn_id']} was {known[2]!r} and reads {m['content']!r}")


class Crowd:
    """What the clients have in common: threads, and questions that many ask at the same time."""

    def __init__(self, long_answers, threads):
        self.long_answers = long_answers
        self.threads = list(threads)
        self.over = False
        self.tasks = set()
        self._shared = {}

    def also(self, coroutine):
        task = asyncio.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def thread(self, rng):
        return rng.choice(self.threads)

    def shared(self, chat, client):
        slot = (chat, client.rng.randrange(3))
        asked, until = self._shared.get(slot, (None, 0))
        if time.monotonic() > until:
            asked = client.new_question(None if chat else self.thread(client.rng), True)
            self._shared[slot] = (asked, time.monotonic() + 0.1 + client.rng.random())
        return asked
