/*
 * Counters: one array per slot with one writer each, and the master's base, summed by
 * readers. Relaxed everywhere: they order nothing.
 */
#include "shm/segment.h"

static const char *const counter_names[] = {
#define X(name, help) #name,
    SHM_COUNTERS(X)
#undef X
};

static const char *const counter_helps[] = {
#define X(name, help) help,
    SHM_COUNTERS(X)
#undef X
};

void shm_count(struct shm *shm, enum shm_counter c, uint64_t by)
{
    shm_u64 *p = shm->self < SHM_SLOTS ? &shm->slots[shm->self].counters[c]
                                       : &shm->hdr->counters_base[c];
    /* One writer: a load and a store, no locked instruction. */
    atomic_store_explicit(p, atomic_load_explicit(p, memory_order_relaxed) + by,
                          memory_order_relaxed);
}

uint64_t shm_counter_sum(const struct shm *shm, enum shm_counter c)
{
    uint64_t sum =
        atomic_load_explicit(&shm->hdr->counters_base[c], memory_order_relaxed);
    for (size_t i = 0; i < SHM_SLOTS; i++)
        sum += atomic_load_explicit(&shm->slots[i].counters[c], memory_order_relaxed);
    return sum;
}

const char *shm_counter_name(enum shm_counter c)
{
    return (unsigned)c < SHM_C_COUNT ? counter_names[c] : "?";
}

const char *shm_counter_help(enum shm_counter c)
{
    return (unsigned)c < SHM_C_COUNT ? counter_helps[c] : "";
}

uint64_t shm_restarts_sum(const struct shm *shm)
{
    uint64_t sum = 0;

    for (size_t kind = 0; kind < SHM_KINDS; kind++)
        for (size_t i = 0; i < RESTART_REASON_COUNT; i++)
            sum += atomic_load(&shm->hdr->restarts[kind][i]);
    return sum;
}

const char *shm_restart_reason_name(enum restart_reason reason)
{
    static const char *const names[] = {[RESTART_KILLED] = "killed",
                                        [RESTART_EXITED] = "exited",
                                        [RESTART_WATCHDOG] = "watchdog"};

    return (unsigned)reason < RESTART_REASON_COUNT ? names[reason] : "?";
}
