/*
 * Settings that change while the service runs: words in the header that the master alone
 * writes, all together, and that every process copies into its own configuration. What a
 * word means is the caller's affair.
 *
 * A sequence lock (H.-J. Boehm, "Can seqlocks get along with programming language memory
 * models?", 2012): readers never write, never wait, and never take half of a change.
 */
#ifndef DAC_SHM_LIVE_H
#define DAC_SHM_LIVE_H

#include "shm/segment.h"

/* Master: `n` words, SHM_LIVE_MAX at most; the others are 0. */
void live_publish(struct shm *shm, const uint64_t *words, size_t n);
/* Copies all words if they have changed since `*seen` (0: never seen), which then says
 * what was copied. False: nothing new, or a change is being written this moment; ask
 * again at the next beat. */
bool live_read(const struct shm *shm, uint64_t *seen, uint64_t words[SHM_LIVE_MAX]);

/* Master: asks workers to stop a turn. They do not wait for each other: the first one
 * that finds it asks its owner. */
void live_ask_cancel(struct shm *shm, const uint8_t turn[16]);
/* A worker: the turn that was asked for as number `*seen`, which the caller raises by one
 * when he has dealt with it; begin with the header's `cancel_seq`. False: none. Of more
 * than SHM_CANCELS at once the oldest are lost; who asked sees that they go on. */
bool live_next_cancel(const struct shm *shm, uint64_t *seen, uint8_t turn[16]);

#endif
