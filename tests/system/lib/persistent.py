"""Clients that go on when a worker dies, as a browser does: by Last-Event-ID, or by asking again."""

import asyncio

from lib.wire import Stream

BROKEN = (ConnectionError, asyncio.IncompleteReadError, OSError)
PATIENCE = 25  # seconds that nobody may have to wait for anything


def resume(dac, turn, position):
    """An open stream of a turn that goes on behind an event's id."""
    headers = {"x-org-id": "org_demo", "Last-Event-ID": position}
    return Stream.open("127.0.0.1", dac.port, f"/api/turns/{turn}/stream", headers, method="GET")


class Told:
    """What a client was told at last."""

    def __init__(self, text, turn, end, asked):
        self.text = text
        self.turn = turn
        self.end = end  # "done", or an error's code
        self.asked = asked  # how many requests it took


async def _pause():
    await asyncio.sleep(0.05)


async def native(dac, thread, question, headers=None):
    """Streams; what broke off is resumed at its last event, or asked again if it had not begun."""
    turn = position = None
    text = ""
    for asked in range(1, 200):
        try:
            s = await (resume(dac, turn, position) if turn else dac.open_ask(thread, question, headers))
            if s.status != 200:
                await s.body()
                assert s.status in (503, 404), s.status
                if s.status == 404:  # it left memory before it was stored
                    turn, text = None, ""
                await _pause()
                continue
            await s.rest(PATIENCE)
        except BROKEN:
            await _pause()
            continue
        metas = s.named("meta")
        if metas:
            turn = metas[0].data["turn_id"]
            text = s.text if s.named("reset") else text + s.text
            position = [e.id for e in s.events if e.id][-1]
        if s.complete:
            ends = s.named("done", "error")
            assert len(ends) == 1, s.events[-3:]
            return Told(text, turn, "done" if ends[0].name == "done" else ends[0].data["code"], asked)
    raise AssertionError(f"no end: {question}")


async def whole(dac, thread, question, headers=None):
    """Asks for the answer as one JSON document, again where the connection breaks."""
    for asked in range(1, 200):
        try:
            r = await dac.ask_json(thread, question, headers, timeout=PATIENCE)
        except BROKEN:
            r = None
        if r is None or not r.complete or r.status == 503:
            await _pause()
            continue
        d = r.json()
        if r.status != 200:
            return Told("", None, d["error"]["code"], asked)
        return Told(d["assistant_message"]["content"], d["turn_id"], "done", asked)
    raise AssertionError(f"no end: {question}")


async def chat(dac, question, headers=None):
    """Streams in the OpenAI dialect, which knows no reset; again where it broke off."""
    for asked in range(1, 200):
        try:
            s = await dac.open_chat(question, headers)
            if s.status == 200:
                await s.rest(PATIENCE)
                if s.complete:
                    error = "error" in s.events[-1].data if s.events else True
                    assert s.chat_done != error, s.events[-2:]
                    turn = s.head.get("x-dac-turn-id")
                    return Told(s.chat_text, turn, "done" if s.chat_done else "error", asked)
            else:
                await s.body()
                assert s.status == 503, s.status
        except BROKEN:
            pass
        await _pause()
    raise AssertionError(f"no end: {question}")
