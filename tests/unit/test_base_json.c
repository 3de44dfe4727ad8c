/*
 * What json_parse_strict() lets through and what it refuses, with place and path; what
 * the JSON and UTF-8 writers make of odd bytes.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/json_build.h"

/* Text that may hold NUL. */
#define T(s) s, sizeof(s) - 1

static const struct {
    const char *text;
    size_t n;
    const char *printed; /* compact, by json_put_object() */
} good[] = {
    {T("{}"), "{}"},
    {T(" [ ] \n"), "[]"},
    {T("null"), "null"},
    {T("7"), "7"},
    {T("-0"), "0"},
    {T("\"a\\/b\""), "\"a/b\""},
    {T("{\"a\":1,\"b\":[true,false,null,{\"a\":2}]}"),
     "{\"a\":1,\"b\":[true,false,null,{\"a\":2}]}"},
    {T("[9223372036854775807,-9223372036854775808,18446744073709551615]"),
     "[9223372036854775807,-9223372036854775808,18446744073709551615]"},
    {T("[0.1,1e300,-2.5E-3]"), "[0.1,1e300,-2.5E-3]"},
    {T("\"\\ud83d\\ude00\""), "\"\xf0\x9f\x98\x80\""},
    {T("\"\xf4\x8f\xbf\xbf\x7f\""), "\"\xf4\x8f\xbf\xbf\x7f\""},
    {T("{\"\":{\"\":0},\"a\":{\"a\":0}}"), "{\"\":{\"\":0},\"a\":{\"a\":0}}"},
    {T("{\"ab\":1,\"a\":2,\"b\":3}"), "{\"ab\":1,\"a\":2,\"b\":3}"},
};

static const struct {
    const char *text;
    size_t n;
    size_t offset;
    const char *field;
    const char *message;
} bad[] = {
    {T(""), 0, "", "text ends where a value is expected"},
    {T("  "), 2, "", "text ends where a value is expected"},
    {T("{"), 1, "", "text ends where a key in double quotes is expected"},
    {T("{\"a\":1,}"), 7, "", "expected a key in double quotes"},
    {T("[1,]"), 3, "[1]", "expected a value"},
    {T("[1 2]"), 3, "[0]", "expected ',' or ']'"},
    {T("{\"a\" 1}"), 5, "a", "expected ':'"},
    {T("{\"a\":1]"), 6, "a", "expected ',' or '}'"},
    {T("[1}"), 2, "[0]", "expected ',' or ']'"},
    {T("{a:1}"), 1, "", "expected a key in double quotes"},
    {T("{'a':1}"), 1, "", "expected a key in double quotes"},
    {T("{} x"), 3, "", "bytes behind the value"},
    {T("1 2"), 2, "", "bytes behind the value"},
    {T("{}\0"), 2, "", "bytes behind the value"},
    {T("[1]//x"), 3, "", "bytes behind the value"},
    {T("[1,/*x*/2]"), 3, "[1]", "expected a value"},
    {T("\xef\xbb\xbf{}"), 0, "", "expected a value"},
    {T("{\"a\":NaN}"), 5, "a", "expected a value"},
    {T("[Infinity]"), 1, "[0]", "expected a value"},
    {T("[-Infinity]"), 2, "[0]", "expected a digit"},
    {T("TRUE"), 0, "", "expected a value"},
    {T("tru"), 0, "", "expected a value"},
    {T("[01]"), 1, "[0]", "number has a leading zero"},
    {T("[1.]"), 3, "[0]", "expected a digit"},
    {T("[.5]"), 1, "[0]", "expected a value"},
    {T("[+1]"), 1, "[0]", "expected a value"},
    {T("[1e]"), 3, "[0]", "expected a digit"},
    {T("-"), 1, "", "text ends where a digit is expected"},
    {T("[1e400]"), 1, "[0]", "number is out of range"},
    {T("[-1e309]"), 1, "[0]", "number is out of range"},
    {T("[18446744073709551616]"), 1, "[0]", "integer is out of range"},
    {T("[-9223372036854775809]"), 1, "[0]", "integer is out of range"},
    {T("\"abc"), 4, "", "text ends inside a string"},
    {T("\"abc\\"), 5, "", "text ends inside a string"},
    {T("\"a\nb\""), 2, "", "control character in a string"},
    {T("\"a\0b\""), 2, "", "NUL byte"},
    {T("[\0]"), 1, "[0]", "NUL byte"},
    {T("\"\\u0000\""), 1, "", "\\u0000 is not allowed"},
    {T("{\"m\":[{\"c\":\"\\u0000\"}]}"), 12, "m[0].c", "\\u0000 is not allowed"},
    {T("\"\\ud800\""), 1, "", "lone surrogate"},
    {T("\"\\udc00\""), 1, "", "lone surrogate"},
    {T("\"\\ud800\\ud800\""), 1, "", "lone surrogate"},
    {T("\"\\ud800x\""), 1, "", "lone surrogate"},
    {T("\"\\u12g4\""), 1, "", "\\u is not followed by four hexadecimal digits"},
    {T("\"\\u12"), 1, "", "\\u is not followed by four hexadecimal digits"},
    {T("\"\\x41\""), 1, "", "unknown escape in a string"},
    {T("\"\\\0\""), 1, "", "unknown escape in a string"},
    {T("\"a\xff\""), 2, "", "invalid UTF-8"},
    {T("\"\xc0\x80\""), 1, "", "invalid UTF-8"},
    {T("\"\xed\xa0\x80\""), 1, "", "invalid UTF-8"},
    {T("\"\xf4\x90\x80\x80\""), 1, "", "invalid UTF-8"},
    {T("\"\xe2\x82"), 1, "", "invalid UTF-8"},
    {T("{\"a\":1,\"a\":2}"), 7, "a", "duplicate key"},
    {T("{\"a\":1,\"\\u0061\":2}"), 7, "a", "duplicate key"},
    {T("{\"x\":{\"b\":0,\"a\":1,\"c\":2,\"a\":2,\"b\":3}}"), 24, "x.a", "duplicate key"},
    {T("[{\"q\":[]},{\"a\":{},\"z\":[{\"k\":1,\"k\":1}]}]"), 30, "[1].z[0].k",
     "duplicate key"},
    {T("{\"\":1,\"\":2}"), 6, "", "duplicate key"},
    {T("{\"a\":{\"a\":1},\"b\":{\"c\":tru}}"), 22, "b.c", "expected a value"},
};

START_TEST(accepts)
{
    struct buf b = BUF_INIT(4096);
    struct json_object *o;
    struct json_error err;

    ck_assert_msg(json_parse_strict(good[_i].text, good[_i].n, &o, &err) == DAC_OK,
                  "%s: %s at %zu", good[_i].text, err.message, err.offset);
    json_put_object(&b, o);
    ck_assert_str_eq(buf_cstr(&b), good[_i].printed);
    json_object_put(o);
    buf_free(&b);
}
END_TEST

START_TEST(refuses)
{
    struct json_object *o;
    struct json_error err;
    char *copy = malloc(bad[_i].n ? bad[_i].n : 1);

    /* A copy of exactly this size, so that a sanitizer sees a read behind its end. */
    memcpy(copy, bad[_i].text, bad[_i].n);
    ck_assert_msg(json_parse_strict(copy, bad[_i].n, &o, &err) == DAC_E_INVALID, "%s",
                  bad[_i].text);
    ck_assert_ptr_null(o);
    ck_assert_str_eq(err.message, bad[_i].message);
    ck_assert_str_eq(err.field, bad[_i].field);
    ck_assert_uint_eq(err.offset, bad[_i].offset);
    free(copy);
}
END_TEST

START_TEST(depth_64_is_the_limit)
{
    char text[2 * JSON_DEPTH_MAX + 3];
    struct json_object *o;
    struct json_error err;

    memset(text, '[', JSON_DEPTH_MAX);
    memset(text + JSON_DEPTH_MAX, ']', JSON_DEPTH_MAX);
    ck_assert_int_eq(json_parse_strict(text, 2 * JSON_DEPTH_MAX, &o, &err), DAC_OK);
    json_object_put(o);

    memset(text, '[', JSON_DEPTH_MAX + 1);
    memset(text + JSON_DEPTH_MAX + 1, ']', JSON_DEPTH_MAX + 1);
    ck_assert_int_eq(json_parse_strict(text, 2 * JSON_DEPTH_MAX + 2, &o, &err),
                     DAC_E_INVALID);
    ck_assert_str_eq(err.message, "nested deeper than 64 levels");
    ck_assert_uint_eq(err.offset, JSON_DEPTH_MAX);
}
END_TEST

START_TEST(many_keys_take_no_quadratic_time)
{
    struct buf b = BUF_INIT(8 << 20);
    struct json_object *o;
    struct json_error err;
    uint64_t start;

    buf_putc(&b, '{');
    for (int i = 0; i < 150000; i++)
        buf_printf(&b, "%s\"%c%d\":0", i ? "," : "", i % 2 ? 'k' : 'K', i);
    buf_puts(&b, ",\"K77776\":1}");
    ck_assert(!b.failed);

    start = clock_now_ns();
    ck_assert_int_eq(json_parse_strict(b.data, b.len, &o, &err), DAC_E_INVALID);
    ck_assert_uint_lt(clock_now_ns() - start, 3 * NS_PER_S);
    ck_assert_str_eq(err.message, "duplicate key");
    ck_assert_str_eq(err.field, "K77776");
    ck_assert_uint_eq(err.offset, b.len - strlen("\"K77776\":1}"));
    buf_free(&b);
}
END_TEST

START_TEST(long_numbers_and_paths_are_bounded)
{
    struct buf b = BUF_INIT(1 << 20);
    struct json_object *o;
    struct json_error err;

    buf_puts(&b, "{\"");
    for (int i = 0; i < 200; i++)
        buf_puts(&b, "\xc3\xa9");
    buf_puts(&b, "\":1.");
    for (int i = 0; i < 1000; i++)
        buf_putc(&b, '0');
    buf_putc(&b, '}');
    ck_assert_int_eq(json_parse_strict(b.data, b.len, &o, &err), DAC_E_INVALID);
    ck_assert_str_eq(err.message, "number is too long");
    ck_assert(utf8_valid(err.field, strlen(err.field)));
    ck_assert_uint_gt(strlen(err.field), 100);
    buf_free(&b);
}
END_TEST

/* What a provider's stream may hold and a request may not. NULL: refused. */
static const struct {
    const char *text;
    size_t n;
    const char *printed;
} lenient[] = {
    {T("{\"a\":1,\"b\":2,\"a\":3}"), "{\"a\":3,\"b\":2}"},
    {T("[\"\\ud83d\",\"\\ude00x\",\"\\ud83d\\u0041\"]"),
     "[\"\xef\xbf\xbd\",\"\xef\xbf\xbdx\",\"\xef\xbf\xbd"
     "A\"]"},
    {T("[\"a\tb\",\"\xff\",\"\\u0000\"]"), "[\"a\\tb\",\"\xef\xbf\xbd\",\"\\u0000\"]"},
    {T("[18446744073709551616,-9223372036854775809]"),
     "[18446744073709551616,-9223372036854775809]"},
    {T("\"\\u20ac\\u00e9\\uD83D\\uDE00\""), "\"\xe2\x82\xac\xc3\xa9\xf0\x9f\x98\x80\""},
    {T("[1.50,0.1e1]"), "[1.50,0.1e1]"},
    {T(" null "), "null"},
    {T("{\"a\":1}x"), NULL},
    {T("[1,]"), NULL},
    {T("[01]"), NULL},
    {T("{\"a\" 1}"), NULL},
    {T("{\"a\":1,}"), NULL},
    {T("[\"\\u12g4\"]"), NULL},
    {T("[\"\\x\"]"), NULL},
    {T("[\"\\u12"), NULL},
    {T("\"\\"), NULL},
    {T("[nul]"), NULL},
    {T("['a']"), NULL},
    {T("[1e400]"), NULL},
    {T(""), NULL},
    {T("[[[[[[[["), NULL},
};

START_TEST(builds_what_streams_hold)
{
    struct json_object *o = NULL;
    struct buf b = BUF_INIT(4096);
    size_t at;
    enum dac_err e = json_build(lenient[_i].text, lenient[_i].n, &o, &at);

    ck_assert_uint_le(at, lenient[_i].n);
    if (!lenient[_i].printed) {
        ck_assert_int_eq(e, DAC_E_INVALID);
        ck_assert_ptr_null(o);
        return;
    }
    ck_assert_int_eq(e, DAC_OK);
    json_put_object(&b, o);
    ck_assert_str_eq(buf_cstr(&b), lenient[_i].printed);
    json_object_put(o);
    buf_free(&b);
}
END_TEST

/* Changes bytes of a good text at random; whatever passes must also be valid for json-c,
 * and nothing may crash. */
START_TEST(survives_random_changes)
{
    static const char seed[] =
        "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"h\\u00e9\\n\"}],"
        "\"t\":0.5,\"n\":[1,-2,3e4,true,null],\"x\":{\"y\":{}}}";
    static const char alphabet[] = "{}[]\",:\\u0123456789eE+-.truefalsn \xc3\xa9\xff";

    srand(7);
    for (int round = 0; round < 200000; round++) {
        char text[sizeof(seed)];
        struct json_object *o = NULL;
        struct json_error err;
        size_t n = sizeof(seed) - 1;

        memcpy(text, seed, sizeof(seed));
        for (int k = rand() % 4; k >= 0; k--)
            text[(size_t)rand() % n] = alphabet[(size_t)rand() % (sizeof(alphabet) - 1)];
        if (rand() % 8 == 0)
            n = (size_t)rand() % n;
        if (json_parse_strict(text, n, &o, &err) == DAC_OK)
            json_object_put(o);
        else
            ck_assert_str_ne(err.message, "");
    }
}
END_TEST

static const struct {
    const char *in;
    size_t n;
    const char *out;
} strings[] = {
    {T("plain"), "\"plain\""},
    {T("a\"b\\c/"), "\"a\\\"b\\\\c/\""},
    {T("\b\f\n\r\t\x01\x1f\0"), "\"\\b\\f\\n\\r\\t\\u0001\\u001f\\u0000\""},
    {T("\xe2\x80\xa8\xe2\x80\xa9\xe2\x80\xa7"), "\"\\u2028\\u2029\xe2\x80\xa7\""},
    {T("a\xff\xc3"), "\"a\xef\xbf\xbd\xef\xbf\xbd\""},
    {T("\xed\xa0\x80"), "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""},
    {T("\xf0\x9f\x98\x80\x7f"), "\"\xf0\x9f\x98\x80\x7f\""},
    {T(""), "\"\""},
};

START_TEST(writes_strings)
{
    struct buf b = BUF_INIT(4096);

    json_put_string(&b, strings[_i].in, strings[_i].n);
    ck_assert_str_eq(buf_cstr(&b), strings[_i].out);
    buf_free(&b);
}
END_TEST

static const struct {
    const char *in;
    size_t n;
    const char *storable;
    size_t prefix; /* utf8_complete_prefix() */
    bool valid;
} utf8[] = {
    {T(""), "", 0, true},
    {T("abc"), "abc", 3, true},
    {T("a\0b"),
     "a\xef\xbf\xbd"
     "b",
     3, true},
    {T("\xe2\x82\xac"), "\xe2\x82\xac", 3, true},
    {T("a\xe2\x82"), "a\xef\xbf\xbd", 1, false},
    {T("a\xe2"), "a\xef\xbf\xbd", 1, false},
    {T("\xf0\x9f\x98"), "\xef\xbf\xbd", 0, false},
    {T("\xf0\x9f\x98\x80"), "\xf0\x9f\x98\x80", 4, true},
    {T("\xc3\xa9\xc3"), "\xc3\xa9\xef\xbf\xbd", 2, false},
    {T("\xff"), "\xef\xbf\xbd", 1, false},
    {T("\x80\x80\x80\x80"), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd", 4, false},
    {T("\xe2\x82"
       "A"),
     "\xef\xbf\xbd"
     "A",
     3, false},
    {T("\xe0\x80"), "\xef\xbf\xbd\xef\xbf\xbd", 2, false},
    {T("\xed\xa0"), "\xef\xbf\xbd\xef\xbf\xbd", 2, false},
    {T("\xf1\x80\x80\xe1\x80\xc0"), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd", 6, false},
};

START_TEST(handles_utf8)
{
    struct buf b = BUF_INIT(4096);

    utf8_put_storable(&b, utf8[_i].in, utf8[_i].n);
    ck_assert_str_eq(buf_cstr(&b), utf8[_i].storable);
    ck_assert_uint_eq(utf8_complete_prefix(utf8[_i].in, utf8[_i].n), utf8[_i].prefix);
    ck_assert(utf8_valid(utf8[_i].in, utf8[_i].n) == utf8[_i].valid);
    buf_free(&b);
}
END_TEST

static const struct {
    const char *text;
    const char *name;
    size_t at;
} members[] = {
    {"{\"a\":1}", "a", 5},
    {"{ \"a\" : 1 , \"b\" :\n2}", "b", 18},
    {"{\"x\":{\"b\":1},\"y\":[{\"b\":2}],\"b\":3}", "b", 31},
    {"{\"x\":\"b\\\",\\\"b\\\":\",\"b\":3}", "b", 22},
    {"{\"bb\":1}", "b", SIZE_MAX},
    {"{\"x\":\"b\"}", "b", SIZE_MAX},
    {"[1]", "b", SIZE_MAX},
    {"", "b", SIZE_MAX},
};

START_TEST(finds_members)
{
    ck_assert_uint_eq(
        json_member_offset(members[_i].text, strlen(members[_i].text), members[_i].name),
        members[_i].at);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("base_json");
    TCase *tc = tcase_create("json");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, accepts, 0, (int)DAC_ARRAY_LEN(good));
    tcase_add_loop_test(tc, refuses, 0, (int)DAC_ARRAY_LEN(bad));
    tcase_add_test(tc, depth_64_is_the_limit);
    tcase_add_test(tc, many_keys_take_no_quadratic_time);
    tcase_add_test(tc, long_numbers_and_paths_are_bounded);
    tcase_add_loop_test(tc, builds_what_streams_hold, 0, DAC_ARRAY_LEN(lenient));
    tcase_add_test(tc, survives_random_changes);
    tcase_add_loop_test(tc, writes_strings, 0, (int)DAC_ARRAY_LEN(strings));
    tcase_add_loop_test(tc, handles_utf8, 0, (int)DAC_ARRAY_LEN(utf8));
    tcase_add_loop_test(tc, finds_members, 0, (int)DAC_ARRAY_LEN(members));
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
