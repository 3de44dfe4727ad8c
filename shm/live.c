/*
 * See live.h. The sequence is odd while the words are written; a reader that saw the same
 * even number before and after has whole ones.
 */
#include "shm/live.h"

void live_publish(struct shm *shm, const uint64_t *words, size_t n)
{
    struct shm_header *h = shm->hdr;
    uint64_t seq = atomic_load_explicit(&h->live_seq, memory_order_relaxed);

    atomic_store_explicit(&h->live_seq, seq + 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    for (size_t i = 0; i < SHM_LIVE_MAX; i++)
        atomic_store_explicit(&h->live[i], i < n ? words[i] : 0, memory_order_relaxed);
    atomic_store_explicit(&h->live_seq, seq + 2, memory_order_release);
}

bool live_read(const struct shm *shm, uint64_t *seen, uint64_t words[SHM_LIVE_MAX])
{
    const struct shm_header *h = shm->hdr;
    uint64_t seq = atomic_load_explicit(&h->live_seq, memory_order_acquire);

    if (seq == *seen || (seq & 1) != 0)
        return false;
    for (size_t i = 0; i < SHM_LIVE_MAX; i++)
        words[i] = atomic_load_explicit(&h->live[i], memory_order_relaxed);
    atomic_thread_fence(memory_order_acquire);
    if (atomic_load_explicit(&h->live_seq, memory_order_relaxed) != seq)
        return false;
    *seen = seq;
    return true;
}
