/*
 * The HTTP server over real sockets: what is answered, and in which order; what closes a
 * connection and what does not.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "http_fixture.h"

#define HOST  "Host: h\r\n"
#define HELLO "GET /hello HTTP/1.1\r\n" HOST "\r\n"
#define X10   "xxxxxxxxxx"
#define X100  X10 X10 X10 X10 X10 X10 X10 X10 X10 X10
#define X1K   X100 X100 X100 X100 X100 X100 X100 X100 X100 X100

static const struct {
    const char *raw;
    int status[3]; /* of the answers, in order; 0: no more */
    bool ends;     /* the server closes behind them */
    bool head_only;
    const char *in_head; /* of the last answer */
    const char *in_body;
} cases[] = {
    {HELLO, {200}, false, false, "Server: test\r\n", "hello"},
    {"HEAD /hello HTTP/1.1\r\n" HOST "\r\n",
     {200},
     false,
     true,
     "Content-Length: 5",
     NULL},
    {"GET /hello/ HTTP/1.1\r\n" HOST "\r\n", {200}, false, false, NULL, "hello"},
    {"GET http://h:80/hello HTTP/1.1\r\n" HOST "\r\n",
     {200},
     false,
     false,
     NULL,
     "hello"},
    {HELLO HELLO "GET /no HTTP/1.1\r\n" HOST "\r\n",
     {200, 200, 404},
     false,
     false,
     NULL,
     "\"code\":\"not_found\""},
    {"GET /hello HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n",
     {200},
     true,
     false,
     "Connection: close",
     "hello"},
    {"GET /hello HTTP/1.0\r\n\r\n", {200}, true, false, "Connection: close", "hello"},
    {"GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
     {200},
     false,
     false,
     "Connection: keep-alive",
     "hello"},
    {"DELETE /none HTTP/1.1\r\n" HOST "\r\n", {204}, false, false, "Date: ", NULL},
    {"GET /describe/a%20b/x/%2F?z=1&q=%41+b&q=c HTTP/1.1\r\n" HOST
     "X-List: 1\r\nx-list: 2\r\nAccept: text/html, text/event-stream;q=0.5\r\n\r\n",
     {200},
     false,
     false,
     NULL,
     "/describe/a b/x//|a b|/|A b|1, 2|1"},
    {"GET /abort HTTP/1.1\r\n" HOST "\r\n" HELLO, {0}, true, false, NULL, NULL},
    /* bodies */
    {"POST /echo HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\nabc" HELLO,
     {200, 200},
     false,
     false,
     NULL,
     "hello"},
    {"POST /echo HTTP/1.1\r\n" HOST
     "Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0"
     "\r\nT: x\r\n\r\n",
     {200},
     false,
     false,
     "Content-Length: 3",
     "abc"},
    {"POST /echo HTTP/1.1\r\n" HOST "\r\n",
     {200},
     false,
     false,
     "Content-Length: 0",
     NULL},
    {"GET /hello HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\nabc" HELLO,
     {200, 200},
     false,
     false,
     NULL,
     "hello"},
    /* refused by the route */
    {"POST /hello HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\nabc" HELLO,
     {405, 200},
     false,
     false,
     NULL,
     "hello"},
    {"POST /hello HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\na",
     {405},
     true,
     false,
     "Allow: GET, HEAD, OPTIONS\r\n",
     "method_not_allowed"},
    {"OPTIONS /json HTTP/1.1\r\n" HOST "\r\n",
     {204},
     false,
     false,
     "Allow: POST, PUT, OPTIONS\r\n",
     NULL},
    {"OPTIONS * HTTP/1.1\r\n" HOST "\r\n", {204}, false, false, "Allow: GET", NULL},
    {"OPTIONS /no HTTP/1.1\r\n" HOST "\r\n", {404}, false, false, NULL, "not_found"},
    {"POST /json HTTP/1.1\r\n" HOST "\r\n", {411}, true, false, NULL, "length_required"},
    {"POST /json HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\n{}",
     {200},
     false,
     false,
     NULL,
     "{}"},
    {"POST /json HTTP/1.1\r\n" HOST
     "Content-Type: Application/JSON ; charset=utf-8\r\nContent-Length: 2\r\n\r\n{}",
     {200},
     false,
     false,
     NULL,
     "{}"},
    {"PUT /json HTTP/1.1\r\n" HOST
     "Content-Type: text/json\r\nContent-Length: 2\r\n\r\n{}" HELLO,
     {415, 200},
     false,
     false,
     NULL,
     "hello"},
    {"PUT /json HTTP/1.1\r\n" HOST
     "Content-Type: application/jsonx\r\nContent-Length: 2\r\n\r\n",
     {415},
     true,
     false,
     NULL,
     "\"field\":\"Content-Type\""},
    {"POST /echo HTTP/1.1\r\n" HOST "Content-Length: 65537\r\n\r\n",
     {413},
     true,
     false,
     "application/problem+json",
     "body_too_large"},
    {"POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n10001\r\n",
     {413},
     true,
     false,
     NULL,
     "body_too_large"},
    {"POST /echo HTTP/1.1\r\n" HOST "Expect: magic\r\nContent-Length: 1\r\n\r\n",
     {417},
     true,
     false,
     NULL,
     "\"field\":\"Expect\""},
    {"POST /echo HTTP/1.0\r\nExpect: magic\r\nContent-Length: 1\r\n\r\nx",
     {200},
     true,
     false,
     NULL,
     "x"},
    {"POST /echo HTTP/1.1\r\n" HOST "Expect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
     {200},
     false,
     false,
     NULL,
     "x"},
    {"POST /no HTTP/1.1\r\n" HOST "Expect: 100-continue\r\nContent-Length: 1\r\n\r\n",
     {404},
     true,
     false,
     NULL,
     NULL},
    /* refused by the parser */
    {"GET /hello HTTP/1.1\r\n\r\n" HELLO,
     {400},
     true,
     false,
     "Connection: close",
     "\"field\":\"Host\""},
    {HELLO "GET /hello HTTP/1.1\n" HOST "\r\n", {200, 400}, true, false, NULL, "CRLF"},
    {"GET /hello HTTP/1.1\r\n" HOST "Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
     {400},
     true,
     false,
     NULL,
     "\"field\":\"Content-Length\""},
    {"GET /hello HTTP/1.1\r\n" HOST "a b: c\r\n\r\n",
     {400},
     true,
     false,
     NULL,
     "at byte 31 of the head"},
    {"GET /%zz HTTP/1.1\r\n" HOST "\r\n", {400}, true, false, NULL, "percent"},
    {"GET / HTTP/3.0\r\n" HOST "\r\n", {505}, true, false, NULL, NULL},
    {"FROB / HTTP/1.1\r\n" HOST "\r\n", {501}, true, false, NULL, "FROB"},
    {"GET /" X1K X1K X100 " HTTP/1.1\r\n" HOST "\r\n", {414}, true, false, NULL, NULL},
    {"GET /hello HTTP/1.1\r\n" HOST "a: " X1K X1K X100 "\r\n\r\n",
     {431},
     true,
     false,
     NULL,
     NULL},
    {"HEAD /hello HTTP/1.1\r\n\r\n", {400}, true, true, NULL, NULL},
};

static void check_answers(struct client *c, int i)
{
    struct reply r = {0};
    size_t n = 0;

    while (n < DAC_ARRAY_LEN(cases[i].status) && cases[i].status[n] != 0) {
        reply_free(&r);
        r = client_reply(c, cases[i].head_only);
        ck_assert_int_eq(r.status, cases[i].status[n++]);
        ck_assert(r.whole);
    }
    if (cases[i].in_head)
        ck_assert_ptr_nonnull(strstr(buf_cstr(&r.head), cases[i].in_head));
    if (cases[i].in_body)
        ck_assert_ptr_nonnull(strstr(buf_cstr(&r.body), cases[i].in_body));
    if (n > 0 && cases[i].ends)
        ck_assert_ptr_nonnull(reply_header(&r, "Connection"));
    reply_free(&r);

    if (cases[i].ends) {
        ck_assert(client_sees_end(c, 3000));
    } else {
        client_puts(c, HELLO);
        r = client_reply(c, false);
        ck_assert_int_eq(r.status, 200);
        ck_assert_str_eq(buf_cstr(&r.body), "hello");
        ck_assert_uint_eq(c->in.len, 0);
        reply_free(&r);
    }
}

START_TEST(answers)
{
    struct http_fixture f;

    http_fixture_start(&f, NULL);
    struct client c = client_open(&f);
    client_puts(&c, cases[_i].raw);
    check_answers(&c, _i);
    client_close(&c);
    http_fixture_await_connections(&f, 0);
    http_fixture_stop(&f);
}
END_TEST

/* Where an answer comes ahead of the body, it depends on the split whether the connection
 * is kept; those rows are left out. */
START_TEST(answers_byte_by_byte)
{
    struct http_fixture f;
    int status = cases[_i].status[0];

    if (status == 405 || status == 415 || strstr(cases[_i].raw, "100-continue"))
        return;
    http_fixture_start(&f, NULL);
    struct client c = client_open(&f);
    for (const char *p = cases[_i].raw; *p; p++)
        client_send(&c, p, 1);
    check_answers(&c, _i);
    client_close(&c);
    http_fixture_stop(&f);
}
END_TEST

START_TEST(expect_continue_is_answered_before_the_body)
{
    struct http_fixture f;

    http_fixture_start(&f, NULL);
    struct client c = client_open(&f);
    client_puts(&c, "POST /json HTTP/1.1\r\n" HOST
                    "Expect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    struct reply r = client_reply(&c, false);
    ck_assert_int_eq(r.status, 100);
    reply_free(&r);
    client_puts(&c, "{}");
    r = client_reply(&c, false);
    ck_assert_int_eq(r.status, 200);
    ck_assert_str_eq(buf_cstr(&r.body), "{}");
    reply_free(&r);
    client_close(&c);
    http_fixture_stop(&f);
}
END_TEST

START_TEST(many_pipelined_requests_are_answered_in_order)
{
    struct http_fixture f;
    struct buf all = BUF_INIT(1u << 20);
    struct reply r;
    char want[32];

    http_fixture_start(&f, NULL);
    struct client c = client_open(&f);
    for (int i = 0; i < 500; i++)
        buf_printf(&all, "GET /describe/%d/x/y HTTP/1.1\r\n" HOST "\r\n", i);
    client_send(&c, all.data, all.len);
    for (int i = 0; i < 500; i++) {
        r = client_reply(&c, false);
        ck_assert_int_eq(r.status, 200);
        snprintf(want, sizeof(want), "/describe/%d/x/y|", i);
        ck_assert_ptr_eq(strstr(buf_cstr(&r.body), want), r.body.data);
        reply_free(&r);
    }
    ck_assert_uint_eq(http_fixture_stats(&f).requests, 500);
    client_close(&c);
    buf_free(&all);
    http_fixture_stop(&f);
}
END_TEST

static void release(struct http_fixture *f, void *arg)
{
    size_t i = *(size_t *)arg;

    http_respond(f->held[i], 200, "text/plain", "held", 4);
    f->held[i] = NULL;
}

START_TEST(a_held_answer_holds_what_is_behind_it)
{
    struct http_fixture f;
    size_t first = 0;
    size_t second = 1;

    http_fixture_start(&f, NULL);
    struct client c = client_open(&f);
    client_puts(&c, "GET /hold HTTP/1.1\r\n" HOST "\r\n" HELLO
                    "GET /hold HTTP/1.1\r\n" HOST "\r\n");
    http_fixture_await(&f.holding, 1);
    client_puts(&c, HELLO);
    ck_assert(!client_sees_end(&c, 50));
    http_fixture_call(&f, release, &first);
    http_fixture_await(&f.holding, 2);
    http_fixture_call(&f, release, &second);

    static const char *const want[] = {"held", "hello", "held", "hello"};
    for (size_t i = 0; i < DAC_ARRAY_LEN(want); i++) {
        struct reply r = client_reply(&c, false);
        ck_assert_str_eq(buf_cstr(&r.body), want[i]);
        reply_free(&r);
    }
    ck_assert_int_eq(atomic_load(&f.gone), 0);
    client_close(&c);
    http_fixture_stop(&f);
}
END_TEST

START_TEST(a_refused_upload_still_sees_its_answer)
{
    struct http_fixture f;
    char *body = calloc(1, 3u << 20);

    http_fixture_start(&f, NULL);
    struct client c = client_open(&f);
    client_puts(&c, "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 3145728\r\n\r\n");
    client_send(&c, body, 3u << 20);
    struct reply r = client_reply(&c, false);
    ck_assert_int_eq(r.status, 413);
    ck_assert(r.whole);
    reply_free(&r);
    ck_assert(client_sees_end(&c, 3000));
    client_close(&c);
    free(body);
    http_fixture_stop(&f);
}
END_TEST

START_TEST(a_slow_reader_gets_all_of_a_big_answer)
{
    struct http_fixture f;
    size_t n = 30u << 20;

    http_fixture_start(&f, NULL);
    struct client c = client_open(&f);
    client_puts(&c, "GET /big?n=31457280 HTTP/1.1\r\n" HOST "\r\n" HELLO);
    usleep(100000); /* the socket fills up */
    struct reply r = client_reply(&c, false);
    ck_assert_int_eq(r.status, 200);
    ck_assert_uint_eq(r.body.len, n);
    for (size_t i = 0; i < n; i++)
        if (r.body.data[i] != (char)('a' + i % 23))
            ck_abort_msg("wrong byte at %zu", i);
    reply_free(&r);
    r = client_reply(&c, false);
    ck_assert_str_eq(buf_cstr(&r.body), "hello");
    reply_free(&r);
    struct http_stats st = http_fixture_stats(&f);
    ck_assert_uint_gt(st.bytes_out, n);
    ck_assert_uint_eq(st.responses[2], 2);
    client_close(&c);
    http_fixture_stop(&f);
}
END_TEST

START_TEST(unix_sockets_work_too)
{
    struct http_fixture f;
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    char dir[] = "/tmp/http-unix-XXXXXX";

    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(a.sun_path, sizeof(a.sun_path), "%s/s", dir);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    ck_assert_int_eq(listen(fd, 8), 0);
    http_fixture_start_on(&f, NULL, fd);
    struct client c = {.fd = socket(AF_UNIX, SOCK_STREAM, 0), .in = BUF_INIT(65536)};
    c.in.max = 1u << 20;
    ck_assert_int_eq(connect(c.fd, (struct sockaddr *)&a, sizeof(a)), 0);
    client_puts(&c, HELLO);
    struct reply r = client_reply(&c, false);
    ck_assert_int_eq(r.status, 200);
    reply_free(&r);
    client_close(&c);
    http_fixture_stop(&f);
    unlink(a.sun_path);
    rmdir(dir);
}
END_TEST

static void count_and_answer(struct http_exchange *ex, void *ctx)
{
    ++*(int *)ctx;
    http_respond(ex, 200, "text/plain", "x", 1);
}

/* So what handlers hold until the loop turns is bounded, whoever asks at once. */
START_TEST(a_burst_is_read_in_portions)
{
    enum { CLIENTS = 300, PORTION = 64 };
    static const struct http_route routes[] = {{HTTP_GET, "/", count_and_answer, false}};
    int answered = 0, fds[CLIENTS];
    struct http_server_options opt = {.limits = http_fixture_limits,
                                      .routes = routes,
                                      .route_count = 1,
                                      .ctx = &answered};
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    struct event_base *base = event_base_new();
    struct http_server *server;

    /* Without a file: a name in the abstract space. */
    snprintf(a.sun_path + 1, sizeof(a.sun_path) - 1, "http-burst-%d", (int)getpid());
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    ck_assert_int_eq(bind(listener, (struct sockaddr *)&a, sizeof(a)), 0);
    ck_assert_int_eq(listen(listener, CLIENTS), 0);
    ck_assert_int_eq(http_server_new(base, &opt, &server), DAC_OK);
    ck_assert_int_eq(http_server_listen(server, listener), DAC_OK);
    for (int i = 0; i < CLIENTS; i++) {
        fds[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        ck_assert_int_eq(connect(fds[i], (struct sockaddr *)&a, sizeof(a)), 0);
    }
    while (http_server_connections(server) < CLIENTS)
        event_base_loop(base, EVLOOP_ONCE);
    for (int i = 0; i < CLIENTS; i++)
        ck_assert_int_eq(write(fds[i], "GET / HTTP/1.0\r\n\r\n", 18), 18);
    for (int turn = 0; answered < CLIENTS; turn++) {
        int before = answered;
        ck_assert_int_lt(turn, 100);
        event_base_loop(base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
        ck_assert_int_le(answered - before, PORTION);
    }
    http_server_free(server);
    event_base_free(base);
    close(listener);
    for (int i = 0; i < CLIENTS; i++)
        close(fds[i]);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("http_server");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 30);
    tcase_add_loop_test(tc, answers, 0, (int)DAC_ARRAY_LEN(cases));
    tcase_add_loop_test(tc, answers_byte_by_byte, 0, (int)DAC_ARRAY_LEN(cases));
    tcase_add_test(tc, expect_continue_is_answered_before_the_body);
    tcase_add_test(tc, many_pipelined_requests_are_answered_in_order);
    tcase_add_test(tc, a_held_answer_holds_what_is_behind_it);
    tcase_add_test(tc, a_refused_upload_still_sees_its_answer);
    tcase_add_test(tc, a_slow_reader_gets_all_of_a_big_answer);
    tcase_add_test(tc, unix_sockets_work_too);
    tcase_add_test(tc, a_burst_is_read_in_portions);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
