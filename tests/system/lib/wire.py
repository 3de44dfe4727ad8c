"""HTTP/1.1 and server-sent events on plain sockets, read strictly.

Nothing here is forgiving: a byte against RFC 9112 or against the shape of the event streams
raises WireError and fails the test. Time stamps are time.monotonic() at arrival.
"""

import asyncio
import json
import re
import socket
import struct
import time


class WireError(AssertionError):
    """The server sent something that it must not send."""


class Head:
    """Status line and headers of a response."""

    def __init__(self, status, reason, fields):
        self.status = status
        self.reason = reason
        self.fields = fields

    def all(self, name):
        return [v for k, v in self.fields if k == name.lower()]

    def get(self, name, default=None):
        """The one value of a header; twice the same header fails."""
        values = self.all(name)
        if len(values) > 1:
            raise WireError(f"header {name} sent {len(values)} times: {values}")
        return values[0] if values else default


class Response:
    """A response read whole. `complete` is False where the connection broke before its end."""

    def __init__(self, head, body, complete):
        self.head = head
        self.status = head.status
        self.body = body
        self.complete = complete

    def get(self, name, default=None):
        return self.head.get(name, default)

    @property
    def text(self):
        return self.body.decode("utf-8")

    def json(self):
        return json.loads(self.body.decode("utf-8"))


TOKEN = re.compile(rb"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")


def parse_head(raw):
    lines = raw.split(b"\r\n")
    m = re.match(rb"^HTTP/1\.[01] (\d\d\d) ([^\r\n]*)$", lines[0])
    if not m:
        raise WireError(f"bad status line {lines[0]!r}")
    fields = []
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not TOKEN.match(name) or b"\n" in value or b"\0" in value:
            raise WireError(f"bad header line {line!r}")
        fields.append((name.decode().lower(), value.strip().decode("latin-1")))
    return Head(int(m[1]), m[2].decode("latin-1"), fields)


class Connection:
    """One client connection. Bodies are handed out as they arrive."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, host, port, rcvbuf=None, limit=1 << 20):
        """With `rcvbuf` and a small `limit` the peer soon feels a reader that does not read."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        if rcvbuf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
            reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
        except BaseException:
            sock.close()
            raise
        return cls(reader, writer)

    async def send(self, data):
        self.writer.write(data)
        await self.writer.drain()

    def close(self):
        """Closes in the ordinary way (FIN, or RST if unread bytes wait)."""
        self.writer.close()

    def reset(self):
        """Closes with RST."""
        sock = self.writer.get_extra_info("socket")
        if sock is not None and sock.fileno() >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def eof(self, timeout=5):
        """Waits for the peer's close and returns what came before it."""
        got = b""
        try:
            async with asyncio.timeout(timeout):
                while piece := await self.reader.read(65536):
                    got += piece
        except ConnectionResetError:
            pass
        return got

    async def read_head(self):
        """The next final head; interim 1xx heads are collected in `interim`."""
        self.interim = []
        while True:
            try:
                raw = await self.reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError as e:
                raise ConnectionResetError(f"closed before a head; got {e.partial!r}") from None
            head = parse_head(raw[:-4])
            if head.status >= 200:
                return head
            self.interim.append(head)

    async def pieces(self, head, method="GET"):
        """Yields (time, bytes) of the body; raises IncompleteReadError if it breaks off."""
        if method == "HEAD" or head.status in (204, 304):
            return
        coding = head.get("transfer-encoding")
        length = head.get("content-length")
        if coding is not None and length is not None:
            raise WireError("both Transfer-Encoding and Content-Length")
        if coding is not None:
            if coding.lower() != "chunked":
                raise WireError(f"transfer coding {coding!r}")
            while True:
                line = await self.reader.readuntil(b"\r\n")
                if not re.match(rb"^[0-9a-fA-F]{1,8}\r\n$", line):
                    raise WireError(f"bad chunk head {line!r}")
                size = int(line, 16)
                if size == 0:
                    if await self.reader.readexactly(2) != b"\r\n":
                        raise WireError("no empty line behind the last chunk")
                    return
                data = await self.reader.readexactly(size)
                if await self.reader.readexactly(2) != b"\r\n":
                    raise WireError("chunk is longer than its head says")
                yield time.monotonic(), data
        elif length is not None:
            left = int(length)
            while left:
                data = await self.reader.read(min(left, 65536))
                if not data:
                    raise asyncio.IncompleteReadError(b"", left)
                left -= len(data)
                yield time.monotonic(), data
        else:
            while data := await self.reader.read(65536):
                yield time.monotonic(), data

    async def read_response(self, method="GET"):
        head = await self.read_head()
        body = bytearray()
        complete = True
        try:
            async for _, data in self.pieces(head, method):
                body += data
        except (asyncio.IncompleteReadError, ConnectionResetError) as e:
            body += getattr(e, "partial", b"")
            complete = False
        return Response(head, bytes(body), complete)


def encode_request(method, path, headers=None, body=None, host="127.0.0.1"):
    """The bytes of a request; a dict or list as body becomes JSON."""
    fields = {"host": host}
    if isinstance(body, (dict, list)):
        body = json.dumps(body, ensure_ascii=False).encode()
        fields["content-type"] = "application/json"
    elif isinstance(body, str):
        body = body.encode()
        fields["content-type"] = "application/json"
    if body is not None:
        fields["content-length"] = str(len(body))
    fields.update({k.lower(): v for k, v in (headers or {}).items()})
    lines = [f"{method} {path} HTTP/1.1"]
    lines += [f"{k}: {v}" for k, v in fields.items() if v is not None]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + (body or b"")


async def request(host, port, method, path, headers=None, body=None, timeout=60):
    """One request on a connection of its own."""
    async with asyncio.timeout(timeout):
        conn = await Connection.open(host, port)
        try:
            await conn.send(
                encode_request(method, path, {"connection": "close", **(headers or {})}, body)
            )
            return await conn.read_response(method)
        finally:
            conn.close()


class Event:
    """One event: name, id, parsed data; a comment has the name None and the text as data."""

    __slots__ = ("name", "id", "data", "raw", "at")

    def __init__(self, name, id_, data, raw, at):
        self.name = name
        self.id = id_
        self.data = data
        self.raw = raw
        self.at = at

    def __repr__(self):
        return f"<{self.name} {self.id} {self.raw[:80]!r}>"


def parse_event(block, at):
    """Parses one block between blank lines. The shape is: one comment line, or the lines
    `event:` (not in the OpenAI dialect), `id:` and exactly one `data:`, each at most once."""
    text = block.decode("utf-8")
    if "\r" in text:
        raise WireError(f"CR inside an event: {block!r}")
    name = id_ = data = None
    lines = text.split("\n")
    if lines[0].startswith(":"):
        if len(lines) != 1:
            raise WireError(f"a comment shares its block: {block!r}")
        return Event(None, None, lines[0][1:].strip(), text, at)
    for line in lines:
        field, colon, value = line.partition(": ")
        if not colon:
            raise WireError(f"line without a field: {line!r}")
        if field == "event" and name is None:
            name = value
        elif field == "id" and id_ is None:
            id_ = value
        elif field == "data" and data is None:
            data = value
        else:
            raise WireError(f"unexpected or repeated field {field!r} in {block!r}")
    if data is None:
        raise WireError(f"event without data: {block!r}")
    parsed = data if data == "[DONE]" else json.loads(data)
    return Event(name, id_, parsed, data, at)


class Stream:
    """A running event stream, read only as fast as the test asks for events."""

    def __init__(self, conn, head, started):
        self.conn = conn
        self.head = head
        self.status = head.status
        self.started = started  # when the request was sent
        self.headed = time.monotonic()
        self.events = []  # all seen so far, comments too
        self.complete = None  # True: ended by the last chunk; False: broke off
        self._pieces = conn.pieces(head, "POST")
        self._buffer = bytearray()
        self._ready = []

    @classmethod
    async def open(cls, host, port, path, headers=None, body=None, method="POST", **kw):
        conn = await Connection.open(host, port, **kw)
        started = time.monotonic()
        try:
            await conn.send(encode_request(method, path, headers, body))
            return cls(conn, await conn.read_head(), started)
        except BaseException:
            conn.close()
            raise

    async def next(self):
        """The next event, comments included; None at the end."""
        while not self._ready:
            if self.complete is not None:
                return None
            try:
                at, data = await anext(self._pieces)
            except StopAsyncIteration:
                self.complete = True
            except (asyncio.IncompleteReadError, ConnectionResetError):
                self.complete = False
            else:
                self._buffer += data
                *blocks, rest = bytes(self._buffer).split(b"\n\n")
                self._buffer = bytearray(rest)
                self._ready += [parse_event(b, at) for b in blocks]
                continue
            if self.complete and self._buffer:
                raise WireError(f"stream ends inside an event: {bytes(self._buffer)!r}")
        event = self._ready.pop(0)
        self.events.append(event)
        return event

    async def until(self, *names, timeout=30):
        """Reads up to and with the first event so named."""
        async with asyncio.timeout(timeout):
            while (event := await self.next()) is not None:
                if event.name in names:
                    return event
        raise WireError(f"stream ended without {names}: {self.events[-5:]}")

    async def rest(self, timeout=60):
        """Reads to the end, closes, and returns itself."""
        async with asyncio.timeout(timeout):
            while await self.next() is not None:
                pass
        self.close()
        return self

    async def body(self, timeout=10):
        """The body of an answer that is not a stream."""
        data = bytes(self._buffer)
        async with asyncio.timeout(timeout):
            async for _, piece in self._pieces:
                data += piece
        self.close()
        return data

    def close(self):
        self.conn.close()

    def reset(self):
        self.conn.reset()

    # --- what was read, in the native dialect ---

    def named(self, *names):
        return [e for e in self.events if e.name in names]

    def one(self, name):
        """The event of that name, which must have come exactly once."""
        found = self.named(name)
        if len(found) != 1:
            raise WireError(f"{len(found)} events {name!r} in {self.names()}")
        return found[0]

    def names(self):
        """Event names in order, comments left out, runs of deltas as one."""
        out = []
        for e in self.events:
            if e.name is not None and not (e.name == "delta" and out[-1:] == ["delta"]):
                out.append(e.name)
        return out

    @property
    def text(self):
        """The answer as a native client has it: a reset begins it anew."""
        text = ""
        for e in self.events:
            if e.name == "reset":
                text = ""
            elif e.name == "delta":
                text += e.data["text"]
        return text

    @property
    def chunks(self):
        return [e.data for e in self.events if e.name is None and isinstance(e.data, dict)]

    @property
    def chat_text(self):
        return "".join(
            choice["delta"].get("content") or ""
            for chunk in self.chunks
            for choice in chunk.get("choices", [])
        )

    @property
    def chat_done(self):
        return bool(self.events) and self.events[-1].data == "[DONE]"
