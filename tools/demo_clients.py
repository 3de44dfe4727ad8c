#!/usr/bin/env python3
"""The demo's clients: one question, asked by many connections at once.

Shows the text of the first client as it arrives and a counter of all streams below it, then
writes what was measured to a JSON file. Standard library only.
"""

import argparse
import asyncio
import http.client
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field

HEADERS = {"content-type": "application/json", "x-org-id": "org_demo"}


@dataclass
class Client:
    text: list = field(default_factory=list)
    role: str = ""
    turn_id: str = ""
    asked: float = 0.0
    ttft: float | None = None
    done: dict | None = None
    error: str = ""


class Screen:
    """The first client's text, wrapped, with one status line below it. On a terminal the last
    line of text and the status are drawn again and again; in a log only whole lines appear."""

    def __init__(self):
        self.live = sys.stdout.isatty()
        self.width = min(shutil.get_terminal_size((80, 24)).columns, 90) - 2
        self.line = ""
        self.drawn = False

    def _up(self):
        if self.live and self.drawn:
            sys.stdout.write("\r\033[2K\033[1A\r\033[2K")
        self.drawn = False

    def add(self, text):
        self._up()
        for char in text:
            if char == "\n":
                self._put_line(self.line)
                self.line = ""
                continue
            self.line += char
            if len(self.line) > self.width:
                head, space, tail = self.line.rpartition(" ")
                self._put_line(head if space else self.line)
                self.line = tail if space else ""

    def _put_line(self, line):
        sys.stdout.write(f"  {line}\n")
        sys.stdout.flush()

    def status(self, text):
        if not self.live:
            return
        self._up()
        sys.stdout.write(f"  {self.line}\n  {text[: self.width]}")
        sys.stdout.flush()
        self.drawn = True

    def finish(self, text):
        self._up()
        if self.line:
            self._put_line(self.line)
            self.line = ""
        sys.stdout.write(f"\n  {text}\n")
        sys.stdout.flush()


async def body_parts(reader, headers):
    """The body's bytes as they come, without the chunks' framing."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readline()).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        return
    while part := await reader.read(65536):
        yield part


async def events(reader, headers):
    """(event, data) of an SSE stream."""
    rest = b""
    async for part in body_parts(reader, headers):
        rest += part
        *blocks, rest = rest.split(b"\n\n")
        for block in blocks:
            name, data = "message", []
            for line in block.decode().split("\n"):
                key, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if key == "event":
                    name = value
                elif key == "data":
                    data.append(value)
            if data:
                yield name, json.loads("\n".join(data))


async def ask(client, args, path, body, ready, on_text):
    reader, writer = await asyncio.open_connection(args.host, args.port)
    try:
        ready.arrive()
        await ready.all.wait()
        head = f"POST {path} HTTP/1.1\r\nhost: {args.host}\r\ncontent-length: {len(body)}\r\n"
        head += "".join(f"{k}: {v}\r\n" for k, v in HEADERS.items())
        client.asked = time.monotonic()
        writer.write(head.encode() + b"accept: text/event-stream\r\n\r\n" + body)
        await writer.drain()
        status = (await reader.readline()).decode().split(" ", 2)
        headers = {}
        while line := (await reader.readline()).decode().strip():
            key, _, value = line.partition(":")
            headers[key.lower()] = value.strip()
        if status[1] != "200":
            client.error = " ".join(status).strip()
            return
        async for name, data in events(reader, headers):
            if name == "meta":
                client.role, client.turn_id = data["role"], data["turn_id"]
            elif name == "delta":
                if client.ttft is None:
                    client.ttft = time.monotonic() - client.asked
                client.text.append(data["text"])
                on_text(data["text"])
            elif name == "error":
                client.error = f"{data.get('code')}: {data.get('message')}"
                return
            elif name == "done":
                client.done = data
                return
        client.error = "the stream ended without done"
    except (OSError, EOFError, ValueError, KeyError) as e:
        client.error = f"{type(e).__name__}: {e}"
    finally:
        writer.close()


class Ready:
    """All ask in the moment in which the last of them is connected."""

    def __init__(self, count):
        self.missing = count
        self.all = asyncio.Event()

    def arrive(self):
        self.missing -= 1
        if self.missing == 0:
            self.all.set()


def new_thread(args):
    connection = http.client.HTTPConnection(args.host, args.port, timeout=10)
    connection.request("POST", "/api/threads/", json.dumps({"title": "Demo"}), HEADERS)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 201:
        sys.exit(f"demo: the thread could not be made: {answer.status} {body[:200]}")
    connection.close()
    return json.loads(body)["thread_id"]


async def run(args):
    path = f"/api/threads/{new_thread(args)}/messages/stream"
    body = json.dumps(
        {
            "role": "user",
            "content": args.question,
            "system": args.system,
            "provider": args.provider,
            "model": args.model,
            "temperature": 0,
            "max_tokens": args.max_tokens,
        }
    ).encode()
    clients = [Client() for _ in range(args.clients)]
    ready = Ready(args.clients)
    screen = Screen()
    started = time.monotonic()

    def counters():
        streaming = sum(1 for c in clients if c.text and not c.done)
        ended = sum(1 for c in clients if c.done)
        size = sum(len(t) for c in clients for t in c.text)
        return (
            f"[{time.monotonic() - started:4.1f} s]  {streaming} of {args.clients} streams"
            f" running, {ended} complete, {size:,} characters"
        )

    async def ticker():
        while True:
            screen.status(counters())
            await asyncio.sleep(0.1)

    tick = asyncio.create_task(ticker())

    def quiet(text):
        pass

    await asyncio.wait_for(
        asyncio.gather(
            *(
                ask(c, args, path, body, ready, quiet if i else screen.add)
                for i, c in enumerate(clients)
            )
        ),
        args.timeout,
    )
    tick.cancel()
    screen.finish(counters())
    return clients


def percentile(values, p):
    return sorted(values)[min(len(values) - 1, int(len(values) * p / 100))] if values else None


def summary(clients):
    texts = {"".join(c.text) for c in clients}
    good = [c for c in clients if c.done and not c.error]
    ttfts = [c.ttft * 1000 for c in clients if c.ttft is not None]
    roles = {}
    for c in clients:
        roles[c.role or "none"] = roles.get(c.role or "none", 0) + 1
    done = good[0].done if good else {}
    return {
        "clients": len(clients),
        "whole": len(good),
        "equal": len(texts) == 1,
        "roles": roles,
        "turns": len({c.turn_id for c in good}),
        "ttft_p50_ms": percentile(ttfts, 50),
        "ttft_p99_ms": percentile(ttfts, 99),
        "usage": done.get("usage") or {},
        "stored": done.get("stored"),
        "errors": sorted({c.error for c in clients if c.error}),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--question", required=True)
    parser.add_argument("--system", default="You are a helpful assistant.")
    parser.add_argument("--provider", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-tokens", type=int, default=240)
    parser.add_argument("--timeout", type=float, default=180)
    parser.add_argument("--result", required=True, help="the JSON file to write")
    args = parser.parse_args()
    # Ctrl-C ends it at once: there is nothing to put away here.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    try:
        clients = asyncio.run(run(args))
    except TimeoutError:
        sys.exit("demo: the answer took too long")
    except OSError as e:
        sys.exit(f"demo: {e}")
    result = summary(clients)
    with open(args.result, "w", encoding="utf-8") as out:
        json.dump(result, out)
    if result["whole"] != args.clients:
        sys.exit(f"demo: {args.clients - result['whole']} clients failed: {result['errors']}")


if __name__ == "__main__":
    main()
