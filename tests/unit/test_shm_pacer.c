/*
 * The pacer: GCRA against a reference that keeps every grant, with injected time;
 * permits, waking, pausing, sweeping, and pacer_valid().
 */
#include "tests/shm/segment_fixture.h"

static uint32_t a, b;
static struct join_result lead;

static void setup(void)
{
    struct join_request req = question(1);

    fixture_open(64);
    a = new_worker();
    b = new_worker();
    shm.self = a;
    ck_assert_int_eq(index_join(&shm, &req, &lead), DAC_OK);
}

static void teardown(void)
{
    fixture_close();
}

static enum dac_err take(uint64_t now, uint32_t *permit, uint64_t *wait)
{
    return pacer_take(&shm, 0, lead.ref, now, permit, wait);
}

/* --- rate --------------------------------------------------------------------------- */

static const struct {
    double rps;
    uint32_t burst;
    uint64_t gap_ns; /* between two asks, 0: at once after `wait` */
} rates[] = {
    {1, 1, 0},       {1, 2, 0},      {10, 1, 0},       {10, 5, 0},
    {3, 3, 1000000}, {50, 10, 7777}, {0.25, 2, 0},     {0.001, 1, 0},
    {7, 1, 1},       {2.5, 4, 3},    {100000, 100, 0}, {10, 0, 0},
};

/* A token bucket, counted in nanoseconds saved up: one token is one interval. */
struct reference {
    uint64_t saved, interval, burst;
    uint64_t at;
};

static bool reference_take(struct reference *r, uint64_t now)
{
    r->saved += now - r->at;
    r->at = now;
    if (r->saved > r->burst * r->interval)
        r->saved = r->burst * r->interval;
    if (r->saved < r->interval)
        return false;
    r->saved -= r->interval;
    return true;
}

/* The same verdicts as the reference, and a refused caller is told the right moment. */
START_TEST(gcra_is_a_token_bucket)
{
    uint32_t burst = rates[_i].burst > 0 ? rates[_i].burst : 1;
    uint64_t interval = (uint64_t)(1e9 / rates[_i].rps);
    struct reference ref = {
        .saved = burst * interval, .burst = burst, .interval = interval};
    uint64_t now = UINT64_C(1000000) * NS_PER_S;
    uint64_t first = now, last = now;
    uint32_t granted = 0;
    uint64_t wait;
    uint32_t permit;

    ref.at = now;
    pacer_set_limits(&shm, 0, rates[_i].rps, rates[_i].burst, 0);
    for (uint32_t i = 0; i < 2000; i++) {
        enum dac_err e = take(now, &permit, &wait);
        ck_assert_uint_eq(permit, PACER_NO_PERMIT);
        if (e == DAC_OK) {
            ck_assert_msg(reference_take(&ref, now), "granted too early at %u", i);
            granted++;
            last = now;
            now += rates[_i].gap_ns + (i % 13 == 0 ? interval * 5 / 2 : 0);
            continue;
        }
        ck_assert_int_eq(e, DAC_E_AGAIN);
        ck_assert_uint_gt(wait, 0);
        ck_assert_uint_le(wait, interval);
        ck_assert_msg(!reference_take(&ref, now + wait - 1), "refused too long at %u", i);
        /* Asking does not cost anything, and one nanosecond earlier is too early. */
        ck_assert_int_eq(take(now + wait - 1, &permit, &wait), DAC_E_AGAIN);
        ck_assert_uint_eq(wait, 1);
        now = ref.at + 1;
    }
    ck_assert_uint_gt(granted, 900);
    ck_assert_uint_le(granted, burst + (last - first) / interval);
}
END_TEST

START_TEST(no_rate_is_no_limit)
{
    uint64_t wait;
    uint32_t permit;

    pacer_set_limits(&shm, 0, 0, 1, 0);
    for (int i = 0; i < 1000; i++)
        ck_assert_int_eq(take(5, &permit, &wait), DAC_OK);
}
END_TEST

/* After a long rest the burst is full, not more than full. */
START_TEST(rest_saves_a_burst_only)
{
    uint64_t now = 5000 * NS_PER_S;
    uint64_t wait;
    uint32_t permit;

    pacer_set_limits(&shm, 0, 10, 4, 0);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 4; i++)
            ck_assert_int_eq(take(now, &permit, &wait), DAC_OK);
        ck_assert_int_eq(take(now, &permit, &wait), DAC_E_AGAIN);
        ck_assert_uint_eq(wait, NS_PER_S / 10);
        now += 3600 * NS_PER_S;
    }
}
END_TEST

/* An operator who raises a limit is not to wait for the old one's end. */
START_TEST(raised_limits_have_effect_at_once)
{
    uint64_t wait, now = clock_now_ns();
    uint32_t permit;

    pacer_set_limits(&shm, 0, 0.001, 1, 0);
    ck_assert_int_eq(take(now, &permit, &wait), DAC_OK);
    pacer_give(&shm, 0, permit, lead.ref);
    ck_assert_int_eq(take(now, &permit, &wait), DAC_E_AGAIN);
    ck_assert_uint_gt(wait, 900 * NS_PER_S);
    pacer_set_limits(&shm, 0, 10, 2, 0);
    now = clock_now_ns();
    enum dac_err e = take(now, &permit, &wait);
    ck_assert(e == DAC_OK || wait <= 100 * NS_PER_MS);
    now += 100 * NS_PER_MS;
    if (e == DAC_E_AGAIN)
        ck_assert_int_eq(take(now, &permit, &wait), DAC_OK);
    pacer_set_limits(&shm, 0, 0.001, 1, 0); /* lowered: what was had stays had */
    ck_assert_int_eq(take(now, &permit, &wait), DAC_E_AGAIN);
    ck_assert_uint_le(wait, 1000 * NS_PER_S);
}
END_TEST

/* Calls above a limit that was lowered run on, and count. */
START_TEST(a_lowered_limit_holds_at_once)
{
    uint32_t held[10], permit;
    uint64_t wait;

    pacer_set_limits(&shm, 0, 0, 1, 10);
    for (int i = 0; i < 10; i++)
        ck_assert_int_eq(take(0, &held[i], &wait), DAC_OK);
    pacer_set_limits(&shm, 0, 0, 1, 3);
    for (int i = 0; i < 7; i++) { /* the first ones: from 10 to 3 that run */
        ck_assert_int_eq(take(0, &permit, &wait), DAC_E_AGAIN);
        ck_assert_uint_eq(wait, UINT64_MAX);
        pacer_give(&shm, 0, held[i], lead.ref);
    }
    ck_assert_uint_eq(pacer_in_flight(&shm, 0), 3);
    ck_assert_int_eq(take(0, &permit, &wait), DAC_E_AGAIN);
    pacer_give(&shm, 0, held[7], lead.ref);
    ck_assert_int_eq(take(0, &permit, &wait), DAC_OK);
    ck_assert_int_eq(take(0, &held[0], &wait), DAC_E_AGAIN);
    pacer_give(&shm, 0, held[8], lead.ref);
    pacer_give(&shm, 0, held[9], lead.ref);
    ck_assert_int_eq(take(0, &held[0], &wait), DAC_OK);
    ck_assert_int_eq(take(0, &held[1], &wait), DAC_OK);
    ck_assert_int_eq(take(0, &held[2], &wait), DAC_E_AGAIN);
    ck_assert_uint_eq(pacer_in_flight(&shm, 0), 3);
    ck_assert_uint_eq(atomic_load(&shm.pacers[0].above), 0);
    pacer_set_limits(&shm, 0, 0, 1, 4); /* and raised */
    ck_assert_int_eq(take(0, &held[2], &wait), DAC_OK);
    ck_assert_int_eq(take(0, &held[3], &wait), DAC_E_AGAIN);
}
END_TEST

START_TEST(tokens_that_are_left)
{
    uint64_t now = clock_now_ns(), wait;
    uint32_t permit;

    ck_assert_uint_eq(pacer_tokens(&shm, 0, now), UINT32_MAX);
    pacer_set_limits(&shm, 0, 1, 5, 0);
    for (uint32_t left = 5; left > 0; left--) {
        ck_assert_uint_eq(pacer_tokens(&shm, 0, now), left);
        ck_assert_int_eq(take(now, &permit, &wait), DAC_OK);
        pacer_give(&shm, 0, permit, lead.ref);
    }
    ck_assert_uint_eq(pacer_tokens(&shm, 0, now), 0);
    ck_assert_uint_eq(pacer_tokens(&shm, 0, now + 2 * NS_PER_S), 2);
    ck_assert_uint_eq(pacer_tokens(&shm, 0, now + 60 * NS_PER_S), 5);
}
END_TEST

START_TEST(pause_only_grows)
{
    uint64_t now = 100 * NS_PER_S;
    uint64_t wait;
    uint32_t permit;

    pacer_set_limits(&shm, 0, 0, 1, 2);
    pacer_pause(&shm, 0, now + 50, PACER_RATE_LIMITED);
    pacer_pause(&shm, 0, now + 20, PACER_RATE_LIMITED);
    ck_assert_int_eq(take(now, &permit, &wait), DAC_E_AGAIN);
    ck_assert_uint_eq(wait, 50);
    ck_assert_uint_eq(pacer_in_flight(&shm, 0),
                      0); /* it holds no permit while it waits */
    ck_assert_int_eq(take(now + 49, &permit, &wait), DAC_E_AGAIN);
    ck_assert_uint_eq(wait, 1);
    ck_assert_int_eq(take(now + 50, &permit, &wait), DAC_OK);
    /* The longer of pause and rate counts. */
    pacer_set_limits(&shm, 0, 1, 1, 0);
    now += NS_PER_S;
    ck_assert_int_eq(take(now, &permit, &wait), DAC_OK);
    pacer_pause(&shm, 0, now + 5, PACER_RATE_LIMITED);
    ck_assert_int_eq(take(now, &permit, &wait), DAC_E_AGAIN);
    ck_assert_uint_eq(wait, NS_PER_S);
    pacer_pause(&shm, 0, now + 3 * NS_PER_S, PACER_RATE_LIMITED);
    ck_assert_int_eq(take(now, &permit, &wait), DAC_E_AGAIN);
    ck_assert_uint_eq(wait, 3 * NS_PER_S);
}
END_TEST

/* --- permits ------------------------------------------------------------------------ */

START_TEST(permits_bound_the_calls)
{
    static const uint32_t limits[] = {1, 3, SHM_PERMITS_MAX};
    uint32_t limit = limits[_i];
    uint32_t permits[SHM_PERMITS_MAX];
    uint64_t wait;
    uint32_t extra;

    pacer_set_limits(&shm, 0, 0, 1, limit);
    for (uint32_t i = 0; i < limit; i++)
        ck_assert_int_eq(take(5, &permits[i], &wait), DAC_OK);
    ck_assert_uint_eq(pacer_in_flight(&shm, 0), limit);
    ck_assert_uint_eq(atomic_load(&shm.pacers[0].calls), limit);
    ck_assert_int_eq(take(5, &extra, &wait), DAC_E_AGAIN);
    ck_assert_uint_eq(wait, UINT64_MAX);
    ck_assert_uint_eq(extra, PACER_NO_PERMIT);
    ck_assert_uint_eq(atomic_load(&shm.pacers[0].waiting), UINT64_C(1) << a);
    /* One comes back: whoever waits is told, once. */
    pacer_give(&shm, 0, permits[limit / 2], lead.ref);
    ck_assert_uint_eq(atomic_load(&shm.pacers[0].waiting), 0);
    ck_assert_uint_eq(wake_take_pacers(&shm), 1);
    ck_assert_uint_eq(wake_take_pacers(&shm), 0);
    ck_assert_int_eq(take(5, &extra, &wait), DAC_OK);
    ck_assert_uint_eq(extra, permits[limit / 2]);
    for (uint32_t i = 0; i < limit; i++)
        pacer_give(&shm, 0, permits[i], lead.ref);
    ck_assert_uint_eq(pacer_in_flight(&shm, 0), 0);
    ck_assert_uint_eq(atomic_load(&shm.pacers[0].calls), 0);
}
END_TEST

START_TEST(only_the_holder_gives_back)
{
    struct flight_ref next = {lead.ref.index, lead.ref.incarnation + 1};
    uint64_t wait;
    uint32_t permit;

    pacer_set_limits(&shm, 0, 0, 1, 2);
    ck_assert_int_eq(take(5, &permit, &wait), DAC_OK);
    pacer_give(&shm, 0, PACER_NO_PERMIT, lead.ref);
    pacer_give(&shm, 0, permit, next);
    shm.self = b;
    pacer_give(&shm, 0, permit, lead.ref);
    ck_assert_uint_eq(pacer_in_flight(&shm, 0), 1);
    shm.self = a;
    pacer_give(&shm, 0, permit, lead.ref);
    pacer_give(&shm, 0, permit, lead.ref);
    ck_assert_uint_eq(pacer_in_flight(&shm, 0), 0);
    ck_assert_uint_eq(atomic_load(&shm.pacers[0].calls), 0);
}
END_TEST

/* A caller that gets a permit but no token keeps neither. */
START_TEST(no_token_no_permit)
{
    uint64_t now = 10 * NS_PER_S;
    uint64_t wait;
    uint32_t permit;

    pacer_set_limits(&shm, 0, 1, 1, 2);
    ck_assert_int_eq(take(now, &permit, &wait), DAC_OK);
    ck_assert_int_eq(take(now, &permit, &wait), DAC_E_AGAIN);
    ck_assert_uint_eq(permit, PACER_NO_PERMIT);
    ck_assert_uint_eq(wait, NS_PER_S);
    ck_assert_uint_eq(pacer_in_flight(&shm, 0), 1);
}
END_TEST

START_TEST(sweep_gives_back_what_the_dead_held)
{
    uint32_t mine, theirs;
    uint64_t wait;
    uint32_t permit;

    pacer_set_limits(&shm, 0, 0, 1, 3);
    ck_assert_int_eq(take(5, &mine, &wait), DAC_OK);
    shm.self = b;
    ck_assert_int_eq(take(5, &theirs, &wait), DAC_OK);
    ck_assert_int_eq(take(5, &theirs, &wait), DAC_OK);
    ck_assert_int_eq(take(5, &permit, &wait), DAC_E_AGAIN);
    shm.self = a;
    ck_assert_int_eq(take(5, &permit, &wait), DAC_E_AGAIN);
    shm.self = SHM_NO_SLOT;
    ck_assert_uint_eq(pacer_sweep(&shm, b), 2);
    ck_assert_uint_eq(pacer_sweep(&shm, b), 0);
    ck_assert_uint_eq(pacer_in_flight(&shm, 0), 1);
    ck_assert_uint_eq(atomic_load(&shm.pacers[0].calls), 1);
    ck_assert_uint_eq(atomic_load(&shm.pacers[0].waiting), 0);
    ck_assert_uint_eq(atomic_load(&shm.slots[b].pacer_dirty), 0);
    shm.self = a;
    ck_assert_uint_eq(wake_take_pacers(&shm), 1);
    pacer_give(&shm, 0, mine, lead.ref);
    ck_assert_uint_eq(pacer_in_flight(&shm, 0), 0);
}
END_TEST

/* --- pacer_valid -------------------------------------------------------------------- */

START_TEST(valid_names_a_wrong_permit)
{
    const struct {
        uint32_t slot_plus_one, flight, incarnation;
        bool live, quiet;
    } cases[] = {
        {a + 1, lead.ref.index, lead.ref.incarnation, true, true},
        {b + 1, lead.ref.index, lead.ref.incarnation, true, false},
        {a + 1, lead.ref.index, lead.ref.incarnation + 1, true, false},
        {a + 1, lead.ref.index + 1, 0, true, false},
        {0, lead.ref.index, 7, false, false},
        {SHM_SLOTS + 1, lead.ref.index, 0, false, false},
        {a + 1, 64, 0, false, false},
    };
    char why[160];

    for (size_t i = 0; i < DAC_ARRAY_LEN(cases); i++) {
        atomic_store(&shm.pacers[0].permits[SHM_PERMITS_MAX - 1],
                     (uint64_t)cases[i].slot_plus_one << 56 |
                         (uint64_t)cases[i].flight << 32 | cases[i].incarnation);
        ck_assert_int_eq(pacer_valid(&shm, 0, false, why, sizeof(why)), cases[i].live);
        ck_assert_int_eq(pacer_valid(&shm, 0, true, why, sizeof(why)), cases[i].quiet);
    }
    atomic_store(&shm.pacers[0].permits[SHM_PERMITS_MAX - 1], 0);
    ck_assert(pacer_valid(&shm, 0, true, why, sizeof(why)));
    atomic_store(&shm.pacers[0].concurrency, SHM_PERMITS_MAX + 1);
    ck_assert(!pacer_valid(&shm, 0, false, why, sizeof(why)));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("pacer");
    TCase *t = tcase_create("pacer");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, gcra_is_a_token_bucket, 0, DAC_ARRAY_LEN(rates));
    tcase_add_test(t, no_rate_is_no_limit);
    tcase_add_test(t, rest_saves_a_burst_only);
    tcase_add_test(t, a_lowered_limit_holds_at_once);
    tcase_add_test(t, tokens_that_are_left);
    tcase_add_test(t, raised_limits_have_effect_at_once);
    tcase_add_test(t, pause_only_grows);
    tcase_add_loop_test(t, permits_bound_the_calls, 0, 3);
    tcase_add_test(t, only_the_holder_gives_back);
    tcase_add_test(t, no_token_no_permit);
    tcase_add_test(t, sweep_gives_back_what_the_dead_held);
    tcase_add_test(t, valid_names_a_wrong_permit);
    suite_add_tcase(s, t);
    return run_suite(s);
}
