/*
 * Histograms of turns by provider. Each sample (shm/sample.h) is counted once, by the
 * recorder alone; they only grow, also when the recorder dies between two words and when
 * the instance moves to another segment.
 *
 *   TIMING_TTFT       from the leader's request, read whole, to the first content
 *   TIMING_LATENCY    from the leader's request, read whole, to the end of the turn
 *   TIMING_QUEUE      from QUEUED to the last call to the provider: its pacer's queue
 *                     (the thread's history is read meanwhile)
 *   TIMING_OWN        code of ours between these: from the leader's request to QUEUED
 *                     without what the store took to find the thread; from leaving the
 *                     queue until the HTTP client has the call; from the provider's last
 *                     bytes to the end of the turn. What a connection, libcurl and the
 *                     event loop's delay take is not told from the provider's time
 *   TIMING_CALL       of the last call: from when the HTTP client has it to the last
 *                     bytes, or to what ended it
 *   TIMING_CALL_TTFT  of the last call: the same to the first content
 */
#ifndef DAC_SHM_TIMING_H
#define DAC_SHM_TIMING_H

#include "shm/sample.h"

struct timing {
    uint64_t buckets[SHM_TIMING_BUCKETS];
    uint64_t sum_us;
};

struct timings {
    struct timing of[TIMING_COUNT];
};

/* Upper bounds of the buckets in microseconds, ascending; *n of them, fewer than
 * SHM_TIMING_BUCKETS. What is above the last one is in bucket *n. */
const uint32_t *timing_bounds(enum shm_timing_kind kind, size_t *n);
/* Recorder: counts sample `number`; once more it changes nothing, if no other one was
 * counted since. */
void timing_count(struct shm *shm, uint64_t number, const struct sample *s);
/* A provider's histogram, with what was taken over from another segment. Any process. */
struct timing timing_sum(const struct shm *shm, uint32_t provider,
                         enum shm_timing_kind kind);

#endif
