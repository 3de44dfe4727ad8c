/*
 * One pass over a segment: header's roles, slots, pacers, buckets, aliases, flights with
 * their logs and lists, blocks, samples, hints; in this order. Each rule stands beside
 * the words with which it is reported.
 *
 * Whether a bucket's lock is held is read from the lock itself, since there is no other
 * way to know it from outside: glibc only, elsewhere nobody seems to hold any.
 */
#include "shm/verify.h"

#include <inttypes.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/clock.h"
#include "shm/alias.h"
#include "shm/blocklog.h"
#include "shm/index.h"
#include "shm/pacer.h"
#include "shm/sample.h"

enum certainty { CERTAIN, LIKELY, NOTE };

struct pass {
    const struct shm *shm;
    const struct verify_view *view;
    verify_fn *fn;
    void *ctx;
};

__attribute__((format(printf, 6, 7))) static void say(const struct pass *p,
                                                      enum certainty how,
                                                      const char *object, uint32_t index,
                                                      uint64_t use, const char *fmt, ...)
{
    struct verify_finding f = {.object = object,
                               .index = index,
                               .use = use,
                               .certain = how == CERTAIN || !p->view->live,
                               .note = how == NOTE};
    va_list args;

    va_start(args, fmt);
    vsnprintf(f.words, sizeof(f.words), fmt, args);
    va_end(args);
    p->fn(p->ctx, &f);
}

static bool in_use(const struct shm *shm, uint32_t slot)
{
    return slot_state(shm, slot) != SLOT_FREE;
}

/* --- locks ---------------------------------------------------------------------------
 */

enum lock_state { LOCK_FREE, LOCK_HELD, LOCK_OWNER_DIED, LOCK_LOST };

static enum lock_state lock_state(const struct shm_bucket *b)
{
#ifdef __GLIBC__
    unsigned word = (unsigned)*(const volatile int *)&b->lock.__data.__lock;

    if (*(const volatile int *)&b->lock.__data.__owner == INT_MAX - 1)
        return LOCK_LOST; /* ENOTRECOVERABLE from here on */
    if (word & FUTEX_OWNER_DIED)
        return LOCK_OWNER_DIED;
    return word != 0 ? LOCK_HELD : LOCK_FREE;
#else
    (void)b;
    return LOCK_FREE;
#endif
}

/* --- header, slots, pacers -------------------------------------------------------------
 */

static void check_role(const struct pass *p, const char *role, uint32_t slot,
                       enum slot_kind kind)
{
    if (slot == SHM_NO_SLOT)
        return;
    if (slot >= SHM_SLOTS)
        say(p, CERTAIN, "header", VERIFY_NO_INDEX, 0,
            "%s is said to be in slot %u, which does not exist", role, slot);
    else if (!in_use(p->shm, slot) || atomic_load(&p->shm->slots[slot].kind) != kind)
        say(p, LIKELY, "header", VERIFY_NO_INDEX, 0,
            "%s is said to be in slot %u, where it is not", role, slot);
}

static void check_header(const struct pass *p)
{
    const struct shm_header *h = p->shm->hdr;
    uint32_t workers = atomic_load(&h->worker_count);
    char role[32];

    if (workers > SHM_WORKERS_MAX)
        say(p, CERTAIN, "header", VERIFY_NO_INDEX, 0, "%u workers are more than %u",
            workers, SHM_WORKERS_MAX);
    check_role(p, "the recorder", atomic_load(&h->recorder_slot), SLOT_RECORDER);
    for (uint32_t i = 0; i < SHM_WORKERS_MAX; i++) {
        snprintf(role, sizeof(role), "worker %u", i);
        check_role(p, role, atomic_load(&h->ordinal_slot[i]), SLOT_WORKER);
    }
}

static void check_slots(const struct pass *p)
{
    char why[160];

    for (uint32_t i = 0; i < SHM_SLOTS; i++) {
        if (!slot_valid(p->shm, i, why, sizeof(why)))
            say(p, LIKELY, "slot", i, 0, "%s", why);
    }
}

static void check_pacers(const struct pass *p)
{
    char why[160];

    for (uint32_t i = 0; i < atomic_load(&p->shm->hdr->provider_count); i++) {
        if (!pacer_valid(p->shm, i, false, why, sizeof(why)))
            say(p, CERTAIN, "provider", i, 0, "%s", why);
        else if (!pacer_valid(p->shm, i, true, why, sizeof(why)))
            say(p, LIKELY, "provider", i, 0, "%s", why);
    }
}

/* --- key index -------------------------------------------------------------------------
 */

/* A bucket in somebody's hands is his to change; one whose holder died is mended by the
 * next one. In a copy that was settled nobody holds any. */
static bool is_in_hand(const struct pass *p, uint32_t bucket)
{
    return p->view->live && lock_state(&p->shm->buckets[bucket]) != LOCK_FREE;
}

static void check_whole_buckets(const struct pass *p)
{
    char why[160];

    for (uint32_t i = 0; i < p->shm->hdr->bucket_count; i++) {
        if (!is_in_hand(p, i) && !index_valid(p->shm, i, why, sizeof(why)))
            say(p, LIKELY, "bucket", i, 0, "%s", why);
    }
}

/* Who is missing in a chain is looked for only if the sums differ: that is a scan of all
 * flights for each bucket. */
static void check_index(const struct pass *p)
{
    const struct shm_header *h = p->shm->hdr;
    uint64_t chained = 0, indexed = 0;
    uint32_t died = 0, length;
    bool broken = false;
    char why[160];

    for (uint32_t i = 0; i < h->bucket_count; i++) {
        enum lock_state lock = lock_state(&p->shm->buckets[i]);

        if (lock == LOCK_LOST || atomic_load(&p->shm->buckets[i].lost) != 0)
            say(p, CERTAIN, "bucket", i, 0, "its lock can never be had again");
        died += lock == LOCK_OWNER_DIED;
        if (!index_chain_valid(p->shm, i, &length, why, sizeof(why)))
            broken = true;
        chained += length;
    }
    for (uint32_t i = 0; i < h->flight_count; i++)
        indexed += atomic_load(&p->shm->flights[i].bucket) != 0;
    if (broken || chained != indexed)
        check_whole_buckets(p);
    if (died > 0 && p->view->live)
        say(p, NOTE, "index", VERIFY_NO_INDEX, 0,
            "%u locks were held by processes that died; who has one next mends its chain",
            died);
}

/* --- aliases ---------------------------------------------------------------------------
 */

static void check_alias(const struct pass *p, uint32_t i)
{
    const struct shm_alias *a = alias_at(p->shm, i);
    uint64_t word = atomic_load(&a->word);
    uint32_t bucket = atomic_load(&a->bucket);
    char why[160];

    if (!alias_valid(p->shm, i, false, why, sizeof(why)))
        say(p, CERTAIN, "alias", i, word, "%s", why);
    else if (!alias_valid(p->shm, i, true, why, sizeof(why)))
        say(p, LIKELY, "alias", i, word, "%s", why);
    else if (bucket != 0 && bucket <= p->shm->hdr->bucket_count &&
             !alias_is_chained(p->shm, i) && !is_in_hand(p, bucket - 1))
        say(p, LIKELY, "alias", i, word,
            "it says bucket %u but is not in its chain of aliases", bucket - 1);
}

static void check_aliases(const struct pass *p)
{
    char why[160];

    for (uint32_t i = 0; i < p->shm->hdr->bucket_count; i++) {
        if (!alias_chain_valid(p->shm, i, why, sizeof(why)) && !is_in_hand(p, i))
            say(p, LIKELY, "bucket", i, 0, "%s", why);
    }
    for (uint32_t i = 0; i < p->shm->hdr->alias_count; i++)
        check_alias(p, i);
}

/* --- flights ---------------------------------------------------------------------------
 */

/* Readers whose slots nobody is in. */
static uint64_t absent_readers(const struct shm *shm, uint32_t flight)
{
    uint64_t readers = flight_readers(shm, flight);

    for (uint32_t i = 0; i < SHM_SLOTS; i++) {
        if (in_use(shm, i))
            readers &= ~(UINT64_C(1) << i);
    }
    return readers;
}

/* Rules that need a look at more than the flight. */
static void check_company(const struct pass *p, uint32_t i, struct flight_word w)
{
    const struct shm_flight *f = flight_at(p->shm, i);
    uint32_t bucket = atomic_load(&f->bucket);
    uint64_t absent = absent_readers(p->shm, i);
    uint32_t stored = atomic_load(&f->stored);
    bool running = w.state >= FLIGHT_QUEUED && flight_state_running(w.state);

    if (w.owner < SHM_SLOTS && !in_use(p->shm, w.owner))
        say(p, LIKELY, "flight", i, w.incarnation,
            "it is %s, but no process is in slot %u, its owner",
            flight_state_name(w.state), w.owner);
    if (absent != 0)
        say(p, LIKELY, "flight", i, w.incarnation,
            "slot %d reads it, but no process is there", __builtin_ctzll(absent));
    if (bucket != 0 && bucket - 1 != index_bucket_of(p->shm, f->key))
        say(p, LIKELY, "flight", i, w.incarnation,
            "it is indexed in bucket %u, its key belongs in %u", bucket - 1,
            index_bucket_of(p->shm, f->key));
    if (stored > STORED_FAILED)
        say(p, CERTAIN, "flight", i, w.incarnation, "stored is %u, which does not exist",
            stored);
    else if (running && stored != STORED_NO)
        say(p, LIKELY, "flight", i, w.incarnation, "it is %s and yet stored (%s)",
            flight_state_name(w.state), flight_stored_name((enum flight_stored)stored));
    if (w.state >= FLIGHT_QUEUED && atomic_load(&f->start) > atomic_load(&f->tail))
        say(p, LIKELY, "flight", i, w.incarnation, "readers begin behind its log's end");
}

static bool is_late(const struct pass *p, uint64_t since_ns, uint64_t allowed_ns)
{
    return since_ns != 0 && p->view->now_ns > since_ns &&
           p->view->now_ns - since_ns > allowed_ns;
}

/* What should be over by now. */
static void check_age(const struct pass *p, uint32_t i, struct flight_word w)
{
    const struct shm_flight *f = flight_at(p->shm, i);
    uint64_t grace = atomic_load(&p->shm->hdr->reconnect_grace_ns);
    uint64_t lost = atomic_load(&f->lost_ns);
    uint64_t ended = atomic_load(&f->ended_ns);

    if (w.state == FLIGHT_ORPHANED && is_late(p, lost, grace + VERIFY_ORPHAN_SLACK_NS))
        say(p, LIKELY, "flight", i, w.incarnation,
            "its fetcher died more than %" PRIu64
            " s ago; nobody took it over, and the recorder did not end it",
            (grace + VERIFY_ORPHAN_SLACK_NS) / NS_PER_S);
    if (flight_state_ended(w.state) && alias_pending(p->shm, i) &&
        is_late(p, ended, VERIFY_STORE_SLACK_NS))
        say(p, LIKELY, "flight", i, w.incarnation,
            "it ended more than %" PRIu64 " s ago and %u of its %u aliases are stored",
            VERIFY_STORE_SLACK_NS / NS_PER_S, atomic_load(&f->aliases_stored),
            alias_count(p->shm, i));
    if (flight_state_ended(w.state) && atomic_load(&f->stored) == STORED_NO &&
        is_late(p, ended, VERIFY_STORE_SLACK_NS))
        say(p, LIKELY, "flight", i, w.incarnation,
            "it ended more than %" PRIu64 " s ago and is not stored",
            VERIFY_STORE_SLACK_NS / NS_PER_S);
}

static void check_flights(const struct pass *p)
{
    uint32_t unstored = 0;
    char why[160];

    for (uint32_t i = 0; i < p->shm->hdr->flight_count; i++) {
        struct flight_word w = flight_load(p->shm, i);

        if (!flight_valid(p->shm, i, false, why, sizeof(why))) {
            say(p, CERTAIN, "flight", i, w.incarnation, "%s", why);
            continue;
        }
        if (!flight_valid(p->shm, i, true, why, sizeof(why)))
            say(p, LIKELY, "flight", i, w.incarnation, "%s", why);
        if (w.state == FLIGHT_FREE)
            continue;
        if (w.state > FLIGHT_CLAIMED && !blocklog_valid(p->shm, i, why, sizeof(why)))
            say(p, LIKELY, "flight", i, w.incarnation, "%s", why);
        if (w.state > FLIGHT_CLAIMED && !alias_list_valid(p->shm, i, why, sizeof(why)))
            say(p, LIKELY, "flight", i, w.incarnation, "%s", why);
        check_company(p, i, w);
        if (p->view->live)
            check_age(p, i, w);
        unstored += atomic_load(&p->shm->flights[i].stored) == STORED_NO;
    }
    if (!p->view->live && unstored > 0)
        say(p, NOTE, "flights", VERIFY_NO_INDEX, 0,
            "%u were under way or not stored yet, and go with this segment", unstored);
}

/* --- blocks, samples, hints ------------------------------------------------------------
 */

static void check_blocks(const struct pass *p)
{
    for (uint32_t i = 0; i < p->shm->hdr->block_count; i++) {
        uint64_t owner = atomic_load(&p->shm->blocks[i].owner);

        if (owner >> 32 > p->shm->hdr->flight_count)
            say(p, CERTAIN, "block", i, 0, "flight %u has it, which does not exist",
                (uint32_t)(owner >> 32) - 1);
    }
}

/* A hint that did not move while the things themselves were counted. */
static void check_hint(const struct pass *p, const char *what, const shm_u32 *hint,
                       uint32_t (*count)(const struct shm *shm))
{
    uint32_t before = atomic_load(hint);
    uint32_t counted = count(p->shm);

    if (atomic_load(hint) == before && counted != before)
        say(p, LIKELY, "header", VERIFY_NO_INDEX, 0,
            "%d %s are said to be in use, %u are, and the master does not count anew",
            (int)before, what, counted);
}

static uint32_t count_flights(const struct shm *shm)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < shm->hdr->flight_count; i++)
        n += flight_load(shm, i).state != FLIGHT_FREE;
    return n;
}

static uint32_t count_blocks(const struct shm *shm)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < shm->hdr->block_count; i++)
        n += !block_is_free(shm, i);
    return n;
}

void verify_pass(const struct verify_view *view, verify_fn *fn, void *ctx)
{
    const struct pass p = {.shm = view->shm, .view = view, .fn = fn, .ctx = ctx};
    char why[160];

    check_header(&p);
    check_slots(&p);
    check_pacers(&p);
    check_index(&p);
    check_aliases(&p);
    check_flights(&p);
    check_blocks(&p);
    if (!sample_valid(view->shm, why, sizeof(why)))
        say(&p, LIKELY, "samples", VERIFY_NO_INDEX, 0, "%s", why);
    if (view->live && view->master) {
        check_hint(&p, "flights", &view->shm->hdr->flights_used, count_flights);
        check_hint(&p, "blocks", &view->shm->hdr->blocks_used, count_blocks);
        check_hint(&p, "aliases", &view->shm->hdr->aliases_used, alias_used);
    }
}

struct verify_remains verify_settle(struct shm *copy)
{
    struct verify_remains all = {0};

    for (uint32_t i = 0; i < SHM_SLOTS; i++) {
        struct slot_sweep swept;

        if (!in_use(copy, i))
            continue;
        swept = slot_sweep(copy, i);
        all.processes++;
        all.flights += swept.orphaned + swept.freed;
        all.permits += swept.permits;
    }
    for (uint32_t i = 0; i < copy->hdr->bucket_count; i++) {
        if (lock_state(&copy->buckets[i]) == LOCK_FREE)
            continue;
        index_rebuild(copy, i);
        alias_rebuild(copy, i);
        all.locks++;
    }
    return all;
}
