/*
 * Routing, query splitting, pieces of streams and problem bodies: the pure parts around
 * the server.
 */
#include <check.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "http/problem.h"
#include "http/router.h"
#include "http/target.h"

static void handler(struct http_exchange *ex, void *ctx)
{
    (void)ex;
    (void)ctx;
}

static const struct http_route routes[] = {
    {HTTP_GET, "/", handler, false},
    {HTTP_GET | HTTP_POST, "/api/threads/", handler, false},
    {HTTP_GET, "/api/threads/{id}", handler, false},
    {HTTP_PATCH, "/api/threads/{id}", handler, false},
    {HTTP_POST, "/api/threads/{id}/messages/{n}", handler, false},
    {HTTP_GET, "/api/threads/special", handler, false},
};

static const struct {
    const char *path;
    enum http_method method;
    int route;         /* -1: none */
    const char *allow; /* "": no such path */
    const char *arg0;
    const char *arg1;
} finds[] = {
    {"/", HTTP_GET, 0, "GET, HEAD, OPTIONS", NULL, NULL},
    {"/", HTTP_HEAD, 0, "GET, HEAD, OPTIONS", NULL, NULL},
    {"/", HTTP_POST, -1, "GET, HEAD, OPTIONS", NULL, NULL},
    {"//", HTTP_GET, -1, "", NULL, NULL},
    {"/api/threads", HTTP_GET, 1, "GET, HEAD, POST, OPTIONS", NULL, NULL},
    {"/api/threads/", HTTP_POST, 1, "GET, HEAD, POST, OPTIONS", NULL, NULL},
    {"/api/threads//", HTTP_POST, -1, "", NULL, NULL},
    {"/api//threads", HTTP_POST, -1, "", NULL, NULL},
    {"/api/threads/a", HTTP_GET, 2, "GET, HEAD, PATCH, OPTIONS", "a", NULL},
    {"/api/threads/a/", HTTP_GET, 2, "GET, HEAD, PATCH, OPTIONS", "a", NULL},
    {"/api/threads/a", HTTP_PATCH, 3, "GET, HEAD, PATCH, OPTIONS", "a", NULL},
    {"/api/threads/special", HTTP_GET, 2, "GET, HEAD, PATCH, OPTIONS", "special", NULL},
    {"/api/threads/a%2Fb/messages/%41", HTTP_POST, 4, "POST, OPTIONS", "a/b", "A"},
    {"/api/threads/a+b", HTTP_GET, 2, "GET, HEAD, PATCH, OPTIONS", "a+b", NULL},
    {"/%61pi/threads", HTTP_GET, 1, "GET, HEAD, POST, OPTIONS", NULL, NULL},
    {"/api/thread", HTTP_GET, -1, "", NULL, NULL},
    {"/api/threadss", HTTP_GET, -1, "", NULL, NULL},
    {"/api", HTTP_GET, -1, "", NULL, NULL},
    {"/api/threads/a/messages", HTTP_GET, -1, "", NULL, NULL},
    {"/api/threads/../threads", HTTP_GET, -1, "", NULL, NULL},
    {"/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17", HTTP_GET, -1, "", NULL, NULL},
};

START_TEST(finds_routes)
{
    struct route_match m;
    struct buf allow = BUF_INIT(100);
    char *segments = malloc(strlen(finds[_i].path) + 1);

    router_find(routes, DAC_ARRAY_LEN(routes), finds[_i].method, finds[_i].path, segments,
                &m);
    ck_assert_int_eq(m.route ? (int)(m.route - routes) : -1, finds[_i].route);
    router_put_allow(&allow, m.allowed);
    ck_assert_str_eq(buf_cstr(&allow), finds[_i].allow);
    if (finds[_i].arg0)
        ck_assert_str_eq(m.args[0], finds[_i].arg0);
    if (finds[_i].arg1)
        ck_assert_str_eq(m.args[1], finds[_i].arg1);
    ck_assert_uint_eq(m.arg_count, !!finds[_i].arg0 + !!finds[_i].arg1);
    buf_free(&allow);
    free(segments);
}
END_TEST

static const struct {
    const char *query;
    const char *pairs; /* NULs written as | */
} queries[] = {
    {"", ""},
    {"a=1", "a|1|"},
    {"a=1&b=%20+%2b", "a|1|b|  +|"},
    {"a&b=&=c&&", "a||b|||c|"},
    {"a=b=c", "a|b=c|"},
    {"a&a&a&a", "a||a||a||a||"},
};

START_TEST(splits_queries)
{
    size_t n = 2 * strlen(queries[_i].query) + 2;
    char *to = malloc(n);
    char text[64];

    size_t used = target_split_query(to, queries[_i].query);
    ck_assert_uint_le(used, n);
    for (size_t i = 0; i < used; i++)
        text[i] = to[i] ? to[i] : '|';
    text[used] = '\0';
    ck_assert_str_eq(text, queries[_i].pairs);
    free(to);
}
END_TEST

static const struct {
    size_t payload;
    const char *size;
} pieces[] = {
    {1, "1\r\n"}, {15, "f\r\n"}, {16, "10\r\n"}, {255, "ff\r\n"}, {4096, "1000\r\n"},
};

START_TEST(pieces_are_chunks)
{
    struct buf b = BUF_INIT(8192);
    struct http_piece p;
    size_t n = pieces[_i].payload;
    size_t size_len = strlen(pieces[_i].size);

    ck_assert_int_eq(http_piece_begin(&b), DAC_OK);
    for (size_t i = 0; i < n; i++)
        buf_putc(&b, 'x');
    ck_assert_int_eq(http_piece_end(&b, &p), DAC_OK);
    ck_assert_uint_eq(p.payload_len, n);
    ck_assert_int_eq(p.payload[0], 'x');
    ck_assert_uint_eq(p.framed_len, size_len + n + 2);
    ck_assert_mem_eq(p.framed, pieces[_i].size, size_len);
    ck_assert_ptr_eq(p.framed + size_len, p.payload);
    ck_assert_mem_eq(p.payload + n, "\r\n", 2);
    buf_free(&b);
}
END_TEST

START_TEST(pieces_have_bounds)
{
    struct buf b = BUF_INIT(16);
    struct http_piece p;

    ck_assert_int_eq(http_piece_begin(&b), DAC_OK);
    ck_assert_int_eq(http_piece_end(&b, &p), DAC_OK);
    ck_assert_uint_eq(p.framed_len, 0); /* an empty chunk would end the stream */
    buf_reset(&b);

    ck_assert_int_eq(http_piece_begin(&b), DAC_OK);
    buf_puts(&b, "12345"); /* fits, its CRLF does not */
    ck_assert_int_eq(http_piece_end(&b, &p), DAC_E_TOO_LARGE);
    buf_reset(&b);

    ck_assert_int_eq(http_piece_begin(&b), DAC_OK);
    buf_puts(&b, "1234567");
    ck_assert_int_ne(http_piece_end(&b, &p), DAC_OK);
    buf_free(&b);
}
END_TEST

START_TEST(problem_bodies_say_it_twice)
{
    struct http_problem p = {
        .status = 429,
        .code = "rate \"limited\"",
        .field = "model",
        .offset = 17,
        .retry_after_ms = 1500,
        .retryable = true,
        .extra_json = "\"available\":[1]",
    };
    struct buf b = BUF_INIT(4096);
    struct json_object *o;
    struct json_object *error;
    struct json_object *v;

    http_problem_body(&p, "not\nnow", &b);
    o = json_tokener_parse(buf_cstr(&b));
    ck_assert_ptr_nonnull(o);
    ck_assert(json_object_object_get_ex(o, "title", &v));
    ck_assert_str_eq(json_object_get_string(v), "Too Many Requests");
    ck_assert(json_object_object_get_ex(o, "status", &v));
    ck_assert_int_eq(json_object_get_int(v), 429);
    ck_assert(json_object_object_get_ex(o, "offset", &v));
    ck_assert_int_eq(json_object_get_int(v), 17);
    ck_assert(json_object_object_get_ex(o, "retry_after_ms", &v));
    ck_assert(json_object_object_get_ex(o, "retryable", &v));
    ck_assert(json_object_object_get_ex(o, "available", &v));
    ck_assert(json_object_object_get_ex(o, "error", &error));
    ck_assert(json_object_object_get_ex(error, "message", &v));
    ck_assert_str_eq(json_object_get_string(v), "not\nnow");
    ck_assert(json_object_object_get_ex(error, "code", &v));
    ck_assert_str_eq(json_object_get_string(v), "rate \"limited\"");
    ck_assert(json_object_object_get_ex(error, "param", &v));
    ck_assert_str_eq(json_object_get_string(v), "model");
    json_object_put(o);
    buf_free(&b);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("http_router");
    TCase *tc = tcase_create("all");

    tcase_add_loop_test(tc, finds_routes, 0, (int)DAC_ARRAY_LEN(finds));
    tcase_add_loop_test(tc, splits_queries, 0, (int)DAC_ARRAY_LEN(queries));
    tcase_add_loop_test(tc, pieces_are_chunks, 0, (int)DAC_ARRAY_LEN(pieces));
    tcase_add_test(tc, pieces_have_bounds);
    tcase_add_test(tc, problem_bodies_say_it_twice);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
