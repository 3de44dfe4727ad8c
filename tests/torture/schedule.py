"""What is done to whom, and when: an endless list that the seed alone decides."""

import random
from typing import NamedTuple


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
