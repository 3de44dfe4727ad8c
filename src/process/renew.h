/*
 * Moving the instance to a fresh segment while it serves, because a lock of the old one
 * can never be had again (header word `lock_lost`):
 *
 *   IDLE      nothing to do
 *   STARTING  a second generation starts on a segment beside the old one; its workers
 * hold HANDOVER  the segment has the name now; the old workers are to stop accepting
 *   LEAVING   the new ones accept; the old ones end their streams, their recorder stores
 *   FAILING   the second generation did not come up and is being removed; the old one
 *             serves on, and it is tried again later
 *
 * Nobody is refused for it: sockets stay open, and who comes during HANDOVER waits in the
 * kernel's queue for as long as a worker takes to hear a signal. One renewal at a time: a
 * lock lost meanwhile in the new segment waits for the old one's end.
 *
 * Master only; nothing here waits.
 */
#ifndef DAC_PROCESS_RENEW_H
#define DAC_PROCESS_RENEW_H

#include "process/generation.h"
#include "shm/inherit.h"

enum renewal_phase {
    RENEWAL_IDLE,
    RENEWAL_STARTING,
    RENEWAL_HANDOVER,
    RENEWAL_LEAVING,
    RENEWAL_FAILING
};

struct renewal {
    struct generations *gens;             /* borrowed */
    const struct generation_parts *parts; /* borrowed */
    enum renewal_phase phase;
    uint64_t phase_since_ns;
    uint64_t retry_at_ns; /* not before, after a failure */
    uint64_t backoff_ns;
    bool unstored; /* a generation left without having stored all */
    struct inheritance taken;
};

/* Does what is due; after each event, until the service stops. */
void renew_step(struct renewal *r, uint64_t now_ns);
/* Every BEAT_NS: takes over what the old generation has counted and uses. */
void renew_tick(struct renewal *r, uint64_t now_ns);
/* Limits were set anew in all segments: what the old one uses of them is not the new
 * one's to use. */
void renew_share_limits(const struct renewal *r, uint64_t now_ns);
/* When renew_step() wants to be called at the latest, UINT64_MAX: at the next tick. */
uint64_t renew_next(const struct renewal *r, uint64_t now_ns);

#endif
