"""Too many clients: accepting pauses, nothing spins, and those who are there are served."""

import asyncio
import os
import resource

import pytest

from lib import procs
from lib.service import answers, dacctl


async def crowd(dac, n):
    return [await dac.connect() for _ in range(n)]


async def test_without_descriptors_accepting_pauses_instead_of_spinning(make_dac):
    dac = make_dac(workers=1)
    (worker,) = dac.workers()
    limit = procs.open_descriptors(worker) + 20
    resource.prlimit(worker, resource.RLIMIT_NOFILE, (limit, limit))
    clients = await crowd(dac, 60)
    await asyncio.sleep(0.5)
    began = procs.cpu_seconds([worker])
    await asyncio.sleep(1)
    assert procs.cpu_seconds([worker]) - began < 0.1
    assert "accept" in dac.log and dac.log.count("WARN") < 12
    assert dacctl(dac, "status", "--json")["counters"]["accept_pauses"] > 3
    for c in clients[:50]:
        c.close()
    await asyncio.sleep(0.3)
    assert answers(dac.port)[0]
    for c in clients[50:]:
        await c.send(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await c.read_response()).status == 200
        c.close()


@pytest.mark.parametrize("workers", [1, 3])
async def test_max_connections_holds_over_all_workers(make_dac, workers):
    dac = make_dac({"server": {"max_connections": 30}}, workers=workers)
    clients = await crowd(dac, 60)
    await asyncio.sleep(0.6)
    # Each worker knows the others' number as of their last accept; a handful may slip through. The
    # connection of the start's probe may still be closing, so the number may take a moment to settle;
    # the crowd stays, so one served too many would not go away.
    for _ in range(20):
        served = sum(procs.connections(p, dac.port) for p in dac.workers())
        if served <= 30 + 4 * (workers - 1):
            break
        await asyncio.sleep(0.1)
    assert 30 <= served <= 30 + 4 * (workers - 1), served
    for c in clients[:55]:
        c.close()
    await asyncio.sleep(0.5)
    assert answers(dac.port)[0]
    for c in clients[55:]:
        c.close()


def test_the_limit_of_open_files_is_raised(make_dac):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        dac = make_dac(workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for pid in dac.processes():
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (hard, hard), os.readlink(f"/proc/{pid}/exe")
