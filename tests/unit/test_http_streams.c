/*
 * Streamed answers and vanishing clients: who is told, when, and how often; what a slow
 * client costs.
 */
#include <check.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "http_fixture.h"

#define HOST   "Host: h\r\n"
#define HELLO  "GET /hello HTTP/1.1\r\n" HOST "\r\n"
#define STREAM "GET /stream HTTP/1.1\r\n" HOST "\r\n"
#define HOLD   "GET /hold HTTP/1.1\r\n" HOST "\r\n"

/* Sends `arg` as one piece to every held stream. */
static void send_all(struct http_fixture *f, void *arg)
{
    struct buf b = BUF_INIT(1u << 20);
    struct http_piece p;

    http_piece_begin(&b);
    buf_puts(&b, arg);
    ck_assert_int_eq(http_piece_end(&b, &p), DAC_OK);
    for (size_t i = 0; i < f->held_count; i++)
        if (f->held[i])
            (void)http_stream_send(f->held[i], &p);
    buf_free(&b);
}

static void end_all(struct http_fixture *f, void *arg)
{
    (void)arg;
    for (size_t i = 0; i < f->held_count; i++)
        if (f->held[i])
            http_stream_end(f->held[i]);
    f->held_count = 0;
}

static void finish_all(struct http_fixture *f, void *arg)
{
    struct buf b = BUF_INIT(1u << 20);
    struct http_piece p;

    http_piece_begin(&b);
    buf_puts(&b, arg);
    ck_assert_int_eq(http_piece_end(&b, &p), DAC_OK);
    for (size_t i = 0; i < f->held_count; i++)
        if (f->held[i])
            http_stream_finish(f->held[i], &p);
    buf_free(&b);
    f->held_count = 0;
}

static void abort_all(struct http_fixture *f, void *arg)
{
    (void)arg;
    for (size_t i = 0; i < f->held_count; i++)
        if (f->held[i])
            http_abort(f->held[i]);
    f->held_count = 0;
}

static void expect_stream(struct client *c, const char *body, bool chunked)
{
    struct reply r = client_reply(c, false);

    ck_assert_int_eq(r.status, 200);
    ck_assert(r.whole);
    ck_assert_str_eq(reply_header(&r, "X-Test"), "1");
    ck_assert_str_eq(reply_header(&r, "Content-Type"), "text/event-stream");
    ck_assert_int_eq(reply_header(&r, "Transfer-Encoding") != NULL, chunked);
    ck_assert_str_eq(buf_cstr(&r.body), body);
    reply_free(&r);
}

START_TEST(one_piece_reaches_all_dialects)
{
    struct http_fixture f;

    http_fixture_start(&f, NULL);
    struct client c = client_open(&f);
    struct client old = client_open(&f);
    struct client head = client_open(&f);
    client_puts(&c, STREAM HELLO);
    client_puts(&old, "GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    client_puts(&head, "HEAD /stream HTTP/1.1\r\n" HOST "\r\n" HELLO);
    http_fixture_await(&f.holding, 3);
    ck_assert_uint_eq(http_fixture_stats(&f).streams, 3);
    http_fixture_call(&f, send_all, (char[]){"data: 1\n\n"});
    http_fixture_call(&f, send_all, (char[]){"data: 2\n\n"});
    http_fixture_call(&f, finish_all, (char[]){"end"});

    expect_stream(&c, "data: 1\n\ndata: 2\n\nend", true);
    expect_stream(&old, "data: 1\n\ndata: 2\n\nend", false);
    struct reply r = client_reply(&head, true);
    ck_assert_int_eq(r.status, 200);
    reply_free(&r);
    r = client_reply(&c, false);
    ck_assert_str_eq(buf_cstr(&r.body), "hello");
    reply_free(&r);
    r = client_reply(&head, false);
    ck_assert_str_eq(buf_cstr(&r.body), "hello");
    reply_free(&r);
    ck_assert(client_sees_end(&old, 1000));
    ck_assert_uint_eq(http_fixture_stats(&f).streams, 0);
    client_close(&c);
    client_close(&old);
    client_close(&head);
    http_fixture_stop(&f);
    ck_assert_int_eq(atomic_load(&f.gone), 0);
}
END_TEST

START_TEST(the_head_comes_without_a_piece)
{
    struct http_fixture f;

    http_fixture_start(&f, NULL);
    struct client c = client_open(&f);
    client_puts(&c, STREAM);
    struct reply r = client_reply(&c, true);
    ck_assert_int_eq(r.status, 200);
    reply_free(&r);
    http_fixture_call(&f, end_all, NULL);
    client_puts(&c, HELLO);
    ck_assert_int_eq(c.in.len, 0);
    client_close(&c);
    http_fixture_stop(&f);
}
END_TEST

START_TEST(an_aborted_stream_does_not_look_whole)
{
    struct http_fixture f;

    http_fixture_start(&f, NULL);
    struct client c = client_open(&f);
    client_puts(&c, STREAM);
    http_fixture_await(&f.holding, 1);
    http_fixture_call(&f, send_all, (char[]){"data: 1\n\n"});
    http_fixture_call(&f, abort_all, NULL);
    struct reply r = client_reply(&c, false);
    ck_assert_int_eq(r.status, 200);
    ck_assert(!r.whole);
    reply_free(&r);
    client_close(&c);
    http_fixture_await_connections(&f, 0);
    http_fixture_stop(&f);
    ck_assert_int_eq(atomic_load(&f.gone), 0);
}
END_TEST

START_TEST(a_full_socket_goes_on_when_writable)
{
    struct http_fixture f;
    size_t pieces = 300;

    http_fixture_start(&f, NULL);
    struct client c = client_open(&f);
    client_puts(&c, "GET /pump?n=300 HTTP/1.1\r\n" HOST "\r\n" HELLO);
    usleep(50000);
    struct reply r = client_reply(&c, false);
    ck_assert(r.whole);
    ck_assert_uint_eq(r.body.len, pieces * 65536);
    for (size_t i = 0; i < r.body.len; i++)
        if (r.body.data[i] != (char)('a' + i % 65536 % 23))
            ck_abort_msg("wrong byte at %zu", i);
    reply_free(&r);
    r = client_reply(&c, false);
    ck_assert_str_eq(buf_cstr(&r.body), "hello");
    reply_free(&r);
    client_close(&c);
    http_fixture_stop(&f);
}
END_TEST

/* --- clients that vanish
 * ---------------------------------------------------------------- */

enum vanishing { CLOSES, SHUTS_DOWN, RESETS };

static const struct {
    const char *request;
    enum vanishing how;
} vanishings[] = {
    {HOLD, CLOSES},   {HOLD, SHUTS_DOWN},   {HOLD, RESETS},
    {STREAM, CLOSES}, {STREAM, SHUTS_DOWN}, {STREAM, RESETS},
};

static void vanish(struct client *c, enum vanishing how)
{
    struct linger reset = {.l_onoff = 1, .l_linger = 0};

    if (how == SHUTS_DOWN) {
        shutdown(c->fd, SHUT_WR);
        return;
    }
    if (how == RESETS)
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    client_close(c);
}

START_TEST(a_vanished_client_is_noticed_at_once)
{
    struct http_fixture f;

    http_fixture_start(&f, NULL);
    struct client c = client_open(&f);
    client_puts(&c, vanishings[_i].request);
    http_fixture_await(&f.holding, 1);
    uint64_t start = clock_now_ns();
    vanish(&c, vanishings[_i].how);
    http_fixture_await(&f.gone, 1);
    ck_assert_uint_lt(clock_now_ns() - start, 500 * NS_PER_MS);
    http_fixture_await_connections(&f, 0);
    ck_assert_uint_eq(http_fixture_stats(&f).streams, 0);
    if (c.fd >= 0)
        client_close(&c);
    http_fixture_stop(&f);
    ck_assert_int_eq(atomic_load(&f.gone), 1);
}
END_TEST

/* The loop does not turn between the reset and the sends, so a send is what finds it out.
 */
static void send_to_the_dead(struct http_fixture *f, void *arg)
{
    struct http_piece piece = {"1\r\nx\r\n", 6, "x", 1};

    vanish(arg, RESETS);
    usleep(20000);
    enum dac_err first = http_stream_send(f->held[0], &piece);
    ck_assert_int_eq(first, DAC_E_CLOSED);
    ck_assert_int_eq(http_stream_send(f->held[0], &piece), DAC_E_CLOSED);
    ck_assert_int_eq(atomic_load(&f->gone), 0); /* never from inside the call */
}

START_TEST(a_send_to_a_dead_client_tells_once_and_later)
{
    struct http_fixture f;

    http_fixture_start(&f, NULL);
    struct client c = client_open(&f);
    client_puts(&c, STREAM);
    struct reply r = client_reply(&c, true);
    reply_free(&r);
    http_fixture_call(&f, send_to_the_dead, &c);
    http_fixture_await(&f.gone, 1);
    http_fixture_await_connections(&f, 0);
    http_fixture_stop(&f);
    ck_assert_int_eq(atomic_load(&f.gone), 1);
}
END_TEST

static void send_and_end_dead(struct http_fixture *f, void *arg)
{
    send_to_the_dead(f, arg);
    end_all(f, NULL);
}

START_TEST(an_ended_stream_is_not_told_gone)
{
    struct http_fixture f;

    http_fixture_start(&f, NULL);
    struct client c = client_open(&f);
    client_puts(&c, STREAM);
    struct reply r = client_reply(&c, true);
    reply_free(&r);
    http_fixture_call(&f, send_and_end_dead, &c);
    http_fixture_await_connections(&f, 0);
    http_fixture_stop(&f);
    ck_assert_int_eq(atomic_load(&f.gone), 0);
}
END_TEST

START_TEST(a_client_that_takes_nothing_is_cut_off)
{
    struct http_fixture f;
    struct http_limits limits = http_fixture_limits;

    limits.client_stall_timeout_ns = 200 * NS_PER_MS;
    http_fixture_start(&f, &limits);
    struct client whole = client_open(&f);
    struct client stream = client_open(&f);
    client_puts(&whole, "GET /big?n=31457280 HTTP/1.1\r\n" HOST "\r\n");
    client_puts(&stream, "GET /pump?n=1000 HTTP/1.1\r\n" HOST "\r\n");
    http_fixture_await(&f.gone, 1);
    http_fixture_await_connections(&f, 0);
    ck_assert_uint_eq(http_fixture_stats(&f).stalled, 2);
    struct reply r = client_reply(&whole, false);
    ck_assert_int_eq(r.status, 200);
    ck_assert(!r.whole);
    reply_free(&r);
    client_close(&whole);
    client_close(&stream);
    http_fixture_stop(&f);
    ck_assert_int_eq(atomic_load(&f.gone), 1);
}
END_TEST

/* Slower than the stall limit in all, but never without progress. */
START_TEST(a_slow_client_is_not_cut_off)
{
    struct http_fixture f;
    struct http_limits limits = http_fixture_limits;
    struct timespec nap = {.tv_nsec = 20 * (long)NS_PER_MS};
    static char sink[1u << 20];
    size_t total = 0;
    ssize_t n;

    limits.client_stall_timeout_ns = 250 * NS_PER_MS;
    http_fixture_start(&f, &limits);
    struct client c = client_open(&f);
    client_puts(&c, "GET /big?n=31457280 HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n");
    while ((n = recv(c.fd, sink, sizeof(sink), 0)) > 0) {
        total += (size_t)n;
        nanosleep(&nap, NULL);
    }
    ck_assert_uint_gt(total, 31457280);
    ck_assert_uint_eq(http_fixture_stats(&f).stalled, 0);
    client_close(&c);
    http_fixture_stop(&f);
}
END_TEST

START_TEST(a_flood_behind_a_held_answer_is_cut_off)
{
    struct http_fixture f;
    char junk[4096];

    memset(junk, 'x', sizeof(junk));
    http_fixture_start(&f, NULL);
    struct client c = client_open(&f);
    client_puts(&c, HOLD);
    http_fixture_await(&f.holding, 1);
    for (int i = 0; i < 200; i++)
        client_send(&c, junk, sizeof(junk));
    http_fixture_await(&f.gone, 1);
    http_fixture_await_connections(&f, 0);
    client_close(&c);
    http_fixture_stop(&f);
    ck_assert_int_eq(atomic_load(&f.gone), 1);
}
END_TEST

START_TEST(freeing_the_server_tells_every_exchange)
{
    struct http_fixture f;

    http_fixture_start(&f, NULL);
    struct client a = client_open(&f);
    struct client b = client_open(&f);
    client_puts(&a, HOLD HELLO);
    client_puts(&b, STREAM);
    http_fixture_await(&f.holding, 2);
    http_fixture_stop(&f);
    ck_assert_int_eq(atomic_load(&f.gone), 2);
    client_close(&a);
    client_close(&b);
}
END_TEST

#ifndef __SANITIZE_ADDRESS__
/* The last byte is what counts here: bookkeeping of malloc and libevent included. */
START_TEST(a_waiting_follower_takes_a_kilobyte)
{
    enum { CLIENTS = 400 };
    static struct client clients[CLIENTS];
    struct http_fixture f;

    mallopt(M_ARENA_MAX, 1);
    mallopt(M_MMAP_THRESHOLD, 1 << 30);
    http_fixture_start(&f, NULL);
    for (int i = 0; i < CLIENTS; i++)
        clients[i] = client_open(&f);
    http_fixture_await_connections(&f, CLIENTS);
    /* One round first, so that tables which grow once are grown. */
    for (int i = 0; i < CLIENTS; i++) {
        client_puts(&clients[i], HELLO);
        struct reply r = client_reply(&clients[i], false);
        reply_free(&r);
        buf_free(&clients[i].in);
    }
    size_t idle = mallinfo2().uordblks;
    for (int i = 0; i < CLIENTS; i++)
        client_puts(&clients[i], STREAM);
    http_fixture_await(&f.holding, CLIENTS);
    http_fixture_call(&f, send_all, (char[]){": ping\n\n"});
    usleep(50000);
    size_t streaming = mallinfo2().uordblks;
    for (int i = 0; i < CLIENTS; i++)
        client_close(&clients[i]);
    http_fixture_await_connections(&f, 0);
    http_fixture_stop(&f);
    size_t none = mallinfo2().uordblks;

    size_t each = (streaming - none) / CLIENTS;
    size_t more = (streaming - idle) / CLIENTS;
    if (getenv("V"))
        printf("per waiting stream: %zu bytes, of these %zu more than idle\n", each,
               more);
    ck_assert_uint_le(each, 1024);
}
END_TEST
#endif

int main(void)
{
    Suite *s = suite_create("http_streams");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 30);
    tcase_add_test(tc, one_piece_reaches_all_dialects);
    tcase_add_test(tc, the_head_comes_without_a_piece);
    tcase_add_test(tc, an_aborted_stream_does_not_look_whole);
    tcase_add_test(tc, a_full_socket_goes_on_when_writable);
    tcase_add_loop_test(tc, a_vanished_client_is_noticed_at_once, 0,
                        (int)DAC_ARRAY_LEN(vanishings));
    tcase_add_test(tc, a_send_to_a_dead_client_tells_once_and_later);
    tcase_add_test(tc, an_ended_stream_is_not_told_gone);
    tcase_add_test(tc, a_client_that_takes_nothing_is_cut_off);
    tcase_add_test(tc, a_slow_client_is_not_cut_off);
    tcase_add_test(tc, a_flood_behind_a_held_answer_is_cut_off);
    tcase_add_test(tc, freeing_the_server_tells_every_exchange);
#ifndef __SANITIZE_ADDRESS__
    tcase_add_test(tc, a_waiting_follower_takes_a_kilobyte);
#endif
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
