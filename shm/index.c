/*
 * The key index. Phases of a join:
 *
 *   1. lock the bucket, look for a usable flight of the key: found -> set the reader bit,
 * done
 *   2. unlock, claim a free flight, fill it in, take its first block (nobody can see it)
 *   3. lock again, look again: found -> join it, give the claim back
 *   4. number it, set the reader bit, write `bucket`, put it at the chain's head, unlock
 *
 * A death between "bucket written" and "linked" leaves the lock to EOWNERDEAD, and
 * whoever gets it rebuilds the chain from the `bucket` fields.
 */
#include "shm/index.h"

#include <stdio.h>
#include <string.h>

#include "shm/alias.h"
#include "shm/bucket.h"
#include "shm/crash.h"
#include "shm/sample.h"
#include "shm/wake.h"

uint32_t index_bucket_of(const struct shm *shm, const uint8_t key[SHM_KEY_SIZE])
{
    uint32_t h;
    memcpy(&h, key, sizeof h); /* the key is a digest: any four bytes are a hash */
    return h & (shm->hdr->bucket_count - 1);
}

/* A link of a chain; one that leads nowhere ends it. */
static uint32_t follow(const struct shm *shm, const shm_u32 *link)
{
    uint32_t to = atomic_load_explicit(link, memory_order_acquire);
    return to <= shm->hdr->flight_count ? to : 0;
}

/* Inserts by claim_seq, newest first. */
static void chain_insert(struct shm *shm, uint32_t bucket, uint32_t flight)
{
    struct shm_flight *f = flight_at(shm, flight);
    uint64_t seq = atomic_load_explicit(&f->claim_seq, memory_order_relaxed);
    shm_u32 *link = &shm->buckets[bucket].head;
    uint32_t next;

    while ((next = follow(shm, link)) != 0 &&
           atomic_load_explicit(&flight_at(shm, next - 1)->claim_seq,
                                memory_order_relaxed) > seq)
        link = &flight_at(shm, next - 1)->next;
    atomic_store_explicit(&f->next, next, memory_order_relaxed);
    atomic_store_explicit(link, flight + 1, memory_order_release);
}

void index_rebuild(struct shm *shm, uint32_t bucket)
{
    atomic_store_explicit(&shm->buckets[bucket].head, 0, memory_order_release);
    for (uint32_t i = 0; i < shm->hdr->flight_count; i++) {
        struct shm_flight *f = flight_at(shm, i);
        if (atomic_load_explicit(&f->bucket, memory_order_acquire) != bucket + 1)
            continue;
        if (flight_load(shm, i).state == FLIGHT_FREE) {
            atomic_store_explicit(&f->bucket, 0, memory_order_relaxed);
            continue;
        }
        chain_insert(shm, bucket, i);
    }
}

static void chain_remove(struct shm *shm, uint32_t bucket, uint32_t flight)
{
    struct shm_flight *f = flight_at(shm, flight);
    shm_u32 *link = &shm->buckets[bucket].head;
    uint32_t steps = 0;
    uint32_t at;

    while ((at = follow(shm, link)) != 0 && at != flight + 1 &&
           steps++ < shm->hdr->flight_count)
        link = &flight_at(shm, at - 1)->next;
    if (at == flight + 1)
        atomic_store_explicit(link, follow(shm, &f->next), memory_order_release);
    CRASH_POINT("unlinked");
    atomic_store_explicit(&f->bucket, 0, memory_order_release);
    atomic_store_explicit(&f->next, 0, memory_order_relaxed);
    if (at != flight + 1) /* the chain did not lead to it: it is broken */
        index_rebuild(shm, bucket);
}

/* Whether a newcomer may use this flight, and as what. Under the lock. */
static bool usable(const struct shm_flight *f, struct flight_word w,
                   const struct join_request *req, enum join_role *role)
{
    uint64_t ended = atomic_load_explicit(&f->ended_ns, memory_order_relaxed);
    uint32_t asked = atomic_load_explicit(&f->requests, memory_order_acquire);

    if (flight_state_running(w.state)) {
        *role = JOIN_FOLLOWER;
        return asked == 0;
    }
    if (req->no_finished)
        return false;
    if (w.state == FLIGHT_DONE) {
        *role = JOIN_HIT;
        return req->now_ns <
               ended + atomic_load_explicit(&f->result_ttl_ns, memory_order_relaxed);
    }
    *role = JOIN_FAILURE;
    return w.state == FLIGHT_FAILED && (asked & FLIGHT_CLOSED) == 0 &&
           req->now_ns < ended + req->error_ttl_ns;
}

static void set_reader(struct shm *shm, struct shm_flight *f)
{
    atomic_fetch_or_explicit(&f->readers, UINT64_C(1) << shm->self, memory_order_acq_rel);
    atomic_thread_fence(memory_order_seq_cst); /* pairs with wake_readers */
    CRASH_POINT("reader_set");
}

/* Under the lock: this process reads it from now on, for one more client. */
static void enter(struct shm *shm, uint32_t flight, enum join_role role,
                  uint64_t abandon_grace_ns)
{
    struct shm_flight *f = flight_at(shm, flight);

    set_reader(shm, f);
    flight_raise_grace(shm, flight, abandon_grace_ns);
    if (role == JOIN_FOLLOWER)
        atomic_fetch_add_explicit(&f->followers, 1, memory_order_relaxed);
    if (role == JOIN_HIT) {
        atomic_fetch_add_explicit(&f->hits, 1, memory_order_relaxed);
        sample_add_hit(shm, atomic_load_explicit(&f->sample, memory_order_acquire));
    }
}

/* Under the lock: joins the newest flight of the key if it can be used. */
static bool join_existing(struct shm *shm, uint32_t bucket,
                          const struct join_request *req, struct join_result *out)
{
    uint32_t steps = 0;
    for (uint32_t at = follow(shm, &shm->buckets[bucket].head);
         at != 0 && steps++ < shm->hdr->flight_count;
         at = follow(shm, &flight_at(shm, at - 1)->next)) {
        struct shm_flight *f = flight_at(shm, at - 1);
        struct flight_word w = flight_load(shm, at - 1);
        if (w.state == FLIGHT_FREE || memcmp(f->key, req->key, SHM_KEY_SIZE) != 0)
            continue;
        if (!usable(f, w, req, &out->role))
            return false;
        out->ref = (struct flight_ref){.index = at - 1, .incarnation = w.incarnation};
        enter(shm, at - 1, out->role, req->abandon_grace_ns);
        return true;
    }
    return false;
}

static void fill_in(struct shm *shm, uint32_t index, const struct join_request *req)
{
    struct shm_flight *f = flight_at(shm, index);

    memcpy(f->key, req->key, sizeof f->key);
    memcpy(f->turn_id, req->turn_id, sizeof f->turn_id);
    memcpy(f->org, req->org, sizeof f->org);
    memcpy(f->trace_id, req->trace.id, sizeof f->trace_id);
    f->trace_flags = req->trace.flags;
    f->created_us = req->created_us;
    atomic_store_explicit(&f->kind, (uint32_t)req->kind, memory_order_relaxed);
    atomic_store_explicit(&f->provider, req->provider, memory_order_relaxed);
    atomic_store_explicit(&f->arrived_ns, req->arrived_ns, memory_order_relaxed);
    atomic_store_explicit(&f->result_ttl_ns, req->result_ttl_ns, memory_order_relaxed);
    atomic_store_explicit(&f->abandon_grace_ns, req->abandon_grace_ns,
                          memory_order_relaxed);
    CRASH_POINT("claim_filled");
}

enum dac_err index_join(struct shm *shm, const struct join_request *req,
                        struct join_result *out)
{
    uint32_t bucket = index_bucket_of(shm, req->key);
    enum dac_err e = bucket_enter(shm, bucket);
    if (e != DAC_OK)
        return e;
    bool joined = join_existing(shm, bucket, req, out);
    bucket_unlock(shm, bucket);
    if (joined)
        return DAC_OK;
    if (req->no_lead)
        return DAC_E_DENIED;

    struct flight_ref mine;
    e = flight_claim(shm, &mine);
    if (e != DAC_OK)
        return e;
    fill_in(shm, mine.index, req);
    e = blocklog_open(shm, mine, &out->writer);
    if (e == DAC_OK)
        e = bucket_enter(shm, bucket);
    if (e != DAC_OK) {
        flight_unclaim(shm, mine);
        return e;
    }
    if (join_existing(shm, bucket, req, out)) {
        bucket_unlock(shm, bucket);
        flight_unclaim(shm, mine);
        return DAC_OK;
    }
    struct shm_flight *f = flight_at(shm, mine.index);
    /* Numbered here and not at the claim: another flight of the key may have come and
     * gone since, and the newest is the one that newcomers find. */
    atomic_store_explicit(&f->claim_seq, atomic_fetch_add(&shm->hdr->claim_seq, 1) + 1,
                          memory_order_relaxed);
    set_reader(shm, f);
    atomic_store_explicit(&f->bucket, bucket + 1, memory_order_release);
    CRASH_POINT("index_bucket");
    chain_insert(shm, bucket, mine.index);
    CRASH_POINT("index_linked");
    bucket_unlock(shm, bucket);
    out->role = JOIN_LEADER;
    out->ref = mine;
    return DAC_OK;
}

bool index_find_turn(const struct shm *shm, const uint8_t turn_id[16],
                     struct flight_ref *out)
{
    for (uint32_t i = 0; i < shm->hdr->flight_count; i++) {
        struct flight_word w = flight_load(shm, i);
        /* A claim is filled in before its bucket is set (release). */
        if (w.state == FLIGHT_FREE ||
            atomic_load_explicit(&shm->flights[i].bucket, memory_order_acquire) == 0)
            continue;
        if (memcmp(shm->flights[i].turn_id, turn_id, 16) == 0 &&
            flight_load(shm, i).incarnation == w.incarnation) {
            *out = (struct flight_ref){.index = i, .incarnation = w.incarnation};
            return true;
        }
    }
    return false;
}

/* The bucket of a flight that is still in the use that `ref` names. It is locked, or lost
 * (`held` is false): then only what newcomers cannot see may be done. */
struct grip {
    uint32_t bucket;
    bool held;
};

static void let_go(struct shm *shm, const struct grip *g)
{
    if (g->held)
        bucket_unlock(shm, g->bucket);
}

static enum dac_err lock_flight(struct shm *shm, struct flight_ref ref, struct grip *out)
{
    struct shm_flight *f = flight_at(shm, ref.index);
    uint32_t at = atomic_load_explicit(&f->bucket, memory_order_acquire);

    if (at == 0 || at > shm->hdr->bucket_count)
        return DAC_E_NOT_FOUND;
    enum dac_err e = bucket_lock(shm, at - 1);
    if (e == DAC_E_BUSY)
        return e;
    *out = (struct grip){.bucket = at - 1, .held = e == DAC_OK};
    if (atomic_load_explicit(&f->bucket, memory_order_relaxed) != at ||
        flight_load(shm, ref.index).incarnation != ref.incarnation) {
        let_go(shm, out);
        return DAC_E_NOT_FOUND;
    }
    return DAC_OK;
}

enum dac_err index_attach(struct shm *shm, struct flight_ref ref,
                          const uint8_t turn_id[16])
{
    struct shm_flight *f = flight_at(shm, ref.index);
    struct grip g;
    enum dac_err e = lock_flight(shm, ref, &g);
    if (e != DAC_OK)
        return e;
    if (memcmp(f->turn_id, turn_id, sizeof f->turn_id) != 0)
        e = DAC_E_NOT_FOUND;
    else if (!g.held)
        e = DAC_E_BUSY;
    else
        set_reader(shm, f);
    let_go(shm, &g);
    return e;
}

enum dac_err index_follow(struct shm *shm, struct flight_ref ref,
                          uint64_t abandon_grace_ns, enum join_role *role)
{
    struct grip g;
    enum dac_err e = lock_flight(shm, ref, &g);
    if (e != DAC_OK)
        return e;
    enum flight_state state = flight_load(shm, ref.index).state;
    if (flight_state_running(state))
        *role = JOIN_FOLLOWER;
    else
        *role = state == FLIGHT_FAILED ? JOIN_FAILURE : JOIN_HIT;
    if (g.held)
        enter(shm, ref.index, *role, abandon_grace_ns);
    else
        e = DAC_E_BUSY;
    let_go(shm, &g);
    return e;
}

enum dac_err index_abandon(struct shm *shm, struct flight_ref ref)
{
    struct grip g;
    enum dac_err e = lock_flight(shm, ref, &g);
    if (e != DAC_OK)
        return e;
    if (flight_readers(shm, ref.index) == 0)
        atomic_fetch_or_explicit(&flight_at(shm, ref.index)->requests, FLIGHT_CLOSED,
                                 memory_order_acq_rel);
    else
        e = DAC_E_STATE;
    let_go(shm, &g);
    return e;
}

enum dac_err index_put_sample(struct shm *shm, struct flight_ref ref,
                              const struct sample *s)
{
    struct shm_flight *f = flight_at(shm, ref.index);
    struct sample fresh = *s;
    struct grip g;
    enum dac_err e = lock_flight(shm, ref, &g);

    if (e != DAC_OK)
        return e;
    if (atomic_load_explicit(&f->sample, memory_order_relaxed) == 0) {
        fresh.followers =
            (uint32_t)atomic_load_explicit(&f->followers, memory_order_relaxed);
        fresh.hits = (uint32_t)atomic_load_explicit(&f->hits, memory_order_relaxed);
        sample_add(shm, &fresh, &f->sample);
    }
    let_go(shm, &g);
    return DAC_OK;
}

/* Under the lock: whether the flight may leave memory by this rule. */
static bool recyclable(const struct shm *shm, uint32_t flight, struct flight_word w,
                       enum recycle_rule rule, uint64_t now_ns, uint64_t error_ttl_ns)
{
    const struct shm_flight *f = flight_at(shm, flight);
    uint64_t ended = atomic_load_explicit(&f->ended_ns, memory_order_relaxed);
    uint64_t ttl = 0;

    if (!flight_state_ended(w.state) ||
        atomic_load_explicit(&f->stored, memory_order_acquire) == STORED_NO ||
        atomic_load_explicit(&f->readers, memory_order_acquire) != 0 ||
        alias_pending(shm, flight))
        return false;
    if (w.state == FLIGHT_DONE)
        ttl = atomic_load_explicit(&f->result_ttl_ns, memory_order_relaxed);
    else if (w.state == FLIGHT_FAILED)
        ttl = error_ttl_ns;
    if (ttl < ALIAS_LINGER_NS && alias_count(shm, flight) > 0)
        ttl = ALIAS_LINGER_NS;
    return rule == RECYCLE_PRESSURE || now_ns >= ended + ttl;
}

/* Out of its chain, it becomes free, and with it its blocks and aliases. */
static enum dac_err leave(struct shm *shm, uint32_t flight, struct flight_word w,
                          uint64_t *followers, uint64_t *hits)
{
    const struct shm_flight *f = flight_at(shm, flight);
    uint32_t aliases = alias_count(shm, flight);

    *followers = atomic_load_explicit(&f->followers, memory_order_relaxed);
    *hits = atomic_load_explicit(&f->hits, memory_order_relaxed);
    alias_let_go(shm, flight);
    enum dac_err e = flight_release(shm, flight, w);
    if (e == DAC_OK)
        atomic_fetch_sub_explicit(&shm->hdr->aliases_used, aliases, memory_order_relaxed);
    return e;
}

enum dac_err index_recycle(struct shm *shm, struct flight_ref ref, enum recycle_rule rule,
                           uint64_t now_ns, uint64_t error_ttl_ns, uint64_t *followers,
                           uint64_t *hits)
{
    struct shm_flight *f = flight_at(shm, ref.index);
    struct flight_word w = flight_load(shm, ref.index);
    struct grip g;

    if (w.incarnation != ref.incarnation ||
        !recyclable(shm, ref.index, w, rule, now_ns, error_ttl_ns))
        return DAC_E_STATE;
    if (atomic_load_explicit(&f->bucket, memory_order_acquire) == 0) {
        /* A recorder died between unlinking and releasing it: nobody can reach it. */
        return leave(shm, ref.index, w, followers, hits);
    }
    enum dac_err e = lock_flight(shm, ref, &g);
    if (e != DAC_OK)
        return e == DAC_E_NOT_FOUND ? DAC_E_STATE : e;
    w = flight_load(shm, ref.index);
    if (recyclable(shm, ref.index, w, rule, now_ns, error_ttl_ns)) {
        chain_remove(shm, g.bucket, ref.index);
        CRASH_POINT("recycle_unlinked");
        e = leave(shm, ref.index, w, followers, hits);
    } else {
        e = DAC_E_STATE;
    }
    let_go(shm, &g);
    return e;
}

bool index_chain_valid(const struct shm *shm, uint32_t bucket, uint32_t *length,
                       char *why, size_t n)
{
    uint32_t steps = 0;
    uint64_t newest = UINT64_MAX;

    *length = 0;
    for (uint32_t at = atomic_load(&shm->buckets[bucket].head); at != 0;
         at = atomic_load(&flight_at(shm, at - 1)->next)) {
        if (at > shm->hdr->flight_count) {
            snprintf(why, n, "it links to flight %u, which does not exist", at);
            return false;
        }
        const struct shm_flight *f = flight_at(shm, at - 1);
        if (atomic_load(&f->bucket) != bucket + 1) {
            snprintf(why, n, "flight %u is in its chain but says bucket %d", at - 1,
                     (int)atomic_load(&f->bucket) - 1);
            return false;
        }
        if (atomic_load(&f->claim_seq) >= newest || ++steps > shm->hdr->flight_count) {
            snprintf(why, n,
                     "its chain is not from the newest to the oldest at flight %u",
                     at - 1);
            return false;
        }
        newest = atomic_load(&f->claim_seq);
    }
    *length = steps;
    return true;
}

bool index_valid(const struct shm *shm, uint32_t bucket, char *why, size_t n)
{
    uint32_t steps;

    if (!index_chain_valid(shm, bucket, &steps, why, n))
        return false;
    for (uint32_t i = 0; i < shm->hdr->flight_count; i++)
        if (atomic_load(&flight_at(shm, i)->bucket) == bucket + 1 && steps-- == 0) {
            snprintf(why, n, "flight %u says this bucket but is not in its chain", i);
            return false;
        }
    return true;
}
