/*
 * Figures of the last turns, from the ring of samples. Worker.
 */
#ifndef DAC_API_PERFORMANCE_H
#define DAC_API_PERFORMANCE_H

#include "shm/sample.h"

#define PERFORMANCE_LAST 100 /* turns, where nobody says how many */

struct quantiles {
    double p50, p95, p99, max; /* milliseconds, 0 where there is no sample */
};

/* Several turns that were asked the same and ran at the same time, with at least
 * BURST_REQUESTS requests together, are a burst: here coalescing should have made one of
 * them. Requests that asked for a turn of their own are no part of it. */
#define BURST_REQUESTS 11 /* the least that can have ten followers */

struct burst {
    uint64_t leaders;   /* turns of all bursts */
    uint64_t followers; /* and requests that got one of them, at once or later */
    uint64_t age_ns;    /* since the last one of them ended; 0 if there is none */
};

struct performance {
    size_t turns;
    struct quantiles ttft, latency, queue;
    uint64_t leaders, followers, hits;
    double error_rate;      /* of failed and incomplete turns, 0 to 1 */
    uint64_t newest_age_ns; /* since the last of them ended */
    uint64_t span_ns;       /* from the first one's arrival until then */
    struct burst burst;
};

/* Of the newest `last_n` turns, or as many as there are. False: no memory. */
bool performance_read(const struct shm *shm, size_t last_n, struct performance *out);

#endif
