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

struct performance {
    size_t turns;
    struct quantiles ttft, latency, queue;
    uint64_t leaders, followers, hits;
    double error_rate; /* of failed and incomplete turns, 0 to 1 */
};

/* Of the newest `last_n` turns, or as many as there are. False: no memory. */
bool performance_read(const struct shm *shm, size_t last_n, struct performance *out);

#endif
