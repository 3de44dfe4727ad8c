/*
 * Histograms: bounds, which bucket a time is in, that a sample is counted once wherever
 * its recorder died, and that figures go on in another segment.
 */
#include "shm/inherit.h"
#include "tests/shm/segment_fixture.h"

static const struct sample plain = {.ttft_us = 1500000,
                                    .latency_us = 6000001,
                                    .queue_us = 0,
                                    .own_us = 100,
                                    .call_us = UINT32_MAX,
                                    .call_ttft_us = UINT32_MAX,
                                    .provider = 3,
                                    .status = TURN_COMPLETE};

static void setup(void)
{
    fixture_open(64);
}

static void teardown(void)
{
    fixture_close();
}

static uint64_t all_of(enum shm_timing_kind kind)
{
    struct timing t = timing_sum(&shm, plain.provider, kind);
    uint64_t n = 0;

    for (size_t i = 0; i < SHM_TIMING_BUCKETS; i++)
        n += t.buckets[i];
    return n;
}

static void expect_counted(uint64_t n)
{
    for (int k = 0; k < TIMING_CALL; k++)
        ck_assert_uint_eq(all_of((enum shm_timing_kind)k), n);
    ck_assert_uint_eq(all_of(TIMING_CALL), 0);
    ck_assert_uint_eq(all_of(TIMING_CALL_TTFT), 0);
    ck_assert_uint_eq(timing_sum(&shm, plain.provider, TIMING_LATENCY).sum_us,
                      n * plain.latency_us);
    ck_assert_uint_eq(timing_sum(&shm, plain.provider, TIMING_OWN).sum_us,
                      n * plain.own_us);
    ck_assert_uint_eq(atomic_load(&shm.hdr->sample_seq), n);
}

START_TEST(bounds_ascend_and_leave_room_for_what_has_none)
{
    for (int k = 0; k < TIMING_COUNT; k++) {
        size_t n;
        const uint32_t *us = timing_bounds((enum shm_timing_kind)k, &n);

        ck_assert_uint_gt(n, 0);
        ck_assert_uint_lt(n, SHM_TIMING_BUCKETS);
        for (size_t i = 1; i < n; i++)
            ck_assert_uint_gt(us[i], us[i - 1]);
    }
}
END_TEST

/* What an alert watches must be a bound, or its quantile is a guess. */
START_TEST(watched_limits_are_bounds)
{
    static const struct {
        enum shm_timing_kind kind;
        uint32_t us;
    } limits[] = {
        {TIMING_TTFT, 1500000}, {TIMING_LATENCY, 6000000}, {TIMING_QUEUE, 1000000}};

    for (size_t i = 0; i < DAC_ARRAY_LEN(limits); i++) {
        size_t n, at = 0;
        const uint32_t *us = timing_bounds(limits[i].kind, &n);

        while (at < n && us[at] != limits[i].us)
            at++;
        ck_assert_uint_lt(at, n);
    }
}
END_TEST

/* A bound itself is below it, as Prometheus has it. */
START_TEST(times_fall_into_their_buckets)
{
    for (int k = 0; k < TIMING_COUNT; k++) {
        enum shm_timing_kind kind = (enum shm_timing_kind)k;
        size_t n;
        const uint32_t *us = timing_bounds(kind, &n);

        for (size_t i = 0; i < n; i++) {
            struct timing before = timing_sum(&shm, 3, kind);
            struct sample s = {.provider = 3};
            uint32_t *field[] = {
                [TIMING_TTFT] = &s.ttft_us,   [TIMING_LATENCY] = &s.latency_us,
                [TIMING_QUEUE] = &s.queue_us, [TIMING_OWN] = &s.own_us,
                [TIMING_CALL] = &s.call_us,   [TIMING_CALL_TTFT] = &s.call_ttft_us};

            *field[k] = us[i];
            sample_add(&shm, &s, NULL);
            *field[k] = us[i] + 1;
            sample_add(&shm, &s, NULL);
            struct timing after = timing_sum(&shm, 3, kind);
            ck_assert_uint_eq(after.buckets[i], before.buckets[i] + 1);
            ck_assert_uint_eq(after.buckets[i + 1], before.buckets[i + 1] + 1);
            ck_assert_uint_eq(after.sum_us, before.sum_us + 2 * (uint64_t)us[i] + 1);
        }
    }
    for (int k = 0; k < TIMING_COUNT; k++)
        ck_assert_uint_eq(timing_sum(&shm, 2, (enum shm_timing_kind)k).sum_us, 0);
}
END_TEST

START_TEST(what_there_was_not_is_not_counted)
{
    struct sample s = plain;

    s.ttft_us = UINT32_MAX;
    sample_add(&shm, &s, NULL);
    ck_assert_uint_eq(all_of(TIMING_TTFT), 0);
    ck_assert_uint_eq(all_of(TIMING_LATENCY), 1);
    s.provider = 1000; /* no such pacer: somewhere, but inside */
    sample_add(&shm, &s, NULL);
}
END_TEST

/* How far the recorder came with its second sample. */
enum died { NOTHING, MARKED, THERE, NOTED, HALF, COUNTED, DIED_COUNT };

static void die_in_second(enum died at, struct flight_ref ref)
{
    shm_u64 *mark = &flight_at(&shm, ref.index)->sample;
    struct shm_sample *second = &shm.samples[1];
    struct shm_timing *latency = &shm.timings[plain.provider].of[TIMING_LATENCY];
    struct timing before = timing_sum(&shm, plain.provider, TIMING_LATENCY);

    sample_add(&shm, &plain, mark);
    if (at < COUNTED)
        for (int k = 0; k < TIMING_COUNT; k++)
            for (size_t i = 0; i < SHM_TIMING_BUCKETS; i++) {
                struct shm_timing *t = &shm.timings[plain.provider].of[k];
                uint64_t v = atomic_load(&t->buckets[i]);
                if (v > 1 && (at != HALF || k == TIMING_OWN))
                    atomic_store(&t->buckets[i], v - 1);
            }
    if (at < COUNTED) { /* sums of all, or of those that the half did not reach */
        atomic_store(&latency->sum_us, before.sum_us);
        atomic_store(&shm.timings[plain.provider].of[TIMING_TTFT].sum_us, plain.ttft_us);
        atomic_store(&shm.timings[plain.provider].of[TIMING_OWN].sum_us, plain.own_us);
    }
    if (at < NOTED)
        atomic_store(&shm.hdr->timing_redo.seq, 0);
    if (at < THERE)
        atomic_store(&second->seq, 0);
    if (at < MARKED)
        atomic_store(mark, 0);
    atomic_store(&shm.hdr->sample_seq, 1);
}

START_TEST(each_sample_is_counted_once_wherever_its_recorder_died)
{
    struct join_request req = question(1);
    struct join_result r;
    char why[160];

    shm.self = new_worker();
    ck_assert_int_eq(index_join(&shm, &req, &r), DAC_OK);
    sample_add(&shm, &plain, NULL);
    expect_counted(1);
    die_in_second((enum died)_i, r.ref);
    ck_assert_msg(sample_valid(&shm, why, sizeof(why)), "%s", why);
    sample_recover(&shm);
    shm_u64 *mark = &flight_at(&shm, r.ref.index)->sample;
    if (_i < THERE) {
        ck_assert_uint_eq(atomic_load(mark), 0);
        expect_counted(1);
        sample_add(&shm, &plain, mark); /* its turn is stored again */
    }
    ck_assert_uint_eq(atomic_load(mark), 2);
    expect_counted(2);
    sample_recover(&shm); /* of one that died with nothing in hand */
    sample_recover(&shm);
    expect_counted(2);
    sample_add(&shm, &plain, NULL);
    expect_counted(3);
}
END_TEST

START_TEST(figures_go_on_in_the_next_segment)
{
    struct shm_options opt = fixture_options(shm_name, 64);
    struct inheritance done = {0};
    struct shm old = shm, next;
    char why[256];

    ck_assert_int_eq(segment_create_next(&opt, &next, why, sizeof(why)), DAC_OK);
    sample_add(&shm, &plain, NULL);
    inherit_counters(&next, &old, &done);
    inherit_samples(&next, &old); /* the ring's are not counted once more */
    shm = next;
    expect_counted(1);
    sample_add(&shm, &plain, NULL);
    expect_counted(2);
    shm = old;
    sample_add(&shm, &plain, NULL); /* one that ends there late */
    inherit_counters(&next, &old, &done);
    inherit_counters(&next, &old, &done);
    shm = next;
    ck_assert_uint_eq(all_of(TIMING_LATENCY), 3);
    ck_assert_uint_eq(timing_sum(&shm, plain.provider, TIMING_LATENCY).sum_us,
                      3 * (uint64_t)plain.latency_us);
    segment_destroy(&next);
    shm = old;
}
END_TEST

int main(void)
{
    Suite *s = suite_create("timings");
    TCase *tc = tcase_create("timings");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, bounds_ascend_and_leave_room_for_what_has_none);
    tcase_add_test(tc, watched_limits_are_bounds);
    tcase_add_test(tc, times_fall_into_their_buckets);
    tcase_add_test(tc, what_there_was_not_is_not_counted);
    tcase_add_loop_test(tc, each_sample_is_counted_once_wherever_its_recorder_died, 0,
                        DIED_COUNT);
    tcase_add_test(tc, figures_go_on_in_the_next_segment);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
