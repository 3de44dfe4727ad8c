/*
 * Durations, sizes, rates and switches as people write them, and the distance that
 * suggestions go by.
 */
#include <check.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "config/value.h"

static const struct {
    const char *text;
    bool ok;
    uint64_t value;
    const char *printed; /* NULL: as written */
} durations[] = {
    {"0", true, 0, "0s"},
    {"0s", true, 0, NULL},
    {"30s", true, 30 * NS_PER_S, NULL},
    {"60s", true, 60 * NS_PER_S, NULL},
    {"1m", true, 60 * NS_PER_S, "60s"},
    {"90m", true, 5400 * NS_PER_S, NULL},
    {"120m", true, 7200 * NS_PER_S, "2h"},
    {"36h", true, 36 * 3600 * NS_PER_S, NULL},
    {"48h", true, 48 * 3600 * NS_PER_S, "2d"},
    {"100ms", true, 100 * NS_PER_MS, NULL},
    {"100MS", true, 100 * NS_PER_MS, "100ms"},
    {"1500ms", true, 1500 * NS_PER_MS, NULL},
    {"1.5s", true, 1500 * NS_PER_MS, "1500ms"},
    {"0.25m", true, 15 * NS_PER_S, "15s"},
    {"1.000000001s", true, NS_PER_S + 1, "1000000001ns"},
    {"7us", true, 7000, NULL},
    {"1.0ns", true, 1, "1ns"},
    {"213503d", true, UINT64_C(213503) * 86400 * NS_PER_S, NULL},
    {"213504d", false, 0, NULL},
    {"1.0000000001s", false, 0, NULL},
    {"0.01ns", false, 0, NULL},
    {"18446744073709551616ns", false, 0, NULL},
    {"5", false, 0, NULL},
    {"00", false, 0, NULL},
    {"", false, 0, NULL},
    {"s", false, 0, NULL},
    {".5s", false, 0, NULL},
    {"1.s", false, 0, NULL},
    {"1.5", false, 0, NULL},
    {"-1s", false, 0, NULL},
    {"1 s", false, 0, NULL},
    {"1sec", false, 0, NULL},
    {"1s ", false, 0, NULL},
    {"1e3s", false, 0, NULL},
};

START_TEST(reads_durations)
{
    struct buf b = BUF_INIT(64);
    uint64_t v = 77, again;

    ck_assert_msg(value_parse_duration(durations[_i].text, &v) == durations[_i].ok, "%s",
                  durations[_i].text);
    if (durations[_i].ok) {
        ck_assert_uint_eq(v, durations[_i].value);
        value_put_duration(&b, v);
        ck_assert_str_eq(buf_cstr(&b), durations[_i].printed ? durations[_i].printed
                                                             : durations[_i].text);
        ck_assert(value_parse_duration(buf_cstr(&b), &again) && again == v);
    } else {
        ck_assert_uint_eq(v, 77);
    }
    buf_free(&b);
}
END_TEST

static const struct {
    const char *text;
    bool ok;
    uint64_t value;
    const char *printed;
} sizes[] = {
    {"0", true, 0, NULL},
    {"1", true, 1, NULL},
    {"1023", true, 1023, NULL},
    {"1024", true, 1024, "1k"},
    {"64k", true, 65536, NULL},
    {"48M", true, UINT64_C(48) << 20, "48m"},
    {"1g", true, UINT64_C(1) << 30, NULL},
    {"1025k", true, 1025 * 1024, NULL},
    {"18446744073709551615", true, UINT64_MAX, NULL},
    {"18446744073709551616", false, 0, NULL},
    {"17179869184g", false, 0, NULL},
    {"", false, 0, NULL},
    {"k", false, 0, NULL},
    {"1.5m", false, 0, NULL},
    {"1 m", false, 0, NULL},
    {"1mb", false, 0, NULL},
    {"-1", false, 0, NULL},
    {"0x10", false, 0, NULL},
};

START_TEST(reads_sizes)
{
    struct buf b = BUF_INIT(64);
    uint64_t v = 77;

    ck_assert_msg(value_parse_size(sizes[_i].text, &v) == sizes[_i].ok, "%s",
                  sizes[_i].text);
    ck_assert_uint_eq(v, sizes[_i].ok ? sizes[_i].value : 77);
    if (sizes[_i].ok) {
        value_put_size(&b, v);
        ck_assert_str_eq(buf_cstr(&b),
                         sizes[_i].printed ? sizes[_i].printed : sizes[_i].text);
    }
    buf_free(&b);
}
END_TEST

static const struct {
    const char *text;
    bool ok;
    double value;
} rates[] = {
    {"0", true, 0},      {"1", true, 1},
    {"0.5", true, 0.5},  {"1000.25", true, 1000.25},
    {"", false, 0},      {".5", false, 0},
    {"1.", false, 0},    {"1e3", false, 0},
    {"-1", false, 0},    {"nan", false, 0},
    {"inf", false, 0},   {"1,5", false, 0},
    {"0x1p3", false, 0}, {"1 ", false, 0},
    {"1.5.5", false, 0}, {"111111111111111111111111111111111", false, 0},
};

START_TEST(reads_rates)
{
    double v = 77;

    ck_assert_msg(value_parse_rate(rates[_i].text, &v) == rates[_i].ok, "%s",
                  rates[_i].text);
    ck_assert(v == (rates[_i].ok ? rates[_i].value : 77));
}
END_TEST

static const struct {
    const char *text;
    int value; /* -1: none */
} switches[] = {
    {"1", 1},     {"true", 1},   {"YES", 1}, {"On", 1}, {"0", 0},
    {"FALSE", 0}, {"no", 0},     {"off", 0}, {"", -1},  {"2", -1},
    {"tru", -1},  {"truee", -1}, {"01", -1}, {"y", -1},
};

START_TEST(reads_switches)
{
    bool v = false;

    ck_assert(value_parse_bool(switches[_i].text, &v) == (switches[_i].value >= 0));
    ck_assert_int_eq(v, switches[_i].value > 0);
}
END_TEST

static const struct {
    const char *a, *b;
    unsigned distance;
} distances[] = {
    {"", "", 0},
    {"abc", "", 3},
    {"abc", "ABC", 0},
    {"abc", "acb", 1},
    {"kitten", "sitting", 3},
    {"ca", "abc", 3},
    {"header_timout", "header_timeout", 1},
    {"0123456789012345678901234567890123456789012345678901234567890123", "a", UINT_MAX},
    {"012345678901234567890123456789012345678901234567890123456789012",
     "012345678901234567890123456789012345678901234567890123456789021", 1},
};

START_TEST(measures_distance)
{
    ck_assert_uint_eq(value_distance(distances[_i].a, distances[_i].b),
                      distances[_i].distance);
    ck_assert_uint_eq(value_distance(distances[_i].b, distances[_i].a),
                      distances[_i].distance);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("config_value");
    TCase *tc = tcase_create("value");
    SRunner *sr;
    int failed;

    tcase_add_loop_test(tc, reads_durations, 0, (int)DAC_ARRAY_LEN(durations));
    tcase_add_loop_test(tc, reads_sizes, 0, (int)DAC_ARRAY_LEN(sizes));
    tcase_add_loop_test(tc, reads_rates, 0, (int)DAC_ARRAY_LEN(rates));
    tcase_add_loop_test(tc, reads_switches, 0, (int)DAC_ARRAY_LEN(switches));
    tcase_add_loop_test(tc, measures_distance, 0, (int)DAC_ARRAY_LEN(distances));
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
