/*
 * Reading a flight's log. A reader whose bit is set (or the owner, or the recorder before
 * it said "stored") may keep pointers into blocks: they are not given away before.
 * Lengths and links were written by another process all the same, so each is checked.
 */
#include <stdio.h>
#include <string.h>

#include "shm/blocklog.h"

static const uint8_t *block_data(const struct shm *shm, uint32_t block)
{
    return shm->data + (size_t)block * SHM_BLOCK_SIZE;
}

void blocklog_rewind(struct blocklog_cursor *c, struct flight_ref ref)
{
    *c = (struct blocklog_cursor){.ref = ref};
}

void blocklog_seek(struct blocklog_cursor *c, struct flight_ref ref, uint64_t offset)
{
    *c = (struct blocklog_cursor){.ref = ref, .offset = offset};
}

/* Moves {block, base} so that `offset` lies inside the block. */
static bool seek(const struct shm *shm, struct blocklog_cursor *c)
{
    if (c->block == 0) {
        c->block = atomic_load_explicit(&flight_at(shm, c->ref.index)->first_block,
                                        memory_order_acquire);
        c->base = 0;
    }
    while (c->block != 0 && c->block <= shm->hdr->block_count &&
           c->offset >= c->base + SHM_BLOCK_SIZE) {
        c->block =
            atomic_load_explicit(&shm->blocks[c->block - 1].next, memory_order_acquire);
        c->base += SHM_BLOCK_SIZE;
    }
    return c->block != 0 && c->block <= shm->hdr->block_count;
}

/* Copies n bytes that start `skip` bytes behind the cursor; false if the chain is broken.
 */
static bool copy_at(const struct shm *shm, const struct blocklog_cursor *at,
                    uint64_t skip, void *dst, size_t n)
{
    struct blocklog_cursor c = *at;
    uint8_t *out = dst;

    c.offset += skip;
    while (n > 0) {
        if (!seek(shm, &c))
            return false;
        size_t within = (size_t)(c.offset - c.base);
        size_t take = SHM_BLOCK_SIZE - within;
        if (take > n)
            take = n;
        memcpy(out, block_data(shm, c.block - 1) + within, take);
        out += take;
        n -= take;
        c.offset += take;
    }
    return true;
}

uint64_t blocklog_unread(const struct shm *shm, const struct blocklog_cursor *c)
{
    uint64_t tail =
        atomic_load_explicit(&flight_at(shm, c->ref.index)->tail, memory_order_acquire);
    return tail > c->offset ? tail - c->offset : 0;
}

enum dac_err blocklog_peek(const struct shm *shm, struct blocklog_cursor *c,
                           struct blocklog_record *out)
{
    struct record_header h;
    uint64_t unread = blocklog_unread(shm, c);

    if (unread == 0)
        return DAC_E_AGAIN;
    if (unread < sizeof h || !seek(shm, c) || !copy_at(shm, c, 0, &h, sizeof h))
        return DAC_E_CORRUPT;
    if (h.len > unread - sizeof h || h.type == 0 || h.type > RECORD_TYPE_MAX)
        return DAC_E_CORRUPT;
    *out = (struct blocklog_record){
        .type = (enum record_type)h.type, .generation = h.generation, .len = h.len};
    return DAC_OK;
}

const void *blocklog_payload(const struct shm *shm, const struct blocklog_cursor *c,
                             const struct blocklog_record *r, void *scratch)
{
    uint64_t start = c->offset + sizeof(struct record_header) - c->base;
    if (start + r->len <= SHM_BLOCK_SIZE)
        return block_data(shm, c->block - 1) + start;
    blocklog_copy(shm, c, r, scratch, r->len);
    return scratch;
}

void blocklog_copy(const struct shm *shm, const struct blocklog_cursor *c,
                   const struct blocklog_record *r, void *dst, size_t n)
{
    size_t take = n < r->len ? n : r->len;
    if (!copy_at(shm, c, sizeof(struct record_header), dst, take))
        memset(dst, 0, take);
}

void blocklog_next(const struct shm *shm, struct blocklog_cursor *c,
                   const struct blocklog_record *r)
{
    (void)shm;
    c->offset += sizeof(struct record_header) + r->len;
}

/* Every block of the chain is this flight's, and the chain is long enough for the tail.
 */
static bool chain_valid(const struct shm *shm, struct flight_ref ref, uint64_t tail,
                        char *why, size_t n)
{
    const struct shm_flight *f = flight_at(shm, ref.index);
    uint64_t want = (uint64_t)(ref.index + 1) << 32 | ref.incarnation;
    uint64_t need = (tail + SHM_BLOCK_SIZE - 1) / SHM_BLOCK_SIZE;
    uint64_t seen = 0;

    for (uint32_t b = atomic_load(&f->first_block); b != 0;
         b = atomic_load(&shm->blocks[b - 1].next)) {
        if (b > shm->hdr->block_count) {
            snprintf(why, n, "its log links to block %u, which does not exist", b);
            return false;
        }
        if (atomic_load(&shm->blocks[b - 1].owner) != want) {
            snprintf(why, n, "block %u of its log belongs to somebody else", b - 1);
            return false;
        }
        if (++seen > shm->hdr->block_count) {
            snprintf(why, n, "its log's chain is a circle");
            return false;
        }
    }
    if (seen < need)
        snprintf(why, n, "its log has %llu bytes but only %llu blocks",
                 (unsigned long long)tail, (unsigned long long)seen);
    return seen >= need;
}

bool blocklog_valid(const struct shm *shm, uint32_t flight, char *why, size_t n)
{
    struct flight_word w = flight_load(shm, flight);
    struct flight_ref ref = {.index = flight, .incarnation = w.incarnation};
    uint64_t tail = atomic_load(&flight_at(shm, flight)->tail);
    struct blocklog_cursor c;
    struct blocklog_record r;
    bool ended = false;
    enum dac_err e;

    if (w.state == FLIGHT_FREE)
        return true;
    if (!chain_valid(shm, ref, tail, why, n))
        return false;
    blocklog_rewind(&c, ref);
    while ((e = blocklog_peek(shm, &c, &r)) == DAC_OK) {
        if (ended) {
            snprintf(why, n, "its log goes on behind END");
            return false;
        }
        ended = r.type == RECORD_END;
        blocklog_next(shm, &c, &r);
    }
    if (e == DAC_E_CORRUPT) {
        snprintf(why, n, "its log is broken at byte %llu", (unsigned long long)c.offset);
        return false;
    }
    if (flight_state_ended(w.state) && !ended) {
        snprintf(why, n, "it is %s but its log has no END", flight_state_name(w.state));
        return false;
    }
    return true;
}
