/*
 * Calls over HTTP/1.1 against a scripted provider: how they end, what is sent, reuse of
 * connections, pausing, and that a cancelled call is told to the provider at once in
 * every phase.
 */
#include <arpa/inet.h>
#include <check.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/json.h"
#include "upstream_fixture.h"

#define TOLD_NS (100 * NS_PER_MS)
#define KB      "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"

#define STATUS(code, more)                                                               \
    "HTTP/1.1 " code " X\r\nContent-Type: application/json\r\n" more                     \
    "Content-Length: 33\r\n\r\n{\"error\":{\"message\":\"said so 1\"}}"

static const struct script scripts[] = {
    {"good", {HEAD, TEXT("a"), TEXT("b"), STOP, DONE, LAST_CHUNK}, AFTER_KEEP, 0, 0},
    {"good, then closed",
     {HEAD, TEXT("a"), TEXT("b"), STOP, DONE, LAST_CHUNK},
     AFTER_CLOSE,
     0,
     0},
    {"slow", {HEAD, TEXT("a"), TEXT("b"), STOP, DONE, LAST_CHUNK}, AFTER_KEEP, 20, 20},
    {"continue",
     {"HTTP/1.1 100 Continue\r\n\r\n", HEAD, TEXT("a"), TEXT("b"), STOP, DONE,
      LAST_CHUNK},
     AFTER_KEEP,
     0,
     0},
    {"no mark", {HEAD, TEXT("a"), TEXT("b"), STOP, LAST_CHUNK}, AFTER_KEEP, 0, 0},
    {"until close",
     {"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\ndata: "
      "{\"choices\":[{\"delta\":{\"content\":\"ab\"},\"finish_reason\":\"stop\"}]}\n\n",
      "data"},
     AFTER_CLOSE,
     0,
     0},
    {"left open", {HEAD, TEXT("a"), TEXT("b"), STOP, DONE}, AFTER_HOLD, 0, 0},
    {"cut", {HEAD, TEXT("a"), TEXT("b")}, AFTER_CLOSE, 0, 0},
    {"cut before the mark", {HEAD, TEXT("a"), TEXT("b"), STOP}, AFTER_CLOSE, 0, 0},
    {"reset", {HEAD, TEXT("a"), TEXT("b")}, AFTER_RESET, 20, 0},
    {"ended", {HEAD, TEXT("a"), TEXT("b"), LAST_CHUNK}, AFTER_KEEP, 0, 0},
    {"cut at once", {HEAD}, AFTER_CLOSE, 0, 0},
    {"no answer", {NULL}, AFTER_CLOSE, 0, 0},
    {"no answer, late", {NULL}, AFTER_CLOSE, 0, 700},
    {"no HTTP", {"hello there\r\n\r\n"}, AFTER_CLOSE, 0, 0},
    {"no chunks", {HEAD, TEXT("a"), TEXT("b"), "zzz\r\nabc"}, AFTER_CLOSE, 0, 0},
    {"junk",
     {HEAD, TEXT("a"), TEXT("b"), "data: {\"a\":\n\n", STOP, DONE, LAST_CHUNK},
     AFTER_KEEP,
     0,
     0},
    {"error",
     {HEAD, TEXT("a"), TEXT("b"), "data: {\"error\":{\"message\":\"x\"}}\n\n"},
     AFTER_HOLD,
     0,
     0},
    {"error at once",
     {HEAD, "data: {\"error\":{\"message\":\"x\"}}\n\n", LAST_CHUNK},
     AFTER_KEEP,
     0,
     0},
    {"empty", {HEAD, LAST_CHUNK}, AFTER_KEEP, 0, 0},
    {"silence", {HEAD}, AFTER_HOLD, 0, 0},
    {"deaf", {NULL}, AFTER_HOLD, 0, 0},
    {"stall", {HEAD, TEXT("a"), TEXT("b")}, AFTER_HOLD, 0, 0},
    {"only pings",
     {HEAD, TEXT("a"), TEXT("b"), ": p\n\n", ": p\n\n", ": p\n\n", ": p\n\n", ": p\n\n",
      ": p\n\n", ": p\n\n", ": p\n\n", ": p\n\n"},
     AFTER_HOLD,
     50,
     0},
    {"400", {STATUS("400", "")}, AFTER_KEEP, 0, 0},
    {"401", {STATUS("401", "")}, AFTER_KEEP, 0, 0},
    {"429", {STATUS("429", "Retry-After: 7\r\n")}, AFTER_KEEP, 0, 0},
    {"500", {STATUS("500", "Retry-After: 7\r\n")}, AFTER_KEEP, 0, 0},
    {"503", {STATUS("503", "retry-after:  3 \r\n")}, AFTER_KEEP, 0, 0},
    {"500, cut",
     {"HTTP/1.1 500 X\r\nContent-Length: 100\r\n\r\n{\"error\":"},
     AFTER_CLOSE,
     0,
     0},
    {"302",
     {"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: "
      "5\r\n\r\nhello"},
     AFTER_KEEP,
     0,
     0},
    {"page",
     {"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\nhello"},
     AFTER_KEEP,
     0,
     0},
    {"no type", {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"}, AFTER_KEEP, 0, 0},
    {"204", {"HTTP/1.1 204 X\r\n\r\n"}, AFTER_KEEP, 0, 0},
    {"JSON", {STATUS("200", "")}, AFTER_KEEP, 0, 0},
    {"whole answer",
     {"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
      "2\r\n\r\n{}"},
     AFTER_KEEP,
     0,
     0},
    {"long",
     {HEAD, TEXT(KB), TEXT(KB), TEXT(KB), STOP, DONE, LAST_CHUNK},
     AFTER_KEEP,
     0,
     0},
    {NULL, {NULL}, AFTER_KEEP, 0, 0},
};

static struct fake_provider provider;
static struct caller caller;

static void setup(void)
{
    provider = (struct fake_provider){.fd = -1};
    provider_start(&provider, scripts);
    caller_open(&caller, &provider);
}

static void teardown(void)
{
    caller_close(&caller);
    provider_stop(&provider);
}

/* --- how calls end --------------------------------------------------------------------
 */

static const struct {
    const char *script;
    enum upstream_outcome outcome;
    int status;
    const char *code;
    const char *text;
    bool retryable;
    unsigned retry_after_ms;
} ends[] = {
    {"good", UPSTREAM_COMPLETE, 200, "", "ab", false, 0},
    {"slow", UPSTREAM_COMPLETE, 200, "", "ab", false, 0},
    {"continue", UPSTREAM_COMPLETE, 200, "", "ab", false, 0},
    {"no mark", UPSTREAM_COMPLETE, 200, "", "ab", false, 0},
    {"until close", UPSTREAM_COMPLETE, 200, "", "ab", false, 0},
    {"left open", UPSTREAM_COMPLETE, 200, "", "ab", false, 0},
    {"cut", UPSTREAM_BROKEN, 200, "cut_off", "ab", false, 0},
    {"cut before the mark", UPSTREAM_BROKEN, 200, "cut_off", "ab", false, 0},
    {"reset", UPSTREAM_BROKEN, 200, "cut_off", "ab", false, 0},
    {"ended", UPSTREAM_BROKEN, 200, "cut_off", "ab", false, 0},
    {"cut at once", UPSTREAM_BAD, 200, "cut_off", "", true, 0},
    {"no answer", UPSTREAM_BAD, 0, "cut_off", "", true, 0},
    {"no HTTP", UPSTREAM_BAD, 0, "malformed_stream", "", true, 0},
    {"no chunks", UPSTREAM_BROKEN, 200, "cut_off", "ab", false, 0},
    {"junk", UPSTREAM_BROKEN, 200, "malformed_stream", "ab", false, 0},
    {"error", UPSTREAM_BROKEN, 200, "provider_error", "ab", false, 0},
    {"error at once", UPSTREAM_BAD, 200, "provider_error", "", true, 0},
    {"empty", UPSTREAM_BAD, 200, "empty_answer", "", true, 0},
    {"silence", UPSTREAM_TIMEOUT, 200, "first_token_timeout", "", true, 0},
    {"deaf", UPSTREAM_TIMEOUT, 0, "first_token_timeout", "", true, 0},
    {"stall", UPSTREAM_BROKEN, 200, "stall_timeout", "ab", false, 0},
    {"only pings", UPSTREAM_BROKEN, 200, "stall_timeout", "ab", false, 0},
    {"400", UPSTREAM_REFUSED, 400, "provider_refused", "", false, 0},
    {"401", UPSTREAM_AUTH, 401, "provider_auth", "", false, 0},
    {"429", UPSTREAM_RATE_LIMITED, 429, "rate_limited", "", true, 7000},
    {"500", UPSTREAM_BAD, 500, "provider_error", "", true, 0},
    {"503", UPSTREAM_OVERLOADED, 503, "overloaded", "", true, 3000},
    {"500, cut", UPSTREAM_BAD, 500, "provider_error", "", true, 0},
    {"302", UPSTREAM_BAD, 302, "redirect", "", false, 0},
    {"page", UPSTREAM_BAD, 200, "bad_content_type", "", false, 0},
    {"no type", UPSTREAM_BAD, 200, "bad_content_type", "", false, 0},
    {"204", UPSTREAM_BAD, 204, "bad_content_type", "", false, 0},
    {"JSON", UPSTREAM_BAD, 200, "provider_error", "", true, 0},
    {"whole answer", UPSTREAM_BAD, 200, "bad_content_type", "", false, 0},
};

START_TEST(ends_as_it_did)
{
    struct probe p = {.ended = 0};

    caller.provider.first_token_timeout_ns = 400 * NS_PER_MS;
    caller.provider.stall_timeout_ns = 200 * NS_PER_MS;
    probe_start(&p, &caller, ends[_i].script);
    caller_run_until(&caller, &p.ended, 1);
    caller_run(&caller, 10);
    ck_assert_msg(
        p.end.outcome == ends[_i].outcome && strcmp(p.end.code, ends[_i].code) == 0,
        "%s: %d %s (%s)", ends[_i].script, (int)p.end.outcome, p.end.code, p.end.message);
    ck_assert_int_eq(p.end.http_status, ends[_i].status);
    ck_assert_str_eq(buf_cstr(&p.text), ends[_i].text);
    ck_assert_int_eq(p.end.retryable, ends[_i].retryable);
    ck_assert_uint_eq(p.end.retry_after_ms, ends[_i].retry_after_ms);
    ck_assert_str_eq(p.end.finish_reason,
                     p.end.outcome == UPSTREAM_COMPLETE ? "stop" : "");
    ck_assert_int_eq(p.ended, 1);
    ck_assert_int_le(p.accepted, 1);
    ck_assert_uint_eq(upstream_active(caller.u), 0);
    probe_free(&p);
}
END_TEST

START_TEST(nobody_there)
{
    struct probe p = {.ended = 0};

    close(provider.fd); /* the accepting thread sees errors until the end */
    caller.provider.base_url = "http://127.0.0.1:1/v1";
    probe_start(&p, &caller, "good");
    caller_run_until(&caller, &p.ended, 1);
    ck_assert_int_eq(p.end.outcome, UPSTREAM_BAD);
    ck_assert_str_eq(p.end.code, "connect_failed");
    ck_assert(p.end.retryable);
    ck_assert_ptr_null(strstr(p.end.message, "127.0.0.1"));
    probe_free(&p);
}
END_TEST

START_TEST(an_answer_has_a_limit)
{
    struct probe p = {.ended = 0};

    caller.provider.answer_max_bytes = 100;
    probe_start(&p, &caller, "long");
    caller_run_until(&caller, &p.ended, 1);
    ck_assert_int_eq(p.end.outcome, UPSTREAM_TOO_LARGE);
    ck_assert_uint_eq(p.text.len, strlen(KB));
    probe_free(&p);
}
END_TEST

static const struct {
    const char *dialect;
    const char *url;
    const char *key;
} invalid[] = {
    {"unknown", "http://127.0.0.1:1", NULL},
    {"openai", "http://127.0.0.1:1\r\nHost: x", NULL},
    {"openai", "http://127.0.0.1:1", "a\r\nX-Evil: 1"},
};

START_TEST(refuses_what_it_cannot_ask)
{
    struct json_object *messages = json_object_new_array();
    struct upstream_request req = {.model = "m", .messages = messages};
    struct upstream_ops none = {.on_accepted = NULL};
    struct upstream_call *call;
    struct upstream_provider p = caller.provider;

    p.dialect = invalid[_i].dialect;
    p.base_url = invalid[_i].url;
    p.api_key = invalid[_i].key;
    ck_assert_int_eq(upstream_start(caller.u, &p, &req, &none, NULL, &call),
                     DAC_E_INVALID);
    ck_assert_ptr_null(call);
    ck_assert_uint_eq(upstream_active(caller.u), 0);
    json_object_put(messages);
    caller_run(&caller, 10);
}
END_TEST

/* --- what is sent ---------------------------------------------------------------------
 */

START_TEST(sends_a_proper_request)
{
    struct probe p = {.ended = 0};
    struct json_error err;
    struct json_object *body;

    setenv("http_proxy", "http://127.0.0.1:1/", 1);
    setenv("ALL_PROXY", "http://127.0.0.1:1/", 1);
    probe_start(&p, &caller, "good");
    caller_run_until(&caller, &p.ended, 1);
    ck_assert_int_eq(p.end.outcome, UPSTREAM_COMPLETE);
    const char *head = buf_cstr(&provider.last);
    const char *end = strstr(head, "\r\n\r\n");
    ck_assert_int_eq(strncmp(head, "POST /v1/chat/completions HTTP/1.1\r\n", 36), 0);
    ck_assert_ptr_nonnull(strstr(head, "\r\nAuthorization: Bearer sk-test-key\r\n"));
    ck_assert_ptr_nonnull(strstr(head, "\r\nContent-Type: application/json\r\n"));
    ck_assert_ptr_nonnull(strstr(head, "\r\nAccept: text/event-stream\r\n"));
    ck_assert_ptr_nonnull(strstr(head, "\r\nUser-Agent: dac/"));
    ck_assert_ptr_null(strcasestr(head, "\r\nexpect:"));
    ck_assert_ptr_null(strcasestr(head, "\r\naccept-encoding:"));
    ck_assert_int_eq(json_parse_strict(end + 4, strlen(end + 4), &body, &err), DAC_OK);
    ck_assert_str_eq(json_object_get_string(json_object_object_get(body, "model")),
                     "m-1");
    ck_assert(json_object_get_boolean(json_object_object_get(body, "stream")));
    json_object_put(body);
    probe_free(&p);
}
END_TEST

START_TEST(one_connection_serves_many_calls)
{
    for (int i = 0; i < 20; i++) {
        struct probe p = {.ended = 0};
        probe_start(&p, &caller, "good");
        caller_run_until(&caller, &p.ended, 1);
        caller_run(&caller, 5);
        ck_assert_int_eq(p.end.outcome, UPSTREAM_COMPLETE);
        probe_free(&p);
    }
    ck_assert_int_eq(atomic_load(&provider.accepted), 1);
}
END_TEST

START_TEST(a_connection_closed_while_idle_costs_nothing)
{
    for (int i = 0; i < 5; i++) {
        struct probe p = {.ended = 0};
        probe_start(&p, &caller, "good, then closed");
        caller_run_until(&caller, &p.ended, 1);
        caller_run(&caller, i < 3 ? 20 : 0);
        ck_assert_int_eq(p.end.outcome, UPSTREAM_COMPLETE);
        probe_free(&p);
    }
    ck_assert_int_eq(atomic_load(&provider.requests), 5);
}
END_TEST

/* The provider takes the request from a connection it has used, and dies over it. */
START_TEST(a_request_is_sent_once)
{
    struct probe p = {.ended = 0};
    struct probe q = {.ended = 0};

    probe_start(&p, &caller, "good");
    caller_run_until(&caller, &p.ended, 1);
    caller_run(&caller, 5);
    probe_start(&q, &caller, "no answer, late");
    caller_run_until(&caller, &q.ended, 1);
    ck_assert_int_eq(q.end.outcome, UPSTREAM_BAD);
    ck_assert_str_eq(q.end.code, "cut_off");
    ck_assert(q.end.retryable);
    ck_assert_int_eq(atomic_load(&provider.requests), 2);
    probe_free(&p);
    probe_free(&q);
}
END_TEST

START_TEST(a_request_is_sent_twice_at_most)
{
    struct probe p = {.ended = 0};
    struct probe q = {.ended = 0};

    probe_start(&p, &caller, "good");
    caller_run_until(&caller, &p.ended, 1);
    caller_run(&caller, 5);
    probe_start(&q, &caller, "no answer");
    caller_run_until(&caller, &q.ended, 1);
    ck_assert_int_eq(q.end.outcome, UPSTREAM_BAD);
    ck_assert_int_le(atomic_load(&provider.requests), 3);
    probe_free(&p);
    probe_free(&q);
}
END_TEST

/* --- cancelling -----------------------------------------------------------------------
 */

static const struct {
    const char *script;
    int texts; /* wait for these */
    bool in_callback;
} phases[] = {
    {"deaf", 0, false}, {"silence", 0, false}, {"stall", 2, false},
    {"stall", 1, true}, {"stall", 2, true},    {"only pings", 2, false},
};

START_TEST(cancel_is_told_at_once)
{
    struct probe p = {.ended = 0};

    p.cancel_at = phases[_i].in_callback ? phases[_i].texts : 0;
    probe_start(&p, &caller, phases[_i].script);
    caller_run_until_asked(&caller, &provider, 1);
    caller_run_until(&caller, &p.texts, phases[_i].texts);
    if (!phases[_i].in_callback) {
        caller_run(&caller, 30);
        probe_cancel(&p);
    }
    int texts = p.texts;
    ck_assert_uint_eq(upstream_active(caller.u), 0);
    ck_assert_uint_lt(provider_gone_after(&provider, 0, p.cancelled_ns), TOLD_NS);
    caller_run(&caller, 50);
    ck_assert_int_eq(p.texts, texts);
    ck_assert_int_eq(p.ended, 0);
    probe_free(&p);
}
END_TEST

/* A listening socket of which nothing is accepted: TLS never begins. */
START_TEST(cancel_in_the_handshake)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct probe p = {.ended = 0};
    char url[64];
    char bytes[4096];
    ssize_t got;

    ck_assert_int_eq(bind(fd, (struct sockaddr *)&a, n), 0);
    ck_assert_int_eq(listen(fd, 8), 0);
    ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&a, &n), 0);
    snprintf(url, sizeof(url), "https://127.0.0.1:%d/v1", ntohs(a.sin_port));
    caller.provider.base_url = url;
    caller.provider.http2 = true;
    probe_start(&p, &caller, "good");
    caller_run(&caller, 50);
    probe_cancel(&p);
    int c = accept(fd, NULL, NULL);
    struct timeval tv = {.tv_usec = 100000};
    setsockopt(c, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    do
        got = recv(c, bytes, sizeof(bytes), 0);
    while (got > 0);
    ck_assert_int_eq(got, 0); /* closed, in time */
    close(c);
    close(fd);
    caller_run(&caller, 20);
    ck_assert_int_eq(p.ended, 0);
    probe_free(&p);
}
END_TEST

static const struct {
    const char *url;
    int wait_ms;
} nowhere[] = {
    {"http://127.0.0.1:1/v1", 0},  {"http://name.invalid/v1", 0},
    {"http://name.invalid/v1", 1}, {"http://192.0.2.1/v1", 0},
    {"http://192.0.2.1/v1", 20},   {"https://192.0.2.1/v1", 20},
};

START_TEST(cancel_before_there_is_a_connection)
{
    struct probe p = {.ended = 0};
    uint64_t t;

    caller.provider.base_url = nowhere[_i].url;
    probe_start(&p, &caller, "good");
    if (nowhere[_i].wait_ms > 0)
        caller_run(&caller, nowhere[_i].wait_ms);
    if (!p.ended) {
        t = clock_now_ns();
        probe_cancel(&p);
        ck_assert_uint_lt(clock_now_ns() - t, TOLD_NS);
        caller_run(&caller, 30);
        ck_assert_int_eq(p.ended, 0);
    }
    probe_free(&p);
}
END_TEST

START_TEST(freed_with_calls_running)
{
    struct probe p[10] = {{.ended = 0}};

    for (int i = 0; i < 10; i++)
        probe_start(&p[i], &caller, "stall");
    caller_run_until(&caller, &p[9].texts, 2);
    probe_start(&p[0], &caller, "good");
    uint64_t t = clock_now_ns();
    caller_close(&caller);
    for (int i = 0; i < 10; i++) {
        ck_assert_uint_lt(provider_gone_after(&provider, i, t), TOLD_NS);
        ck_assert_int_eq(p[i].ended, 0);
        probe_free(&p[i]);
    }
    caller_open(&caller, &provider);
}
END_TEST

/* --- callbacks that act ---------------------------------------------------------------
 */

static struct probe others[2];

static void cancel_the_other_and_start(struct probe *p)
{
    if (p->texts != 1)
        return;
    probe_cancel(&others[0]);
    probe_start(&others[1], p->caller, "good");
    ck_assert_uint_eq(upstream_active(p->caller->u), 2);
}

START_TEST(callbacks_may_cancel_and_start)
{
    struct probe p = {.on_text = cancel_the_other_and_start};

    memset(others, 0, sizeof(others));
    probe_start(&others[0], &caller, "stall");
    caller_run_until(&caller, &others[0].texts, 2);
    probe_start(&p, &caller, "good");
    caller_run_until(&caller, &p.ended, 1);
    caller_run_until(&caller, &others[1].ended, 1);
    ck_assert_int_eq(p.end.outcome, UPSTREAM_COMPLETE);
    ck_assert_int_eq(others[1].end.outcome, UPSTREAM_COMPLETE);
    ck_assert_int_eq(others[0].ended, 0);
    ck_assert_uint_lt(provider_gone_after(&provider, 0, others[0].cancelled_ns), TOLD_NS);
    probe_free(&p);
    probe_free(&others[0]);
    probe_free(&others[1]);
}
END_TEST

static void start_again(struct probe *p)
{
    if (p->ended < 20)
        probe_start(p, p->caller, "429");
}

START_TEST(an_end_may_start_the_next)
{
    struct probe p = {.on_end = start_again};

    probe_start(&p, &caller, "429");
    caller_run_until(&caller, &p.ended, 20);
    ck_assert_int_eq(atomic_load(&provider.requests), 20);
    probe_free(&p);
}
END_TEST

/* --- pausing --------------------------------------------------------------------------
 */

START_TEST(a_paused_call_waits)
{
    struct probe p = {.pause_at = 1};

    caller.provider.stall_timeout_ns = 50 * NS_PER_MS;
    probe_start(&p, &caller, "slow");
    caller_run_until(&caller, &p.texts, 1);
    caller_run(&caller, 200);
    ck_assert_int_eq(p.texts, 1);
    ck_assert_int_eq(p.ended, 0);
    upstream_pause(p.call);
    upstream_resume(p.call);
    ck_assert_int_eq(p.texts, 1); /* not from within */
    upstream_resume(p.call);
    caller_run_until(&caller, &p.ended, 1);
    ck_assert_int_eq(p.end.outcome, UPSTREAM_COMPLETE);
    ck_assert_str_eq(buf_cstr(&p.text), "ab");
    probe_free(&p);
}
END_TEST

START_TEST(a_paused_call_is_cancelled)
{
    struct probe p = {.pause_at = 1};

    probe_start(&p, &caller, "only pings");
    caller_run_until(&caller, &p.texts, 1);
    caller_run(&caller, 200);
    probe_cancel(&p);
    ck_assert_uint_lt(provider_gone_after(&provider, 0, p.cancelled_ns), TOLD_NS);
    probe_free(&p);
}
END_TEST

/* --- all at random --------------------------------------------------------------------
 */

#define RANDOM_CALLS 400
#define AT_ONCE      20

static void act_at_random(struct probe *p)
{
    int what = rand() % 12;

    if (what == 0)
        upstream_pause(p->call);
    else if (what == 1)
        upstream_resume(p->call);
    else if (what == 2)
        probe_cancel(p);
}

static void start_at_random(struct probe *p)
{
    size_t n = DAC_ARRAY_LEN(scripts) - 1;

    probe_free(p);
    memset(p, 0, sizeof(*p));
    p->on_text = act_at_random;
    probe_start(p, &caller, scripts[(size_t)rand() % n].name);
}

START_TEST(anything_in_any_order)
{
    struct probe p[AT_ONCE] = {{.ended = 0}};
    int started = AT_ONCE;

    srand((unsigned)_i);
    caller.provider.first_token_timeout_ns = 60 * NS_PER_MS;
    caller.provider.stall_timeout_ns = 30 * NS_PER_MS;
    for (int i = 0; i < AT_ONCE; i++)
        start_at_random(&p[i]);
    while (started < RANDOM_CALLS) {
        caller_run(&caller, 1);
        for (int i = 0; i < AT_ONCE; i++) {
            if (p[i].call && rand() % 50 == 0)
                probe_cancel(&p[i]);
            else if (p[i].call && rand() % 20 == 0)
                upstream_resume(p[i].call);
            ck_assert_int_le(p[i].ended, 1);
            if (!p[i].call && started < RANDOM_CALLS) {
                start_at_random(&p[i]);
                started++;
            }
        }
    }
    for (int i = 0; i < AT_ONCE; i++) {
        p[i].on_text = NULL;
        if (p[i].call)
            upstream_resume(p[i].call);
        if (p[i].call)
            caller_run_until(&caller, &p[i].ended, 1);
        probe_free(&p[i]);
    }
    ck_assert_uint_eq(upstream_active(caller.u), 0);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("upstream_calls");
    TCase *tc = tcase_create("all");

    tcase_set_timeout(tc, 60);
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_loop_test(tc, ends_as_it_did, 0, (int)DAC_ARRAY_LEN(ends));
    tcase_add_test(tc, nobody_there);
    tcase_add_test(tc, an_answer_has_a_limit);
    tcase_add_loop_test(tc, refuses_what_it_cannot_ask, 0, (int)DAC_ARRAY_LEN(invalid));
    tcase_add_test(tc, sends_a_proper_request);
    tcase_add_test(tc, one_connection_serves_many_calls);
    tcase_add_test(tc, a_connection_closed_while_idle_costs_nothing);
    tcase_add_test(tc, a_request_is_sent_once);
    tcase_add_test(tc, a_request_is_sent_twice_at_most);
    tcase_add_loop_test(tc, cancel_is_told_at_once, 0, (int)DAC_ARRAY_LEN(phases));
    tcase_add_test(tc, cancel_in_the_handshake);
    tcase_add_loop_test(tc, cancel_before_there_is_a_connection, 0,
                        (int)DAC_ARRAY_LEN(nowhere));
    tcase_add_test(tc, freed_with_calls_running);
    tcase_add_test(tc, callbacks_may_cancel_and_start);
    tcase_add_test(tc, an_end_may_start_the_next);
    tcase_add_test(tc, a_paused_call_waits);
    tcase_add_test(tc, a_paused_call_is_cancelled);
    tcase_add_loop_test(tc, anything_in_any_order, 0, 3);
    suite_add_tcase(s, tc);
    SRunner *sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    int failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
