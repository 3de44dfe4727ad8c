"""A thousand clients ask the same at once: none is lost, and what each costs while it waits stays small."""

import asyncio
import json

import pytest

from lib.dacd import BUILD

# Its allocator has memory of its own for everything.
SANITIZED = (BUILD / "dacd").exists() and b"__asan_init" in (BUILD / "dacd").read_bytes()


async def fit(dac, *options):
    """What `dac-bench fit` says; it exits with 1 if a run did not get to its end."""
    bench = await asyncio.create_subprocess_exec(
        BUILD / "dac-bench",
        "fit",
        "--url",
        f"http://127.0.0.1:{dac.port}",
        "--pid-of",
        str(dac.pid),
        "--json",
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await bench.communicate()
    assert bench.returncode == 0, err.decode()
    return json.loads(out)


@pytest.mark.skipif(SANITIZED, reason="memory is measured in the plain build")
@pytest.mark.limit(100)
async def test_a_waiting_follower_costs_two_kilobytes_at_most(make_dac, mock):
    """Also what the burst of their requests needed for a moment counts: the heap keeps its room."""
    dac = make_dac({"provider perplexity": {"rps": 1000, "burst": 1000}}, workers=1)
    seen = await fit(dac, "--followers", "100,1000", "--repeat", "1", "--tokens", "20")
    for group in ("followers_100", "followers_1000"):
        assert seen[group]["lost"] == 0
        assert seen[group]["deliveries_per_chunk"] > 0
    assert seen["followers_1000"]["memory_bytes"] <= 2048
    assert seen["fit"]["b_us"] > 0
    assert await mock.calls() == 3  # one before the two, to load what is loaded once
