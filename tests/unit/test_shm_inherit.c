/*
 * A fresh segment beside an old one: the name passes in one step, figures never go back,
 * and both together keep to the provider's limits.
 */
#include <fcntl.h>
#include <sys/stat.h>

#include "shm/inherit.h"
#include "tests/shm/segment_fixture.h"

#define LIMIT FIXTURE_CONCURRENCY

static struct shm next;

static struct shm_options options(void)
{
    return fixture_options(shm_name, 64);
}

static void make_next(void)
{
    struct shm_options opt = options();
    char why[256];

    ck_assert_msg(segment_create_next(&opt, &next, why, sizeof(why)) == DAC_OK, "%s",
                  why);
}

static void setup(void)
{
    struct shm_options opt;
    char why[256];
    bool replaced;

    fixture_name("inherit");
    opt = options();
    ck_assert_msg(segment_create(&opt, &shm, &replaced, why, sizeof(why)) == DAC_OK, "%s",
                  why);
    make_next();
}

static void teardown(void)
{
    if (next.base)
        segment_destroy(&next);
    if (shm.base)
        segment_destroy(&shm);
    shm_unlink(shm_name);
}

static bool exists(const char *before, const char *after)
{
    char path[128];
    struct stat st;

    snprintf(path, sizeof(path), "/dev/shm/%s%s%s", before, shm_name, after);
    return stat(path, &st) == 0;
}

/* Which of the two an outsider finds under the name: its `renewals`. */
static uint32_t named(void)
{
    struct shm seen;
    char why[256];

    ck_assert_msg(segment_attach(shm_name, &seen, why, sizeof(why)) == DAC_OK, "%s", why);
    uint32_t renewals = atomic_load(&seen.hdr->renewals);
    segment_detach(&seen);
    return renewals;
}

START_TEST(name_passes_in_one_step)
{
    struct shm_options opt = options();
    struct shm stranger;
    bool replaced;
    char why[256];

    inherit_identity(&next, &shm);
    ck_assert_uint_eq(named(), 0);
    ck_assert(exists(".", ".next"));
    ck_assert_int_eq(segment_take_name(&next), DAC_OK);
    ck_assert_uint_eq(named(), 1);
    ck_assert(!exists(".", ".next"));
    segment_destroy(&shm); /* the old one: it has no name to remove */
    ck_assert_uint_eq(named(), 1);
    ck_assert_int_eq(segment_create(&opt, &stranger, &replaced, why, sizeof(why)),
                     DAC_E_EXISTS);
    segment_destroy(&next);
    ck_assert(!exists("", ""));
}
END_TEST

START_TEST(what_failed_leaves_the_old_one)
{
    segment_destroy(&next);
    ck_assert(!exists(".", ".next"));
    ck_assert_uint_eq(named(), 0);
    make_next(); /* and may be tried again */
}
END_TEST

/* A master that was killed over it leaves both. */
START_TEST(next_start_removes_both)
{
    struct shm_options opt = options();
    bool replaced;
    char why[256];

    segment_detach(&next);
    segment_detach(&shm);
    ck_assert(exists(".", ".next"));
    ck_assert_msg(segment_create(&opt, &shm, &replaced, why, sizeof(why)) == DAC_OK, "%s",
                  why);
    ck_assert(replaced);
    ck_assert(!exists(".", ".next"));
}
END_TEST

START_TEST(counters_go_on)
{
    struct inheritance done = {0};
    uint32_t slot;

    shm.self = new_worker();
    shm_count(&shm, SHM_C_requests, 7);
    atomic_store(&shm.hdr->restarts[SLOT_WORKER][RESTART_KILLED], 2);
    inherit_identity(&next, &shm);
    ck_assert_uint_eq(next.hdr->created_ns, shm.hdr->created_ns);
    inherit_counters(&next, &shm, &done);
    ck_assert_uint_eq(shm_counter_sum(&next, SHM_C_requests), 7);

    ck_assert_int_eq(slot_take(&next, SLOT_WORKER, 0, &slot), DAC_OK);
    ck_assert_uint_gt(atomic_load(&next.slots[slot].generation),
                      atomic_load(&shm.slots[shm.self].generation));
    next.self = slot;
    shm_count(&next, SHM_C_requests, 10);
    next.self = SHM_NO_SLOT;
    shm_count(&shm, SHM_C_requests, 1);
    inherit_counters(&next, &shm, &done);
    inherit_counters(&next, &shm, &done);
    ck_assert_uint_eq(shm_counter_sum(&next, SHM_C_requests), 18);

    slot_sweep(&shm, shm.self); /* folds what its slot had */
    inherit_counters(&next, &shm, &done);
    ck_assert_uint_eq(shm_counter_sum(&next, SHM_C_requests), 18);
    ck_assert_uint_eq(shm_restarts_sum(&next), 2);
}
END_TEST

START_TEST(samples_go_on)
{
    static const uint32_t counts[] = {0, 3, SHM_SAMPLES, SHM_SAMPLES + 5};
    uint32_t n = counts[_i];
    struct sample got[8];
    char why[160];

    for (uint32_t i = 0; i < n; i++)
        sample_add(&shm, &(struct sample){.latency_us = i + 1, .hits = i % 3}, NULL);
    inherit_samples(&next, &shm);
    sample_add(&next, &(struct sample){.latency_us = n + 1}, NULL);
    size_t read = sample_read(&next, got, DAC_ARRAY_LEN(got));
    ck_assert_uint_eq(read, n + 1 < DAC_ARRAY_LEN(got) ? n + 1 : DAC_ARRAY_LEN(got));
    for (uint32_t i = 0; i < read; i++)
        ck_assert_uint_eq(got[i].latency_us, n + 1 - i);
    ck_assert_msg(sample_valid(&next, why, sizeof(why)), "%s", why);
}
END_TEST

static struct join_result ask(uint32_t n)
{
    struct join_request req = question(n);
    struct join_result r;

    ck_assert_int_eq(index_join(&shm, &req, &r), DAC_OK);
    ck_assert_int_eq(flight_advance(&shm, r.ref, FLIGHT_QUEUED), DAC_OK);
    return r;
}

static uint32_t call(struct flight_ref ref)
{
    uint32_t permit;
    uint64_t wait;

    ck_assert_int_eq(pacer_take(&shm, 0, ref, clock_now_ns(), &permit, &wait), DAC_OK);
    ck_assert_int_eq(flight_advance(&shm, ref, FLIGHT_FETCHING), DAC_OK);
    return permit;
}

/* How many calls the new segment would begin now. */
static uint32_t room(uint64_t now_ns)
{
    struct flight_ref ref = {0};
    uint32_t permits[2 * LIMIT];
    uint64_t wait;
    uint32_t n = 0;

    next.self = 0;
    while (n < 2 * LIMIT &&
           pacer_take(&next, 0, ref, now_ns, &permits[n], &wait) == DAC_OK)
        n++;
    for (uint32_t i = 0; i < n; i++)
        pacer_give(&next, 0, permits[i], ref);
    next.self = SHM_NO_SLOT;
    return n;
}

START_TEST(calls_of_both_keep_to_the_limit)
{
    struct join_result r[LIMIT + 1];
    uint32_t permits[LIMIT];
    uint64_t now = clock_now_ns();

    shm.self = new_worker();
    for (uint32_t i = 0; i <= LIMIT; i++)
        r[i] = ask(i);
    for (uint32_t i = 0; i < LIMIT; i++)
        permits[i] = call(r[i].ref);
    inherit_pacers(&next, &shm, now, NS_PER_S);
    ck_assert_uint_eq(room(now), 0);

    pacer_give(&shm, 0, permits[0], r[0].ref);
    now += 2 * NS_PER_S;
    inherit_pacers(&next, &shm, now, NS_PER_S);
    ck_assert_uint_eq(room(now), 0); /* somebody waits there, who came first */

    permits[0] = call(r[LIMIT].ref);
    pacer_give(&shm, 0, permits[1], r[1].ref);
    now += 2 * NS_PER_S;
    inherit_pacers(&next, &shm, now, NS_PER_S);
    ck_assert_uint_eq(room(now), 1);
    pacer_give(&shm, 0, permits[2], r[2].ref);
    inherit_pacers(&next, &shm, now, NS_PER_S);
    ck_assert_uint_eq(room(now), 2);
    inherit_pacers_whole(&next, &shm);
    ck_assert_uint_eq(room(now), LIMIT);
}
END_TEST

START_TEST(tokens_and_pauses_go_on)
{
    uint64_t now = clock_now_ns();
    uint32_t permit;
    uint64_t wait;

    shm.self = new_worker();
    pacer_set_limits(&shm, 0, 1.0, 1, 0);
    pacer_set_limits(&next, 0, 1.0, 1, 0);
    struct join_result r = ask(1);
    ck_assert_int_eq(pacer_take(&shm, 0, r.ref, now, &permit, &wait), DAC_OK);
    ck_assert_int_eq(flight_advance(&shm, r.ref, FLIGHT_FETCHING), DAC_OK);
    inherit_pacers(&next, &shm, now, NS_PER_S);
    ck_assert_uint_eq(room(now + NS_PER_S / 2), 0);
    ck_assert_uint_eq(room(now + NS_PER_S), 1);
    pacer_pause(&shm, 0, now + 60 * NS_PER_S, PACER_RATE_LIMITED);
    inherit_pacers(&next, &shm, now, NS_PER_S);
    ck_assert_uint_eq(room(now + 59 * NS_PER_S), 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("a fresh segment");
    TCase *t = tcase_create("inherit");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_test(t, name_passes_in_one_step);
    tcase_add_test(t, what_failed_leaves_the_old_one);
    tcase_add_test(t, next_start_removes_both);
    tcase_add_test(t, counters_go_on);
    tcase_add_loop_test(t, samples_go_on, 0, 4);
    tcase_add_test(t, calls_of_both_keep_to_the_limit);
    tcase_add_test(t, tokens_and_pauses_go_on);
    suite_add_tcase(s, t);
    return run_suite(s);
}
