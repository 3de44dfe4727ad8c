/*
 * The request parser: which bytes are a request and which are not, whatever way they are
 * split.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "http/h1_parser.h"

#define HEADER_MAX 2000
#define BODY_MAX   64

#define HOST "Host: h\r\n"
#define X10  "xxxxxxxxxx"
#define X100 X10 X10 X10 X10 X10 X10 X10 X10 X10 X10
#define X1K  X100 X100 X100 X100 X100 X100 X100 X100 X100 X100
#define H10  "a:\r\na:\r\na:\r\na:\r\na:\r\na:\r\na:\r\na:\r\na:\r\na:\r\n"
#define H90  H10 H10 H10 H10 H10 H10 H10 H10 H10

#define CHUNKED(body) "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n" body

static const struct {
    const char *raw;
    int status;       /* 0: good */
    const char *body; /* of a good one; NULL: none */
    size_t rest;      /* bytes left for the next request */
} cases[] = {
    /* request lines */
    {"GET / HTTP/1.1\r\n" HOST "\r\n", 0, NULL, 0},
    {"GET / HTTP/1.1\r\n" HOST "\r\nGET", 0, NULL, 3},
    {"\r\n\r\nGET / HTTP/1.1\r\n" HOST "\r\n", 0, NULL, 0},
    {"\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"\nGET / HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"\rGET / HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"GET / HTTP/1.0\r\n\r\n", 0, NULL, 0},
    {"GET / HTTP/1.2\r\n" HOST "\r\n", 0, NULL, 0},
    {"GET / HTTP/2.0\r\n" HOST "\r\n", 505, NULL, 0},
    {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, NULL, 0},
    {"GET / HTTP/0.9\r\n\r\n", 505, NULL, 0},
    {"GET / HTTP/11\r\n\r\n", 400, NULL, 0},
    {"GET / http/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1 \r\n" HOST "\r\n", 400, NULL, 0},
    {"GET /\r\n", 400, NULL, 0},
    {"GET\r\n", 400, NULL, 0},
    {"GET  / HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"GET /  HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"GET\t/ HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {" GET / HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1\n" HOST "\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1\r\r\n" HOST "\r\n", 400, NULL, 0},
    {"get / HTTP/1.1\r\n" HOST "\r\n", 501, NULL, 0},
    {"BREW / HTTP/1.1\r\n" HOST "\r\n", 501, NULL, 0},
    {"CONNECT h:1 HTTP/1.1\r\n" HOST "\r\n", 501, NULL, 0},
    {"G(T / HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"\x16\x03\x01\x02", 400, NULL, 0},
    {"GET /" X1K X1K " HTTP/1.1\r\n" HOST "\r\n", 414, NULL, 0},
    /* targets */
    {"GET http://h/a HTTP/1.1\r\n" HOST "\r\n", 0, NULL, 0},
    {"GET http://h HTTP/1.1\r\n" HOST "\r\n", 0, NULL, 0},
    {"GET HTTPS://h:80?q HTTP/1.1\r\n" HOST "\r\n", 0, NULL, 0},
    {"GET http://[::1]:80/ HTTP/1.1\r\n" HOST "\r\n", 0, NULL, 0},
    {"GET http:// HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"GET http:///a HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"GET http://u@h/ HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"GET ftp://h/ HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"GET a HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"GET * HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"OPTIONS * HTTP/1.1\r\n" HOST "\r\n", 0, NULL, 0},
    {"GET /%41%fF?%20 HTTP/1.1\r\n" HOST "\r\n", 0, NULL, 0},
    {"GET /%4 HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"GET /% HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"GET /%4g HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"GET /?%zz HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"GET /%00 HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"GET /a#b HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"GET /\xc3\xa4 HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    {"GET /\x01 HTTP/1.1\r\n" HOST "\r\n", 400, NULL, 0},
    /* headers */
    {"GET / HTTP/1.1\r\n\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1\r\n" HOST HOST "\r\n", 400, NULL, 0},
    {"GET / HTTP/1.0\r\n" HOST HOST "\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1\r\nHost:\r\n\r\n", 0, NULL, 0},
    {"GET / HTTP/1.1\r\nHost: h:8000\r\n\r\n", 0, NULL, 0},
    {"GET / HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n", 0, NULL, 0},
    {"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1\r\nHost: h/x\r\n\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1\r\nHost: u@h\r\n\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1\r\nHost: h:port\r\n\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1\r\nHost\r\n\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1\r\n: h\r\n\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1\r\n" HOST "a: b\r\n c\r\n\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1\r\n" HOST "\ta: b\r\n\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1\r\n" HOST "a: b\n\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1\r\n" HOST "a: b\r\n\n", 400, NULL, 0},
    {"GET / HTTP/1.1\r\n" HOST "a: b\rc: d\r\n\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1\r\n" HOST "a: \x01\r\n\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1\r\n" HOST "a: \x7f\r\n\r\n", 400, NULL, 0},
    {"GET / HTTP/1.1\r\n" HOST "a: \xff\tb\r\n\r\n", 0, NULL, 0},
    {"GET / HTTP/1.1\r\n" HOST H90 "\r\n", 0, NULL, 0},
    {"GET / HTTP/1.1\r\n" HOST H90 H10 "\r\n", 431, NULL, 0},
    {"GET / HTTP/1.1\r\n" HOST "a: " X1K X1K "\r\n\r\n", 431, NULL, 0},
    /* bodies of known length */
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\nabc", 0, "abc", 0},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\nabcd", 0, "abc", 1},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 0\r\n\r\nd", 0, NULL, 1},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 64\r\n\r\n" X10 X10 X10 X10 X10 X10
     "1234",
     0, X10 X10 X10 X10 X10 X10 "1234", 0},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 65\r\n\r\nx", 413, NULL, 0},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: -1\r\n\r\n", 400, NULL, 0},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: +1\r\n\r\nx", 400, NULL, 0},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 0x1\r\n\r\n", 400, NULL, 0},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1 1\r\n\r\n", 400, NULL, 0},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 1, 1\r\n\r\n", 400, NULL, 0},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length:\r\n\r\n", 400, NULL, 0},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 18446744073709551617\r\n\r\n", 400, NULL,
     0},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 3\r\nContent-Length: 4\r\n\r\n", 400,
     NULL, 0},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 3\r\nContent-Length: 3\r\n\r\n", 400,
     NULL, 0},
    {"POST / HTTP/1.1\r\n" HOST "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
     400, NULL, 0},
    {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
     400, NULL, 0},
    /* chunked bodies */
    {CHUNKED("3\r\nabc\r\n0\r\n\r\n"), 0, "abc", 0},
    {CHUNKED("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\nX"), 0, "abcde", 1},
    {CHUNKED("0\r\n\r\n"), 0, NULL, 0},
    {CHUNKED("003;a=\"b\";c\r\nabc\r\n00\r\n\r\n"), 0, "abc", 0},
    {CHUNKED("3\r\nabc\r\n0\r\nA: b\r\nC:\r\n\r\n"), 0, "abc", 0},
    {CHUNKED("A\r\n" X10 "\r\na\r\n" X10 "\r\n0\r\n\r\n"), 0, X10 X10, 0},
    {CHUNKED("41\r\n"), 413, NULL, 0},
    {CHUNKED("3f\r\n" X10 X10 X10 X10 X10 X10 "abc\r\n2\r\n"), 413, NULL, 0},
    {CHUNKED("ffffffffffffffff\r\n"), 413, NULL, 0},
    {CHUNKED("00000000000000001\r\n"), 400, NULL, 0},
    {CHUNKED("\r\n"), 400, NULL, 0},
    {CHUNKED(";a\r\n"), 400, NULL, 0},
    {CHUNKED("3 \r\nabc\r\n"), 400, NULL, 0},
    {CHUNKED("0x3\r\nabc\r\n"), 400, NULL, 0},
    {CHUNKED("-3\r\nabc\r\n"), 400, NULL, 0},
    {CHUNKED("3\nabc\r\n"), 400, NULL, 0},
    {CHUNKED("3\r\nabcd\r\n"), 400, NULL, 0},
    {CHUNKED("3\r\nabc\n"), 400, NULL, 0},
    {CHUNKED("3;\x01\r\nabc\r\n"), 400, NULL, 0},
    {CHUNKED("3;a\nb\r\nabc\r\n"), 400, NULL, 0},
    {CHUNKED("0\r\n\n"), 400, NULL, 0},
    {CHUNKED("0\r\nA b\r\n\r\n"), 400, NULL, 0},
    {CHUNKED("0\r\n: b\r\n\r\n"), 400, NULL, 0},
    {CHUNKED("0\r\nA: b\n\r\n"), 400, NULL, 0},
    {CHUNKED("0\r\nA: " X1K X1K "\r\n\r\n"), 431, NULL, 0},
    {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: Chunked \r\n\r\n0\r\n\r\n", 0, NULL,
     0},
    {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: gzip, chunked\r\n\r\n", 501, NULL, 0},
    {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: identity\r\n\r\n", 501, NULL, 0},
    {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: xchunked\r\n\r\n", 501, NULL, 0},
    {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding:\r\n\r\n", 501, NULL, 0},
    {"POST / HTTP/1.1\r\n" HOST
     "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
     400, NULL, 0},
    {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, NULL, 0},
};

/* What a parse came to, as one string, and how much input it took. */
struct outcome {
    char text[512];
    size_t used;
    int status;
    enum h1_result last;
    struct buf body;
};

static size_t feed(struct h1_request *r, const char *data, size_t n, unsigned *heads,
                   enum h1_result *last)
{
    size_t total = 0;

    for (;;) {
        size_t used = 0;
        *last = h1_feed(r, data + total, n - total, &used);
        ck_assert_uint_le(used, n - total);
        total += used;
        if (*last != H1_HEAD)
            break;
        ++*heads;
    }
    if (*last == H1_MORE)
        ck_assert_uint_eq(total, n);
    return total;
}

/* Feeds `raw` in parts of `step` bytes, or in two, cut at `cut`. */
static struct outcome parse(const char *raw, size_t step, size_t cut)
{
    struct h1_request *r = malloc(sizeof(*r));
    struct outcome o = {.body = BUF_INIT(BODY_MAX)};
    size_t n = strlen(raw);
    unsigned heads = 0;

    h1_request_init(r, HEADER_MAX, BODY_MAX);
    o.last = H1_MORE;
    while (o.used < n && o.last == H1_MORE) {
        size_t part = step ? step : o.used < cut ? cut - o.used : n - o.used;
        if (part > n - o.used)
            part = n - o.used;
        char *copy = malloc(part); /* of this size exactly, for the sanitizer */
        memcpy(copy, raw + o.used, part);
        size_t took = feed(r, copy, part, &heads, &o.last);
        free(copy);
        o.used += took;
    }
    o.status = o.last == H1_ERROR ? r->fault.status : 0;
    buf_append(&o.body, r->body.data, r->body.len);
    snprintf(o.text, sizeof(o.text), "%d %d %s %s %s|%d 1.%u %s?%s #%u %s %llu", o.last,
             o.status, o.last == H1_ERROR ? r->fault.code : "",
             o.last == H1_ERROR ? r->fault.field : "",
             o.last == H1_ERROR ? r->fault.detail : "", (int)r->method, r->minor,
             r->path ? r->head.data + r->path : "",
             r->has_query ? r->head.data + r->query : "", r->header_count,
             h1_keep_alive(r) ? "keep" : "close", (unsigned long long)r->body_len);
    h1_request_free(r);
    free(r);
    return o;
}

START_TEST(reads_and_refuses)
{
    const char *raw = cases[_i].raw;
    struct outcome o = parse(raw, 0, strlen(raw));

    ck_assert_msg(o.status == cases[_i].status, "%.200s\ngave %s", raw, o.text);
    if (cases[_i].status == 0) {
        const char *body = cases[_i].body ? cases[_i].body : "";
        ck_assert_int_eq(o.last, H1_DONE);
        ck_assert_uint_eq(strlen(raw) - o.used, cases[_i].rest);
        ck_assert_uint_eq(o.body.len, strlen(body));
        ck_assert(o.body.len == 0 || memcmp(o.body.data, body, o.body.len) == 0);
    }
    buf_free(&o.body);
}
END_TEST

START_TEST(any_split_gives_the_same)
{
    const char *raw = cases[_i].raw;
    size_t n = strlen(raw);
    struct outcome whole = parse(raw, 0, n);

    for (size_t cut = 0; cut < n; cut++) {
        struct outcome o = parse(raw, cut == 0, cut); /* cut 0: byte by byte */
        ck_assert_str_eq(o.text, whole.text);
        ck_assert_int_eq(o.last, whole.last);
        ck_assert(
            o.body.len == whole.body.len &&
            (o.body.len == 0 || memcmp(o.body.data, whole.body.data, o.body.len) == 0));
        if (whole.last == H1_DONE)
            ck_assert_uint_eq(o.used, whole.used);
        buf_free(&o.body);
    }
    buf_free(&whole.body);
}
END_TEST

static struct h1_request *parsed(const char *raw)
{
    struct h1_request *r = malloc(sizeof(*r));
    enum h1_result last;
    unsigned heads = 0;

    h1_request_init(r, HEADER_MAX, BODY_MAX);
    feed(r, raw, strlen(raw), &heads, &last);
    ck_assert_int_eq(last, H1_DONE);
    ck_assert_uint_eq(heads, 1);
    return r;
}

START_TEST(headers_are_found_and_joined)
{
    struct h1_request *r = parsed("GET /p?q=1 HTTP/1.1\r\nHost:  h \t\r\nAccept: a\r\n"
                                  "X-Empty:\r\nACCEPT: b , c\r\nx: :\r\n\r\n");

    ck_assert_str_eq(h1_header(r, "host"), "h");
    ck_assert_str_eq(h1_header(r, "accept"), "a, b , c");
    ck_assert_ptr_eq(h1_header(r, "Accept"), h1_header(r, "aCCEPT"));
    ck_assert_str_eq(h1_header(r, "x-empty"), "");
    ck_assert_str_eq(h1_header(r, "X"), ":");
    ck_assert_ptr_null(h1_header(r, "Hos"));
    ck_assert_uint_eq(h1_header_count(r, "aCCEPT"), 2);
    ck_assert_uint_eq(h1_header_count(r, "x-empty"), 1);
    ck_assert_uint_eq(h1_header_count(r, "Hos"), 0);
    ck_assert_str_eq(r->head.data + r->path, "/p");
    ck_assert_str_eq(r->head.data + r->query, "q=1");
    h1_request_free(r);
    free(r);
}
END_TEST

static const struct {
    const char *raw;
    bool keep;
} keeps[] = {
    {"GET / HTTP/1.1\r\n" HOST "\r\n", true},
    {"GET / HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n", false},
    {"GET / HTTP/1.1\r\n" HOST "Connection: x, CLOSE\r\n\r\n", false},
    {"GET / HTTP/1.1\r\n" HOST "Connection: x\r\nConnection: close ,y\r\n\r\n", false},
    {"GET / HTTP/1.1\r\n" HOST "Connection: closed\r\n\r\n", true},
    {"GET / HTTP/1.1\r\n" HOST "Connection: keep-alive, close\r\n\r\n", false},
    {"GET / HTTP/1.0\r\n\r\n", false},
    {"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true},
};

START_TEST(keeps_the_connection_as_asked)
{
    struct h1_request *r = parsed(keeps[_i].raw);

    ck_assert_int_eq(h1_keep_alive(r), keeps[_i].keep);
    h1_request_free(r);
    free(r);
}
END_TEST

START_TEST(discarded_bodies_are_counted_not_kept)
{
    const char *raw = CHUNKED("3\r\nabc\r\n0\r\n\r\n");
    struct h1_request *r = malloc(sizeof(*r));
    size_t used = 0;
    size_t more = 0;

    h1_request_init(r, HEADER_MAX, BODY_MAX);
    ck_assert_int_eq(h1_feed(r, raw, strlen(raw), &used), H1_HEAD);
    r->discard = true;
    ck_assert_int_eq(h1_feed(r, raw + used, strlen(raw) - used, &more), H1_DONE);
    ck_assert_uint_eq(r->body_len, 3);
    ck_assert_uint_eq(r->body.len, 0);
    h1_request_free(r);
    free(r);
}
END_TEST

START_TEST(chunk_extensions_are_bounded)
{
    const char *head = CHUNKED("1;");
    struct h1_request *r = malloc(sizeof(*r));
    unsigned heads = 0;
    enum h1_result last;
    size_t fed = 0;

    h1_request_init(r, HEADER_MAX, BODY_MAX);
    feed(r, head, strlen(head), &heads, &last);
    while (last == H1_MORE) {
        fed++;
        feed(r, "x", 1, &heads, &last);
    }
    ck_assert_int_eq(last, H1_ERROR);
    ck_assert_uint_eq(fed, H1_CHUNK_EXT_MAX + 1);
    ck_assert_int_eq(r->fault.status, 400);
    h1_request_free(r);
    free(r);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("http_parser");
    TCase *tc = tcase_create("all");

    tcase_add_loop_test(tc, reads_and_refuses, 0, (int)DAC_ARRAY_LEN(cases));
    tcase_add_loop_test(tc, any_split_gives_the_same, 0, (int)DAC_ARRAY_LEN(cases));
    tcase_add_test(tc, headers_are_found_and_joined);
    tcase_add_loop_test(tc, keeps_the_connection_as_asked, 0, (int)DAC_ARRAY_LEN(keeps));
    tcase_add_test(tc, discarded_bodies_are_counted_not_kept);
    tcase_add_test(tc, chunk_extensions_are_bounded);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
