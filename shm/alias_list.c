/*
 * The list of a flight's aliases: pushed to by its readers with one compare-and-swap,
 * walked by the recorder, never shortened. Its head counts what is on it, so that one
 * load tells whether all of it is stored. It ends with the use of the flight: the next
 * claimer resets the head.
 *
 * That an alias is on the list of a living use is the truth of its being bound; its word
 * follows. A binder has its reader bit set, so nobody pushes once the bitmap is empty.
 */
#include <string.h>

#include "shm/alias.h"
#include "shm/crash.h"

static uint32_t list_first(uint64_t head)
{
    return (uint32_t)head;
}

static uint32_t list_length(uint64_t head)
{
    return (uint32_t)(head >> 32);
}

bool alias_use_lasts(const struct shm *shm, uint64_t use)
{
    uint32_t flight = (uint32_t)(use >> 32);

    if (flight == 0 || flight > shm->hdr->flight_count)
        return false;
    struct flight_word w = flight_load(shm, flight - 1);
    return w.incarnation == (uint32_t)use && w.state != FLIGHT_FREE;
}

void alias_push(struct shm *shm, uint32_t alias, struct flight_ref ref)
{
    shm_u64 *list = &flight_at(shm, ref.index)->aliases;
    struct shm_alias *a = alias_at(shm, alias);
    uint64_t head = atomic_load_explicit(list, memory_order_relaxed);
    uint64_t pushed;

    do {
        atomic_store_explicit(&a->sibling, list_first(head), memory_order_relaxed);
        pushed = (uint64_t)(list_length(head) + 1) << 32 | (alias + 1);
    } while (!atomic_compare_exchange_weak_explicit(
        list, &head, pushed, memory_order_acq_rel, memory_order_relaxed));
}

struct alias_walk alias_walk(const struct shm *shm, uint32_t flight)
{
    atomic_thread_fence(memory_order_seq_cst); /* pairs with alias_bind */
    uint64_t head =
        atomic_load_explicit(&flight_at(shm, flight)->aliases, memory_order_acquire);

    return (struct alias_walk){.next = list_first(head), .left = list_length(head)};
}

bool alias_walk_next(const struct shm *shm, struct alias_walk *walk, uint32_t *alias)
{
    if (walk->left == 0 || walk->next == 0 || walk->next > shm->hdr->alias_count)
        return false;
    *alias = walk->next - 1;
    walk->left--;
    walk->next =
        atomic_load_explicit(&alias_at(shm, *alias)->sibling, memory_order_acquire);
    return true;
}

bool alias_is_listed(const struct shm *shm, uint32_t alias, uint64_t use)
{
    bool found = false;
    uint32_t at;

    if (!alias_use_lasts(shm, use))
        return false;
    struct alias_walk walk = alias_walk(shm, (uint32_t)(use >> 32) - 1);
    while (!found && alias_walk_next(shm, &walk, &at))
        found = at == alias;
    /* Was it the list of that use all the time? */
    return found && alias_use_lasts(shm, use);
}

void alias_read(const struct shm *shm, uint32_t alias, struct alias_key *key,
                uint8_t body[32], int64_t *created_us)
{
    const struct shm_alias *a = alias_at(shm, alias);

    if (key) {
        memcpy(key->org, a->org, sizeof key->org);
        memcpy(key->key, a->key, sizeof key->key);
    }
    if (body)
        memcpy(body, a->body, sizeof a->body);
    if (created_us)
        *created_us = a->created_us;
}

bool alias_is_stored(const struct shm *shm, uint32_t alias)
{
    return atomic_load_explicit(&alias_at(shm, alias)->stored, memory_order_relaxed) != 0;
}

void alias_set_stored(struct shm *shm, uint32_t alias)
{
    atomic_store_explicit(&alias_at(shm, alias)->stored, 1, memory_order_relaxed);
    CRASH_POINT("alias_marked");
}

uint32_t alias_count_stored(struct shm *shm, uint32_t flight)
{
    struct alias_walk walk = alias_walk(shm, flight);
    uint32_t all = walk.left;
    uint32_t stored = 0;
    uint32_t at;

    while (alias_walk_next(shm, &walk, &at))
        stored += alias_is_stored(shm, at);
    atomic_store_explicit(&flight_at(shm, flight)->aliases_stored, stored,
                          memory_order_release);
    return all - stored;
}

uint32_t alias_count(const struct shm *shm, uint32_t flight)
{
    return list_length(
        atomic_load_explicit(&flight_at(shm, flight)->aliases, memory_order_acquire));
}

bool alias_pending(const struct shm *shm, uint32_t flight)
{
    return alias_count(shm, flight) !=
           atomic_load_explicit(&flight_at(shm, flight)->aliases_stored,
                                memory_order_acquire);
}

void alias_let_go(struct shm *shm, uint32_t flight)
{
    struct alias_walk walk = alias_walk(shm, flight);
    uint32_t at;

    while (alias_walk_next(shm, &walk, &at)) {
        uint32_t bucket =
            atomic_load_explicit(&alias_at(shm, at)->bucket, memory_order_acquire);
        if (bucket != 0 && bucket <= shm->hdr->bucket_count)
            atomic_fetch_add(&shm->buckets[bucket - 1].aliases_gone, 1);
        CRASH_POINT("alias_let_go");
    }
}
