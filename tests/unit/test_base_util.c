/*
 * The buffer's bound, numbers and hex, ids, clocks, error texts and the form of log
 * lines.
 */
#include <check.h>
#include <errno.h>
#include <regex.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/json.h"
#include "base/log.h"

START_TEST(buffer_never_passes_its_maximum)
{
    struct buf b = BUF_INIT(8);

    ck_assert_int_eq(buf_puts(&b, "12345"), DAC_OK);
    ck_assert_int_eq(buf_puts(&b, "6789"), DAC_E_TOO_LARGE);
    ck_assert(b.failed);
    ck_assert_uint_eq(b.len, 5);
    ck_assert_int_eq(buf_puts(&b, "678"), DAC_OK);
    ck_assert_str_eq(buf_cstr(&b), "12345678");
    ck_assert_ptr_null(buf_reserve(&b, 1));
    ck_assert_int_eq(buf_append(&b, "x", SIZE_MAX), DAC_E_TOO_LARGE);
    buf_consume(&b, 6);
    ck_assert_str_eq(buf_cstr(&b), "78");
    buf_reset(&b);
    ck_assert(!b.failed);
    ck_assert_str_eq(buf_cstr(&b), "");
    buf_free(&b);
    ck_assert_ptr_null(b.data);
}
END_TEST

START_TEST(buffer_grows_and_formats)
{
    struct buf b = BUF_INIT(1 << 20);
    char *p;

    for (int i = 0; i < 10000; i++)
        ck_assert_int_eq(buf_printf(&b, "%d,", i), DAC_OK);
    ck_assert_uint_eq(b.len, 48890);
    buf_reset(&b);
    ck_assert_int_eq(buf_printf(&b, "%0*d", 5000, 7), DAC_OK);
    ck_assert_uint_eq(b.len, 5000);
    p = buf_reserve(&b, 3);
    memcpy(p, "abc", 3);
    b.len += 3;
    ck_assert_str_eq(buf_cstr(&b) + 4999, "7abc");
    buf_free(&b);

    b = BUF_INIT(300);
    ck_assert_int_eq(buf_printf(&b, "%0*d", 301, 7), DAC_E_TOO_LARGE);
    ck_assert_int_eq(buf_printf(&b, "%0*d", 300, 7), DAC_OK);
    buf_free(&b);
}
END_TEST

static const struct {
    const char *text;
    uint64_t max;
    bool ok;
    uint64_t value;
} numbers[] = {
    {"0", 0, true, 0},
    {"1", 0, false, 0},
    {"007", 10, true, 7},
    {"10", 10, true, 10},
    {"11", 10, false, 0},
    {"", 10, false, 0},
    {"-1", 10, false, 0},
    {"+1", 10, false, 0},
    {" 1", 10, false, 0},
    {"1x", 10, false, 0},
    {"18446744073709551615", UINT64_MAX, true, UINT64_MAX},
    {"18446744073709551616", UINT64_MAX, false, 0},
    {"99999999999999999999", UINT64_MAX, false, 0},
};

START_TEST(parses_numbers)
{
    uint64_t v = 12345;

    ck_assert(bytes_parse_u64(numbers[_i].text, strlen(numbers[_i].text), numbers[_i].max,
                              &v) == numbers[_i].ok);
    ck_assert_uint_eq(v, numbers[_i].ok ? numbers[_i].value : 12345);
}
END_TEST

START_TEST(compares_and_prints_bytes)
{
    char out[9];

    ck_assert(bytes_ieq("Content-TYPE", 12, "content-type"));
    ck_assert(!bytes_ieq("content-typ", 11, "content-type"));
    ck_assert(!bytes_ieq("content-typex", 13, "content-type"));
    ck_assert(!bytes_ieq("[", 1, "{"));
    ck_assert(bytes_ieq("", 0, ""));
    bytes_hex((const uint8_t *)"\x00\xff\x1a\x80", 4, out);
    ck_assert_str_eq(out, "00ff1a80");
}
END_TEST

START_TEST(ids_ascend_and_round_trip)
{
    struct id last = id_new(), zero = {{0}};
    int64_t ms = clock_wall_us() / 1000;
    uint64_t stamp = 0;

    ck_assert(id_is_zero(&zero) && !id_is_zero(&last));
    for (int i = 0; i < 6; i++)
        stamp = stamp << 8 | last.b[i];
    ck_assert_int_le(ms - (int64_t)stamp, 1000);
    for (int i = 0; i < 20000; i++) {
        struct id id = id_new(), back;
        char text[ID_TEXT_SIZE];

        ck_assert_int_lt(memcmp(last.b, id.b, 16), 0);
        id_format(&id, text);
        ck_assert_uint_eq(strlen(text), ID_TEXT_LEN);
        ck_assert_int_eq(text[14], '7');
        ck_assert(strchr("89ab", text[19]) != NULL);
        ck_assert(id_parse(text, ID_TEXT_LEN, &back) && id_equal(&id, &back));
        last = id;
    }
}
END_TEST

static const struct {
    const char *text;
    bool ok;
} id_texts[] = {
    {"0190b5c8-1a2b-7c3d-8e4f-0123456789ab", true},
    {"0190B5C8-1A2B-7C3D-8E4F-0123456789AB", true},
    {"0190b5c8-1a2b-7c3d-8e4f-0123456789a", false},
    {"0190b5c8-1a2b-7c3d-8e4f-0123456789abc", false},
    {"0190b5c81a2b-7c3d-8e4f--0123456789ab", false},
    {"0190b5c8-1a2b-7c3d-8e4f-0123456789ag", false},
    {"0190b5c8-1a2b-7c3d-8e4f 0123456789ab", false},
    {"", false},
};

START_TEST(parses_ids)
{
    struct id id;

    ck_assert(id_parse(id_texts[_i].text, strlen(id_texts[_i].text), &id) ==
              id_texts[_i].ok);
}
END_TEST

static const struct {
    int64_t us;
    const char *text;
} times[] = {
    {0, "1970-01-01T00:00:00.000Z"},
    {INT64_C(1769860800123999), "2026-01-31T12:00:00.123Z"},
    {-1, "1969-12-31T23:59:59.999Z"},
    {INT64_MAX, "0000-00-00T00:00:00.000Z"},
};

START_TEST(formats_time)
{
    char out[32];

    clock_format_rfc3339(times[_i].us, out);
    ck_assert_str_eq(out, times[_i].text);
}
END_TEST

START_TEST(test_clock_replaces_the_real_one)
{
    uint64_t now = 42, real = clock_now_ns();

    clock_set_test(&now);
    ck_assert_uint_eq(clock_now_ns(), 42);
    now = 43;
    ck_assert_uint_eq(clock_now_ns(), 43);
    clock_set_test(NULL);
    ck_assert_uint_ge(clock_now_ns(), real);
}
END_TEST

START_TEST(every_error_has_a_text)
{
    for (int i = 0; i < DAC_E_COUNT; i++)
        ck_assert_str_ne(dac_err_text((enum dac_err)i), "unknown error");
    ck_assert_str_eq(dac_err_text(DAC_E_COUNT), "unknown error");
    ck_assert_str_eq(dac_err_text((enum dac_err) - 1), "unknown error");
}
END_TEST

/* Runs `emit` with standard error in a pipe and returns what it wrote, NUL-terminated. */
static const char *captured(void (*emit)(void))
{
    static char out[8192];
    int fds[2], saved = dup(STDERR_FILENO);
    ssize_t n;

    ck_assert_int_eq(pipe(fds), 0);
    dup2(fds[1], STDERR_FILENO);
    emit();
    dup2(saved, STDERR_FILENO);
    close(fds[1]);
    n = read(fds[0], out, sizeof(out) - 1);
    close(fds[0]);
    close(saved);
    out[n > 0 ? n : 0] = '\0';
    return out;
}

static void emit_forged(void)
{
    errno = EPERM;
    log_warn(ENOENT, "could not open file \"%s\"", "a\nb\x1b[2J\xc2\x9b\xff\xc3\xa9");
    ck_assert_int_eq(errno, EPERM);
}

static void emit_long(void)
{
    char text[20000];

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    log_error(EIO, "%s", text);
}

static void emit_controls(void)
{
    char text[20000];

    memset(text, 1, sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    log_error(EIO, "%s", text);
}

static void emit_debug(void)
{
    log_debug(0, "hidden");
}

static void check_matches(const char *text, const char *pattern)
{
    regex_t re;

    ck_assert_int_eq(regcomp(&re, pattern, REG_EXTENDED | REG_NOSUB), 0);
    ck_assert_msg(regexec(&re, text, 0, NULL, 0) == 0, "%s does not match %s", text,
                  pattern);
    regfree(&re);
}

START_TEST(log_lines_cannot_be_forged)
{
    unsetenv("JOURNAL_STREAM");
    log_set_identity("worker 2");
    check_matches(
        captured(emit_forged),
        "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\\.[0-9]{3}Z WARN worker 2\\[[0-9]+\\] "
        "could not open file \"a\\\\nb\\\\x1b\\[2J\\\\xc2\\\\x9b\\\\xff\xc3\xa9\": "
        "No such file or directory\n$");
    setenv("JOURNAL_STREAM", "8:1", 1);
    check_matches(captured(emit_forged), "^<4>WARN worker 2\\[[0-9]+\\] could not");
}
END_TEST

START_TEST(long_log_lines_are_cut_to_one_write)
{
    const char *line = captured(emit_long);

    ck_assert_uint_le(strlen(line), 4096);
    check_matches(line, "x\\.\\.\\.: Input/output error\n$");
    line = captured(emit_controls);
    ck_assert_uint_le(strlen(line), 4096);
    ck_assert_int_eq(line[strlen(line) - 1], '\n');
}
END_TEST

static void emit_quotes(void)
{
    log_warn(ENOENT, "could not open \"%s\"", "a\\b\nc\xff\xc3\xa9");
}

static void emit_long_quotes(void)
{
    char text[3000];

    memset(text, '"', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    log_error(0, "%s", text);
}

START_TEST(json_lines_are_json)
{
    unsetenv("JOURNAL_STREAM");
    log_set_identity("worker 2");
    log_set_format(LOG_FORMAT_JSON);
    for (int i = 0; i < 2; i++) {
        const char *line = captured(i == 0 ? emit_quotes : emit_long_quotes);
        size_t n = strlen(line);
        struct json_object *o;
        struct json_error why;

        ck_assert_uint_le(n, 4096);
        ck_assert_int_eq(line[n - 1], '\n');
        ck_assert_msg(json_parse_strict(line, n - 1, &o, &why) == DAC_OK, "%s: %s", line,
                      why.message);
        const char *said = json_object_get_string(json_object_object_get(o, "message"));
        if (i == 0)
            ck_assert_str_eq(said, "could not open \"a\\b\\nc\\xff\xc3\xa9\": "
                                   "No such file or directory");
        else
            check_matches(said, "^\"+\\.\\.\\.$");
        json_object_put(o);
    }
    setenv("JOURNAL_STREAM", "8:1", 1);
    check_matches(
        captured(emit_quotes),
        "^<4>\\{\"time\":\"[0-9TZ:.-]+\",\"level\":\"warn\",\"process\":\"worker 2\","
        "\"pid\":[0-9]+,\"message\":\".*\"\\}\n$");
}
END_TEST

static struct log_about emit_what;

static void emit_about(void)
{
    log_warn_about(&emit_what, ENOENT, "it is odd");
}

static void emit_long_about(void)
{
    char text[3000];

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    log_info_about(&emit_what, 0, "%s", text);
}

START_TEST(lines_tell_what_they_are_about)
{
    static char long_one[LOG_ABOUT_MAX + 10];
    static const struct log_field fields[] = {{"status", "200", true},
                                              {"role", NULL, false},
                                              {"end", "a \"b\"", false},
                                              {"long", long_one, false}};
    static const struct {
        struct log_about about;
        const char *human, *json;
    } cases[] = {
        {{0}, "directory\n$", "directory\"\\}\n$"},
        {{.request = "", .turn = "", .org = "", .trace = ""},
         "directory\n$",
         "directory\"\\}\n$"},
        {{.request = "r-1", .turn = "t", .org = "acme", .trace = "4bf9"},
         "directory request=r-1 turn=t org=acme trace=4bf9\n$",
         "\",\"request\":\"r-1\",\"turn\":\"t\",\"org\":\"acme\","
         "\"trace\":\"4bf9\"\\}\n$"},
        {{.org = "a b\n2026 turn=x \"\x01"},
         "directory org=\"a b\\\\\\\\n2026 turn=x \\\\\"\\\\\\\\x01\"\n$",
         "directory\",\"org\":\"a b\\\\\\\\n2026 turn=x \\\\\"\\\\\\\\x01\"\\}\n$"},
        {{.turn = "t", .fields = fields, .field_count = DAC_ARRAY_LEN(fields)},
         "directory turn=t\n$",
         "\"turn\":\"t\",\"status\":200,\"end\":\"a "
         "\\\\\"b\\\\\"\",\"long\":\"o{64}\"\\}\n$"},
        {{.turn = "t", .org = long_one},
         " turn=t org=o{128}\n$",
         ",\"org\":\"o{128}\"\\}\n$"},
    };

    memset(long_one, 'o', sizeof(long_one) - 1);
    unsetenv("JOURNAL_STREAM");
    for (size_t i = 0; i < DAC_ARRAY_LEN(cases); i++) {
        emit_what = cases[i].about;
        log_set_format(LOG_FORMAT_HUMAN);
        check_matches(captured(emit_about), cases[i].human);
        log_set_format(LOG_FORMAT_JSON);
        check_matches(captured(emit_about), cases[i].json);
    }
    log_set_format(LOG_FORMAT_HUMAN);
}
END_TEST

/* The message makes way, not what it is about; no byte of that costs more than these. */
START_TEST(long_lines_keep_what_they_are_about)
{
    char worst[LOG_ABOUT_MAX + 1];
    const struct log_field last = {"last", worst, false};
    size_t n;

    memset(worst, 1, sizeof(worst) - 1);
    worst[sizeof(worst) - 1] = '\0';
    emit_what = (struct log_about){.request = worst,
                                   .turn = worst,
                                   .org = worst,
                                   .trace = worst,
                                   .fields = &last,
                                   .field_count = 1};
    unsetenv("JOURNAL_STREAM");
    for (int json = 0; json < 2; json++) {
        struct json_object *o;
        struct json_error why;

        log_set_format(json ? LOG_FORMAT_JSON : LOG_FORMAT_HUMAN);
        const char *line = captured(emit_long_about);
        n = strlen(line);
        ck_assert_uint_le(n, 4096);
        check_matches(line,
                      json ? "xxx\\.\\.\\.\",\"request\":" : "xxx\\.\\.\\. request=");
        check_matches(line, json ? "x01\"\\}\n$" : "x01\n$");
        if (json) {
            ck_assert_int_eq(json_parse_strict(line, n - 1, &o, &why), DAC_OK);
            json_object_put(o);
        }
    }
    log_set_format(LOG_FORMAT_HUMAN);
}
END_TEST

static unsigned emit_count;

static void emit_same(void)
{
    for (unsigned i = 0; i < emit_count; i++) {
        char turn[16];

        snprintf(turn, sizeof(turn), "t%u", i);
        log_warn_about(&(struct log_about){.turn = turn, .org = "acme"}, 0,
                       "flight %u is odd", i);
    }
    log_warn(0, "one of another kind");
    for (unsigned i = 0; i < LOG_SAME_MAX + 5; i++)
        log_info(0, "%s", "each one counts");
}

static void emit_tick(void)
{
    log_tick(clock_now_ns());
}

static unsigned count_of(const char *text, const char *part)
{
    unsigned n = 0;

    for (const char *at = text; (at = strstr(at, part)) != NULL; at++)
        n++;
    return n;
}

/* Times are the test's, so nothing is waited for. */
START_TEST(lines_that_are_said_too_often_are_counted)
{
    uint64_t now;
    const char *text;

    now = NS_PER_S;
    clock_set_test(&now);
    emit_count = LOG_SAME_MAX + 1235;
    text = captured(emit_same);
    ck_assert_uint_eq(count_of(text, "is odd"), LOG_SAME_MAX);
    ck_assert_uint_eq(count_of(text, "another kind"), 1);
    ck_assert_uint_eq(count_of(text, "each one counts"), LOG_SAME_MAX + 5);
    now = NS_PER_S + LOG_SAME_NS - 1;
    ck_assert_str_eq(captured(emit_tick), "");
    now = NS_PER_S + LOG_SAME_NS;
    check_matches(
        captured(emit_tick),
        "WARN .*flight 1284 is odd \\.\\.\\. and 1,234 more like this turn=t1284 "
        "org=acme\n$");
    ck_assert_str_eq(captured(emit_tick), "");
    emit_count = 1;
    ck_assert_uint_eq(count_of(captured(emit_same), "is odd"), 1);
    clock_set_test(NULL);
}
END_TEST

START_TEST(log_level_filters)
{
    enum log_level level;

    ck_assert_str_eq(captured(emit_debug), "");
    ck_assert_int_eq(log_level_parse("debug", &level), DAC_OK);
    log_set_level(level);
    ck_assert_int_eq(log_get_level(), LOG_LEVEL_DEBUG);
    ck_assert_str_ne(captured(emit_debug), "");
    ck_assert_int_eq(log_level_parse("DEBUG ", &level), DAC_E_INVALID);
}
END_TEST

START_TEST(failed_assertion_aborts)
{
    DAC_ASSERT(_i == 1);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("base_util");
    TCase *tc = tcase_create("util");
    SRunner *sr;
    int failed;

    tcase_add_test(tc, buffer_never_passes_its_maximum);
    tcase_add_test(tc, buffer_grows_and_formats);
    tcase_add_loop_test(tc, parses_numbers, 0, (int)DAC_ARRAY_LEN(numbers));
    tcase_add_test(tc, compares_and_prints_bytes);
    tcase_add_test(tc, ids_ascend_and_round_trip);
    tcase_add_loop_test(tc, parses_ids, 0, (int)DAC_ARRAY_LEN(id_texts));
    tcase_add_loop_test(tc, formats_time, 0, (int)DAC_ARRAY_LEN(times));
    tcase_add_test(tc, test_clock_replaces_the_real_one);
    tcase_add_test(tc, every_error_has_a_text);
    tcase_add_test(tc, log_lines_cannot_be_forged);
    tcase_add_test(tc, long_log_lines_are_cut_to_one_write);
    tcase_add_test(tc, json_lines_are_json);
    tcase_add_test(tc, lines_that_are_said_too_often_are_counted);
    tcase_add_test(tc, lines_tell_what_they_are_about);
    tcase_add_test(tc, long_lines_keep_what_they_are_about);
    tcase_add_test(tc, log_level_filters);
    /* Without Check's own process per test there is no one left to see the signal. */
    if (!getenv("CK_FORK") || strcmp(getenv("CK_FORK"), "no") != 0)
        tcase_add_test_raise_signal(tc, failed_assertion_aborts, SIGABRT);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
