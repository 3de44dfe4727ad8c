/*
 * What the tests of shm/ share: a small segment, slots that the test takes on in turn,
 * keys, flights that are joined and ended, and one function that checks everything.
 *
 * A unit test plays several processes by setting `shm.self`; a test of several processes
 * forks and sets it once.
 */
#ifndef DAC_TESTS_SHM_SEGMENT_FIXTURE_H
#define DAC_TESTS_SHM_SEGMENT_FIXTURE_H

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "shm/alias.h"
#include "shm/bucket.h"
#include "shm/index.h"
#include "shm/pacer.h"
#include "shm/sample.h"
#include "shm/slot.h"
#include "shm/wake.h"

#define FIXTURE_CONCURRENCY 3u

/* Threads that play processes have a view each. */
#ifdef FIXTURE_THREADS
static _Thread_local struct shm shm;
#else
static struct shm shm;
#endif
static char shm_name[SHM_NAME_SIZE];

static inline struct shm_options fixture_options(const char *name, uint32_t flights)
{
    static struct shm_provider_limits provider = {
        .name = "p", .burst = 1, .concurrency = FIXTURE_CONCURRENCY};

    return (struct shm_options){.name = name,
                                .size = UINT64_C(8) << 20,
                                .max_flights = flights,
                                .flight_max_bytes = UINT64_C(2) << 20,
                                .providers = &provider,
                                .provider_count = 1,
                                .owner_uid = geteuid(),
                                .owner_gid = getegid()};
}

/* A name that no other test program uses; with `mark` several per program. */
static inline const char *fixture_name(const char *mark)
{
    snprintf(shm_name, sizeof(shm_name), "dactest-%s-%d", mark, (int)getpid());
    return shm_name;
}

static inline void fixture_open(uint32_t flights)
{
    struct shm_options opt = fixture_options(fixture_name("shm"), flights);
    char why[256];
    bool replaced;

    ck_assert_msg(segment_create(&opt, &shm, &replaced, why, sizeof(why)) == DAC_OK, "%s",
                  why);
    /* Nobody needs the name: so a test that fails leaves nothing behind. */
    ck_assert_int_eq(shm_unlink(shm_name), 0);
}

static inline void fixture_close(void)
{
    segment_destroy(&shm);
}

static inline uint32_t new_worker(void)
{
    uint32_t slot;

    ck_assert_int_eq(slot_take(&shm, SLOT_WORKER, SHM_WORKERS_MAX, &slot), DAC_OK);
    return slot;
}

/* Question number `n`, with a turn id that no other call gets. */
static inline struct join_request question(uint32_t n)
{
    static _Thread_local uint32_t turns;
    uint32_t turn[4] = {++turns, (uint32_t)gettid(), n, 0};
    struct join_request req = {.kind = FLIGHT_TURN,
                               .now_ns = clock_now_ns(),
                               .arrived_ns = clock_now_ns(),
                               .result_ttl_ns = 30 * NS_PER_S,
                               .error_ttl_ns = 2 * NS_PER_S,
                               .abandon_grace_ns = 100 * NS_PER_MS};

    memcpy(req.key, &n, sizeof(n));
    req.key[31] = 1;
    memcpy(req.turn_id, turn, sizeof(req.turn_id));
    return req;
}

/* Name number `n` of an organisation. */
static inline struct alias_key name_of(uint32_t org, uint32_t n)
{
    struct alias_key key = {.org = {(uint8_t)(org + 1)}};

    memcpy(key.key, &n, sizeof(n));
    key.key[31] = 9;
    return key;
}

/* What is asked under a name, where the test does not say anything else. */
static inline const uint8_t *body_of(uint32_t n)
{
    static _Thread_local uint8_t body[32];

    memcpy(body, &n, sizeof(n));
    body[31] = 7;
    return body;
}

/* What an owner does at the end of a flight. */
static inline void end_flight(const struct flight_ref *ref, struct blocklog_writer *w,
                              enum flight_state state, uint64_t now_ns)
{
    struct record_end end = {.status = state == FLIGHT_DONE     ? TURN_COMPLETE
                                       : state == FLIGHT_FAILED ? TURN_FAILED
                                                                : TURN_CANCELLED};

    atomic_store(&flight_at(&shm, ref->index)->ended_ns, now_ns);
    ck_assert_int_eq(blocklog_append(&shm, w, RECORD_END, &end, sizeof(end)), DAC_OK);
    ck_assert_int_eq(flight_advance(&shm, *ref, state), DAC_OK);
}

static inline enum dac_err recycle(struct flight_ref ref)
{
    uint64_t followers, hits;

    return index_recycle(&shm, ref, RECYCLE_PRESSURE, clock_now_ns(), 0, &followers,
                         &hits);
}

/* Everything that *_valid() knows, on a segment where nobody is at work. */
static inline bool all_valid(const struct shm *s, char *why, size_t n)
{
    char part[160];

    if (!segment_valid(s, why, n) || !sample_valid(s, why, n))
        return false;
    for (uint32_t i = 0; i < SHM_SLOTS; i++) {
        if (!slot_valid(s, i, part, sizeof(part))) {
            snprintf(why, n, "slot %u: %s", i, part);
            return false;
        }
    }
    for (uint32_t i = 0; i < s->hdr->bucket_count; i++) {
        if (!index_valid(s, i, part, sizeof(part)) ||
            !alias_chain_valid(s, i, part, sizeof(part))) {
            snprintf(why, n, "bucket %u: %s", i, part);
            return false;
        }
    }
    for (uint32_t i = 0; i < s->hdr->flight_count; i++) {
        if (!flight_valid(s, i, true, part, sizeof(part)) ||
            !blocklog_valid(s, i, part, sizeof(part)) ||
            (flight_load(s, i).state > FLIGHT_CLAIMED &&
             !alias_list_valid(s, i, part, sizeof(part)))) {
            snprintf(why, n, "flight %u: %s", i, part);
            return false;
        }
    }
    for (uint32_t i = 0; i < s->hdr->alias_count; i++) {
        if (!alias_valid(s, i, true, part, sizeof(part))) {
            snprintf(why, n, "alias %u: %s", i, part);
            return false;
        }
        if (!alias_is_chained(s, i)) {
            snprintf(why, n, "alias %u: its chain does not lead to it", i);
            return false;
        }
    }
    for (uint32_t i = 0; i < atomic_load(&s->hdr->provider_count); i++) {
        if (!pacer_valid(s, i, true, part, sizeof(part))) {
            snprintf(why, n, "pacer %u: %s", i, part);
            return false;
        }
    }
    return true;
}

static inline void assert_all_valid(void)
{
    char why[256] = "";

    ck_assert_msg(all_valid(&shm, why, sizeof(why)), "%s", why);
}

static inline uint32_t blocks_in_use(void)
{
    uint32_t used = 0;

    for (uint32_t i = 0; i < shm.hdr->block_count; i++)
        used += !block_is_free(&shm, i);
    return used;
}

static inline uint32_t flights_in_use(void)
{
    uint32_t used = 0;

    for (uint32_t i = 0; i < shm.hdr->flight_count; i++)
        used += flight_load(&shm, i).state != FLIGHT_FREE;
    return used;
}

/* Runs one suite; the return value of main(). */
static inline int run_suite(Suite *s)
{
    SRunner *runner = srunner_create(s);

    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

#endif
