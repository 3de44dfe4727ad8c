/*
 * The flight's word and the hints around it. Every move is one compare-and-swap on the
 * word; a process that dies before it has changed nothing, one that dies after it has
 * done it all.
 */
#include "shm/flight.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "shm/blocklog.h"
#include "shm/crash.h"
#include "shm/wake.h"

static const char *const state_names[FLIGHT_STATE_COUNT] = {
    "free",     "claimed", "queued", "fetching", "streaming",
    "orphaned", "done",    "failed", "cancelled"};

#define TO(s) (1u << (s))

/* may_move[from] is the set of states that may follow. */
static const unsigned may_move[FLIGHT_STATE_COUNT] = {
    [FLIGHT_FREE] = TO(FLIGHT_CLAIMED),
    [FLIGHT_CLAIMED] = TO(FLIGHT_QUEUED) | TO(FLIGHT_FREE) | TO(FLIGHT_ORPHANED) |
                       TO(FLIGHT_DONE) | TO(FLIGHT_FAILED) | TO(FLIGHT_CANCELLED),
    [FLIGHT_QUEUED] = TO(FLIGHT_FETCHING) | TO(FLIGHT_ORPHANED) | TO(FLIGHT_FAILED) |
                      TO(FLIGHT_CANCELLED),
    [FLIGHT_FETCHING] = TO(FLIGHT_STREAMING) | TO(FLIGHT_QUEUED) | TO(FLIGHT_ORPHANED) |
                        TO(FLIGHT_DONE) | TO(FLIGHT_FAILED) | TO(FLIGHT_CANCELLED),
    [FLIGHT_STREAMING] =
        TO(FLIGHT_ORPHANED) | TO(FLIGHT_DONE) | TO(FLIGHT_FAILED) | TO(FLIGHT_CANCELLED),
    [FLIGHT_ORPHANED] = TO(FLIGHT_CLAIMED) | TO(FLIGHT_FETCHING),
    [FLIGHT_DONE] = TO(FLIGHT_FREE),
    [FLIGHT_FAILED] = TO(FLIGHT_FREE),
    [FLIGHT_CANCELLED] = TO(FLIGHT_FREE),
};

bool flight_may_move(enum flight_state from, enum flight_state to)
{
    return (unsigned)from < FLIGHT_STATE_COUNT && (unsigned)to < FLIGHT_STATE_COUNT &&
           (may_move[from] & TO(to)) != 0;
}

struct flight_word flight_load(const struct shm *shm, uint32_t index)
{
    return flight_unpack(
        atomic_load_explicit(&flight_at(shm, index)->word, memory_order_acquire));
}

bool flight_state_ended(enum flight_state s)
{
    return s == FLIGHT_DONE || s == FLIGHT_FAILED || s == FLIGHT_CANCELLED;
}

bool flight_state_running(enum flight_state s)
{
    return s >= FLIGHT_CLAIMED && s <= FLIGHT_ORPHANED;
}

const char *flight_state_name(enum flight_state s)
{
    return (unsigned)s < FLIGHT_STATE_COUNT ? state_names[s] : "invalid";
}

const char *flight_stored_name(enum flight_stored s)
{
    static const char *const names[] = {"no", "postgres", "spool", "sqlite", "failed"};
    return (unsigned)s < DAC_ARRAY_LEN(names) ? names[s] : "invalid";
}

const char *turn_status_name(enum turn_status s)
{
    static const char *const names[] = {"running", "complete", "cancelled", "incomplete",
                                        "failed"};
    return (unsigned)s < DAC_ARRAY_LEN(names) ? names[s] : "invalid";
}

enum flight_state flight_state_for(enum turn_status s)
{
    if (s == TURN_COMPLETE)
        return FLIGHT_DONE;
    return s == TURN_CANCELLED ? FLIGHT_CANCELLED : FLIGHT_FAILED;
}

static bool flight_swap(struct shm *shm, uint32_t index, struct flight_word from,
                        struct flight_word to)
{
    uint64_t expected = flight_pack(from);
    return atomic_compare_exchange_strong_explicit(
        &flight_at(shm, index)->word, &expected, flight_pack(to), memory_order_acq_rel,
        memory_order_acquire);
}

enum dac_err flight_advance(struct shm *shm, struct flight_ref ref, enum flight_state to)
{
    struct flight_word w = flight_load(shm, ref.index);
    if (w.incarnation != ref.incarnation || w.owner != shm->self)
        return DAC_E_STATE;
    DAC_ASSERT(flight_may_move(w.state, to));
    struct flight_word next = w;
    next.state = to;
    if (flight_state_ended(to))
        next.owner = SHM_NO_SLOT;
    CRASH_POINT("flight_advance_before");
    if (!flight_swap(shm, ref.index, w, next))
        return DAC_E_STATE;
    CRASH_POINT("flight_advance_after");
    return DAC_OK;
}

/* What a new use must not inherit. The claimer owns the flight already; nobody else can
 * see it before it is indexed. */
static void flight_reset(struct shm_flight *f)
{
    atomic_store_explicit(&f->tail, 0, memory_order_relaxed);
    atomic_store_explicit(&f->stored, STORED_NO, memory_order_relaxed);
    atomic_store_explicit(&f->requests, 0, memory_order_relaxed);
    atomic_store_explicit(&f->declined, 0, memory_order_relaxed);
    atomic_store_explicit(&f->fetcher, 0, memory_order_relaxed);
    atomic_store_explicit(&f->batch, 0, memory_order_relaxed);
    atomic_store_explicit(&f->first_block, 0, memory_order_relaxed);
    atomic_store_explicit(&f->block_count, 0, memory_order_relaxed);
    atomic_store_explicit(&f->next, 0, memory_order_relaxed);
    atomic_store_explicit(&f->queued_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&f->fetch_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&f->first_token_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&f->ended_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&f->question, 0, memory_order_relaxed);
    atomic_store_explicit(&f->own_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&f->called_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&f->answered_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&f->ticket, 0, memory_order_relaxed);
    atomic_store_explicit(&f->followers, 0, memory_order_relaxed);
    atomic_store_explicit(&f->hits, 0, memory_order_relaxed);
    atomic_store_explicit(&f->sample, 0, memory_order_relaxed);
    atomic_store_explicit(&f->start, 0, memory_order_relaxed);
    atomic_store_explicit(&f->lost_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&f->aliases, 0, memory_order_relaxed);
    atomic_store_explicit(&f->aliases_stored, 0, memory_order_relaxed);
}

void flight_ask_for_room(struct shm *shm)
{
    if (atomic_exchange_explicit(&shm->hdr->pressure, 1, memory_order_acq_rel) == 0)
        wake_recorder(shm, 0);
}

enum dac_err flight_claim(struct shm *shm, struct flight_ref *out)
{
    struct shm_header *h = shm->hdr;
    uint32_t n = h->flight_count;

    if (blocks_low(shm)) {
        flight_ask_for_room(shm);
        return DAC_E_FULL;
    }
    uint32_t start = atomic_load_explicit(&h->flight_hand, memory_order_relaxed) % n;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = start + i < n ? start + i : start + i - n;
        struct flight_word w = flight_load(shm, at);
        if (w.state != FLIGHT_FREE)
            continue;
        struct flight_word mine = {
            .state = FLIGHT_CLAIMED, .owner = shm->self, .incarnation = w.incarnation};
        CRASH_POINT("claim_before");
        if (!flight_swap(shm, at, w, mine))
            continue;
        CRASH_POINT("claim_after");
        atomic_store_explicit(&h->flight_hand, at + 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&h->flights_used, 1, memory_order_relaxed);
        flight_reset(flight_at(shm, at));
        *out = (struct flight_ref){.index = at, .incarnation = w.incarnation};
        return DAC_OK;
    }
    flight_ask_for_room(shm);
    return DAC_E_FULL;
}

enum dac_err flight_release(struct shm *shm, uint32_t index, struct flight_word from)
{
    struct shm_flight *f = flight_at(shm, index);
    /* Taken out, so that the sweep of a claim that died before flight_reset() does not
     * subtract the last use's once more. */
    uint32_t blocks = atomic_exchange_explicit(&f->block_count, 0, memory_order_relaxed);
    struct flight_word to = {
        .state = FLIGHT_FREE, .owner = SHM_NO_SLOT, .incarnation = from.incarnation + 1};
    DAC_ASSERT(flight_may_move(from.state, FLIGHT_FREE) || from.state == FLIGHT_ORPHANED);
    CRASH_POINT("release_before");
    if (!flight_swap(shm, index, from, to))
        return DAC_E_STATE;
    CRASH_POINT("release_after");
    atomic_fetch_sub_explicit(&shm->hdr->blocks_used, blocks, memory_order_relaxed);
    atomic_fetch_sub_explicit(&shm->hdr->flights_used, 1, memory_order_relaxed);
    return DAC_OK;
}

void flight_unclaim(struct shm *shm, struct flight_ref ref)
{
    struct flight_word w = flight_load(shm, ref.index);
    DAC_ASSERT(w.state == FLIGHT_CLAIMED && w.owner == shm->self &&
               w.incarnation == ref.incarnation);
    atomic_store_explicit(&flight_at(shm, ref.index)->readers, 0, memory_order_relaxed);
    enum dac_err e = flight_release(shm, ref.index, w);
    DAC_ASSERT(e == DAC_OK);
}

enum dac_err flight_adopt(struct shm *shm, struct flight_ref ref, enum flight_state to)
{
    struct flight_word w = flight_load(shm, ref.index);
    if (w.state != FLIGHT_ORPHANED || w.incarnation != ref.incarnation)
        return DAC_E_STATE;
    struct flight_word mine = {.state = to,
                               .owner = shm->self,
                               .generation = (uint16_t)(w.generation + 1),
                               .incarnation = w.incarnation};
    DAC_ASSERT(flight_may_move(FLIGHT_ORPHANED, to));
    CRASH_POINT("adopt_before");
    if (!flight_swap(shm, ref.index, w, mine))
        return DAC_E_STATE;
    CRASH_POINT("adopt_after");
    return DAC_OK;
}

bool flight_decline(struct shm *shm, uint32_t index, bool declined)
{
    shm_u64 *word = &flight_at(shm, index)->declined;
    uint64_t bit = UINT64_C(1) << shm->self;

    if (((atomic_load_explicit(word, memory_order_acquire) & bit) != 0) == declined)
        return false;
    if (declined)
        atomic_fetch_or_explicit(word, bit, memory_order_acq_rel);
    else
        atomic_fetch_and_explicit(word, ~bit, memory_order_acq_rel);
    CRASH_POINT("declined");
    return true;
}

bool flight_all_declined(const struct shm *shm, uint32_t index)
{
    const struct shm_flight *f = flight_at(shm, index);
    uint64_t declined = atomic_load_explicit(&f->declined, memory_order_acquire);

    return (flight_readers(shm, index) & ~declined) == 0;
}

void flight_give_back(struct shm *shm, struct flight_ref ref)
{
    struct flight_word w = flight_load(shm, ref.index);
    struct flight_word orphan = w;

    DAC_ASSERT(w.owner == shm->self && w.incarnation == ref.incarnation &&
               flight_may_move(w.state, FLIGHT_ORPHANED));
    orphan.state = FLIGHT_ORPHANED;
    orphan.owner = SHM_NO_SLOT;
    atomic_store(&flight_at(shm, ref.index)->lost_ns, clock_now_ns());
    if (!flight_swap(shm, ref.index, w, orphan))
        return; /* it was taken from a process that is thought dead */
    wake_recorder(shm, ref.index);
    wake_readers(shm, ref.index);
}

bool flight_ask_cancel(struct shm *shm, uint32_t index)
{
    uint32_t before = atomic_fetch_or_explicit(&flight_at(shm, index)->requests,
                                               FLIGHT_ASK_CANCEL, memory_order_acq_rel);
    return (before & FLIGHT_ASK_CANCEL) == 0;
}

struct trace flight_trace(const struct shm *shm, uint32_t index)
{
    const struct shm_flight *f = flight_at(shm, index);
    struct trace t = {.flags = f->trace_flags};

    memcpy(t.id, f->trace_id, sizeof t.id);
    return t;
}

bool flight_drop_reader(struct shm *shm, uint32_t index)
{
    uint64_t bit = UINT64_C(1) << shm->self;
    uint64_t before = atomic_fetch_and_explicit(&flight_at(shm, index)->readers, ~bit,
                                                memory_order_acq_rel);
    CRASH_POINT("reader_dropped");
    return (before & bit) != 0 && (before & ~bit) == 0;
}

uint64_t flight_readers(const struct shm *shm, uint32_t index)
{
    return atomic_load_explicit(&flight_at(shm, index)->readers, memory_order_acquire);
}

void flight_raise_grace(struct shm *shm, uint32_t index, uint64_t ns)
{
    shm_u64 *grace = &flight_at(shm, index)->abandon_grace_ns;
    uint64_t now = atomic_load_explicit(grace, memory_order_relaxed);
    while (now < ns && !atomic_compare_exchange_weak_explicit(
                           grace, &now, ns, memory_order_relaxed, memory_order_relaxed))
        ;
}

/* Rules over several words: true only where nobody is moving them. */
static bool quiet_valid(const struct shm *shm, const struct shm_flight *f,
                        struct flight_word w, char *why, size_t n)
{
    bool indexed = atomic_load(&f->bucket) != 0;
    uint64_t readers = atomic_load(&f->readers);

    if (w.state == FLIGHT_FREE && indexed)
        snprintf(why, n, "it is free but indexed");
    else if (w.state == FLIGHT_FREE && readers != 0)
        snprintf(why, n, "it is free but has readers %llx", (unsigned long long)readers);
    else if (w.state >= FLIGHT_QUEUED && !flight_state_ended(w.state) && !indexed)
        snprintf(why, n, "it is %s but not indexed", flight_state_name(w.state));
    else if (flight_state_ended(w.state) && atomic_load(&f->ended_ns) == 0)
        snprintf(why, n, "it ended but has no time of its end");
    else if (indexed && atomic_load(&f->bucket) > shm->hdr->bucket_count)
        snprintf(why, n, "its bucket does not exist");
    else
        return true;
    return false;
}

bool flight_valid(const struct shm *shm, uint32_t index, bool quiet, char *why, size_t n)
{
    const struct shm_flight *f = flight_at(shm, index);
    struct flight_word w = flight_load(shm, index);
    bool owned = w.state >= FLIGHT_CLAIMED && w.state <= FLIGHT_STREAMING;

    if ((unsigned)w.state >= FLIGHT_STATE_COUNT)
        snprintf(why, n, "its state %u does not exist", (unsigned)w.state);
    else if (atomic_load(&f->fetcher) > SHM_WORKERS_MAX)
        snprintf(why, n, "its fetcher %u does not exist",
                 (unsigned)atomic_load(&f->fetcher));
    else if (owned && w.owner >= SHM_SLOTS)
        snprintf(why, n, "it is %s but nobody owns it", flight_state_name(w.state));
    else if (!owned && w.owner != SHM_NO_SLOT)
        snprintf(why, n, "it is %s but slot %u owns it", flight_state_name(w.state),
                 w.owner);
    else if (quiet && !quiet_valid(shm, f, w, why, n))
        return false;
    else
        return true;
    return false;
}
