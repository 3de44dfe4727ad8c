/*
 * What the server does not wait for: slow heads and bodies, idle connections, descriptors
 * that are not there; and how it drains.
 */
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "http_fixture.h"

#define HOST  "Host: h\r\n"
#define HELLO "GET /hello HTTP/1.1\r\n" HOST "\r\n"
#define HOLD  "GET /hold HTTP/1.1\r\n" HOST "\r\n"

static const struct {
    const char *raw;
    int status[2]; /* of the answers; 0: none */
    const char *says;
} timeouts[] = {
    {"", {0}, NULL},
    {"\r\n", {0}, NULL},
    {"G", {408}, "the request's head took too long"},
    {"GET /hello HTTP/1.1\r\n" HOST, {408}, "head"},
    {HELLO, {200}, NULL},
    {HELLO "GET", {200, 408}, "head"},
    {"POST /echo HTTP/1.1\r\n" HOST "Content-Length: 3\r\n\r\nab",
     {408},
     "the request's body took too long"},
    {"POST /echo HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n2\r\n",
     {408},
     "body"},
};

START_TEST(waits_end)
{
    struct http_fixture f;
    struct http_limits limits = http_fixture_limits;

    limits.header_timeout_ns = 150 * NS_PER_MS;
    limits.body_timeout_ns = 150 * NS_PER_MS;
    limits.keepalive_timeout_ns = 150 * NS_PER_MS;
    http_fixture_start(&f, &limits);
    struct client c = client_open(&f);
    uint64_t start = clock_now_ns();
    client_puts(&c, timeouts[_i].raw);
    for (size_t i = 0; i < 2 && timeouts[_i].status[i]; i++) {
        struct reply r = client_reply(&c, false);
        ck_assert_int_eq(r.status, timeouts[_i].status[i]);
        if (r.status == 408) {
            ck_assert_ptr_nonnull(strstr(buf_cstr(&r.body), timeouts[_i].says));
            ck_assert_str_eq(reply_header(&r, "Connection"), "close");
        }
        reply_free(&r);
    }
    ck_assert(client_sees_end(&c, 2000));
    uint64_t took = clock_now_ns() - start;
    ck_assert_uint_ge(took, 140 * NS_PER_MS);
    ck_assert_uint_lt(took, 1500 * NS_PER_MS);
    client_close(&c);
    http_fixture_await_connections(&f, 0);
    http_fixture_stop(&f);
}
END_TEST

/* A byte now and then does not prolong the wait for a whole head. */
START_TEST(a_dripping_head_is_not_waited_for)
{
    struct http_fixture f;
    struct http_limits limits = http_fixture_limits;
    int sent = 0;

    limits.header_timeout_ns = 200 * NS_PER_MS;
    http_fixture_start(&f, &limits);
    struct client c = client_open(&f);
    client_puts(&c, "GET /hello HTTP/1.1\r\nx: ");
    while (sent < 100 && !client_sees_end(&c, 20)) {
        char byte;
        if (recv(c.fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) > 0)
            break;
        client_puts(&c, "x");
        sent++;
    }
    ck_assert_int_lt(sent, 50);
    struct reply r = client_reply(&c, false);
    ck_assert_int_eq(r.status, 408);
    reply_free(&r);
    client_close(&c);
    http_fixture_stop(&f);
}
END_TEST

static void set_limits(struct http_fixture *f, void *arg)
{
    http_server_set_limits(f->server, arg);
}

START_TEST(changed_limits_hold)
{
    struct http_fixture f;
    struct http_limits limits = http_fixture_limits;

    limits.keepalive_timeout_ns = 100 * NS_PER_S;
    http_fixture_start(&f, &limits);
    struct client c = client_open(&f);
    client_puts(&c, HELLO);
    struct reply r = client_reply(&c, false);
    reply_free(&r);
    ck_assert(!client_sees_end(&c, 200));
    limits.keepalive_timeout_ns = 100 * NS_PER_MS;
    limits.body_max = 1;
    http_fixture_call(&f, set_limits, &limits);
    ck_assert(client_sees_end(&c, 1000));
    client_close(&c);

    c = client_open(&f);
    client_puts(&c, "POST /echo HTTP/1.1\r\n" HOST "Content-Length: 2\r\n\r\n");
    r = client_reply(&c, false);
    ck_assert_int_eq(r.status, 413);
    reply_free(&r);
    client_close(&c);
    http_fixture_stop(&f);
}
END_TEST

/* --- draining
 * ------------------------------------------------------------------------------ */

static void drain(struct http_fixture *f, void *arg)
{
    (void)arg;
    http_server_drain(f->server);
}

static void respond_all(struct http_fixture *f, void *arg)
{
    (void)arg;
    for (size_t i = 0; i < f->held_count; i++)
        if (f->held[i])
            http_respond(f->held[i], 200, "text/plain", "held", 4);
    f->held_count = 0;
}

START_TEST(draining_serves_what_has_begun)
{
    struct http_fixture f;

    http_fixture_start(&f, NULL);
    struct client idle = client_open(&f);
    struct client held = client_open(&f);
    struct client head = client_open(&f);
    client_puts(&idle, HELLO);
    struct reply r = client_reply(&idle, false);
    reply_free(&r);
    client_puts(&held, HOLD);
    client_puts(&head, "GET /hello HT");
    http_fixture_await(&f.holding, 1);
    http_fixture_await_connections(&f, 3);
    usleep(20000);
    http_fixture_call(&f, drain, NULL);

    ck_assert(client_sees_end(&idle, 1000));
    ck_assert(!client_sees_end(&held, 50));
    client_puts(&head, "TP/1.1\r\n" HOST "\r\n");
    r = client_reply(&head, false);
    ck_assert_int_eq(r.status, 200);
    ck_assert_str_eq(reply_header(&r, "Connection"), "close");
    reply_free(&r);
    ck_assert(client_sees_end(&head, 1000));

    http_fixture_call(&f, respond_all, NULL);
    r = client_reply(&held, false);
    ck_assert_str_eq(buf_cstr(&r.body), "held");
    ck_assert_str_eq(reply_header(&r, "Connection"), "close");
    reply_free(&r);
    ck_assert(client_sees_end(&held, 1000));
    client_close(&idle);
    client_close(&held);
    client_close(&head);
    http_fixture_await_connections(&f, 0);

    struct client late = client_open(&f); /* the backlog is another's */
    client_puts(&late, HELLO);
    ck_assert(!client_sees_end(&late, 50));
    ck_assert_uint_eq(http_fixture_stats(&f).accepted, 3);
    client_close(&late);
    http_fixture_stop(&f);
}
END_TEST

static void retire(struct http_fixture *f, void *arg)
{
    (void)arg;
    http_server_retire(f->server);
}

/* Others serve on: who is connected may ask once more, also for the first time. */
START_TEST(retiring_answers_who_is_connected)
{
    struct http_fixture f;

    http_fixture_start(&f, NULL);
    struct client fresh = client_open(&f);
    struct client used = client_open(&f);
    struct client silent = client_open(&f);
    client_puts(&used, HELLO);
    struct reply r = client_reply(&used, false);
    reply_free(&r);
    http_fixture_await_connections(&f, 3);
    http_fixture_call(&f, retire, NULL);

    struct client *asking[] = {&fresh, &used};
    for (size_t i = 0; i < 2; i++) {
        ck_assert(!client_sees_end(asking[i], 50));
        client_puts(asking[i], HELLO);
        r = client_reply(asking[i], false);
        ck_assert_int_eq(r.status, 200);
        ck_assert_str_eq(reply_header(&r, "Connection"), "close");
        reply_free(&r);
        ck_assert(client_sees_end(asking[i], 1000));
    }
    struct client late = client_open(&f);
    client_puts(&late, HELLO);
    ck_assert(!client_sees_end(&late, 50));
    http_fixture_call(&f, drain, NULL);
    ck_assert(client_sees_end(&silent, 1000));
    ck_assert_uint_eq(http_fixture_stats(&f).accepted, 3);
    client_close(&fresh);
    client_close(&used);
    client_close(&silent);
    client_close(&late);
    http_fixture_stop(&f);
}
END_TEST

static void send_then_drain(struct http_fixture *f, void *arg)
{
    client_puts(arg, HELLO); /* in the socket, but not yet read */
    usleep(10000);
    http_server_drain(f->server);
}

START_TEST(draining_does_not_strand_a_sent_request)
{
    struct http_fixture f;

    http_fixture_start(&f, NULL);
    struct client c = client_open(&f);
    client_puts(&c, HELLO);
    struct reply r = client_reply(&c, false);
    reply_free(&r);
    http_fixture_call(&f, send_then_drain, &c);
    r = client_reply(&c, false);
    ck_assert_int_eq(r.status, 200);
    ck_assert_str_eq(reply_header(&r, "Connection"), "close");
    reply_free(&r);
    client_close(&c);
    http_fixture_await_connections(&f, 0);
    http_fixture_stop(&f);
}
END_TEST

static void unlisten(struct http_fixture *f, void *arg)
{
    (void)arg;
    http_server_unlisten(f->server, f->listen_fd);
    http_server_unlisten(f->server, f->listen_fd);
}

static void listen_again(struct http_fixture *f, void *arg)
{
    (void)arg;
    ck_assert_int_eq(http_server_listen(f->server, f->listen_fd), DAC_OK);
}

static void expect_hello(struct client *c)
{
    struct reply r = client_reply(c, false);

    ck_assert_int_eq(r.status, 200);
    ck_assert_str_eq(buf_cstr(&r.body), "hello");
    reply_free(&r);
}

START_TEST(listening_stops_and_starts)
{
    struct http_fixture f;

    http_fixture_start(&f, NULL);
    http_fixture_call(&f, unlisten, NULL);
    struct client c = client_open(&f);
    client_puts(&c, HELLO);
    ck_assert(!client_sees_end(&c, 50));
    ck_assert_uint_eq(http_fixture_stats(&f).accepted, 0);
    http_fixture_call(&f, listen_again, NULL);
    expect_hello(&c);
    client_close(&c);
    http_fixture_stop(&f);
}
END_TEST

/* --- accepting pauses
 * ----------------------------------------------------------------------- */

START_TEST(accepting_pauses_at_the_limit)
{
    struct http_fixture f;

    log_set_level(LOG_LEVEL_ERROR);
    http_fixture_start(&f, NULL);
    atomic_store(&f.refuse, true);
    struct client c = client_open(&f);
    client_puts(&c, HELLO);
    usleep(350000);
    struct http_stats st = http_fixture_stats(&f);
    ck_assert_uint_eq(st.accepted, 0);
    ck_assert_uint_ge(st.accept_pauses, 2);
    ck_assert_uint_le(st.accept_pauses, 5);
    atomic_store(&f.refuse, false);
    expect_hello(&c);
    client_close(&c);
    http_fixture_stop(&f);
}
END_TEST

START_TEST(accepting_pauses_without_descriptors)
{
    struct http_fixture f;
    struct client clients[8];
    struct rlimit limit;
    struct rlimit tight;

    log_set_level(LOG_LEVEL_ERROR);
    http_fixture_start(&f, NULL);
    for (size_t i = 0; i < DAC_ARRAY_LEN(clients); i++) {
        clients[i] = client_open(&f);
        if (i == 3) {
            http_fixture_await_connections(&f, 4);
            http_fixture_call(&f, unlisten, NULL);
        }
    }
    getrlimit(RLIMIT_NOFILE, &limit);
    int next = fcntl(0, F_DUPFD, 0); /* the lowest free number */
    close(next);
    tight = limit;
    tight.rlim_cur = (rlim_t)next + 2; /* for two of the four that wait */
    setrlimit(RLIMIT_NOFILE, &tight);
    http_fixture_call(&f, listen_again, NULL);
    http_fixture_await_connections(&f, 6);
    usleep(350000);
    struct http_stats st = http_fixture_stats(&f);
    ck_assert_uint_eq(st.connections, 6);
    ck_assert_uint_ge(st.accept_pauses, 2);
    ck_assert_uint_le(st.accept_pauses, 6);
    client_puts(&clients[0], HELLO); /* the others are served meanwhile */
    expect_hello(&clients[0]);

    setrlimit(RLIMIT_NOFILE, &limit);
    http_fixture_await_connections(&f, 8);
    client_puts(&clients[7], HELLO);
    expect_hello(&clients[7]);
    for (size_t i = 0; i < DAC_ARRAY_LEN(clients); i++)
        client_close(&clients[i]);
    http_fixture_stop(&f);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("http_waits");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 30);
    tcase_add_loop_test(tc, waits_end, 0, (int)DAC_ARRAY_LEN(timeouts));
    tcase_add_test(tc, a_dripping_head_is_not_waited_for);
    tcase_add_test(tc, changed_limits_hold);
    tcase_add_test(tc, draining_serves_what_has_begun);
    tcase_add_test(tc, retiring_answers_who_is_connected);
    tcase_add_test(tc, draining_does_not_strand_a_sent_request);
    tcase_add_test(tc, listening_stops_and_starts);
    tcase_add_test(tc, accepting_pauses_at_the_limit);
    tcase_add_test(tc, accepting_pauses_without_descriptors);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
