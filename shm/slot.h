/*
 * Slots: one per process that uses the segment, at most 64, so a set of processes is one
 * 64-bit bitmap. The master gives them before fork and sweeps them after waitpid(); a
 * slot is swept before it is used again.
 */
#ifndef DAC_SHM_SLOT_H
#define DAC_SHM_SLOT_H

#include "shm/segment.h"

/* Master: takes a free slot and marks it STARTING. DAC_E_FULL. */
enum dac_err slot_take(struct shm *shm, enum slot_kind kind, uint32_t ordinal,
                       uint32_t *out) DAC_CHECK;
/* Master: the same for a worker beside the one that has the ordinal, which keeps it until
 * slot_serve(). */
enum dac_err slot_take_beside(struct shm *shm, uint32_t ordinal, uint32_t *out) DAC_CHECK;
/* Master: the ordinal is `slot`'s from now on; SHM_NO_SLOT: nobody's. */
void slot_serve(struct shm *shm, uint32_t ordinal, uint32_t slot);
/* Child, a worker: whether its ordinal is its own. */
bool slot_serves(const struct shm *shm);
/* Child: writes its pid, then beats for the first time. */
void slot_enter(struct shm *shm, uint64_t now_ns);
/* Child: one beat; four times a second. */
void slot_beat(struct shm *shm, uint64_t now_ns);
/* Child: READY or DRAINING. */
void slot_set_state(struct shm *shm, enum slot_state state);
enum slot_state slot_state(const struct shm *shm, uint32_t slot);
/* Whether the slot is READY and its last beat is at most `max_age_ns` old. */
bool slot_accepting(const struct shm *shm, uint32_t slot, uint64_t now_ns,
                    uint64_t max_age_ns);

/* What a sweep found; for the master's log line. */
struct slot_sweep {
    uint32_t orphaned; /* flights whose owner it was */
    uint32_t freed;    /* claims that nobody could have seen */
    uint32_t reader_of;
    uint32_t permits;
    bool held_lock; /* it was about to lock, or held, a bucket */
};

/* Master only, after waitpid(): orphans its flights, clears its reader bits, gives its
 * permits back, leaves its counters as they are and frees the slot. Takes no lock. The
 * caller then kicks everyone (wake_kick). */
struct slot_sweep slot_sweep(struct shm *shm, uint32_t slot);

/* Master: counts used flights, blocks and aliases anew from the words themselves. */
void slot_recount(struct shm *shm);

bool slot_valid(const struct shm *shm, uint32_t slot, char *why, size_t n);

#endif
