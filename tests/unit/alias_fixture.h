/*
 * What the unit tests of aliases share: a segment with two workers and a recorder, all
 * played by the test, names that are claimed and bound, and damage to their chains.
 */
#ifndef DAC_TESTS_UNIT_ALIAS_FIXTURE_H
#define DAC_TESTS_UNIT_ALIAS_FIXTURE_H

#include "tests/shm/segment_fixture.h"

#define CREATED_US 77

static uint32_t a, b, recorder;

static inline void setup(void)
{
    fixture_open(64);
    a = new_worker();
    b = new_worker();
    ck_assert_int_eq(slot_take(&shm, SLOT_RECORDER, 0, &recorder), DAC_OK);
    shm.self = a;
}

static inline void teardown(void)
{
    fixture_close();
}

static inline struct join_result lead(uint32_t key)
{
    struct join_request req = question(key);
    struct join_result r;

    ck_assert_int_eq(index_join(&shm, &req, &r), DAC_OK);
    ck_assert_int_eq(r.role, JOIN_LEADER);
    return r;
}

static inline void end(struct join_result *r, enum flight_state state, uint64_t now_ns)
{
    if (state == FLIGHT_DONE) {
        ck_assert_int_eq(flight_advance(&shm, r->ref, FLIGHT_QUEUED), DAC_OK);
        ck_assert_int_eq(flight_advance(&shm, r->ref, FLIGHT_FETCHING), DAC_OK);
    }
    end_flight(&r->ref, &r->writer, state, now_ns);
    flight_drop_reader(&shm, r->ref.index);
}

/* What the recorder does with a flight that ended. */
static inline void store(const struct join_result *r)
{
    struct alias_walk walk = alias_walk(&shm, r->ref.index);
    uint32_t at;

    while (alias_walk_next(&shm, &walk, &at))
        alias_set_stored(&shm, at);
    ck_assert_uint_eq(alias_count_stored(&shm, r->ref.index), 0);
    atomic_store(&flight_at(&shm, r->ref.index)->stored, STORED_SQLITE);
}

static inline void end_and_free(struct join_result *r)
{
    end(r, FLIGHT_FAILED, clock_now_ns());
    store(r);
    ck_assert_int_eq(recycle(r->ref), DAC_OK);
}

static inline enum dac_err claim(uint32_t n, uint32_t *alias)
{
    struct alias_key key = name_of(0, n);
    struct alias_found found;

    return alias_claim(&shm, &key, body_of(n), CREATED_US, NULL, alias, &found);
}

static inline uint32_t bind(uint32_t n, struct flight_ref ref)
{
    uint32_t alias;

    ck_assert_int_eq(claim(n, &alias), DAC_OK);
    alias_bind(&shm, alias, ref);
    return alias;
}

static inline enum dac_err find(uint32_t n)
{
    struct alias_key key = name_of(0, n);
    struct alias_found found;

    return alias_find(&shm, &key, &found);
}

static inline void assert_found(uint32_t n, struct flight_ref ref)
{
    struct alias_key key = name_of(0, n);
    struct alias_found found;

    ck_assert_int_eq(alias_find(&shm, &key, &found), DAC_OK);
    ck_assert_uint_eq(found.ref.index, ref.index);
    ck_assert_uint_eq(found.ref.incarnation, ref.incarnation);
    ck_assert_int_eq(memcmp(found.body, body_of(n), sizeof(found.body)), 0);
    ck_assert_int_eq(found.created_us, CREATED_US);
}

static inline uint32_t bucket_of(uint32_t n)
{
    struct alias_key key = name_of(0, n);

    return alias_bucket_of(&shm, &key);
}

/* Names of one bucket are this far apart. */
static inline uint32_t stride(void)
{
    return shm.hdr->bucket_count;
}

enum damage {
    HEAD_LOST,
    HEAD_WILD,
    LINK_LOST,
    CIRCLE,
    FOREIGN,
    FREE_BUT_CHAINED,
    DAMAGES
};

static inline void damage(enum damage how, const uint32_t *alias)
{
    switch (how) {
    case HEAD_LOST:
        atomic_store(&shm.buckets[5].aliases, 0);
        break;
    case HEAD_WILD:
        atomic_store(&shm.buckets[5].aliases, 99999);
        break;
    case LINK_LOST: /* the chain goes 2, 1, 0 */
        atomic_store(&alias_at(&shm, alias[2])->next, 0);
        break;
    case CIRCLE:
        atomic_store(&alias_at(&shm, alias[0])->next, alias[2] + 1);
        break;
    case FOREIGN:
        atomic_store(&alias_at(&shm, alias[0])->next, alias[3] + 1);
        break;
    case FREE_BUT_CHAINED:
        atomic_store(&alias_at(&shm, 4000)->bucket, 6);
        break;
    default:
        break;
    }
}

static inline void three_names_of_bucket_5(struct join_result *r, uint32_t *alias)
{
    for (uint32_t i = 0; i < 3; i++) {
        r[i] = lead(i);
        alias[i] = bind(4 + i * stride(), r[i].ref);
    }
    ck_assert_uint_eq(bucket_of(4), 5);
    r[3] = lead(20);
    alias[3] = bind(19, r[3].ref);
    ck_assert_uint_ne(bucket_of(19), 5);
}

#endif
