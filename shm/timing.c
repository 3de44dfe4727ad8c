/*
 * The histograms' bounds, and how a sample is counted in them: what its words become is
 * noted first (a redo record, as of a write-ahead log), so that the next recorder brings
 * to its end what the last one died in.
 */
#include "shm/timing.h"

#include "shm/crash.h"

#define MS 1000u
#define S  1000000u

struct bounds {
    uint32_t us[SHM_TIMING_BUCKETS - 1];
    size_t n;
};

/* The limits that are watched are bounds: 1.5 s, 6 s and 1 s. Those of the provider's
 * calls are what OpenTelemetry's conventions for generative AI ask for. */
static const struct bounds bounds[TIMING_COUNT] = {
    [TIMING_TTFT] = {{50 * MS, 100 * MS, 200 * MS, 300 * MS, 500 * MS, 750 * MS, 1 * S,
                      1500 * MS, 2 * S, 3 * S, 5 * S, 10 * S, 30 * S, 60 * S},
                     14},
    [TIMING_LATENCY] = {{100 * MS, 250 * MS, 500 * MS, 1 * S, 2 * S, 3 * S, 4 * S, 5 * S,
                         6 * S, 8 * S, 10 * S, 15 * S, 30 * S, 60 * S, 120 * S, 300 * S},
                        16},
    [TIMING_QUEUE] = {{1 * MS, 10 * MS, 50 * MS, 100 * MS, 250 * MS, 500 * MS, 1 * S,
                       2 * S, 5 * S, 10 * S, 30 * S},
                      11},
    [TIMING_OWN] = {{100, 200, 500, 1 * MS, 2 * MS, 5 * MS, 10 * MS, 25 * MS, 50 * MS,
                     100 * MS, 250 * MS, 1 * S},
                    12},
    [TIMING_CALL] = {{10 * MS, 20 * MS, 40 * MS, 80 * MS, 160 * MS, 320 * MS, 640 * MS,
                      1280 * MS, 2560 * MS, 5120 * MS, 10240 * MS, 20480 * MS, 40960 * MS,
                      81920 * MS},
                     14},
    [TIMING_CALL_TTFT] = {{1 * MS, 5 * MS, 10 * MS, 20 * MS, 40 * MS, 60 * MS, 80 * MS,
                           100 * MS, 250 * MS, 500 * MS, 750 * MS, 1 * S, 2500 * MS,
                           5 * S, 7500 * MS, 10 * S},
                          16},
};

const uint32_t *timing_bounds(enum shm_timing_kind kind, size_t *n)
{
    *n = bounds[kind].n;
    return bounds[kind].us;
}

static uint64_t word(const shm_u64 *p)
{
    return atomic_load_explicit(p, memory_order_relaxed);
}

static uint32_t bucket_of(enum shm_timing_kind kind, uint32_t us)
{
    uint32_t i = 0;

    while (i < bounds[kind].n && us > bounds[kind].us[i])
        i++;
    return i;
}

static void note(struct shm *shm, uint64_t number, const struct sample *s)
{
    const uint32_t us[TIMING_COUNT] = {
        [TIMING_TTFT] = s->ttft_us,   [TIMING_LATENCY] = s->latency_us,
        [TIMING_QUEUE] = s->queue_us, [TIMING_OWN] = s->own_us,
        [TIMING_CALL] = s->call_us,   [TIMING_CALL_TTFT] = s->call_ttft_us};
    struct shm_timing_redo *redo = &shm->hdr->timing_redo;
    struct shm_timings *mine = &shm->timings[s->provider % SHM_PROVIDERS_MAX];

    atomic_store_explicit(&redo->seq, 0, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    atomic_store_explicit(&redo->provider, s->provider % SHM_PROVIDERS_MAX,
                          memory_order_relaxed);
    for (int k = 0; k < TIMING_COUNT; k++) {
        const struct shm_timing *t = &mine->of[k];
        uint32_t b = us[k] == UINT32_MAX ? SHM_TIMING_BUCKETS
                                         : bucket_of((enum shm_timing_kind)k, us[k]);

        atomic_store_explicit(&redo->bucket[k], b, memory_order_relaxed);
        if (b == SHM_TIMING_BUCKETS)
            continue;
        atomic_store_explicit(&redo->count[k], word(&t->buckets[b]) + 1,
                              memory_order_relaxed);
        atomic_store_explicit(&redo->sum_us[k], word(&t->sum_us) + us[k],
                              memory_order_relaxed);
    }
    CRASH_POINT("timing_noting");
    atomic_store_explicit(&redo->seq, number + 1, memory_order_release);
}

/* Any number of times. */
static void redo_all(struct shm *shm)
{
    struct shm_timing_redo *redo = &shm->hdr->timing_redo;
    uint32_t provider = atomic_load_explicit(&redo->provider, memory_order_relaxed);
    struct shm_timings *mine = &shm->timings[provider % SHM_PROVIDERS_MAX];

    for (int k = 0; k < TIMING_COUNT; k++) {
        uint32_t b = atomic_load_explicit(&redo->bucket[k], memory_order_relaxed);

        if (b >= SHM_TIMING_BUCKETS)
            continue;
        atomic_store_explicit(&mine->of[k].buckets[b], word(&redo->count[k]),
                              memory_order_relaxed);
        CRASH_POINT("timing_half");
        atomic_store_explicit(&mine->of[k].sum_us, word(&redo->sum_us[k]),
                              memory_order_relaxed);
    }
}

void timing_count(struct shm *shm, uint64_t number, const struct sample *s)
{
    uint64_t seq = atomic_load_explicit(&shm->hdr->timing_redo.seq, memory_order_acquire);

    if (seq != number + 1)
        note(shm, number, s);
    redo_all(shm);
}

struct timing timing_sum(const struct shm *shm, uint32_t provider,
                         enum shm_timing_kind kind)
{
    const struct shm_timing *mine = &shm->timings[provider].of[kind];
    const struct shm_timing *base = &shm->timings[SHM_PROVIDERS_MAX + provider].of[kind];
    struct timing sum;

    for (size_t i = 0; i < SHM_TIMING_BUCKETS; i++)
        sum.buckets[i] = word(&mine->buckets[i]) + word(&base->buckets[i]);
    sum.sum_us = word(&mine->sum_us) + word(&base->sum_us);
    return sum;
}
