"""Idempotency-Keys for the tests, and what a turn goes through before its key comes again."""

import asyncio
import itertools
import os

from lib.asks import until
from lib.service import dacctl

TOOLS = [{"type": "function", "function": {"name": "weigh", "parameters": {"type": "object"}}}]
SHORT = {"flight": {"result_ttl": "1s"}}  # keys make it 5 s
BY_KEY = "dac; hit; detail=idempotency_key"
_number = itertools.count(1)


def a_key():
    return f"kumquat-key-{os.getpid()}-{next(_number)}"


def keyed(key, **more):
    return {"Idempotency-Key": key, **more}


async def recycled(dac):
    """Until nothing is left in memory: a key stays there for 5 s."""

    async def empty():
        return dacctl(dac, "flights", "--json")["flights"] == []

    await until(empty, "memory is empty", 20)


async def leaves_memory(dac, how):
    """What a turn may have gone through when its key comes again."""
    if how == "restart":
        dac.stop()
        dac.start()
    elif how == "killed":
        await asyncio.to_thread(dac.kill_all)
        dac.start()
    elif how == "recycled":
        await recycled(dac)
