"""What is done to whom, and when, and how the instance is configured: the seed alone decides."""

import random
from typing import NamedTuple

DRAIN = 2  # seconds; drain_timeout

# What all have, and what one of them has besides: a queue in front of the provider; flights and
# blocks that are used up; nobody who takes over.
SETTINGS = {
    "server": {"watchdog_timeout": "1s", "drain_timeout": f"{DRAIN}s"},
    "flight": {"result_ttl": "300ms", "error_ttl": "100ms", "reconnect_grace": "1s", "takeover_max": "3"},
}
PROFILES = {
    "plain": (5, {}),
    "paced": (3, {"provider perplexity": {"rps": "60", "burst": "10", "concurrency": "5"}}),
    "small": (3, {"memory": {"shm_size": "4m", "max_flights": "16"}, "flight": {"flight_max_bytes": "1m"}}),
    "fail": (1, {"flight": {"on_fetcher_death": "fail"}}),
}


def profile(seed):
    """(name, sections) of the instance of this seed."""
    names = list(PROFILES)
    (name,) = random.Random(seed ^ 0x5EED).choices(names, [share for share, _ in PROFILES.values()])
    sections = {section: dict(settings) for section, settings in SETTINGS.items()}
    for section, settings in PROFILES[name][1].items():
        sections.setdefault(section, {}).update(settings)
    return name, sections


class Strike(NamedTuple):
    delay: float  # seconds after the one before
    what: str
    which: int  # the victim is number `which` (modulo) of those that live
    lasting: float  # seconds of a standstill
    then: str  # behind the master's death


# Shares of 1000. Whatever takes the master makes all restart delays short again, too.
STRIKES = {
    "worker": 515,
    "recorder": 140,
    "two at once": 90,
    "all workers": 30,
    "worker stopped": 90,
    "recorder stopped": 40,
    "master stopped": 15,
    "all stopped": 15,
    "master": 35,
    "everything": 30,
}

# What goes on after the master alone was killed: the new start comes at once, or when all of
# its children have ended by themselves, while these are killed as well or are not.
THEN = ["at once", "all gone", "all gone", "a worker too", "the recorder too", "the workers too"]


def strikes(seed, every):
    rng = random.Random(seed)
    kinds = list(STRIKES)
    weights = list(STRIKES.values())
    while True:
        yield Strike(
            delay=min(rng.expovariate(1 / every), 6 * every),
            what=rng.choices(kinds, weights)[0],
            which=rng.randrange(1 << 16),
            lasting=rng.choice([0.02, 0.1, 0.4, 1.5, 2.5]),
            then=rng.choice(THEN),
        )
