/*
 * When a child that died is started again: at once, and from the third death in ten
 * seconds on after a growing delay; and which reason is counted.
 */
#include <check.h>
#include <signal.h>
#include <stdlib.h>

#include "base/clock.h"
#include "process/supervise.h"

#define DEATHS 8

/* Seconds lived before each death, and the delay in milliseconds that follows it. */
static const struct {
    const char *name;
    double lived_s[DEATHS];
    unsigned delay_ms[DEATHS];
} cases[] = {
    {"dies at once each time",
     {1, 0, 0, 0, 0, 0, 0, 0},
     {0, 0, 100, 200, 400, 800, 1600, 3200}},
    {"the delay stops growing",
     {1, 0, 0, 1, 1, 1, 1, 1},
     {0, 0, 100, 200, 400, 800, 1600, 3200}},
    {"two deaths are nothing", {60, 1, 60, 1, 60, 1, 60, 1}, {0, 0, 0, 0, 0, 0, 0, 0}},
    {"three in ten seconds", {60, 4, 4, 60, 1, 60, 0, 0}, {0, 0, 100, 0, 0, 0, 0, 100}},
    {"three in eleven seconds",
     {60, 5.5, 5.5, 5.5, 5.5, 5.5, 5.5, 5.5},
     {0, 0, 0, 0, 0, 0, 0, 0}},
};

START_TEST(delays_follow_deaths)
{
    struct child c = {.kind = SLOT_WORKER};
    uint64_t now = 1000 * NS_PER_S;

    for (int i = 0; i < DEATHS; i++) {
        now += (uint64_t)(cases[_i].lived_s[i] * 1e9);
        uint64_t at = supervise_plan_restart(&c, now);

        ck_assert_msg((at - now) / NS_PER_MS == cases[_i].delay_ms[i],
                      "%s: %llu ms after death %d", cases[_i].name,
                      (unsigned long long)((at - now) / NS_PER_MS), i + 1);
        now = at;
    }
}
END_TEST

START_TEST(the_delay_has_a_bound)
{
    struct child c = {.kind = SLOT_RECORDER};
    uint64_t now = 1000 * NS_PER_S;
    uint64_t longest = 0;

    for (int i = 0; i < 1000; i++) {
        uint64_t at = supervise_plan_restart(&c, now);

        if (at - now > longest)
            longest = at - now;
        ck_assert_int_eq(i > 2 && at == now, 0); /* nor does it ever spin */
        now = at;
    }
    ck_assert_int_eq(longest, 5 * NS_PER_S);
}
END_TEST

/* Statuses as waitpid() gives them: a signal's number, or an exit code times 256. */
static const struct {
    bool silenced;
    int status;
    enum restart_reason want;
} ends[] = {
    {false, SIGKILL, RESTART_KILLED},
    {false, SIGSEGV | 0x80, RESTART_KILLED}, /* with a core dump */
    {false, 0, RESTART_EXITED},
    {false, 3 << 8, RESTART_EXITED},
    {true, SIGKILL, RESTART_WATCHDOG},
    {true, SIGABRT, RESTART_KILLED}, /* it died before the watchdog's signal came */
    {true, 1 << 8, RESTART_EXITED},
};

START_TEST(a_death_has_a_reason)
{
    struct child c = {.kind = SLOT_WORKER, .silenced = ends[_i].silenced};

    ck_assert_int_eq(supervise_restart_reason(&c, ends[_i].status), ends[_i].want);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("process_restart");
    TCase *tc = tcase_create("restart");
    SRunner *sr = srunner_create(s);
    int failed;

    tcase_add_loop_test(tc, delays_follow_deaths, 0, (int)DAC_ARRAY_LEN(cases));
    tcase_add_test(tc, the_delay_has_a_bound);
    tcase_add_loop_test(tc, a_death_has_a_reason, 0, (int)DAC_ARRAY_LEN(ends));
    suite_add_tcase(s, tc);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
