/*
 * The ring of turn timings: a sequence lock per sample (Boehm, "Can seqlocks get along
 * with programming language memory models?", 2012), all fields atomic and relaxed inside
 * it.
 */
#include "shm/sample.h"

#include <stdio.h>
#include <string.h>

#include "shm/crash.h"
#include "shm/timing.h"

static void sample_write(struct shm_sample *at, const struct sample *s)
{
    uint64_t turn[2];

    memcpy(turn, s->turn, sizeof turn);
    atomic_store_explicit(&at->seq, 0, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    atomic_store_explicit(&at->turn[0], turn[0], memory_order_relaxed);
    atomic_store_explicit(&at->turn[1], turn[1], memory_order_relaxed);
    atomic_store_explicit(&at->ended_ns, s->ended_ns, memory_order_relaxed);
    atomic_store_explicit(&at->question, s->question, memory_order_relaxed);
    atomic_store_explicit(&at->ttft_us, s->ttft_us, memory_order_relaxed);
    atomic_store_explicit(&at->latency_us, s->latency_us, memory_order_relaxed);
    atomic_store_explicit(&at->queue_us, s->queue_us, memory_order_relaxed);
    atomic_store_explicit(&at->own_us, s->own_us, memory_order_relaxed);
    atomic_store_explicit(&at->call_us, s->call_us, memory_order_relaxed);
    atomic_store_explicit(&at->call_ttft_us, s->call_ttft_us, memory_order_relaxed);
    atomic_store_explicit(&at->provider, s->provider, memory_order_relaxed);
    atomic_store_explicit(&at->status, (uint32_t)s->status, memory_order_relaxed);
    atomic_store_explicit(&at->followers, s->followers, memory_order_relaxed);
    atomic_store_explicit(&at->hits, s->hits, memory_order_relaxed);
}

/* The sample is there once its own number says so: before that a death undoes all of it,
 * after it the next recorder does the rest. */
uint64_t sample_add(struct shm *shm, const struct sample *s, shm_u64 *mark)
{
    uint64_t number = atomic_load_explicit(&shm->hdr->sample_seq, memory_order_relaxed);
    struct shm_sample *at = &shm->samples[number % SHM_SAMPLES];

    sample_write(at, s);
    CRASH_POINT("sample_written");
    if (mark)
        atomic_store_explicit(mark, number + 1, memory_order_release);
    CRASH_POINT("sample_marked");
    atomic_store_explicit(&at->seq, number + 1, memory_order_release);
    CRASH_POINT("sample_there");
    timing_count(shm, number, s);
    CRASH_POINT("sample_counted");
    atomic_store_explicit(&shm->hdr->sample_seq, number + 1, memory_order_release);
    return number + 1;
}

void sample_take_over(struct shm *shm, const struct sample *s)
{
    uint64_t number = atomic_load_explicit(&shm->hdr->sample_seq, memory_order_relaxed);
    struct shm_sample *at = &shm->samples[number % SHM_SAMPLES];

    sample_write(at, s);
    atomic_store_explicit(&at->seq, number + 1, memory_order_release);
    atomic_store_explicit(&shm->hdr->sample_seq, number + 1, memory_order_release);
}

static bool sample_copy(const struct shm_sample *at, uint64_t number, struct sample *out)
{
    uint64_t turn[2];

    if (atomic_load_explicit(&at->seq, memory_order_acquire) != number + 1)
        return false;
    turn[0] = atomic_load_explicit(&at->turn[0], memory_order_relaxed);
    turn[1] = atomic_load_explicit(&at->turn[1], memory_order_relaxed);
    memcpy(out->turn, turn, sizeof turn);
    out->ended_ns = atomic_load_explicit(&at->ended_ns, memory_order_relaxed);
    out->question = atomic_load_explicit(&at->question, memory_order_relaxed);
    out->ttft_us = atomic_load_explicit(&at->ttft_us, memory_order_relaxed);
    out->latency_us = atomic_load_explicit(&at->latency_us, memory_order_relaxed);
    out->queue_us = atomic_load_explicit(&at->queue_us, memory_order_relaxed);
    out->own_us = atomic_load_explicit(&at->own_us, memory_order_relaxed);
    out->call_us = atomic_load_explicit(&at->call_us, memory_order_relaxed);
    out->call_ttft_us = atomic_load_explicit(&at->call_ttft_us, memory_order_relaxed);
    out->provider = atomic_load_explicit(&at->provider, memory_order_relaxed);
    out->status =
        (enum turn_status)atomic_load_explicit(&at->status, memory_order_relaxed);
    out->followers = atomic_load_explicit(&at->followers, memory_order_relaxed);
    out->hits = atomic_load_explicit(&at->hits, memory_order_relaxed);
    atomic_thread_fence(memory_order_acquire);
    return atomic_load_explicit(&at->seq, memory_order_relaxed) == number + 1;
}

void sample_recover(struct shm *shm)
{
    uint64_t number = atomic_load_explicit(&shm->hdr->sample_seq, memory_order_relaxed);
    struct sample s;

    if (sample_copy(&shm->samples[number % SHM_SAMPLES], number, &s)) {
        timing_count(shm, number, &s);
        atomic_store_explicit(&shm->hdr->sample_seq, number + 1, memory_order_release);
        return;
    }
    for (uint32_t i = 0; i < shm->hdr->flight_count; i++) {
        uint64_t marked = number + 1;
        atomic_compare_exchange_strong(&flight_at(shm, i)->sample, &marked, 0);
    }
}

void sample_add_hit(struct shm *shm, uint64_t seq)
{
    if (seq == 0)
        return;
    struct shm_sample *at = &shm->samples[(seq - 1) % SHM_SAMPLES];
    if (atomic_load_explicit(&at->seq, memory_order_acquire) == seq)
        atomic_fetch_add_explicit(&at->hits, 1, memory_order_relaxed);
}

bool sample_read_one(const struct shm *shm, uint64_t number, struct sample *out)
{
    return sample_copy(&shm->samples[number % SHM_SAMPLES], number, out);
}

size_t sample_read(const struct shm *shm, struct sample *out, size_t n)
{
    uint64_t end = atomic_load_explicit(&shm->hdr->sample_seq, memory_order_acquire);
    uint64_t most = end < SHM_SAMPLES ? end : SHM_SAMPLES;
    size_t got = 0;

    for (uint64_t i = 0; i < most && got < n; i++) {
        uint64_t number = end - 1 - i;
        if (sample_copy(&shm->samples[number % SHM_SAMPLES], number, &out[got]))
            got++;
    }
    return got;
}

bool sample_valid(const struct shm *shm, char *why, size_t n)
{
    uint64_t end = atomic_load(&shm->hdr->sample_seq);
    uint32_t torn = 0;

    for (uint64_t i = 0; i < SHM_SAMPLES; i++) {
        uint64_t seq = atomic_load(&shm->samples[i].seq);
        if (seq == 0) {
            torn += i < end;
        } else if ((seq - 1) % SHM_SAMPLES != i || seq > end + 1) {
            snprintf(why, n, "sample %u has number %llu of %llu", (unsigned)i,
                     (unsigned long long)seq - 1, (unsigned long long)end);
            return false;
        }
    }
    if (torn > 1) { /* one: its writer died inside it; the next one writes it anew */
        snprintf(why, n, "%u samples were never finished", torn);
        return false;
    }
    return true;
}
