/*
 * The provider's limits in shared memory. Taking is two steps, each one compare-and-swap:
 * first a permit, then a token; a permit without a token is given back at once. A slot
 * that finds no permit notes itself in `waiting` and looks once more, so that a permit
 * that came back in between is not missed.
 */
#include "shm/pacer.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "shm/crash.h"
#include "shm/wake.h"

static uint64_t permit_word(const struct shm *shm, struct flight_ref ref)
{
    return (uint64_t)(shm->self + 1) << 56 | (uint64_t)(ref.index & 0xffffff) << 32 |
           ref.incarnation;
}

static struct shm_pacer *pacer_at(const struct shm *shm, uint32_t provider)
{
    DAC_ASSERT(provider < SHM_PROVIDERS_MAX);
    return &shm->pacers[provider];
}

uint32_t pacer_find(const struct shm *shm, const char *name)
{
    uint32_t n = atomic_load_explicit(&shm->hdr->provider_count, memory_order_acquire);

    for (uint32_t i = 0; i < n; i++)
        if (strcmp(shm->hdr->provider_names[i], name) == 0)
            return i;
    return PACER_NONE;
}

enum dac_err pacer_name(struct shm *shm, const char *name, uint32_t *out)
{
    uint32_t n = atomic_load(&shm->hdr->provider_count);

    *out = pacer_find(shm, name);
    if (*out != PACER_NONE)
        return DAC_OK;
    if (n == SHM_PROVIDERS_MAX)
        return DAC_E_FULL;
    snprintf(shm->hdr->provider_names[n], sizeof shm->hdr->provider_names[n], "%s", name);
    atomic_store_explicit(&shm->hdr->provider_count, n + 1, memory_order_release);
    *out = n;
    return DAC_OK;
}

/* Debt from lower limits: no more stays than calls under the present ones could make. */
static void forgive(struct shm_pacer *p, uint64_t most)
{
    uint64_t tat = atomic_load_explicit(&p->tat_ns, memory_order_acquire);

    while (tat > most && !atomic_compare_exchange_weak_explicit(&p->tat_ns, &tat, most,
                                                                memory_order_acq_rel,
                                                                memory_order_acquire))
        ;
}

void pacer_set_concurrency(struct shm *shm, uint32_t provider, uint32_t concurrency)
{
    struct shm_pacer *p = pacer_at(shm, provider);
    uint32_t before = atomic_load_explicit(&p->concurrency, memory_order_relaxed);

    /* First: who sees the lower limit is to see that it was higher. */
    if (concurrency != 0 && before > concurrency &&
        atomic_load_explicit(&p->above, memory_order_relaxed) < before)
        atomic_store_explicit(&p->above, before, memory_order_seq_cst);
    atomic_store_explicit(&p->concurrency, concurrency, memory_order_seq_cst);
}

void pacer_set_limits(struct shm *shm, uint32_t provider, double rps, uint32_t burst,
                      uint32_t concurrency)
{
    struct shm_pacer *p = pacer_at(shm, provider);
    uint64_t interval = rps > 0 ? (uint64_t)((double)NS_PER_S / rps) : 0;

    DAC_ASSERT(concurrency <= SHM_PERMITS_MAX);
    atomic_store_explicit(&p->tolerance_ns, interval * (burst > 0 ? burst - 1 : 0),
                          memory_order_relaxed);
    atomic_store_explicit(&p->interval_ns, interval, memory_order_relaxed);
    pacer_set_concurrency(shm, provider, concurrency);
    if (interval > 0)
        forgive(p, clock_now_ns() + interval * (burst > 0 ? burst : 1));
}

/* How long from now until a token could be had; 0: now. Changes nothing. */
static uint64_t token_wait(struct shm_pacer *p, uint64_t now)
{
    uint64_t paused = atomic_load_explicit(&p->paused_until_ns, memory_order_acquire);
    uint64_t interval = atomic_load_explicit(&p->interval_ns, memory_order_relaxed);
    uint64_t tolerance = atomic_load_explicit(&p->tolerance_ns, memory_order_relaxed);
    uint64_t tat = atomic_load_explicit(&p->tat_ns, memory_order_acquire);
    uint64_t wait = paused > now ? paused - now : 0;

    if (interval != 0 && tat > now + tolerance && tat - tolerance - now > wait)
        wait = tat - tolerance - now;
    return wait;
}

/* Takes a token: TAT := max(TAT, now) + interval, if it conforms. */
static bool token_take(struct shm_pacer *p, uint64_t now)
{
    uint64_t interval = atomic_load_explicit(&p->interval_ns, memory_order_relaxed);
    uint64_t tolerance = atomic_load_explicit(&p->tolerance_ns, memory_order_relaxed);
    uint64_t tat = atomic_load_explicit(&p->tat_ns, memory_order_acquire);
    uint64_t next;

    if (interval == 0)
        return true;
    do {
        if (tat > now + tolerance)
            return false;
        next = (tat > now ? tat : now) + interval;
        CRASH_POINT("token_before");
    } while (!atomic_compare_exchange_weak_explicit(
        &p->tat_ns, &tat, next, memory_order_acq_rel, memory_order_acquire));
    CRASH_POINT("token_after");
    return true;
}

static uint32_t count_taken(const struct shm_pacer *p, uint32_t from, uint32_t to)
{
    uint32_t n = 0;

    for (uint32_t i = from; i < to && i < SHM_PERMITS_MAX; i++)
        n += atomic_load_explicit(&p->permits[i], memory_order_seq_cst) != 0;
    return n;
}

/* After the limit was lowered calls above it run on; until they have ended the others are
 * fewer by as many. */
static bool has_room(struct shm_pacer *p, uint32_t limit)
{
    uint32_t above = atomic_load_explicit(&p->above, memory_order_seq_cst);
    uint32_t taken = count_taken(p, limit, above);

    if (above == 0)
        return true;
    if (taken == 0 && above > limit) {
        atomic_compare_exchange_strong(&p->above, &above, 0);
        return true;
    }
    return taken + count_taken(p, 0, limit) < limit;
}

static uint32_t permit_take(struct shm *shm, struct shm_pacer *p, struct flight_ref ref)
{
    uint32_t limit = atomic_load_explicit(&p->concurrency, memory_order_seq_cst);
    uint64_t mine = permit_word(shm, ref);

    if (!has_room(p, limit))
        return PACER_NO_PERMIT;
    for (uint32_t i = 0; i < limit; i++) {
        uint64_t free_word = 0;
        /* Not relaxed: it must not be looked at before this slot stands in `waiting`. */
        if (atomic_load_explicit(&p->permits[i], memory_order_seq_cst) != 0)
            continue;
        CRASH_POINT("permit_before");
        if (atomic_compare_exchange_strong_explicit(&p->permits[i], &free_word, mine,
                                                    memory_order_seq_cst,
                                                    memory_order_relaxed)) {
            CRASH_POINT("permit_after");
            atomic_fetch_add_explicit(&p->calls, 1, memory_order_relaxed);
            return i;
        }
    }
    return PACER_NO_PERMIT;
}

static void wake_waiting(struct shm *shm, uint32_t provider)
{
    struct shm_pacer *p = pacer_at(shm, provider);
    uint64_t slots = atomic_exchange_explicit(&p->waiting, 0, memory_order_seq_cst);
    while (slots != 0) {
        wake_pacer(shm, (uint32_t)__builtin_ctzll(slots), provider);
        slots &= slots - 1;
    }
}

enum dac_err pacer_take(struct shm *shm, uint32_t provider, struct flight_ref ref,
                        uint64_t now_ns, uint32_t *permit, uint64_t *wait_ns)
{
    struct shm_pacer *p = pacer_at(shm, provider);

    *permit = PACER_NO_PERMIT;
    *wait_ns = token_wait(p, now_ns);
    if (*wait_ns != 0)
        return DAC_E_AGAIN;
    if (atomic_load_explicit(&p->concurrency, memory_order_relaxed) != 0) {
        *permit = permit_take(shm, p, ref);
        if (*permit == PACER_NO_PERMIT) {
            atomic_fetch_or_explicit(&p->waiting, UINT64_C(1) << shm->self,
                                     memory_order_seq_cst);
            *permit = permit_take(shm, p, ref);
        }
        if (*permit == PACER_NO_PERMIT) {
            *wait_ns = UINT64_MAX;
            return DAC_E_AGAIN;
        }
    }
    if (token_take(p, now_ns))
        return DAC_OK;
    pacer_give(shm, provider, *permit, ref);
    *permit = PACER_NO_PERMIT;
    *wait_ns = token_wait(p, now_ns);
    if (*wait_ns == 0)
        *wait_ns = NS_PER_MS;
    return DAC_E_AGAIN;
}

void pacer_give(struct shm *shm, uint32_t provider, uint32_t permit,
                struct flight_ref ref)
{
    struct shm_pacer *p = pacer_at(shm, provider);

    if (permit == PACER_NO_PERMIT)
        return;
    DAC_ASSERT(permit < SHM_PERMITS_MAX);
    uint64_t mine = permit_word(shm, ref);
    CRASH_POINT("give_before");
    if (!atomic_compare_exchange_strong_explicit(
            &p->permits[permit], &mine, 0, memory_order_seq_cst, memory_order_relaxed))
        return;
    CRASH_POINT("give_after");
    atomic_fetch_sub_explicit(&p->calls, 1, memory_order_relaxed);
    wake_waiting(shm, provider);
}

void pacer_pause(struct shm *shm, uint32_t provider, uint64_t until_ns,
                 enum pacer_reason reason)
{
    struct shm_pacer *p = pacer_at(shm, provider);
    uint64_t now = atomic_load_explicit(&p->paused_until_ns, memory_order_relaxed);

    if (now < until_ns)
        atomic_store_explicit(&p->pause_reason, (uint32_t)reason, memory_order_relaxed);
    while (now < until_ns && !atomic_compare_exchange_weak_explicit(
                                 &p->paused_until_ns, &now, until_ns,
                                 memory_order_release, memory_order_relaxed))
        ;
}

uint32_t pacer_tokens(const struct shm *shm, uint32_t provider, uint64_t now_ns)
{
    const struct shm_pacer *p = pacer_at(shm, provider);
    uint64_t interval = atomic_load_explicit(&p->interval_ns, memory_order_relaxed);
    uint64_t tolerance = atomic_load_explicit(&p->tolerance_ns, memory_order_relaxed);
    uint64_t tat = atomic_load_explicit(&p->tat_ns, memory_order_relaxed);

    if (interval == 0)
        return UINT32_MAX;
    if (tat < now_ns)
        tat = now_ns;
    return tat > now_ns + tolerance
               ? 0
               : (uint32_t)((now_ns + tolerance - tat) / interval + 1);
}

uint32_t pacer_in_flight(const struct shm *shm, uint32_t provider)
{
    const struct shm_pacer *p = pacer_at(shm, provider);
    uint32_t n = 0;
    for (uint32_t i = 0; i < SHM_PERMITS_MAX; i++)
        n += atomic_load_explicit(&p->permits[i], memory_order_relaxed) != 0;
    return n;
}

uint32_t pacer_sweep(struct shm *shm, uint32_t slot)
{
    uint32_t given = 0;
    for (uint32_t provider = 0; provider < atomic_load(&shm->hdr->provider_count);
         provider++) {
        struct shm_pacer *p = pacer_at(shm, provider);
        uint32_t here = 0;
        for (uint32_t i = 0; i < SHM_PERMITS_MAX; i++) {
            uint64_t word = atomic_load_explicit(&p->permits[i], memory_order_acquire);
            if (word >> 56 != slot + 1)
                continue;
            if (atomic_compare_exchange_strong(&p->permits[i], &word, 0))
                here++;
        }
        atomic_fetch_and_explicit(&p->waiting, ~(UINT64_C(1) << slot),
                                  memory_order_seq_cst);
        atomic_store_explicit(&p->calls, pacer_in_flight(shm, provider),
                              memory_order_relaxed);
        if (here > 0)
            wake_waiting(shm, provider);
        given += here;
    }
    return given;
}

bool pacer_valid(const struct shm *shm, uint32_t provider, bool quiet, char *why,
                 size_t n)
{
    const struct shm_pacer *p = pacer_at(shm, provider);
    uint32_t limit = atomic_load(&p->concurrency);

    for (uint32_t i = 0; i < SHM_PERMITS_MAX; i++) {
        uint64_t word = atomic_load(&p->permits[i]);
        uint32_t slot = (uint32_t)(word >> 56);
        uint32_t flight = (uint32_t)(word >> 32 & 0xffffff);
        if (word == 0)
            continue;
        if (slot == 0 || slot > SHM_SLOTS || flight >= shm->hdr->flight_count) {
            snprintf(why, n, "permit %u names slot %u and flight %u", i, slot - 1,
                     flight);
            return false;
        }
        struct flight_word w = flight_load(shm, flight);
        if (quiet && (w.incarnation != (uint32_t)word || w.owner != slot - 1)) {
            snprintf(why, n, "permit %u is held for flight %u, which slot %u has left", i,
                     flight, slot - 1);
            return false;
        }
    }
    if (limit > SHM_PERMITS_MAX) {
        snprintf(why, n, "concurrency is %u, there are %u permits", limit,
                 SHM_PERMITS_MAX);
        return false;
    }
    return true;
}
