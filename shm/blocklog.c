/*
 * Writing a flight's log.
 *
 * A block belongs to a flight by one word, {flight, incarnation}; a flight that becomes
 * FREE raises its incarnation, and with that all its blocks are free, also those that a
 * dead writer had taken and not yet linked. There is no free list that could lose one.
 *
 * Order of a writer: take blocks (cas), link them (release store of next), write bytes,
 * publish tail (release). A new owner after a death starts at the published tail; blocks
 * that are linked behind it are used again.
 */
#include "shm/blocklog.h"

#include <string.h>

#include "shm/crash.h"

static uint64_t block_owner(struct flight_ref ref)
{
    return (uint64_t)(ref.index + 1) << 32 | ref.incarnation;
}

static uint8_t *block_data(const struct shm *shm, uint32_t block)
{
    return shm->data + (size_t)block * SHM_BLOCK_SIZE;
}

static bool owner_is_gone(const struct shm *shm, uint64_t owner)
{
    uint32_t flight = (uint32_t)(owner >> 32);
    if (flight == 0 || flight > shm->hdr->flight_count)
        return true;
    struct flight_word w = flight_load(shm, flight - 1);
    return w.incarnation != (uint32_t)owner || w.state == FLIGHT_FREE;
}

bool block_is_free(const struct shm *shm, uint32_t block)
{
    uint64_t owner =
        atomic_load_explicit(&shm->blocks[block].owner, memory_order_acquire);
    return owner_is_gone(shm, owner);
}

uint32_t blocks_free_hint(const struct shm *shm)
{
    uint32_t used = atomic_load_explicit(&shm->hdr->blocks_used, memory_order_relaxed);
    if (used > UINT32_MAX / 2) /* below zero: a hint drifts with deaths and recounts */
        used = 0;
    return used < shm->hdr->block_count ? shm->hdr->block_count - used : 0;
}

bool blocks_low(const struct shm *shm)
{
    return blocks_free_hint(shm) < shm->hdr->block_count / 16;
}

/* Takes a block for `ref` with a clock hand; UINT32_MAX if none is free. */
static uint32_t block_take(struct shm *shm, struct flight_ref ref)
{
    struct shm_header *h = shm->hdr;
    uint32_t n = h->block_count;
    uint32_t start = atomic_load_explicit(&h->block_hand, memory_order_relaxed) % n;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = start + i < n ? start + i : start + i - n;
        struct shm_block *b = &shm->blocks[at];
        uint64_t owner = atomic_load_explicit(&b->owner, memory_order_acquire);
        if (!owner_is_gone(shm, owner))
            continue;
        if (!atomic_compare_exchange_strong_explicit(&b->owner, &owner, block_owner(ref),
                                                     memory_order_acq_rel,
                                                     memory_order_relaxed))
            continue;
        CRASH_POINT("block_taken");
        atomic_store_explicit(&b->next, 0, memory_order_relaxed);
        atomic_store_explicit(&h->block_hand, at + 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&h->blocks_used, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&flight_at(shm, ref.index)->block_count, 1,
                                  memory_order_relaxed);
        return at;
    }
    return UINT32_MAX;
}

/* The block behind `block`, taking and linking a new one where there is none. */
static uint32_t block_after(struct shm *shm, struct flight_ref ref, uint32_t block)
{
    shm_u32 *link = &shm->blocks[block].next;
    uint32_t next = atomic_load_explicit(link, memory_order_acquire);
    if (next != 0)
        return next - 1;
    uint32_t taken = block_take(shm, ref);
    if (taken != UINT32_MAX) {
        atomic_store_explicit(link, taken + 1, memory_order_release);
        CRASH_POINT("block_linked");
    }
    return taken;
}

/* Makes sure that `bytes` from the writer's offset lie in linked blocks. */
static enum dac_err reserve(struct shm *shm, const struct blocklog_writer *w,
                            uint64_t bytes)
{
    uint64_t room = w->base + SHM_BLOCK_SIZE - w->offset;
    uint32_t block = w->block;
    while (room < bytes) {
        block = block_after(shm, w->ref, block);
        if (block == UINT32_MAX)
            return DAC_E_FULL;
        room += SHM_BLOCK_SIZE;
    }
    return DAC_OK;
}

enum dac_err blocklog_open(struct shm *shm, struct flight_ref ref,
                           struct blocklog_writer *out)
{
    struct shm_flight *f = flight_at(shm, ref.index);
    struct flight_word word = flight_load(shm, ref.index);
    uint32_t first = atomic_load_explicit(&f->first_block, memory_order_acquire);

    if (word.incarnation != ref.incarnation || word.owner != shm->self)
        return DAC_E_STATE;
    *out = (struct blocklog_writer){.ref = ref,
                                    .generation = word.generation,
                                    .max_bytes = shm->hdr->flight_max_bytes};
    if (first > shm->hdr->block_count)
        return DAC_E_CORRUPT;
    if (first == 0) {
        uint32_t taken = block_take(shm, ref);
        if (taken == UINT32_MAX)
            return DAC_E_FULL;
        first = taken + 1;
        atomic_store_explicit(&f->first_block, first, memory_order_release);
        CRASH_POINT("first_block");
    }
    out->block = first - 1;
    out->offset = atomic_load_explicit(&f->tail, memory_order_acquire);
    while (out->base + SHM_BLOCK_SIZE < out->offset) {
        uint32_t next =
            atomic_load_explicit(&shm->blocks[out->block].next, memory_order_acquire);
        if (next == 0 || next > shm->hdr->block_count)
            return DAC_E_CORRUPT;
        out->block = next - 1;
        out->base += SHM_BLOCK_SIZE;
    }
    return reserve(shm, out, BLOCKLOG_END_ROOM);
}

/* Copies into blocks that reserve() has linked. */
static void put_bytes(struct shm *shm, struct blocklog_writer *w, const void *data,
                      size_t n)
{
    const uint8_t *src = data;
    while (n > 0) {
        uint64_t within = w->offset - w->base;
        if (within == SHM_BLOCK_SIZE) {
            uint32_t next =
                atomic_load_explicit(&shm->blocks[w->block].next, memory_order_relaxed);
            DAC_ASSERT(next != 0 && next <= shm->hdr->block_count);
            w->block = next - 1;
            w->base += SHM_BLOCK_SIZE;
            within = 0;
        }
        size_t room = SHM_BLOCK_SIZE - (size_t)within;
        size_t take = n < room ? n : room;
        memcpy(block_data(shm, w->block) + within, src, take);
        src += take;
        n -= take;
        w->offset += take;
    }
}

enum dac_err blocklog_append(struct shm *shm, struct blocklog_writer *w,
                             enum record_type type, const void *payload, uint32_t len)
{
    struct record_header h = {
        .len = len, .type = (uint8_t)type, .generation = w->generation};
    uint64_t bytes = sizeof h + (uint64_t)len;

    if (type != RECORD_END) {
        if (w->offset + bytes > w->max_bytes)
            return DAC_E_TOO_LARGE;
        enum dac_err e = reserve(shm, w, bytes + BLOCKLOG_END_ROOM);
        if (e != DAC_OK)
            return e;
    } else {
        DAC_ASSERT(bytes <= BLOCKLOG_END_ROOM);
    }
    put_bytes(shm, w, &h, sizeof h);
    put_bytes(shm, w, payload, len);
    CRASH_POINT("append_before_publish");
    atomic_store_explicit(&flight_at(shm, w->ref.index)->tail, w->offset,
                          memory_order_release);
    CRASH_POINT("append_after_publish");
    return DAC_OK;
}
