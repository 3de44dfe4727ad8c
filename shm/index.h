/*
 * The key index: from a key's digest to the newest flight of that question.
 *
 * Each bucket's chain is under its lock (shm/bucket.h). Where a lock can never be had
 * again, nobody joins or attaches (DAC_E_BUSY, like a lock not had); abandoning, sampling
 * and recycling go on without the lock, since nobody can come in between.
 */
#ifndef DAC_SHM_INDEX_H
#define DAC_SHM_INDEX_H

#include "shm/blocklog.h"
#include "shm/sample.h"

enum join_role {
    JOIN_LEADER,   /* a new flight, this process owns it in CLAIMED */
    JOIN_FOLLOWER, /* it runs */
    JOIN_HIT,      /* it is complete and within its TTL */
    JOIN_FAILURE   /* it failed less than error_ttl ago */
};

struct join_request {
    uint8_t key[SHM_KEY_SIZE];
    uint8_t turn_id[16]; /* of the flight, if it becomes one */
    uint8_t org[16];
    struct trace trace; /* of the new flight */
    enum flight_kind kind;
    uint32_t provider;
    uint64_t now_ns;
    uint64_t arrived_ns;
    int64_t created_us;
    uint64_t result_ttl_ns; /* of the new flight */
    uint64_t error_ttl_ns;
    uint64_t abandon_grace_ns;
    bool no_lead;     /* joins what there is, or DAC_E_DENIED */
    bool no_finished; /* never a finished answer or a shared failure: joins or leads */
};

struct join_result {
    enum join_role role;
    struct flight_ref ref;
    struct blocklog_writer writer; /* of a JOIN_LEADER: open, with room for END */
};

/* Joins the newest usable flight of the key, or claims and indexes a new one; either way
 * this process's reader bit is set. DAC_E_BUSY: the lock was not had in time, or was not
 * had lately and is still held. DAC_E_FULL. Worker. */
enum dac_err index_join(struct shm *shm, const struct join_request *req,
                        struct join_result *out) DAC_CHECK;

/* The flight of a turn, if it is in memory: a scan, no lock; check org before use. */
bool index_find_turn(const struct shm *shm, const uint8_t turn_id[16],
                     struct flight_ref *out);
/* Sets this process's reader bit if the flight is still that turn. DAC_E_NOT_FOUND. */
enum dac_err index_attach(struct shm *shm, struct flight_ref ref,
                          const uint8_t turn_id[16]) DAC_CHECK;
/* Joins exactly this use, whatever newcomers with its key would find: JOIN_FOLLOWER while
 * it runs, also if it is closed to newcomers; then JOIN_FAILURE if it failed, else
 * JOIN_HIT, however long ago it ended. Counts like index_join(). DAC_E_NOT_FOUND: that
 * use is over. DAC_E_BUSY. Worker. */
enum dac_err index_follow(struct shm *shm, struct flight_ref ref,
                          uint64_t abandon_grace_ns, enum join_role *role) DAC_CHECK;
/* Its owner, or the recorder for an orphan: closes a flight that nobody reads to
 * newcomers. DAC_E_STATE if somebody does read it again. */
enum dac_err index_abandon(struct shm *shm, struct flight_ref ref) DAC_CHECK;

/* Recorder: adds the flight's sample, if it has none yet, with its numbers of this
 * moment; later hits are added to the sample itself. DAC_E_BUSY, DAC_E_NOT_FOUND. */
enum dac_err index_put_sample(struct shm *shm, struct flight_ref ref,
                              const struct sample *s) DAC_CHECK;

enum recycle_rule {
    /* Ended, stored with all its aliases, unread, TTL over; if it has aliases, not before
     * ALIAS_LINGER_NS after its end. */
    RECYCLE_EXPIRED,
    RECYCLE_PRESSURE /* the same, whenever it ended */
};
/* Recorder: frees the flight if the rule allows it now. DAC_E_STATE if not, DAC_E_BUSY.
 * *followers and *hits are its final numbers. */
enum dac_err index_recycle(struct shm *shm, struct flight_ref ref, enum recycle_rule rule,
                           uint64_t now_ns, uint64_t error_ttl_ns, uint64_t *followers,
                           uint64_t *hits) DAC_CHECK;

uint32_t index_bucket_of(const struct shm *shm, const uint8_t key[SHM_KEY_SIZE]);
/* Rebuilds one chain from the flights; under its lock. */
void index_rebuild(struct shm *shm, uint32_t bucket);
/* The first half of index_valid(): who is in the chain belongs there. *length: how many.
 */
bool index_chain_valid(const struct shm *shm, uint32_t bucket, uint32_t *length,
                       char *why, size_t n);
/* Checks one chain, and that nobody is missing; on a quiet or dead segment only. */
bool index_valid(const struct shm *shm, uint32_t bucket, char *why, size_t n);

#endif
