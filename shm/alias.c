/*
 * From a name to its alias: the pool, and the chains of the buckets.
 *
 * Phases of a claim:
 *
 *   1. take one from the pool (cas on its word) and fill it in; nobody can see it
 *   2. lock the key's bucket, look: found -> give the taken one back, done
 *   3. write `bucket`, put it at the chain's head, unlock
 *   4. without a lock: write `target`, push it on the flight's list, move the word to
 *      the use
 *
 * Until its word moves in 4 it is "being bound". If the binder dies before it is on a
 * list, it is as if it had never been claimed; after that it is bound, and whoever comes
 * by moves the word. Nobody else pushes: only a reader keeps a flight from being
 * recycled.
 *
 * What is free (its use is over, or its binder died without binding it) stays in its
 * chain until somebody comes by under the lock. It leaves in this order: unlinked, `next`
 * cleared, `bucket` cleared, word 0. From the third step on it may be somebody else's;
 * so a word that means free, other than 0, is one that the alias never has again.
 */
#include "shm/alias.h"

#include <string.h>

#include "shm/bucket.h"
#include "shm/crash.h"
#include "shm/slot.h"
#include "shm/wake.h"

enum alias_is {
    ALIAS_FREE,    /* nobody has it, though it may stand in a chain */
    ALIAS_CLAIMED, /* a living process is about to bind it */
    ALIAS_BOUND
};

uint32_t alias_bucket_of(const struct shm *shm, const struct alias_key *key)
{
    uint32_t k, org;

    memcpy(&k, key->key, sizeof k); /* digests: any four bytes are a hash */
    memcpy(&org, key->org, sizeof org);
    return (k ^ org) & (shm->hdr->bucket_count - 1);
}

uint32_t alias_gone(const struct shm *shm, const struct alias_key *key)
{
    return atomic_load(&shm->buckets[alias_bucket_of(shm, key)].aliases_gone);
}

static uint64_t load_word(const struct shm *shm, uint32_t alias)
{
    return atomic_load_explicit(&alias_at(shm, alias)->word, memory_order_acquire);
}

static bool swap_word(struct shm *shm, uint32_t alias, uint64_t from, uint64_t to)
{
    return atomic_compare_exchange_strong_explicit(&alias_at(shm, alias)->word, &from, to,
                                                   memory_order_acq_rel,
                                                   memory_order_relaxed);
}

/* The word of what this process is binding. */
static uint64_t my_word(const struct shm *shm)
{
    DAC_ASSERT(shm->self < SHM_SLOTS);
    return ALIAS_BEING_BOUND | (uint64_t)(shm->self + 1) << 32 |
           atomic_load_explicit(&shm->slots[shm->self].generation, memory_order_relaxed);
}

/* Whether the process that is binding it was not reaped. */
static bool binder_lives(const struct shm *shm, uint64_t word)
{
    uint32_t slot = (uint32_t)(word >> 32 & 0xff) - 1; /* nobody: no slot */
    enum slot_state state = slot_state(shm, slot);

    return slot < SHM_SLOTS && state != SLOT_FREE && state != SLOT_DEAD &&
           atomic_load(&shm->slots[slot].generation) == (uint32_t)word;
}

/* What it is, as far as one can tell without the lock: also ALIAS_FREE if its binder
 * died, whether it bound it or not. */
static enum alias_is glance(const struct shm *shm, uint64_t word)
{
    if ((word & ALIAS_BEING_BOUND) != 0)
        return binder_lives(shm, word) ? ALIAS_CLAIMED : ALIAS_FREE;
    return alias_use_lasts(shm, word) ? ALIAS_BOUND : ALIAS_FREE;
}

/* The same under its chain's lock; a binding that a death interrupted is completed. */
static enum alias_is settle(struct shm *shm, uint32_t alias, uint64_t *word)
{
    *word = load_word(shm, alias);
    enum alias_is is = glance(shm, *word);

    if (is != ALIAS_FREE || (*word & ALIAS_BEING_BOUND) == 0)
        return is;
    uint64_t use =
        atomic_load_explicit(&alias_at(shm, alias)->target, memory_order_acquire);
    if (!alias_is_listed(shm, alias, use))
        return ALIAS_FREE;
    if (swap_word(shm, alias, *word, use))
        *word = use;
    CRASH_POINT("alias_settled");
    return ALIAS_BOUND;
}

/* --- chains ------------------------------------------------------------------------- */

/* A link of a chain; one that leads nowhere ends it. */
static uint32_t follow(const struct shm *shm, const shm_u32 *link)
{
    uint32_t to = atomic_load_explicit(link, memory_order_acquire);
    return to <= shm->hdr->alias_count ? to : 0;
}

static void chain_insert(struct shm *shm, uint32_t bucket, uint32_t alias)
{
    shm_u32 *head = &shm->buckets[bucket].aliases;

    atomic_store_explicit(&alias_at(shm, alias)->next, follow(shm, head),
                          memory_order_relaxed);
    atomic_store_explicit(head, alias + 1, memory_order_release);
}

void alias_rebuild(struct shm *shm, uint32_t bucket)
{
    atomic_store_explicit(&shm->buckets[bucket].aliases, 0, memory_order_release);
    for (uint32_t i = 0; i < shm->hdr->alias_count; i++) {
        struct shm_alias *a = alias_at(shm, i);
        if (atomic_load_explicit(&a->bucket, memory_order_acquire) != bucket + 1)
            continue;
        if (load_word(shm, i) == 0)
            atomic_store_explicit(&a->bucket, 0, memory_order_relaxed);
        else
            chain_insert(shm, bucket, i);
    }
}

/* The alias is in the chain at `link`: it leaves. */
static void chain_cut(struct shm *shm, shm_u32 *link, uint32_t alias)
{
    struct shm_alias *a = alias_at(shm, alias);

    atomic_store_explicit(link, follow(shm, &a->next), memory_order_release);
    CRASH_POINT("alias_unlinked");
    atomic_store_explicit(&a->next, 0, memory_order_relaxed);
    atomic_store_explicit(&a->bucket, 0, memory_order_release);
    CRASH_POINT("alias_unchained");
}

static bool chain_remove(struct shm *shm, uint32_t bucket, uint32_t alias)
{
    shm_u32 *link = &shm->buckets[bucket].aliases;
    uint32_t steps = 0;
    uint32_t at;

    while ((at = follow(shm, link)) != 0 && at != alias + 1 &&
           steps++ < shm->hdr->alias_count)
        link = &alias_at(shm, at - 1)->next;
    if (at != alias + 1)
        return false;
    chain_cut(shm, link, alias);
    return true;
}

static bool is_named(const struct shm_alias *a, const struct alias_key *key)
{
    return memcmp(a->key, key->key, sizeof a->key) == 0 &&
           memcmp(a->org, key->org, sizeof a->org) == 0;
}

/* Under the lock: what the key has, ALIAS_FREE if nothing. Those before it that are free
 * leave the chain. */
static enum alias_is look_up(struct shm *shm, uint32_t bucket,
                             const struct alias_key *key, uint32_t *alias, uint64_t *word)
{
    shm_u32 *link = &shm->buckets[bucket].aliases;
    uint32_t left = shm->hdr->alias_count;
    bool mended = false;

    for (uint32_t at; (at = follow(shm, link)) != 0;) {
        struct shm_alias *a = alias_at(shm, at - 1);
        if (left-- == 0 || atomic_load(&a->bucket) != bucket + 1) {
            if (mended)
                break;
            alias_rebuild(shm, bucket); /* links that lead astray */
            mended = true;
            left = shm->hdr->alias_count;
            link = &shm->buckets[bucket].aliases;
            continue;
        }
        enum alias_is is = settle(shm, at - 1, word);
        if (is == ALIAS_FREE) {
            chain_cut(shm, link, at - 1);
            (void)swap_word(shm, at - 1, *word, 0);
            continue;
        }
        if (is_named(a, key)) {
            *alias = at - 1;
            return is;
        }
        link = &a->next;
    }
    return ALIAS_FREE;
}

static void describe(const struct shm *shm, uint32_t alias, uint64_t word,
                     struct alias_found *out)
{
    out->alias = alias;
    out->ref = (struct flight_ref){.index = (uint32_t)(word >> 32) - 1,
                                   .incarnation = (uint32_t)word};
    alias_read(shm, alias, NULL, out->body, &out->created_us);
}

enum dac_err alias_find(struct shm *shm, const struct alias_key *key,
                        struct alias_found *out)
{
    uint32_t bucket = alias_bucket_of(shm, key);
    uint32_t alias;
    uint64_t word;
    enum dac_err e = bucket_enter(shm, bucket);

    if (e != DAC_OK)
        return e;
    enum alias_is is = look_up(shm, bucket, key, &alias, &word);
    if (is == ALIAS_BOUND)
        describe(shm, alias, word, out);
    bucket_unlock(shm, bucket);
    return is == ALIAS_BOUND ? DAC_OK : is == ALIAS_FREE ? DAC_E_NOT_FOUND : DAC_E_BUSY;
}

/* --- the pool ----------------------------------------------------------------------- */

/* Takes one that is free but stands in a chain. DAC_E_STATE: it is not; DAC_E_BUSY. */
static enum dac_err take_from_chain(struct shm *shm, uint32_t alias)
{
    struct shm_alias *a = alias_at(shm, alias);
    uint32_t at = atomic_load_explicit(&a->bucket, memory_order_acquire);
    uint64_t word;

    if (at == 0 || at > shm->hdr->bucket_count ||
        atomic_load(&shm->buckets[at - 1].lost) != 0)
        return DAC_E_STATE;
    enum dac_err e = bucket_enter(shm, at - 1);
    if (e != DAC_OK)
        return e;
    e = DAC_E_STATE;
    if (atomic_load(&a->bucket) == at && settle(shm, alias, &word) == ALIAS_FREE) {
        if (!chain_remove(shm, at - 1, alias))
            alias_rebuild(shm, at - 1); /* the chain did not lead to it: it is broken */
        else if (swap_word(shm, alias, word, my_word(shm)))
            e = DAC_OK;
    }
    bucket_unlock(shm, at - 1);
    return e;
}

/* DAC_E_STATE: it is not free; DAC_E_BUSY: its chain's lock was not had. */
static enum dac_err take(struct shm *shm, uint32_t alias, bool chained_too)
{
    uint64_t word = load_word(shm, alias);

    if (glance(shm, word) != ALIAS_FREE)
        return DAC_E_STATE;
    if (atomic_load_explicit(&alias_at(shm, alias)->bucket, memory_order_acquire) == 0)
        return swap_word(shm, alias, word, my_word(shm)) ? DAC_OK : DAC_E_STATE;
    return chained_too ? take_from_chain(shm, alias) : DAC_E_STATE;
}

/* Takes a free one with a clock hand. */
static enum dac_err pool_take(struct shm *shm, uint32_t *out)
{
    struct shm_header *h = shm->hdr;
    uint32_t n = h->alias_count;
    uint32_t start = atomic_load_explicit(&h->alias_hand, memory_order_relaxed) % n;
    bool was_busy = false;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t at = start + i < n ? start + i : start + i - n;
        enum dac_err e = take(shm, at, !was_busy); /* one wait in vain is enough */
        if (e == DAC_E_STATE)
            continue;
        atomic_store_explicit(&h->alias_hand, at + 1, memory_order_relaxed);
        was_busy = true;
        if (e == DAC_OK) {
            CRASH_POINT("alias_taken");
            *out = at;
            return DAC_OK;
        }
    }
    flight_ask_for_room(shm);
    return was_busy ? DAC_E_BUSY : DAC_E_FULL;
}

static void fill_in(struct shm *shm, uint32_t alias, const struct alias_key *key,
                    const uint8_t body[32], int64_t created_us)
{
    struct shm_alias *a = alias_at(shm, alias);

    atomic_store_explicit(&a->target, 0, memory_order_relaxed);
    atomic_store_explicit(&a->sibling, 0, memory_order_relaxed);
    atomic_store_explicit(&a->stored, 0, memory_order_relaxed);
    a->created_us = created_us;
    memcpy(a->org, key->org, sizeof a->org);
    memcpy(a->key, key->key, sizeof a->key);
    memcpy(a->body, body, sizeof a->body);
}

/* --- claiming and binding ----------------------------------------------------------- */

/* Under the lock: whether the key is free for a newcomer, after the binding to `replace`
 * has gone if there is one. */
static enum dac_err make_way(struct shm *shm, uint32_t bucket,
                             const struct alias_key *key,
                             const struct flight_ref *replace, struct alias_found *found)
{
    uint32_t alias;
    uint64_t word;

    switch (look_up(shm, bucket, key, &alias, &word)) {
    case ALIAS_FREE:
        return DAC_OK;
    case ALIAS_CLAIMED:
        return DAC_E_BUSY;
    case ALIAS_BOUND:
        break;
    }
    if (replace && word == alias_use(*replace) && chain_remove(shm, bucket, alias)) {
        /* It stays on its flight's list, and its word stays: free with that use. */
        CRASH_POINT("alias_replaced");
        return DAC_OK;
    }
    describe(shm, alias, word, found);
    return DAC_E_EXISTS;
}

static void enter_chain(struct shm *shm, uint32_t bucket, uint32_t alias)
{
    atomic_store_explicit(&alias_at(shm, alias)->bucket, bucket + 1,
                          memory_order_release);
    CRASH_POINT("alias_chained");
    chain_insert(shm, bucket, alias);
    CRASH_POINT("alias_linked");
}

enum dac_err alias_claim(struct shm *shm, const struct alias_key *key,
                         const uint8_t body[32], int64_t created_us,
                         const struct flight_ref *replace, uint32_t *alias,
                         struct alias_found *found)
{
    uint32_t bucket = alias_bucket_of(shm, key);
    uint32_t mine = 0;
    enum dac_err taken = pool_take(shm, &mine);

    if (taken == DAC_OK)
        fill_in(shm, mine, key, body, created_us);
    enum dac_err e = bucket_enter(shm, bucket);
    if (e == DAC_OK) {
        /* Who found no room learns all the same what the key has. */
        e = make_way(shm, bucket, key, taken == DAC_OK ? replace : NULL, found);
        if (e == DAC_OK && taken == DAC_OK)
            enter_chain(shm, bucket, mine);
        bucket_unlock(shm, bucket);
    }
    if (taken == DAC_OK) {
        *alias = mine;
        if (e != DAC_OK)
            (void)swap_word(shm, mine, my_word(shm), 0);
        return e;
    }
    bool counts =
        e == DAC_E_EXISTS && !(replace && alias_use(found->ref) == alias_use(*replace));
    return counts || e == DAC_E_BUSY ? e : taken;
}

void alias_bind(struct shm *shm, uint32_t alias, struct flight_ref ref)
{
    struct shm_alias *a = alias_at(shm, alias);

    atomic_store_explicit(&a->target, alias_use(ref), memory_order_release);
    CRASH_POINT("alias_aimed");
    alias_push(shm, alias, ref);
    CRASH_POINT("alias_pushed");
    (void)swap_word(shm, alias, my_word(shm), alias_use(ref));
    CRASH_POINT("alias_bound");
    atomic_fetch_add_explicit(&shm->hdr->aliases_used, 1, memory_order_relaxed);
    shm_count(shm, SHM_C_idempotency_keys_bound, 1);
    /* Pairs with alias_walk: either the recorder sees it there, or this sees the end. */
    atomic_thread_fence(memory_order_seq_cst);
    if (flight_state_ended(flight_load(shm, ref.index).state))
        wake_recorder(shm, ref.index);
}

void alias_drop(struct shm *shm, uint32_t alias)
{
    shm_u32 *drops = &alias_at(shm, alias)->drops;
    uint32_t number = atomic_fetch_add_explicit(drops, 1, memory_order_relaxed) + 1;

    (void)swap_word(shm, alias, my_word(shm), ALIAS_BEING_BOUND | number);
    CRASH_POINT("alias_dropped");
}

uint32_t alias_used(const struct shm *shm)
{
    uint32_t used = 0;

    for (uint32_t i = 0; i < shm->hdr->alias_count; i++)
        used += glance(shm, load_word(shm, i)) == ALIAS_BOUND;
    return used;
}

uint32_t alias_used_hint(const struct shm *shm)
{
    uint32_t used = atomic_load_explicit(&shm->hdr->aliases_used, memory_order_relaxed);

    return used > UINT32_MAX / 2 ? 0 : used; /* below zero: it drifts with deaths */
}
