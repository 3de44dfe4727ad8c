/*
 * Samples: a ring of the last 16,384 turns' timings. The recorder writes them, each also
 * into its provider's histograms (shm/timing.h), once whatever it dies of; workers
 * add to the count of hits and copy the newest ones out, without locks (a sequence number
 * before and after the copy).
 */
#ifndef DAC_SHM_SAMPLE_H
#define DAC_SHM_SAMPLE_H

#include "shm/flight.h"

struct sample {
    uint64_t ended_ns;
    uint8_t turn[16];
    uint64_t question; /* turns that were asked the same have the same; 0: not told */
    uint32_t ttft_us;  /* UINT32_MAX: no content came */
    uint32_t latency_us;
    uint32_t queue_us;
    uint32_t own_us;       /* in code of ours */
    uint32_t call_us;      /* UINT32_MAX: no call was made */
    uint32_t call_ttft_us; /* UINT32_MAX: no content came */
    uint32_t provider;
    enum turn_status status;
    uint32_t followers;
    uint32_t hits;
};

/* Recorder: adds one and counts it in the histograms. `mark`, the flight's word `sample`
 * (or NULL), becomes its number + 1, which is returned. */
uint64_t sample_add(struct shm *shm, const struct sample *s, shm_u64 *mark);
/* A new recorder, first thing: ends what the last one died in. */
void sample_recover(struct shm *shm);
/* Master, while no recorder adds any: one from another segment, counted there. */
void sample_take_over(struct shm *shm, const struct sample *s);
/* Worker: one more hit on sample number `seq` - 1, if it is still in the ring; 0 is
 * ignored. */
void sample_add_hit(struct shm *shm, uint64_t seq);
/* Copies at most `n` of the newest, newest first; returns how many. Any process. */
size_t sample_read(const struct shm *shm, struct sample *out, size_t n);
/* Copies the one with this number, counted from 0; false if the ring has it no more. */
bool sample_read_one(const struct shm *shm, uint64_t number, struct sample *out);
bool sample_valid(const struct shm *shm, char *why, size_t n);

#endif
