/*
 * How the size of batches follows what a database commits in time.
 */
#include <check.h>
#include <stdint.h>

#include "store/pace.h"

static struct pace p;

static void setup(void)
{
    pace_init(&p, 256, 16u << 20);
}

START_TEST(it_begins_with_all_there_may_be)
{
    ck_assert_uint_eq(p.rows, 256);
    ck_assert_uint_eq(p.bytes, 16u << 20);
}
END_TEST

START_TEST(what_failed_is_halved_down_to_a_row)
{
    pace_failed(&p, 100, 10u << 20);
    ck_assert_uint_eq(p.rows, 50);
    ck_assert_uint_eq(p.bytes, 5u << 20);
    pace_failed(&p, 512, 12u << 20); /* never more than before */
    ck_assert_uint_eq(p.rows, 50);
    ck_assert_uint_eq(p.bytes, 5u << 20);
    for (int i = 0; i < 10; i++)
        pace_failed(&p, p.rows, p.bytes);
    ck_assert_uint_eq(p.rows, 1);
    ck_assert_uint_ge(p.bytes, 1);
}
END_TEST

START_TEST(small_batches_say_nothing)
{
    pace_failed(&p, 100, 8u << 20);
    for (int i = 0; i < 10000; i++)
        pace_worked(&p, 1, 100);
    ck_assert_uint_eq(p.rows, 50);
    ck_assert_uint_eq(p.bytes, 4u << 20);
}
END_TEST

START_TEST(after_a_trouble_it_soon_is_what_it_was)
{
    unsigned batches = 0;

    for (int i = 0; i < 20; i++)
        pace_failed(&p, p.rows, p.bytes);
    while ((p.rows < 256 || p.bytes < 16u << 20) && batches < 1000) {
        pace_worked(&p, p.rows, p.bytes);
        batches++;
    }
    ck_assert_uint_le(batches, 64);
}
END_TEST

/* A database that takes up to 3 MiB in time, and a load that always has more. */
START_TEST(a_limit_is_tried_ever_more_rarely)
{
    unsigned failed[2] = {0};

    for (unsigned i = 0; i < 2000; i++) {
        if (p.bytes > 3u << 20) {
            failed[i >= 1000]++;
            pace_failed(&p, 16, p.bytes);
        } else {
            pace_worked(&p, 16, p.bytes);
        }
    }
    ck_assert_uint_ge(p.bytes, 1u << 20);
    ck_assert_uint_le(failed[0], 12);
    ck_assert_uint_le(failed[1], 5);
    ck_assert_uint_ge(failed[1], 1); /* it is tried, as times may have changed */
}
END_TEST

int main(void)
{
    Suite *s = suite_create("pace");
    TCase *t = tcase_create("pace");
    SRunner *r = srunner_create(s);

    tcase_add_checked_fixture(t, setup, NULL);
    tcase_add_test(t, it_begins_with_all_there_may_be);
    tcase_add_test(t, what_failed_is_halved_down_to_a_row);
    tcase_add_test(t, small_batches_say_nothing);
    tcase_add_test(t, after_a_trouble_it_soon_is_what_it_was);
    tcase_add_test(t, a_limit_is_tried_ever_more_rarely);
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_NORMAL);
    int failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
