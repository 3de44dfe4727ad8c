/*
 * What a fresh segment takes over from the one that it replaces, so that the instance's
 * figures go on and its provider hears no more than it allows while processes use both:
 * counters, histograms, restarts, samples, and what is left of the pacers' limits.
 *
 * Flights are not: they end where they began. Master only.
 */
#ifndef DAC_SHM_INHERIT_H
#define DAC_SHM_INHERIT_H

#include "shm/timing.h"

/* What of the old segment is in the new one already; all zero at the beginning. */
struct inheritance {
    uint64_t counters[SHM_C_COUNT];
    uint64_t restarts[SHM_KINDS][RESTART_REASON_COUNT];
    struct timings timings[SHM_PROVIDERS_MAX];
};

/* Once, before anybody uses `next`: its age and its processes' generations go on. */
void inherit_identity(struct shm *next, const struct shm *old);
/* Adds what `old` counted since the last call to the base of `next`: sums never go back.
 */
void inherit_counters(struct shm *next, const struct shm *old, struct inheritance *done);
/* Copies the samples, oldest first. Once, while no recorder adds any to `next`. */
void inherit_samples(struct shm *next, const struct shm *old);
/* Leaves `next` of each provider's limits what `old` does not use now: who waits there
 * came first. Holds for `hold_ns`, so it is called again before that. */
void inherit_pacers(struct shm *next, const struct shm *old, uint64_t now_ns,
                    uint64_t hold_ns);
/* Nobody uses `old` any more: whole limits. */
void inherit_pacers_whole(struct shm *next, const struct shm *old);

#endif
