/*
 * Header traceparent: what is read of it, every way to be malformed, and what is written.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/trace.h"

#define ID   "4bf92f3577b34da6a3ce929d0e0e4736"
#define SPAN "00f067aa0ba902b7"
#define GOOD "00-" ID "-" SPAN "-01"
#define NO   0xff /* in `flags`: it is refused */

static const struct {
    const char *value;
    unsigned flags;
} values[] = {
    {GOOD, 1},
    {"00-" ID "-" SPAN "-00", 0},
    {"00-" ID "-" SPAN "-03", 1}, /* flags that are not known are dropped */
    {"00-" ID "-" SPAN "-fe", 0},
    {"01-" ID "-" SPAN "-01", 1}, /* a higher version ends there or goes on by a dash */
    {"01-" ID "-" SPAN "-01-", 1},
    {"cc-" ID "-" SPAN "-01-what the.future/will_be", 1},
    {"fe-" ID "-" SPAN "-00-00", 0},

    {NULL, NO},
    {"", NO},
    {"00", NO},
    {GOOD "-", NO},
    {GOOD "-00", NO},
    {GOOD "0", NO},
    {GOOD " ", NO},
    {" " GOOD, NO},
    {GOOD ", " GOOD, NO}, /* two headers */
    {"01-" ID "-" SPAN "-01, 01-" ID "-" SPAN "-01", NO},
    {", " GOOD, NO},
    {"01-" ID "-" SPAN "-010", NO},
    {"01-" ID "-" SPAN "-01.", NO},
    {"01-" ID "-" SPAN "-0", NO},
    {"ff-" ID "-" SPAN "-01", NO},
    {"ff-" ID "-" SPAN "-01-00", NO},
    {"FE-" ID "-" SPAN "-01", NO},
    {"0-" ID "-" SPAN "-01", NO},
    {"000-" ID "-" SPAN "-01", NO},
    {"00-4BF92F3577B34DA6A3CE929D0E0E4736-" SPAN "-01", NO},
    {"00-" ID "-00F067AA0BA902B7-01", NO},
    {"00-" ID "-" SPAN "-0A", NO},
    {"00-00000000000000000000000000000000-" SPAN "-01", NO},
    {"00-" ID "-0000000000000000-01", NO},
    {"cc-00000000000000000000000000000000-" SPAN "-01-x", NO},
    {"00-" ID SPAN "-01", NO},
    {"00-" ID "-" SPAN "01", NO},
    {"00-4bf92f3577b34da6a3ce929d0e0e473-0" SPAN "-01", NO}, /* the dash is elsewhere */
    {"00--" ID "-" SPAN "-01", NO},
    {"00_" ID "_" SPAN "_01", NO},
};

START_TEST(reads_values)
{
    const char *value = values[_i].value;
    bool good = values[_i].flags != NO;
    char text[TRACE_ID_TEXT_SIZE];
    struct trace t;

    memset(&t, 0xaa, sizeof(t));
    ck_assert_msg(trace_parse(value, &t) == good, "%s", value);
    ck_assert(trace_given(&t) == good);
    trace_format_id(&t, text);
    ck_assert_str_eq(text, good ? ID : "");
    ck_assert_uint_eq(t.flags, good ? values[_i].flags : 0);
}
END_TEST

/* Every byte at every place, in memory of just that length: lower-case hex where digits
 * stand, else the very same byte. */
START_TEST(any_wrong_byte_is_refused)
{
    for (size_t at = 0; at < TRACE_PARENT_LEN; at++) {
        for (int c = 0; c < 256; c++) {
            char *value = strdup(GOOD);
            struct trace t;

            ck_assert_ptr_nonnull(value);
            value[at] = (char)c;
            bool hex = c && strchr("0123456789abcdef", c);
            bool good = GOOD[at] == '-' ? c == '-' : hex;
            if (at < 2)
                good = hex; /* another version, which may end there, too */
            ck_assert_msg(trace_parse(value, &t) == good, "byte %d at %zu", c, at);
            free(value);
        }
    }
}
END_TEST

START_TEST(short_ones_are_refused)
{
    for (size_t n = 0; n < TRACE_PARENT_LEN; n++) {
        char *value = strndup(GOOD, n);
        struct trace t;

        ck_assert_ptr_nonnull(value);
        ck_assert(!trace_parse(value, &t));
        free(value);
    }
}
END_TEST

START_TEST(writes_a_new_span_each_time)
{
    char first[TRACE_PARENT_SIZE], second[TRACE_PARENT_SIZE];
    struct trace t, again;

    ck_assert(trace_parse("cc-" ID "-" SPAN "-ff-more", &t));
    trace_format_parent(&t, first);
    trace_format_parent(&t, second);
    ck_assert_uint_eq(strlen(first), TRACE_PARENT_LEN);
    ck_assert(strncmp(first, "00-" ID "-", 36) == 0);
    ck_assert_str_eq(first + 52, "-01");
    ck_assert(strncmp(first + 36, SPAN, 16) != 0);
    ck_assert_str_ne(first, second);
    ck_assert(trace_parse(first, &again));
    ck_assert_mem_eq(&again, &t, sizeof(t));
}
END_TEST

START_TEST(new_traces_differ)
{
    struct trace a = trace_new(), b = trace_new();

    ck_assert(trace_given(&a) && a.flags == 0);
    ck_assert_mem_ne(a.id, b.id, sizeof(a.id));
}
END_TEST

int main(void)
{
    Suite *s = suite_create("base_trace");
    TCase *tc = tcase_create("trace");
    SRunner *sr;
    int failed;

    tcase_add_loop_test(tc, reads_values, 0, (int)DAC_ARRAY_LEN(values));
    tcase_add_test(tc, any_wrong_byte_is_refused);
    tcase_add_test(tc, short_ones_are_refused);
    tcase_add_test(tc, writes_a_new_span_each_time);
    tcase_add_test(tc, new_traces_differ);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
