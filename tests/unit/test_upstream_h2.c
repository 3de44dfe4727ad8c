/*
 * Calls that share a connection over TLS and HTTP/2: that they do, and that the end of
 * one is told to the provider at once and hurts none of the others.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "upstream_fixture.h"

#define CALLS   40
#define TOLD_NS (100 * NS_PER_MS)

static struct fake_provider provider;
static struct caller caller;
static struct probe probes[CALLS];

static void setup(void)
{
    provider = (struct fake_provider){.fd = -1};
    provider_start_h2(&provider);
    caller_open(&caller, &provider);
    memset(probes, 0, sizeof(probes));
}

static void teardown(void)
{
    caller_close(&caller);
    provider_stop(&provider);
    for (int i = 0; i < CALLS; i++)
        probe_free(&probes[i]);
}

/* The number of the request with which the provider saw probe i; all were started one
 * after the other. */
static void start_all(int n, const char *script)
{
    for (int i = 0; i < n; i++) {
        probe_start(&probes[i], &caller, script);
        caller_run_until_asked(&caller, &provider, i + 1);
    }
}

START_TEST(calls_share_a_connection)
{
    for (int i = 0; i < CALLS; i++)
        probe_start(&probes[i], &caller, "text");
    for (int i = 0; i < CALLS; i++) {
        caller_run_until(&caller, &probes[i].ended, 1);
        ck_assert_int_eq(probes[i].end.outcome, UPSTREAM_COMPLETE);
        ck_assert_str_eq(buf_cstr(&probes[i].text), "0123456789");
    }
    ck_assert_int_eq(atomic_load(&provider.accepted), 1);
    ck_assert_int_eq(atomic_load(&provider.requests), CALLS);
}
END_TEST

/* Providers close connections on which many streams are reset. */
START_TEST(complete_calls_are_not_reset)
{
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < CALLS; i++) {
            probe_free(&probes[i]);
            memset(&probes[i], 0, sizeof(probes[i]));
            probe_start(&probes[i], &caller, "text");
        }
        for (int i = 0; i < CALLS; i++)
            caller_run_until(&caller, &probes[i].ended, 1);
    }
    caller_run(&caller, 50);
    ck_assert_int_eq(atomic_load(&provider.accepted), 1);
    ck_assert_int_eq(atomic_load(&provider.resets), 0);
}
END_TEST

START_TEST(an_unknown_certificate_is_refused)
{
    caller.provider.ca_file = NULL;
    probe_start(&probes[0], &caller, "text");
    caller_run_until(&caller, &probes[0].ended, 1);
    ck_assert_int_eq(probes[0].end.outcome, UPSTREAM_BAD);
    ck_assert_str_eq(probes[0].end.code, "tls_failed");
    ck_assert(!probes[0].end.retryable);
    ck_assert_int_eq(atomic_load(&provider.requests), 0);
}
END_TEST

static const struct {
    const char *script;
    int calls;
    int texts; /* each has got these */
} shared[] = {
    {"hold", 1, 1}, {"hold", 2, 1}, {"hold", 10, 1}, {"silent", 1, 0}, {"silent", 2, 0},
};

START_TEST(cancel_is_told_at_once)
{
    int n = shared[_i].calls;

    start_all(n, shared[_i].script);
    for (int i = 0; i < n; i++)
        caller_run_until(&caller, &probes[i].texts, shared[_i].texts);
    caller_run(&caller, 20);
    ck_assert_int_eq(atomic_load(&provider.accepted), 1);
    for (int i = 0; i < n; i++) {
        probe_cancel(&probes[i]); /* the loop need not run for it */
        ck_assert_uint_lt(provider_gone_after(&provider, i, probes[i].cancelled_ns),
                          TOLD_NS);
        caller_run(&caller, 5);
        for (int k = i + 1; k < n; k++) {
            ck_assert_int_eq(probes[k].ended, 0);
            ck_assert_uint_eq(atomic_load(&provider.seen[k].gone_ns), 0);
        }
    }
}
END_TEST

/* Siblings whose head has not come cannot be told from those that curl moved away. */
START_TEST(told_through_silent_siblings)
{
    start_all(5, "silent");
    probe_start(&probes[5], &caller, "hold");
    caller_run_until(&caller, &probes[5].texts, 1);
    probe_cancel(&probes[5]);
    ck_assert_uint_lt(provider_gone_after(&provider, 5, probes[5].cancelled_ns), TOLD_NS);
    probe_cancel(&probes[2]);
    ck_assert_uint_lt(provider_gone_after(&provider, 2, probes[2].cancelled_ns), TOLD_NS);
    ck_assert_uint_eq(atomic_load(&provider.seen[0].gone_ns), 0);
}
END_TEST

static void cancel_all_but_the_last(struct probe *p)
{
    if (p->texts == 3)
        for (int i = 0; i < CALLS - 1; i++)
            probe_cancel(&probes[i]);
}

START_TEST(many_cancelled_in_a_callback)
{
    start_all(CALLS - 1, "hold");
    for (int i = 0; i < CALLS - 1; i++)
        caller_run_until(&caller, &probes[i].texts, 1);
    probes[CALLS - 1].on_text = cancel_all_but_the_last;
    probe_start(&probes[CALLS - 1], &caller, "text");
    caller_run_until(&caller, &probes[CALLS - 1].ended, 1);
    ck_assert_int_eq(probes[CALLS - 1].end.outcome, UPSTREAM_COMPLETE);
    for (int i = 0; i < CALLS - 1; i++)
        ck_assert_uint_lt(provider_gone_after(&provider, i, probes[i].cancelled_ns),
                          TOLD_NS);
    ck_assert_uint_eq(upstream_active(caller.u), 0);
}
END_TEST

START_TEST(a_timeout_is_told_too)
{
    start_all(1, "hold");
    caller.provider.first_token_timeout_ns = 100 * NS_PER_MS;
    probe_start(&probes[1], &caller, "silent");
    caller_run_until(&caller, &probes[1].ended, 1);
    uint64_t t = clock_now_ns();
    ck_assert_str_eq(probes[1].end.code, "first_token_timeout");
    ck_assert_uint_lt(provider_gone_after(&provider, 1, t), TOLD_NS);
    ck_assert_uint_eq(atomic_load(&provider.seen[0].gone_ns), 0);
}
END_TEST

START_TEST(a_paused_call_stops_nobody_else)
{
    probes[0].pause_at = 1;
    start_all(1, "big");
    caller_run_until(&caller, &probes[0].texts, 1);
    caller_run(&caller, 100);
    int texts = probes[0].texts; /* what was read with the first one */
    ck_assert_int_lt(texts, BIG_EVENTS / 5);
    for (int i = 1; i < 10; i++) {
        probe_start(&probes[i], &caller, "text");
        caller_run_until(&caller, &probes[i].ended, 1);
        ck_assert_int_eq(probes[i].end.outcome, UPSTREAM_COMPLETE);
    }
    ck_assert_int_eq(atomic_load(&provider.accepted), 1);
    ck_assert_int_eq(probes[0].texts, texts);
    upstream_resume(probes[0].call);
    caller_run_until(&caller, &probes[0].ended, 1);
    ck_assert_int_eq(probes[0].end.outcome, UPSTREAM_COMPLETE);
    ck_assert_int_eq(probes[0].texts, BIG_EVENTS);
}
END_TEST

START_TEST(freed_with_calls_running)
{
    start_all(10, "hold");
    uint64_t t = clock_now_ns();
    caller_close(&caller);
    for (int i = 0; i < 10; i++)
        ck_assert_uint_lt(provider_gone_after(&provider, i, t), TOLD_NS);
    caller_open(&caller, &provider);
}
END_TEST

START_TEST(a_lost_connection_ends_all_its_calls)
{
    start_all(10, "hold");
    atomic_store(&provider.stop, true);
    for (int i = 0; i < 10; i++) {
        caller_run_until(&caller, &probes[i].ended, 1);
        ck_assert_str_eq(probes[i].end.code, "cut_off");
        ck_assert_int_eq(probes[i].end.outcome,
                         probes[i].texts ? UPSTREAM_BROKEN : UPSTREAM_BAD);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("upstream_h2");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, calls_share_a_connection);
    tcase_add_test(tc, complete_calls_are_not_reset);
    tcase_add_test(tc, an_unknown_certificate_is_refused);
    tcase_add_loop_test(tc, cancel_is_told_at_once, 0, (int)DAC_ARRAY_LEN(shared));
    tcase_add_test(tc, told_through_silent_siblings);
    tcase_add_test(tc, many_cancelled_in_a_callback);
    tcase_add_test(tc, a_timeout_is_told_too);
    tcase_add_test(tc, a_paused_call_stops_nobody_else);
    tcase_add_test(tc, freed_with_calls_running);
    tcase_add_test(tc, a_lost_connection_ends_all_its_calls);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
