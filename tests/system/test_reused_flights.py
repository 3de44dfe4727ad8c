"""The smallest table of flights: each is used again at once, also by the worker that has just ended
its call and has not looked at it since."""

import asyncio
import os
import random
import signal

from lib.provider import say

SMALLEST = {
    "memory": {"max_flights": 16, "shm_size": "4m"},
    "flight": {"flight_max_bytes": "64k", "result_ttl": "0s", "error_ttl": "0s", "abandon_grace": "0ms"},
}


async def test_a_flight_that_nobody_listens_to_is_used_again(make_dac, mock):
    dac = make_dac(SMALLEST, workers=1)
    over = asyncio.get_running_loop().time() + 8

    async def client(n):
        rng = random.Random(n)
        answered = 0
        while asyncio.get_running_loop().time() < over:
            s = await dac.open_chat(say(f"Kumquat {rng.random()}?", tokens=rng.randrange(1, 4), gap="1ms"))
            if rng.random() < 0.5 and s.status == 200:
                await s.next()
                s.reset()
            else:
                answered += s.status == 200
                await s.rest()
        return answered

    async def standstills():
        """Between two steps of the worker, long enough for the recorder to free what has ended."""
        (worker,) = dac.workers()
        while asyncio.get_running_loop().time() < over:
            os.kill(worker, signal.SIGSTOP)
            await asyncio.sleep(0.012)
            os.kill(worker, signal.SIGCONT)
            await asyncio.sleep(random.random() * 0.01)

    *answered, _ = await asyncio.gather(*[client(n) for n in range(48)], standstills())
    assert sum(answered) > 100
    assert "assertion" not in dac.log
