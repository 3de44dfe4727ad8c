/*
 * See live.h. The sequence is odd while the words are written; a reader that saw the same
 * even number before and after has whole ones.
 */
#include "shm/live.h"

#include <string.h>

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

void live_ask_cancel(struct shm *shm, const uint8_t turn[16])
{
    uint64_t seq = atomic_load_explicit(&shm->hdr->cancel_seq, memory_order_relaxed);
    uint64_t words[2];

    memcpy(words, turn, sizeof words);
    for (size_t i = 0; i < 2; i++)
        atomic_store_explicit(&shm->hdr->cancels[seq % SHM_CANCELS][i], words[i],
                              memory_order_relaxed);
    atomic_store_explicit(&shm->hdr->cancel_seq, seq + 1, memory_order_release);
}

bool live_next_cancel(const struct shm *shm, uint64_t *seen, uint8_t turn[16])
{
    uint64_t seq = atomic_load_explicit(&shm->hdr->cancel_seq, memory_order_acquire);
    uint64_t words[2];

    if (seq - *seen > SHM_CANCELS)
        *seen = seq - SHM_CANCELS;
    if (*seen == seq)
        return false;
    /* One that is written over this moment is a mixture, and no turn's. */
    for (size_t i = 0; i < 2; i++)
        words[i] = atomic_load_explicit(&shm->hdr->cancels[*seen % SHM_CANCELS][i],
                                        memory_order_relaxed);
    memcpy(turn, words, sizeof words);
    return true;
}
