/*
 * What comes in: the head of an answer, the pieces of its body, silence, and the end.
 * Decides how the call ends; upstream.c tells the caller, outside of curl. Worker
 * process, event loop thread only.
 */
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "upstream/internal.h"
#include "upstream/outcome.h"

#define ERROR_BODY_MAX (UINT64_C(64) << 10)
/* The rest of an answer that has a status already. */
#define ERROR_BODY_NS (3 * NS_PER_S)
/* Held of a stream that is not paused: above, others have to wait. */
#define LAG_MAX    (UINT64_C(1) << 20)
#define HELD_SLICE (UINT64_C(16) << 10)
#define WARN_NS    NS_PER_S

void answer_end(struct upstream_call *c, const struct upstream_end *end)
{
    if (c->ended || c->detached)
        return;
    c->ended = true;
    c->end = *end;
    c->end.heard_ns = c->heard_ns;
    if (end->http_status == 0)
        c->end.http_status = c->status;
    if (c->end.outcome == UPSTREAM_RATE_LIMITED || c->end.outcome == UPSTREAM_OVERLOADED)
        c->end.retry_after_ms = c->retry_after_ms;
    if (c->reader.content)
        c->end.retryable = false;
    call_queue(c);
}

static void end_as(struct upstream_call *c, enum upstream_outcome o, const char *code,
                   const char *message)
{
    struct upstream_end end;

    outcome_set(&end, o, code, message);
    answer_end(c, &end);
}

/* --- head --------------------------------------------------------------------------- */

static bool header_is(const char **p, size_t *n, const char *name)
{
    size_t len = strlen(name);

    if (*n <= len || (*p)[len] != ':' || !bytes_ieq(*p, len, name))
        return false;
    *p += len + 1;
    *n -= len + 1;
    while (*n > 0 && (**p == ' ' || **p == '\t')) {
        (*p)++;
        (*n)--;
    }
    return true;
}

static bool media_type_is(const char *v, size_t n, const char *type)
{
    size_t len = strlen(type);

    return n >= len && bytes_ieq(v, len, type) &&
           (n == len || v[len] == ';' || (unsigned char)v[len] <= ' ');
}

static void head_begins(struct upstream_call *c)
{
    c->event_stream = false;
    c->json = false;
    c->retry_after_ms = 0;
}

/* A request is not sent again once there is an answer; a long one need not be kept. */
static void drop_request(struct upstream_call *c)
{
    curl_off_t sent = 0;

    curl_easy_getinfo(c->easy, CURLINFO_SIZE_UPLOAD_T, &sent);
    if ((size_t)sent < c->body.len)
        return;
    curl_easy_setopt(c->easy, CURLOPT_POSTFIELDS, NULL);
    buf_free(&c->body);
}

static void head_ends(struct upstream_call *c)
{
    long status = 0;

    curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &status);
    if (status < 200)
        return;
    c->status = (int)status;
    if (status >= 300) {
        c->kind = BODY_ERROR;
        answer_arm(c, clock_now_ns());
        if (status < 400) {
            struct upstream_end end;
            outcome_from_status(&end, c->status, NULL, 0, NULL);
            answer_end(c, &end);
        }
    } else if (c->event_stream) {
        c->kind = BODY_STREAM;
        drop_request(c);
        if (c->reader.ops->on_accepted)
            c->reader.ops->on_accepted(c->reader.arg);
    } else if (c->json) {
        c->kind = BODY_JSON;
        answer_arm(c, clock_now_ns());
    } else {
        struct upstream_end end;
        outcome_set(&end, UPSTREAM_BAD, "bad_content_type",
                    "the provider did not answer with an event stream");
        end.retryable = false;
        answer_end(c, &end);
    }
}

size_t answer_head(char *p, size_t size, size_t n, void *arg)
{
    struct upstream_call *c = arg;
    size_t len = size * n;
    size_t total = len;
    const char *v = p;

    if (c->detached || c->ended || c->kind != BODY_NONE)
        return total;
    c->heard_ns = clock_now_ns();
    while (len > 0 && (v[len - 1] == '\n' || v[len - 1] == '\r'))
        len--;
    if (len == 0)
        head_ends(c);
    else if (len >= 5 && memcmp(v, "HTTP/", 5) == 0)
        head_begins(c);
    else if (header_is(&v, &len, "content-type")) {
        c->event_stream = media_type_is(v, len, "text/event-stream");
        c->json = media_type_is(v, len, "application/json") ||
                  media_type_is(v, len, "application/problem+json");
    } else if (header_is(&v, &len, "retry-after")) {
        c->retry_after_ms = outcome_retry_after(v, len, clock_wall_us());
    }
    return total;
}

/* --- body --------------------------------------------------------------------------- */

static bool on_event(void *arg, const struct sse_event *ev)
{
    struct upstream_call *c = arg;

    c->dialect->read_event(&c->reader, ev);
    return reader_open(&c->reader);
}

static void read_stream(struct upstream_call *c, const char *p, size_t n)
{
    struct reader *r = &c->reader;
    enum dac_err e = sse_decoder_feed(&c->sse, p, n, on_event, c);
    struct upstream_end end;

    if (c->detached)
        return;
    if (e == DAC_E_NOMEM)
        reader_fail(r, "no_memory", "out of memory", NULL);
    else if (e != DAC_OK)
        reader_fail(r, "malformed_stream", "the provider sent an endless event", NULL);
    if (r->pieces != c->pieces) {
        bool first = c->pieces == 0;
        c->pieces = r->pieces;
        c->content_ns = clock_now_ns();
        if (first)
            answer_arm(c, c->content_ns);
    }
    if (!reader_open(r)) {
        reader_outcome(r, false, &end);
        answer_end(c, &end);
    }
}

static void end_by_body(struct upstream_call *c)
{
    struct upstream_end end;
    char text[512];

    if (c->kind == BODY_ERROR) {
        outcome_from_status(&end, c->status, c->error.data, c->error.len,
                            c->provider->api_key);
    } else if (outcome_error_in(c->error.data, c->error.len, text, sizeof(text))) {
        outcome_set(&end, UPSTREAM_BAD, "provider_error",
                    "the provider reported an error");
        outcome_quote(&end, text, c->provider->api_key);
    } else {
        outcome_set(&end, UPSTREAM_BAD, "bad_content_type",
                    "the provider did not answer with an event stream");
        end.retryable = false;
    }
    answer_end(c, &end);
}

static void read_error(struct upstream_call *c, const char *p, size_t n)
{
    size_t room = ERROR_BODY_MAX - c->error.len;

    buf_append(&c->error, p, n < room ? n : room);
    if (n >= room || c->error.failed)
        end_by_body(c);
}

size_t answer_body(char *p, size_t size, size_t n, void *arg)
{
    struct upstream_call *c = arg;
    struct upstream *u = c->u;
    size_t len = size * n;

    if (c->detached || c->ended)
        return len;
    c->heard_ns = clock_now_ns();
    if (c->kind != BODY_STREAM) {
        read_error(c, p, len);
        return len;
    }
    if (!c->paused && c->held.len == 0 && u->turn_bytes > 0) {
        u->turn_bytes -= len < u->turn_bytes ? len : u->turn_bytes;
        read_stream(c, p, len);
        return len;
    }
    if (buf_append(&c->held, p, len) != DAC_OK)
        end_as(c, UPSTREAM_TOO_LARGE, "answer_too_large",
               "more of the answer came than can wait");
    call_queue(c);
    return len;
}

bool answer_wants_pause(const struct upstream_call *c)
{
    long version = 0;

    if (c->held.len == 0 || c->curl_paused)
        return false;
    curl_easy_getinfo(c->easy, CURLINFO_HTTP_VERSION, &version);
    return version < CURL_HTTP_VERSION_2_0;
}

void answer_drain(struct upstream_call *c)
{
    struct upstream *u = c->u;
    size_t done = 0;

    while (done < c->held.len && (u->turn_bytes > 0 || c->held.len - done > LAG_MAX) &&
           !c->paused && !c->detached && !c->ended) {
        size_t n = c->held.len - done;
        if (n > HELD_SLICE)
            n = HELD_SLICE;
        u->turn_bytes -= n < u->turn_bytes ? n : u->turn_bytes;
        read_stream(c, c->held.data + done, n);
        done += n;
    }
    buf_consume(&c->held, done);
}

/* --- end ---------------------------------------------------------------------------- */

static void warn(struct upstream_call *c)
{
    uint64_t now = clock_now_ns();

    if (now - c->u->warned_ns < WARN_NS)
        return;
    c->u->warned_ns = now;
    log_warn_about(&c->about, 0, "provider \"%s\": %s", c->provider->name,
                   c->curl_error[0] ? c->curl_error : curl_easy_strerror(c->result));
}

void answer_over(struct upstream_call *c)
{
    struct upstream_end end;

    if (c->ended || c->detached)
        return;
    if (c->result != CURLE_OK && c->kind != BODY_ERROR)
        warn(c);
    if (c->kind == BODY_ERROR || (c->kind == BODY_JSON && c->result == CURLE_OK))
        end_by_body(c);
    else if (c->kind == BODY_STREAM) {
        reader_outcome(&c->reader, c->result != CURLE_OK, &end);
        answer_end(c, &end);
    } else {
        outcome_from_curl(&end, (int)c->result);
        answer_end(c, &end);
    }
}

/* What the call waits for and since when; 0: for nothing that has a limit. */
static uint64_t wait_limit(const struct upstream_call *c, uint64_t *since)
{
    *since = c->started_ns;
    if (c->kind == BODY_ERROR || c->kind == BODY_JSON) {
        *since = c->content_ns;
        return ERROR_BODY_NS;
    }
    if (!c->reader.content)
        return c->provider->first_token_timeout_ns;
    *since = c->content_ns;
    return c->provider->stall_timeout_ns;
}

static void set_timer(struct upstream_call *c, uint64_t ns)
{
    struct timeval tv = {.tv_sec = (time_t)(ns / NS_PER_S),
                         .tv_usec = (suseconds_t)(ns % NS_PER_S / NS_PER_US) + 1};

    if (tv.tv_usec >= 1000000) {
        tv.tv_usec = 0;
        tv.tv_sec++;
    }
    event_add(&c->timer, &tv);
}

void answer_arm(struct upstream_call *c, uint64_t now)
{
    uint64_t since;
    uint64_t limit;

    if (c->kind == BODY_ERROR || c->kind == BODY_JSON)
        c->content_ns = now;
    limit = wait_limit(c, &since);
    if (limit > 0)
        set_timer(c, since + limit > now ? since + limit - now : 0);
}

void answer_time(struct upstream_call *c, uint64_t now)
{
    uint64_t since;
    uint64_t limit = wait_limit(c, &since);

    if (limit == 0 || c->ended)
        return;
    if (c->paused || c->held.len > 0) {
        set_timer(c, limit);
        return;
    }
    if (now < since + limit) {
        set_timer(c, since + limit - now);
        return;
    }
    c->heard_ns = now;
    if (c->kind == BODY_ERROR || c->kind == BODY_JSON)
        end_by_body(c);
    else if (c->reader.content)
        end_as(c, UPSTREAM_BROKEN, "stall_timeout",
               "the provider stopped in the middle of the answer");
    else
        end_as(c, UPSTREAM_TIMEOUT, "first_token_timeout",
               "the provider did not begin its answer in time");
}
