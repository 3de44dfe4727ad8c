/*
 * Taking over from a segment that others still use: it is only read, and what grows there
 * is taken in instalments. In the new segment the master writes words of its own (base,
 * restarts, limits) and, before there is a first turn, the ring of samples.
 *
 * Master only; takes no lock.
 */
#include "shm/inherit.h"

#include "shm/pacer.h"
#include "shm/sample.h"
#include "shm/timing.h"

void inherit_identity(struct shm *next, const struct shm *old)
{
    next->hdr->created_ns = old->hdr->created_ns;
    next->hdr->created_us = old->hdr->created_us;
    atomic_store(&next->hdr->generation, atomic_load(&old->hdr->generation));
    atomic_store(&next->hdr->renewals, atomic_load(&old->hdr->renewals) + 1);
}

/* How much a sum has grown beyond what is taken; it is taken then. */
static uint64_t grown(uint64_t sum, uint64_t *taken)
{
    uint64_t more = sum > *taken ? sum - *taken : 0;

    *taken += more;
    return more;
}

static void add(shm_u64 *to, uint64_t by)
{
    atomic_fetch_add_explicit(to, by, memory_order_relaxed);
}

static void inherit_timings(struct shm *next, const struct shm *old, uint32_t provider,
                            struct timings *taken)
{
    struct shm_timings *base = &next->timings[SHM_PROVIDERS_MAX + provider];

    for (int k = 0; k < TIMING_COUNT; k++) {
        struct timing now = timing_sum(old, provider, (enum shm_timing_kind)k);
        struct timing *had = &taken->of[k];

        for (size_t i = 0; i < SHM_TIMING_BUCKETS; i++)
            add(&base->of[k].buckets[i], grown(now.buckets[i], &had->buckets[i]));
        add(&base->of[k].sum_us, grown(now.sum_us, &had->sum_us));
    }
}

void inherit_counters(struct shm *next, const struct shm *old, struct inheritance *done)
{
    for (size_t i = 0; i < SHM_C_COUNT; i++)
        shm_count(next, (enum shm_counter)i,
                  grown(shm_counter_sum(old, (enum shm_counter)i), &done->counters[i]));
    for (size_t kind = 0; kind < SHM_KINDS; kind++)
        for (size_t i = 0; i < RESTART_REASON_COUNT; i++)
            atomic_fetch_add(&next->hdr->restarts[kind][i],
                             grown(atomic_load(&old->hdr->restarts[kind][i]),
                                   &done->restarts[kind][i]));
    for (uint32_t p = 0; p < SHM_PROVIDERS_MAX; p++)
        inherit_timings(next, old, p, &done->timings[p]);
}

void inherit_samples(struct shm *next, const struct shm *old)
{
    uint64_t end = atomic_load(&old->hdr->sample_seq);
    uint64_t first = end > SHM_SAMPLES ? end - SHM_SAMPLES : 0;
    struct sample s;

    for (uint64_t number = first; number < end; number++) {
        if (sample_read_one(old, number, &s))
            sample_take_over(next, &s);
    }
}

/* Flights that are to call this provider yet. */
static uint32_t count_waiting(const struct shm *shm, uint32_t provider)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < shm->hdr->flight_count; i++) {
        const struct shm_flight *f = flight_at(shm, i);
        enum flight_state state = flight_load(shm, i).state;

        n += (state == FLIGHT_CLAIMED || state == FLIGHT_QUEUED ||
              state == FLIGHT_ORPHANED) &&
             atomic_load(&f->kind) == FLIGHT_TURN &&
             atomic_load(&f->provider) == provider;
    }
    return n;
}

static void inherit_pacer(struct shm *next, const struct shm *old, uint32_t provider,
                          uint64_t now_ns, uint64_t hold_ns)
{
    const struct shm_pacer *o = &old->pacers[provider];
    struct shm_pacer *n = &next->pacers[provider];
    uint32_t limit = atomic_load(&o->concurrency);
    uint32_t calls = pacer_in_flight(old, provider);
    uint64_t tat = atomic_load(&o->tat_ns);
    uint64_t mine = atomic_load(&n->tat_ns);

    pacer_pause(next, provider, atomic_load(&o->paused_until_ns),
                (enum pacer_reason)atomic_load(&o->pause_reason));
    while (mine < tat && !atomic_compare_exchange_weak(&n->tat_ns, &mine, tat))
        ;
    if (limit == 0 && atomic_load(&o->interval_ns) == 0)
        return;
    if (limit != 0)
        pacer_set_concurrency(next, provider, calls < limit ? limit - calls : 1);
    /* No permits at all cannot be said by the limit, 0 being none. */
    if ((limit != 0 && calls >= limit) || count_waiting(old, provider) > 0)
        pacer_pause(next, provider, now_ns + hold_ns, PACER_HANDED_OVER);
}

void inherit_pacers(struct shm *next, const struct shm *old, uint64_t now_ns,
                    uint64_t hold_ns)
{
    for (uint32_t i = 0; i < atomic_load(&next->hdr->provider_count); i++)
        inherit_pacer(next, old, i, now_ns, hold_ns);
}

void inherit_pacers_whole(struct shm *next, const struct shm *old)
{
    for (uint32_t i = 0; i < atomic_load(&next->hdr->provider_count); i++)
        pacer_set_concurrency(next, i, atomic_load(&old->pacers[i].concurrency));
}
