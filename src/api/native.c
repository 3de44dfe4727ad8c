/*
 * Writes the native events and answers. Event ids are "<generation>-<answer bytes up to
 * and with this event>"; data is always one line of JSON.
 */
#include "api/native.h"

#include <stdio.h>
#include <string.h>

#include "api/input.h"
#include "base/clock.h"
#include "http/problem.h"
#include "http/sse.h"

#define ANSWER_MAX (128u << 20)

/* --- pieces ------------------------------------------------------------------------- */

static void begin(struct buf *b, const char *event, struct position at)
{
    char id[48];
    snprintf(id, sizeof id, "%u-%llu", at.generation, (unsigned long long)at.text_bytes);
    sse_put_begin(b, event, id);
}

void native_put_ms(struct buf *b, double ms)
{
    if (ms < 0)
        buf_puts(b, "null");
    else
        buf_printf(b, "%.3f", ms);
}

static void put_member(struct buf *b, const char *name, const char *s)
{
    buf_printf(b, "\"%s\":", name);
    json_put_string(b, s, strlen(s));
}

static void put_count(struct buf *b, const char *name, int64_t n)
{
    if (n < 0)
        buf_printf(b, "\"%s\":null", name);
    else
        buf_printf(b, "\"%s\":%lld", name, (long long)n);
}

static void put_usage(struct buf *b, const struct record_usage *u)
{
    if (u->prompt_tokens < 0 && u->completion_tokens < 0 && u->total_tokens < 0) {
        buf_puts(b, "null");
        return;
    }
    buf_putc(b, '{');
    put_count(b, "prompt_tokens", u->prompt_tokens);
    buf_putc(b, ',');
    put_count(b, "completion_tokens", u->completion_tokens);
    buf_putc(b, ',');
    put_count(b, "total_tokens", u->total_tokens);
    buf_putc(b, '}');
}

static void put_timing(struct buf *b, const struct turn_timing *t)
{
    buf_puts(b, "{\"ttft_ms\":");
    native_put_ms(b, t->ttft_ms);
    buf_puts(b, ",\"latency_ms\":");
    native_put_ms(b, t->latency_ms);
    buf_puts(b, ",\"queue_wait_ms\":");
    native_put_ms(b, t->queue_wait_ms);
    buf_putc(b, '}');
}

const char *native_role(const struct member *m)
{
    static const char *const names[] = {[JOIN_LEADER] = "leader",
                                        [JOIN_FOLLOWER] = "follower",
                                        [JOIN_HIT] = "hit",
                                        [JOIN_FAILURE] = "hit"};
    return names[m->role];
}

void native_respond(struct http_exchange *ex, int status, struct buf *body)
{
    if (body->failed)
        http_respond_no_memory(ex);
    else
        http_respond(ex, status, "application/json", body->data, body->len);
    buf_free(body);
}

/* --- the stream --------------------------------------------------------------------- */

void native_put_reset(struct buf *out, struct position at, const char *reason)
{
    begin(out, "reset", at);
    buf_putc(out, '{');
    put_member(out, "reason", reason);
    buf_printf(out, ",\"generation\":%u}", at.generation);
    sse_put_end(out);
}

static void stream_open(const struct turn_view *v, const struct member *m,
                        struct position at, struct buf *out)
{
    /* Cut off before the reset, it must come back as one who has the old text. */
    struct position has = m->reset_first ? m->has : at;

    begin(out, "ping", has);
    buf_printf(out, "{\"at_ms\":%lld}", (long long)(clock_wall_us() / 1000));
    sse_put_end(out);
    begin(out, "meta", has);
    buf_putc(out, '{');
    put_member(out, "turn_id", v->turn_id);
    buf_putc(out, ',');
    put_member(out, "role", native_role(m));
    buf_putc(out, ',');
    put_member(out, "provider", v->provider);
    buf_putc(out, ',');
    put_member(out, "model", v->model);
    buf_putc(out, '}');
    sse_put_end(out);
    if (m->reset_first)
        native_put_reset(out, at, "old_generation");
}

static void stream_first(const struct turn_view *v, const struct member *m,
                         struct position at, struct buf *out)
{
    uint64_t now = clock_now_ns();

    (void)v;
    begin(out, "first_token", at);
    buf_printf(out, "{\"ttft_ms\":%.3f,\"queue_wait_ms\":",
               (double)(now - m->arrived_ns) / (double)NS_PER_MS);
    native_put_ms(out, v->timing.queue_wait_ms);
    buf_putc(out, '}');
    sse_put_end(out);
}

static void put_text_event(struct buf *out, const char *event, struct position at,
                           const void *s, size_t n)
{
    begin(out, event, at);
    buf_puts(out, "{\"text\":");
    json_put_string(out, s, n);
    buf_putc(out, '}');
    sse_put_end(out);
}

static void put_json_event(struct buf *out, const char *event, const char *name,
                           struct position at, const void *json, size_t n)
{
    begin(out, event, at);
    buf_printf(out, "{\"%s\":", name);
    buf_append(out, json, n);
    buf_putc(out, '}');
    sse_put_end(out);
}

static void stream_record(const struct turn_view *v, enum record_type type,
                          const void *payload, size_t n, struct position at,
                          struct buf *out)
{
    struct record_reset reset;

    (void)v;
    switch (type) {
    case RECORD_DELTA:
        put_text_event(out, "delta", at, payload, n);
        break;
    case RECORD_REASONING:
        put_text_event(out, "reasoning", at, payload, n);
        break;
    case RECORD_CITATIONS:
        put_json_event(out, "citations", "citations", at, payload, n);
        break;
    case RECORD_TOOL:
        put_json_event(out, "tool_calls", "tool_calls", at, payload, n);
        break;
    case RECORD_RESET:
        if (n != sizeof reset)
            break;
        memcpy(&reset, payload, sizeof reset);
        reset.reason[sizeof reset.reason - 1] = '\0';
        native_put_reset(out, at, reset.reason);
        break;
    case RECORD_REQUEST:
    case RECORD_USAGE:
    case RECORD_END:
    case RECORD_THREAD:
        break;
    }
}

static void put_error(struct buf *out, struct position at, const char *code,
                      const char *message, bool retryable, uint64_t retry_after_ms)
{
    begin(out, "error", at);
    buf_putc(out, '{');
    put_member(out, "code", code);
    buf_putc(out, ',');
    put_member(out, "message", message);
    buf_printf(out,
               ",\"retryable\":%s,\"retry_after_ms\":", retryable ? "true" : "false");
    if (retry_after_ms > 0)
        buf_printf(out, "%llu}", (unsigned long long)retry_after_ms);
    else
        buf_puts(out, "null}");
    sse_put_end(out);
}

static bool stream_end(const struct turn_view *v, const struct member *m,
                       struct position at, struct buf *out)
{
    (void)m;
    if (v->end.status == TURN_COMPLETE || v->end.status == TURN_CANCELLED)
        return false;
    put_error(out, at, v->end.code, v->end.message, v->end.retryable,
              v->end.retry_after_ms);
    return true;
}

static bool was_stored(const struct turn_view *v)
{
    return v->stored != STORED_NO && v->stored != STORED_FAILED;
}

static void stream_done(const struct turn_view *v, const struct member *m,
                        struct position at, struct buf *out)
{
    struct turn_timing t = v->timing;

    (void)m;
    if (!was_stored(v)) {
        put_error(out, at, "not_stored", "the answer is whole but could not be stored",
                  v->stored == STORED_NO, 0);
        return;
    }
    begin(out, "done", at);
    buf_putc(out, '{');
    put_member(out, "finish_reason", v->end.finish_reason);
    buf_puts(out, ",\"usage\":");
    put_usage(out, &v->usage);
    buf_puts(out, ",\"timing\":");
    put_timing(out, &t);
    buf_putc(out, ',');
    put_member(out, "stored", flight_stored_name(v->stored));
    buf_putc(out, '}');
    sse_put_end(out);
}

static void stream_comment(struct buf *out)
{
    sse_put_comment(out, "ping");
}

/* --- JSON --------------------------------------------------------------------------- */

/* Our own key being refused is our failure, not the client's. */
static int native_status(const struct record_end *end)
{
    if (end->http_status == 401 || end->http_status == 403)
        return 502;
    return end->http_status >= 400 && end->http_status < 600 ? (int)end->http_status
                                                             : 502;
}

static void json_reject(const struct turn_view *v, struct member *m)
{
    struct buf extra = BUF_INIT(256);
    buf_printf(&extra, "\"turn_id\":\"%s\"", v->turn_id);
    struct http_problem p = {.status = native_status(&v->end),
                             .code = v->end.code,
                             .offset = -1,
                             .retry_after_ms = v->end.retry_after_ms,
                             .retryable = v->end.retryable,
                             .extra_json = buf_cstr(&extra)};
    http_respond_problem(m->ex, &p, "%s", v->end.message);
    buf_free(&extra);
}

static void put_message(struct buf *b, const char *name, const struct id *id,
                        const char *role, const struct buf *content)
{
    char text[ID_TEXT_SIZE];
    id_format(id, text);
    buf_printf(b, ",\"%s\":{\"id\":\"%s\",\"role\":\"%s\",\"content\":", name, text,
               role);
    json_put_string(b, content->data ? content->data : "", content->len);
}

void native_put_turn(struct buf *b, const struct turn_view *v,
                     const struct turn_result *r, const char *coalesce)
{
    enum turn_status status = r->ended ? (enum turn_status)r->end.status : TURN_RUNNING;
    char thread[ID_TEXT_SIZE];

    buf_putc(b, '{');
    put_member(b, "turn_id", v->turn_id);
    if (!id_is_zero(&r->request.thread_id)) {
        id_format(&r->request.thread_id, thread);
        buf_printf(b, ",\"thread_id\":\"%s\"", thread);
    } else {
        buf_puts(b, ",\"thread_id\":null");
    }
    buf_putc(b, ',');
    put_member(b, "status", turn_status_name(status));
    buf_putc(b, ',');
    put_member(b, "provider", r->request.provider);
    buf_putc(b, ',');
    put_member(b, "model", r->request.model);
    put_message(b, "user_message", &r->request.user_message_id, "user",
                &r->request.content);
    buf_putc(b, '}');
    put_message(b, "assistant_message", &r->request.assistant_message_id, "assistant",
                &r->text);
    buf_puts(b, ",\"citations\":");
    if (r->citations.len > 0)
        buf_append(b, r->citations.data, r->citations.len);
    else
        buf_puts(b, "[]");
    if (r->tools.len > 0) {
        buf_puts(b, ",\"tool_calls\":");
        buf_append(b, r->tools.data, r->tools.len);
    }
    buf_puts(b, "},\"finish_reason\":");
    if (r->end.finish_reason[0])
        json_put_string(b, r->end.finish_reason, strlen(r->end.finish_reason));
    else
        buf_puts(b, "null");
    buf_puts(b, ",\"usage\":");
    put_usage(b, &r->usage);
    buf_puts(b, ",\"timing\":");
    put_timing(b, &v->timing);
    if (coalesce) {
        buf_putc(b, ',');
        put_member(b, "coalesce", coalesce);
    }
    buf_puts(b, ",\"stored\":");
    if (was_stored(v))
        buf_printf(b, "\"%s\"", flight_stored_name(v->stored));
    else
        buf_puts(b, "null");
    if (r->ended && (status == TURN_FAILED || status == TURN_INCOMPLETE)) {
        buf_puts(b, ",\"error\":{");
        put_member(b, "code", r->end.code);
        buf_putc(b, ',');
        put_member(b, "message", r->end.message);
        buf_putc(b, '}');
    }
    buf_putc(b, '}');
}

/* A broken answer: the problem, with what there is of the turn. */
static void answer_incomplete(const struct turn_view *v, struct member *m,
                              const struct turn_result *r)
{
    struct buf extra = BUF_INIT(ANSWER_MAX);

    buf_printf(&extra, "\"turn_id\":\"%s\",\"turn\":", v->turn_id);
    native_put_turn(&extra, v, r, native_role(m));
    struct http_problem p = {.status = 502,
                             .code = v->end.code,
                             .offset = -1,
                             .retry_after_ms = v->end.retry_after_ms,
                             .retryable = v->end.retryable,
                             .extra_json = extra.failed ? NULL : buf_cstr(&extra)};
    http_respond_problem(m->ex, &p, "%s", v->end.message);
    buf_free(&extra);
}

static void answer_not_stored(const struct turn_view *v, struct member *m)
{
    struct buf extra = BUF_INIT(256);
    buf_printf(&extra, "\"turn_id\":\"%s\"", v->turn_id);
    struct http_problem p = {.status = v->stored == STORED_NO ? 503 : 500,
                             .code = "not_stored",
                             .offset = -1,
                             .retry_after_ms = v->stored == STORED_NO ? 1000 : 0,
                             .retryable = v->stored == STORED_NO,
                             .extra_json = buf_cstr(&extra)};
    http_respond_problem(m->ex, &p, "the answer is whole but could not be stored");
    buf_free(&extra);
}

static void json_answer(const struct turn_view *v, struct member *m,
                        const struct turn_result *r)
{
    if (v->end.status == TURN_INCOMPLETE) {
        answer_incomplete(v, m, r);
        return;
    }
    if (!was_stored(v)) {
        answer_not_stored(v, m);
        return;
    }
    struct buf b = BUF_INIT(ANSWER_MAX);
    native_put_turn(&b, v, r, native_role(m));
    native_respond(m->ex, 200, &b);
}

/* --- cancelling and threads --------------------------------------------------------- */

static void respond_status(const struct turn_view *v, struct member *m)
{
    struct buf b = BUF_INIT(256);
    buf_printf(&b, "{\"turn_id\":\"%s\",\"status\":\"%s\"}", v->turn_id,
               turn_status_name((enum turn_status)v->end.status));
    native_respond(m->ex, 200, &b);
}

static void cancel_reject(const struct turn_view *v, struct member *m)
{
    respond_status(v, m);
}

static void cancel_answer(const struct turn_view *v, struct member *m,
                          const struct turn_result *r)
{
    (void)r;
    respond_status(v, m);
}

static void thread_answer(const struct turn_view *v, struct member *m,
                          const struct turn_result *r)
{
    struct buf b = BUF_INIT(1u << 20);
    char id[ID_TEXT_SIZE];
    char at[32];

    if (v->stored == STORED_FAILED && r->thread.op != THREAD_CREATE) {
        struct http_problem p = {.status = 404, .code = "thread_not_found", .offset = -1};
        http_respond_problem(m->ex, &p, "the thread was deleted meanwhile");
        return;
    }
    if (!was_stored(v)) {
        struct http_problem p = {.status = v->stored == STORED_NO ? 503 : 500,
                                 .code = "not_stored",
                                 .offset = -1,
                                 .retry_after_ms = v->stored == STORED_NO ? 1000 : 0,
                                 .retryable = v->stored == STORED_NO};
        http_respond_problem(m->ex, &p, "the thread could not be stored");
        return;
    }
    if (r->thread.op == THREAD_DELETE) {
        http_respond(m->ex, 204, NULL, NULL, 0);
        return;
    }
    id_format(&r->thread.thread_id, id);
    clock_format_rfc3339(r->thread.created_us, at);
    buf_printf(&b, "{\"thread_id\":\"%s\",\"title\":", id);
    if (r->thread.title.data)
        json_put_string(&b, r->thread.title.data, r->thread.title.len);
    else
        buf_puts(&b, "null");
    buf_printf(&b, ",\"created_at\":\"%s\"}", at);
    native_respond(m->ex, r->thread.op == THREAD_CREATE ? 201 : 200, &b);
}

const struct dialect native_stream = {
    .name = "native stream",
    .stream = true,
    .eager = true,
    .can_reset = true,
    .content_type = "text/event-stream",
    .open = stream_open,
    .first = stream_first,
    .record = stream_record,
    .end = stream_end,
    .done = stream_done,
    .comment = stream_comment,
    .reject = json_reject,
};

const struct dialect native_json = {
    .name = "native json", .reject = json_reject, .answer = json_answer};

const struct dialect native_cancel = {
    .name = "native cancel", .reject = cancel_reject, .answer = cancel_answer};

const struct dialect native_thread = {
    .name = "native thread", .reject = json_reject, .answer = thread_answer};
