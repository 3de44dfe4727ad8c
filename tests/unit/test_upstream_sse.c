/*
 * The decoder of server-sent events: the same events for every way to cut the bytes, the
 * rules of the standard, and the limit.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "upstream/sse_decoder.h"

#define EVENT_MAX 64

/* `events`: "name|data;" of each. */
static const struct {
    const char *name;
    const char *bytes;
    const char *events;
} streams[] = {
    {"one", "data: a\n\n", "|a;"},
    {"two", "data: a\n\ndata: b\n\n", "|a;|b;"},
    {"no blank behind the colon", "data:a\n\n", "|a;"},
    {"only one blank is taken", "data:  a \n\n", "| a ;"},
    {"CRLF", "data: a\r\n\r\ndata: b\r\n\r\n", "|a;|b;"},
    {"CR", "data: a\r\rdata: b\r\r", "|a;|b;"},
    {"mixed ends", "data: a\r\n\ndata: b\n\rdata: c\r\r\ndata: d\n\r\n", "|a;|b;|c;|d;"},
    {"several data lines", "data: a\ndata: b\ndata:\ndata: c\n\n", "|a\nb\n\nc;"},
    {"data without a colon", "data\n\n", "|;"},
    {"empty data", "data:\n\n", "|;"},
    {"two empty lines of data", "data\ndata\n\n", "|\n;"},
    {"name", "event: error\ndata: a\n\ndata: b\n\n", "error|a;|b;"},
    {"name behind the data", "data: a\nevent: x\n\ndata: b\n\n", "x|a;|b;"},
    {"name without data is forgotten", "event: x\n\ndata: a\n\n", "|a;"},
    {"last name counts", "event: x\nevent: y\ndata: a\n\n", "y|a;"},
    {"comments", ": hello\n:\ndata: a\n: x\ndata: b\n:\n\n", "|a\nb;"},
    {"comment alone", ":\n\n: ping\n\ndata: a\n\n", "|a;"},
    {"other fields", "id: 1\nretry: 5\nfoo: bar\nDATA: x\ndataset: y\ndata: a\n\n",
     "|a;"},
    {"blank lines", "\n\n\r\n\rdata: a\n\n\n\n", "|a;"},
    {"mark",
     "\xEF\xBB\xBF"
     "data: a\n\n",
     "|a;"},
    {"mark in front of a comment", "\xEF\xBB\xBF: x\n\ndata: a\n\n", "|a;"},
    {"half a mark is a line", "\xEF\xBBx\ndata: a\n\n", "|a;"},
    {"two marks: a field of another name",
     "\xEF\xBB\xBF\xEF\xBB\xBF"
     "data: a\n\ndata: b\n\n",
     "|b;"},
    {"characters", "data: \xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80\n\n",
     "|\xC3\xA4\xE2\x82\xAC\xF0\x9F\x98\x80;"},
    {"colons in data", "data: a: b:c\n\n", "|a: b:c;"},
    {"not ended", "data: a\n\ndata: b\n", "|a;"},
    {"not ended in a line", "data: a\n\ndata: b", "|a;"},
    {"nothing", "", ""},
    {"an event as long as it may be",
     "data: 01234567890123456789012345678901234567890123456789012345\n\n",
     "|01234567890123456789012345678901234567890123456789012345;"},
};

struct seen {
    struct buf text;
    int stop_after; /* events; 0: never */
    int events;
};

static bool note(void *arg, const struct sse_event *ev)
{
    struct seen *s = arg;

    buf_puts(&s->text, ev->name);
    buf_putc(&s->text, '|');
    buf_append(&s->text, ev->data, ev->len);
    buf_putc(&s->text, ';');
    s->events++;
    return s->events != s->stop_after;
}

/* Feeds a piece from memory of its own size, so that reading past it is noticed. */
static enum dac_err feed(struct sse_decoder *d, struct seen *s, const char *p, size_t n)
{
    char *copy = malloc(n ? n : 1);
    enum dac_err e;

    memcpy(copy, p, n);
    e = sse_decoder_feed(d, copy, n, note, s);
    free(copy);
    return e;
}

START_TEST(every_split_gives_the_same)
{
    const char *p = streams[_i].bytes;
    size_t n = strlen(p);

    for (size_t a = 0; a <= n; a++) {
        for (size_t b = a; b <= n; b++) {
            struct seen s = {.text = BUF_INIT(4096)};
            struct sse_decoder d;

            sse_decoder_init(&d, EVENT_MAX);
            ck_assert_int_eq(feed(&d, &s, p, a), DAC_OK);
            ck_assert_int_eq(feed(&d, &s, p + a, b - a), DAC_OK);
            ck_assert_int_eq(feed(&d, &s, p + b, n - b), DAC_OK);
            ck_assert_msg(strcmp(buf_cstr(&s.text), streams[_i].events) == 0,
                          "%s, split at %zu and %zu: \"%s\"", streams[_i].name, a, b,
                          buf_cstr(&s.text));
            buf_free(&s.text);
            sse_decoder_free(&d);
        }
    }
}
END_TEST

START_TEST(every_byte_alone)
{
    struct seen s = {.text = BUF_INIT(4096)};
    struct sse_decoder d;

    sse_decoder_init(&d, EVENT_MAX);
    for (const char *p = streams[_i].bytes; *p; p++)
        ck_assert_int_eq(feed(&d, &s, p, 1), DAC_OK);
    ck_assert_str_eq(buf_cstr(&s.text), streams[_i].events);
    buf_free(&s.text);
    sse_decoder_free(&d);
}
END_TEST

static const struct {
    const char *bytes;
    bool pending;
} ends[] = {
    {"", false},           {"data: a\n\n", false},     {"data: a\n", true},
    {"data: a", true},     {"data: a\n\nda", true},    {": ping\n", false},
    {"event: x\n", false}, {"data: a\r\n\r\n", false}, {"data: a\r\r", false},
};

START_TEST(tells_what_was_left)
{
    struct seen s = {.text = BUF_INIT(64)};
    struct sse_decoder d;

    sse_decoder_init(&d, EVENT_MAX);
    ck_assert_int_eq(feed(&d, &s, ends[_i].bytes, strlen(ends[_i].bytes)), DAC_OK);
    ck_assert_int_eq(sse_decoder_pending(&d), ends[_i].pending);
    sse_decoder_reset(&d, 0);
    ck_assert(!sse_decoder_pending(&d));
    buf_free(&s.text);
    sse_decoder_free(&d);
}
END_TEST

/* What is printed %d times, and behind it. */
static const struct {
    const char *name;
    const char *repeat;
    int times;
} too_long[] = {
    {"a line", "x", EVENT_MAX + 1},
    {"data", "data: 0123456789\n", EVENT_MAX / 11 + 1},
    {"empty data", "data\n", EVENT_MAX + 1},
};

START_TEST(an_event_has_a_limit)
{
    for (size_t piece = 1; piece < 100; piece += 7) {
        struct seen s = {.text = BUF_INIT(64)};
        struct buf b = BUF_INIT(4096);
        struct sse_decoder d;
        enum dac_err e = DAC_OK;

        for (int i = 0; i < too_long[_i].times; i++)
            buf_puts(&b, too_long[_i].repeat);
        sse_decoder_init(&d, EVENT_MAX);
        for (size_t at = 0; at < b.len && e == DAC_OK; at += piece)
            e = feed(&d, &s, b.data + at, b.len - at < piece ? b.len - at : piece);
        ck_assert_msg(e == DAC_E_TOO_LARGE, "%s in pieces of %zu", too_long[_i].name,
                      piece);
        ck_assert_uint_le(d.line.cap, 4 * EVENT_MAX);
        ck_assert_int_eq(s.events, 0);
        buf_free(&b);
        buf_free(&s.text);
        sse_decoder_free(&d);
    }
}
END_TEST

START_TEST(many_small_lines_are_no_event)
{
    struct seen s = {.text = BUF_INIT(64)};
    struct sse_decoder d;

    sse_decoder_init(&d, EVENT_MAX);
    for (int i = 0; i < 1000; i++)
        ck_assert_int_eq(feed(&d, &s, ": comment\nid: 1\n", 16), DAC_OK);
    ck_assert_int_eq(feed(&d, &s, "data: a\n\n", 9), DAC_OK);
    ck_assert_str_eq(buf_cstr(&s.text), "|a;");
    buf_free(&s.text);
    sse_decoder_free(&d);
}
END_TEST

START_TEST(stops_where_it_is_told)
{
    struct seen s = {.text = BUF_INIT(64), .stop_after = 2};
    struct sse_decoder d;

    sse_decoder_init(&d, EVENT_MAX);
    ck_assert_int_eq(feed(&d, &s, "data: a\n\ndata: b\n\ndata: c\n\n", 27), DAC_OK);
    ck_assert_str_eq(buf_cstr(&s.text), "|a;|b;");
    buf_free(&s.text);
    sse_decoder_free(&d);
}
END_TEST

START_TEST(long_names_are_cut)
{
    struct seen s = {.text = BUF_INIT(4096)};
    struct sse_decoder d;
    char line[200];

    snprintf(line, sizeof(line), "event: %0100d\ndata: a\n\n", 0);
    sse_decoder_init(&d, 1024);
    ck_assert_int_eq(feed(&d, &s, line, strlen(line)), DAC_OK);
    ck_assert_uint_eq(s.text.len, SSE_NAME_MAX + strlen("|a;"));
    buf_free(&s.text);
    sse_decoder_free(&d);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("upstream_sse");
    TCase *tc = tcase_create("all");

    tcase_add_loop_test(tc, every_split_gives_the_same, 0, (int)DAC_ARRAY_LEN(streams));
    tcase_add_loop_test(tc, every_byte_alone, 0, (int)DAC_ARRAY_LEN(streams));
    tcase_add_loop_test(tc, tells_what_was_left, 0, (int)DAC_ARRAY_LEN(ends));
    tcase_add_loop_test(tc, an_event_has_a_limit, 0, (int)DAC_ARRAY_LEN(too_long));
    tcase_add_test(tc, many_small_lines_are_no_event);
    tcase_add_test(tc, stops_where_it_is_told);
    tcase_add_test(tc, long_names_are_cut);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
