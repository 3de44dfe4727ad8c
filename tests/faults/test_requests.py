"""A call for memory, a descriptor or a mapping fails while requests are answered: each client gets
its answer or an error, nothing is stuck, nobody crashes, and the next request is answered."""

import pytest

from lib.provider import say
from load import all_is_well, crashes, mix, settled
from shim import numbers

SETTINGS = {
    "flight": {"result_ttl": "1s", "error_ttl": "100ms"},
    "store": {"done_timeout": "4s"},
    "provider perplexity": {
        "rps": 1000, "burst": 1000, "concurrency": 100, "retry_deadline": "2s",
        "first_token_timeout": "5s", "stall_timeout": "5s",
    },
}


async def healthy(dac, mock, label):
    """As if nothing had been."""
    thread = await dac.thread()
    question = say(f"After kumquat {label}?", tokens=4)
    s = await dac.ask_stream(thread, question)
    assert s.complete and s.text == await mock.text(question) and s.one("done"), s.events[-3:]


@pytest.mark.limit(800)
@pytest.mark.parametrize("count", [1, 20])
@pytest.mark.parametrize(
    ("kind", "role", "samples"),
    [
        ("alloc", "worker", 60),
        ("alloc", "recorder", 30),
        ("alloc", "master", 5),
        ("fd", "any", 20),
        ("mmap", "any", 20),
    ],
)
async def test_every_client_is_answered(make_dac, mock, faults, kind, role, samples, count):
    dac = make_dac(SETTINGS, env=faults.env, workers=2)
    dac.allow_log.append(".")
    thread = await dac.thread()
    acknowledged = []
    faults.arm(kind, role)
    await mix(dac, mock, thread, "first", acknowledged)
    await settled(dac, mock)
    await mix(dac, mock, thread, "second", acknowledged)
    await settled(dac, mock)
    seen, _ = faults.disarm()
    living = (dac.workers(), dac.recorder())
    hits = 0
    if role == "recorder" and count > 1:
        samples //= 4  # a row of failures delays the next try to store
    for n in numbers(seen // 2 + 1, samples):
        with faults.explained(kind, role, n, count):
            faults.arm(kind, role, n, count)
            await mix(dac, mock, thread, f"{n}", acknowledged)
            hits += faults.disarm()[1]
            await settled(dac, mock)
            await healthy(dac, mock, n)
            assert not crashes(dac), crashes(dac)
            assert (dac.workers(), dac.recorder()) == living, "a process ended"
    await all_is_well(dac, acknowledged)
    print(f"{kind} in {role}, {count} in a row: {seen // 2} calls, {hits} failed")
    assert hits > 0 or seen < 4
