/*
 * What must hold of aliases, their chains and lists. Free ones may stand in a chain: they
 * leave it when somebody comes by.
 *
 * Reads only, survives any content. Any process, also from outside.
 */
#include <stdio.h>

#include "shm/alias.h"

/* Rules over several words: true only where nobody is changing them. */
static bool quiet_valid(const struct shm *shm, uint32_t alias, uint64_t word, char *why,
                        size_t n)
{
    const struct shm_alias *a = alias_at(shm, alias);
    uint32_t bucket = atomic_load(&a->bucket);
    bool bound = (word & ALIAS_BEING_BOUND) == 0 && alias_use_lasts(shm, word);
    struct alias_key key;

    if (word == 0 && bucket != 0) {
        snprintf(why, n, "it is free but in the chain of bucket %u", bucket - 1);
        return false;
    }
    if (!bound)
        return true;
    alias_read(shm, alias, &key, NULL, NULL);
    if (bucket != 0 && bucket - 1 != alias_bucket_of(shm, &key))
        snprintf(why, n, "it is in the chain of bucket %u, its key belongs in %u",
                 bucket - 1, alias_bucket_of(shm, &key));
    else if (!alias_is_listed(shm, alias, word) && alias_use_lasts(shm, word))
        snprintf(why, n, "it is bound to flight %u, whose list does not lead to it",
                 (uint32_t)(word >> 32) - 1);
    else
        return true;
    return false;
}

bool alias_valid(const struct shm *shm, uint32_t alias, bool quiet, char *why, size_t n)
{
    const struct shm_alias *a = alias_at(shm, alias);
    uint64_t word = atomic_load(&a->word);
    uint32_t high = (uint32_t)(word >> 32);
    uint32_t slot = (uint32_t)((word & ~ALIAS_BEING_BOUND) >> 32);

    if ((word & ALIAS_BEING_BOUND) != 0 && slot > SHM_SLOTS)
        snprintf(why, n, "slot %u is binding it, which does not exist", slot - 1);
    else if ((word & ALIAS_BEING_BOUND) == 0 && word != 0 &&
             (high == 0 || high > shm->hdr->flight_count))
        snprintf(why, n, "it is bound to flight %u, which does not exist", high - 1);
    else if (atomic_load(&a->bucket) > shm->hdr->bucket_count)
        snprintf(why, n, "its bucket does not exist");
    else if (atomic_load(&a->stored) > 1)
        snprintf(why, n, "stored is %u, which does not exist", atomic_load(&a->stored));
    else if (quiet && !quiet_valid(shm, alias, word, why, n))
        return false;
    else
        return true;
    return false;
}

bool alias_chain_valid(const struct shm *shm, uint32_t bucket, char *why, size_t n)
{
    uint32_t left = shm->hdr->alias_count;

    for (uint32_t at = atomic_load(&shm->buckets[bucket].aliases); at != 0;
         at = atomic_load(&alias_at(shm, at - 1)->next)) {
        if (at > shm->hdr->alias_count) {
            snprintf(why, n, "it links to alias %u, which does not exist", at - 1);
            return false;
        }
        if (atomic_load(&alias_at(shm, at - 1)->bucket) != bucket + 1) {
            snprintf(why, n, "alias %u is in its chain but says bucket %d", at - 1,
                     (int)atomic_load(&alias_at(shm, at - 1)->bucket) - 1);
            return false;
        }
        if (left-- == 0) {
            snprintf(why, n, "its chain of aliases is a circle");
            return false;
        }
    }
    return true;
}

bool alias_is_chained(const struct shm *shm, uint32_t alias)
{
    uint32_t bucket = atomic_load(&alias_at(shm, alias)->bucket);
    uint32_t left = shm->hdr->alias_count;
    uint32_t at;

    if (bucket == 0 || bucket > shm->hdr->bucket_count)
        return true;
    at = atomic_load(&shm->buckets[bucket - 1].aliases);
    while (at != 0 && at != alias + 1 && at <= shm->hdr->alias_count && left-- > 0)
        at = atomic_load(&alias_at(shm, at - 1)->next);
    return at == alias + 1;
}

bool alias_list_valid(const struct shm *shm, uint32_t flight, char *why, size_t n)
{
    const struct shm_flight *f = flight_at(shm, flight);
    struct flight_ref ref = {.index = flight,
                             .incarnation = flight_load(shm, flight).incarnation};
    uint32_t counted = atomic_load(&f->aliases_stored);
    struct alias_walk walk = alias_walk(shm, flight);
    uint32_t all = walk.left;
    uint32_t stored = 0;
    uint32_t at;

    while (alias_walk_next(shm, &walk, &at)) {
        const struct shm_alias *a = alias_at(shm, at);
        uint64_t word = atomic_load(&a->word);

        if (atomic_load(&a->target) != alias_use(ref) ||
            ((word & ALIAS_BEING_BOUND) == 0 && word != alias_use(ref))) {
            snprintf(why, n, "alias %u is on its list but belongs to another use", at);
            return false;
        }
        stored += atomic_load(&a->stored) != 0;
    }
    if (walk.left != 0 || walk.next != 0)
        snprintf(why, n, "its list does not have the %u aliases that it counts", all);
    else if (counted > stored)
        snprintf(why, n, "%u of its aliases are said to be stored, %u are", counted,
                 stored);
    else
        return true;
    return false;
}
