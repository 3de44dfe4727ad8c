/*
 * Aliases: names that clients give to turns (the Idempotency-Key header), each bound to
 * one use of one flight for as long as that use lasts. Afterwards the store knows it.
 *
 *   free -> taken from the pool and in its bucket's chain (alias_claim)
 *        -> on the flight's list (alias_bind), which is the moment from which it is bound
 *        -> free as soon as the flight's incarnation moves on, or if it was dropped, or
 *           if who claimed it died before it was on a list
 *
 * The chain of a bucket leads from a name to its alias, under the bucket's lock
 * (shm/bucket.h); the list of a flight leads from a turn to all its names, without one.
 * What is free already leaves a chain when somebody comes by. The pool is bounded: four
 * for each flight.
 *
 * A name that was not found may be bound, stored and gone before it is claimed; who has
 * looked in the store in between sees that by alias_gone().
 *
 * Workers bind; the recorder reads lists and marks what is stored.
 */
#ifndef DAC_SHM_ALIAS_H
#define DAC_SHM_ALIAS_H

#include "shm/flight.h"

/* A flight with aliases that is stored stays this long after its end at least, unless
 * room is needed. */
#define ALIAS_LINGER_NS UINT64_C(5000000000)

struct alias_key {
    uint8_t org[16]; /* as shm_flight.org */
    uint8_t key[32]; /* SHA-256 of the name */
};

struct alias_found {
    uint32_t alias;
    struct flight_ref ref;
    uint8_t body[32];   /* SHA-256 of what was asked under it */
    int64_t created_us; /* wall clock: when it was first used */
};

/* DAC_OK: *out. DAC_E_NOT_FOUND. DAC_E_BUSY: the lock was not had, or a living process is
 * binding it in this moment; try again later. Worker. */
enum dac_err alias_find(struct shm *shm, const struct alias_key *key,
                        struct alias_found *out) DAC_CHECK;

/* Makes *alias this process's, if the key has none: until alias_bind() or alias_drop(),
 * one of which must come in the same turn of the event loop. DAC_E_EXISTS: *found is what
 * it is bound to; a binding to exactly the use `replace` (NULL: none) does not count and
 * is let go. DAC_E_BUSY: as above. DAC_E_FULL: no alias is free; the recorder was told to
 * make room. Worker. */
enum dac_err alias_claim(struct shm *shm, const struct alias_key *key,
                         const uint8_t body[32], int64_t created_us,
                         const struct flight_ref *replace, uint32_t *alias,
                         struct alias_found *found) DAC_CHECK;
/* Binds a claimed one. The caller's reader bit is set in that use. The recorder is woken
 * if the flight has ended already. Takes no lock, never fails. */
void alias_bind(struct shm *shm, uint32_t alias, struct flight_ref ref);
/* Gives a claimed one back. Takes no lock, never fails. */
void alias_drop(struct shm *shm, uint32_t alias);

/* Grows whenever an alias that the key could be leaves with its flight. Who reads it
 * before alias_find() said DAC_E_NOT_FOUND, and reads the same after alias_claim() said
 * DAC_OK, knows that the key was bound to nothing in between; else it drops the claim and
 * looks in the store again, which has what left. Any process. */
uint32_t alias_gone(const struct shm *shm, const struct alias_key *key);

/* --- a flight's list ---------------------------------------------------------------- */

struct alias_walk {
    uint32_t next; /* alias + 1, 0: the end */
    uint32_t left;
};

/* Recorder: all aliases that are bound to the flight now, which it keeps from being
 * recycled; the newest first. What is bound later is not in this walk; the recorder is
 * woken for it if the flight has ended. */
struct alias_walk alias_walk(const struct shm *shm, uint32_t flight);
/* The next one, false at the end. */
bool alias_walk_next(const struct shm *shm, struct alias_walk *walk, uint32_t *alias);
/* Of an alias on a list: what is to be stored. Any pointer may be NULL. */
void alias_read(const struct shm *shm, uint32_t alias, struct alias_key *key,
                uint8_t body[32], int64_t *created_us);
/* Whether the recorder has marked it. Also for a reader of its flight. */
bool alias_is_stored(const struct shm *shm, uint32_t alias);
/* Recorder: the store has it, or is not to have it. alias_count_stored() must follow. */
void alias_set_stored(struct shm *shm, uint32_t alias);
/* Recorder: counts the marks of a flight's aliases; until it has counted as many as there
 * are, the flight is not recycled. Returns how many are not marked. */
uint32_t alias_count_stored(struct shm *shm, uint32_t flight);
/* How many aliases are bound to the flight's present use. */
uint32_t alias_count(const struct shm *shm, uint32_t flight);
/* Whether some of them are not counted as stored. */
bool alias_pending(const struct shm *shm, uint32_t flight);
/* Recorder, right before the flight leaves: says so to alias_gone(). */
void alias_let_go(struct shm *shm, uint32_t flight);

/* --- for shm/ ----------------------------------------------------------------------- */

#define ALIAS_BEING_BOUND (UINT64_C(1) << 63) /* in shm_alias.word */

static inline struct shm_alias *alias_at(const struct shm *shm, uint32_t index)
{
    DAC_ASSERT(index < shm->hdr->alias_count);
    return &shm->aliases[index];
}

static inline uint64_t alias_use(struct flight_ref ref)
{
    return (uint64_t)(ref.index + 1) << 32 | ref.incarnation;
}

/* Whether the use that a word or a target names is not over. */
bool alias_use_lasts(const struct shm *shm, uint64_t use);
/* Adds it to the flight's list. */
void alias_push(struct shm *shm, uint32_t alias, struct flight_ref ref);
/* Whether the list of that use leads to it; false if the use is over. */
bool alias_is_listed(const struct shm *shm, uint32_t alias, uint64_t use);
uint32_t alias_bucket_of(const struct shm *shm, const struct alias_key *key);
/* Rebuilds one chain from the aliases; under its lock. */
void alias_rebuild(struct shm *shm, uint32_t bucket);
/* How many are bound; a scan. */
uint32_t alias_used(const struct shm *shm);
/* The same from the header's hint. */
uint32_t alias_used_hint(const struct shm *shm);

/* --- checks ------------------------------------------------------------------------- */

/* `quiet`: nobody is changing it, so rules over several words are checked, too. */
bool alias_valid(const struct shm *shm, uint32_t alias, bool quiet, char *why, size_t n);
/* Who is in a bucket's chain belongs there; on a quiet or dead segment only. */
bool alias_chain_valid(const struct shm *shm, uint32_t bucket, char *why, size_t n);
/* Whether the chain that it names leads to it, if it names one; as above. */
bool alias_is_chained(const struct shm *shm, uint32_t alias);
/* The list of an indexed flight: who is on it aims at the present use, and what is
 * counted is there; as above. */
bool alias_list_valid(const struct shm *shm, uint32_t flight, char *why, size_t n);

#endif
