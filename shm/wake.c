/*
 * Waking other processes. The order of the two read-modify-writes on each side is the
 * whole protocol; see wake.h and the barrier table in shm/README.md.
 */
#include "shm/wake.h"

#include <unistd.h>

#include "shm/crash.h"

static void ring(struct shm *shm, uint32_t slot)
{
    struct shm_slot *s = &shm->slots[slot];
    if (atomic_exchange_explicit(&s->notified, 1, memory_order_seq_cst) != 0)
        return;
    CRASH_POINT("wake_flag");
    uint64_t one = 1;
    /* EAGAIN means that the counter is full: the sleeper is readable anyway. */
    if (shm->eventfd[slot] >= 0 && write(shm->eventfd[slot], &one, sizeof one) < 0)
        return;
    CRASH_POINT("wake_eventfd");
}

void wake_slot(struct shm *shm, uint32_t slot, uint32_t flight)
{
    shm_u64 *word = &shm->dirty[slot * shm->hdr->dirty_words + flight / 64];
    atomic_fetch_or_explicit(word, UINT64_C(1) << (flight % 64), memory_order_seq_cst);
    CRASH_POINT("wake_dirty");
    ring(shm, slot);
}

void wake_readers(struct shm *shm, uint32_t flight)
{
    /* What was published stands before the bitmap is looked at, as a joiner's bit stands
     * before it looks at what was published (set_reader): one of the two sees the other.
     */
    atomic_thread_fence(memory_order_seq_cst);
    uint64_t readers = flight_readers(shm, flight);
    if (shm->self < SHM_SLOTS)
        readers &= ~(UINT64_C(1) << shm->self);
    while (readers != 0) {
        wake_slot(shm, (uint32_t)__builtin_ctzll(readers), flight);
        readers &= readers - 1;
    }
}

void wake_owner(struct shm *shm, uint32_t flight)
{
    struct flight_word w = flight_load(shm, flight);
    if (w.owner < SHM_SLOTS && w.owner != shm->self)
        wake_slot(shm, w.owner, flight);
}

void wake_recorder(struct shm *shm, uint32_t flight)
{
    uint32_t slot = atomic_load_explicit(&shm->hdr->recorder_slot, memory_order_acquire);
    if (slot < SHM_SLOTS)
        wake_slot(shm, slot, flight);
}

void wake_pacer(struct shm *shm, uint32_t slot, uint32_t provider)
{
    atomic_fetch_or_explicit(&shm->slots[slot].pacer_dirty, 1u << provider,
                             memory_order_seq_cst);
    ring(shm, slot);
}

void wake_kick(struct shm *shm)
{
    uint64_t one = 1;
    atomic_fetch_add_explicit(&shm->hdr->kicks, 1, memory_order_seq_cst);
    for (size_t i = 0; i < SHM_SLOTS; i++)
        if (shm->eventfd[i] >= 0 && write(shm->eventfd[i], &one, sizeof one) < 0)
            continue;
}

void wake_begin(struct shm *shm)
{
    uint64_t count;
    if (read(shm->eventfd[shm->self], &count, sizeof count) < 0)
        count = 0; /* nothing written since: the flag and the bits are looked at anyway */
    atomic_exchange_explicit(&shm->slots[shm->self].notified, 0, memory_order_seq_cst);
}

void wake_take(struct shm *shm, void (*fn)(void *arg, uint32_t flight), void *arg)
{
    shm_u64 *words = &shm->dirty[shm->self * shm->hdr->dirty_words];
    for (uint32_t i = 0; i < shm->hdr->dirty_words; i++) {
        if (atomic_load_explicit(&words[i], memory_order_relaxed) == 0)
            continue;
        uint64_t bits = atomic_exchange_explicit(&words[i], 0, memory_order_seq_cst);
        while (bits != 0) {
            fn(arg, i * 64 + (uint32_t)__builtin_ctzll(bits));
            bits &= bits - 1;
        }
    }
}

uint32_t wake_take_pacers(struct shm *shm)
{
    shm_u32 *p = &shm->slots[shm->self].pacer_dirty;
    if (atomic_load_explicit(p, memory_order_relaxed) == 0)
        return 0;
    return atomic_exchange_explicit(p, 0, memory_order_seq_cst);
}
