/*
 * Tells a stored turn by the encoders of its dialect, as if it lay in memory: the whole
 * text is one delta, and tool calls come in one piece. What is not stored cannot be told:
 * reasoning, and the words of an error, of which only the code is.
 */
#include "flight/replay.h"

#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "flight/result.h"
#include "http/problem.h"

#define REPLAY_MAX (128u << 20)

static void make_view(const struct replay *rp, struct turn_view *v)
{
    const struct store_turn *t = rp->turn;

    *v = (struct turn_view){.provider = t->provider,
                            .model = t->model,
                            .thread_id = "",
                            .created_us = t->created_us,
                            .timing = {t->ttft_ms, t->latency_ms, t->queue_wait_ms},
                            .usage = {t->prompt_tokens, t->completion_tokens, -1},
                            .end = {.http_status = 502},
                            .stored = turn_stored_at(rp->turn->place)};
    id_format(&t->id, v->turn_id);
    if (t->prompt_tokens >= 0 && t->completion_tokens >= 0)
        v->usage.total_tokens = t->prompt_tokens + t->completion_tokens;
    for (int s = TURN_COMPLETE; s <= TURN_FAILED; s++)
        if (strcmp(turn_status_name((enum turn_status)s), t->status) == 0)
            v->end.status = (uint32_t)s;
    snprintf(v->end.finish_reason, sizeof v->end.finish_reason, "%s",
             t->finish_reason ? t->finish_reason : "");
    snprintf(v->end.code, sizeof v->end.code, "%s", t->error_code ? t->error_code : "");
    snprintf(v->end.message, sizeof v->end.message, "the answer ended as %s", t->status);
}

static size_t text_of(const struct store_turn *t, const char **text)
{
    *text = t->assistant_content.s;
    return *text ? t->assistant_content.n : 0;
}

bool replay_is_beyond(const struct store_turn *t, const struct resume_from *from)
{
    const char *text;
    bool other = from->has_generation && from->generation != t->generation;

    return !other && from->text_bytes > text_of(t, &text);
}

/* --- streams ------------------------------------------------------------------------ */

/* A stream has tool calls in pieces that name their index; here each is whole. */
static void put_tools(const struct replay *rp, const struct turn_view *v,
                      struct position at, struct buf *b)
{
    const struct store_text *stored = &rp->turn->tool_calls;
    struct buf pieces = BUF_INIT(REPLAY_MAX);
    struct json_object *all;
    struct json_error why;
    bool ok = json_parse_strict(stored->s, stored->n, &all, &why) == DAC_OK;

    if (ok && json_object_is_type(all, json_type_array))
        for (size_t i = 0; ok && i < json_object_array_length(all); i++) {
            struct json_object *call = json_object_array_get_idx(all, i);
            struct json_object *index = json_object_new_uint64(i);

            if (!json_object_is_type(call, json_type_object) ||
                json_object_object_add(call, "index", index) != 0) {
                json_object_put(index);
                ok = false;
            }
        }
    if (ok) {
        json_put_object(&pieces, all);
        json_object_put(all);
    }
    if (ok && !pieces.failed)
        rp->dialect->record(v, RECORD_TOOL, pieces.data, pieces.len, at, b);
    else
        b->failed = true; /* it must not look whole */
    buf_free(&pieces);
}

static void put_records(const struct replay *rp, const struct turn_view *v,
                        struct member *m, uint64_t skip, struct buf *b)
{
    const struct store_turn *t = rp->turn;
    const struct dialect *d = rp->dialect;
    struct position at = {.generation = (uint16_t)t->generation, .text_bytes = skip};
    const char *text;
    size_t n = text_of(t, &text);

    if (d->open)
        d->open(v, m, at, b);
    if ((n > skip || t->tool_calls.s) && skip == 0 && d->first) {
        m->first_sent = true;
        d->first(v, m, at, b);
    }
    at.text_bytes = n;
    if (n > skip)
        d->record(v, RECORD_DELTA, text + skip, n - (size_t)skip, at, b);
    if (t->tool_calls.s)
        put_tools(rp, v, at, b);
    if (t->citations.s)
        d->record(v, RECORD_CITATIONS, t->citations.s, t->citations.n, at, b);
    if (!d->end(v, m, at, b))
        d->done(v, m, at, b);
}

static void stream(struct http_exchange *ex, const struct replay *rp,
                   const struct turn_view *v)
{
    struct member m = {.ex = ex,
                       .dialect = rp->dialect,
                       .role = JOIN_HIT,
                       .include_usage = rp->include_usage,
                       .arrived_ns = http_arrived_ns(ex)};
    struct buf b = BUF_INIT(REPLAY_MAX);
    uint64_t skip = rp->from ? rp->from->text_bytes : 0;
    struct http_piece piece;

    if (rp->from && rp->from->has_generation &&
        rp->from->generation != rp->turn->generation) {
        m.reset_first = true;
        m.has = (struct position){rp->from->generation, rp->from->text_bytes};
        skip = 0;
    }
    http_add_header(ex, "Cache-Control", "no-cache, no-transform");
    http_add_header(ex, "X-Accel-Buffering", "no");
    http_stream_begin(ex, 200, rp->dialect->content_type);
    http_piece_begin(&b); /* a failure stays in b.failed */
    put_records(rp, v, &m, skip, &b);
    if (http_piece_end(&b, &piece) == DAC_OK)
        http_stream_finish(ex, &piece);
    else
        http_abort(ex); /* it must not look whole */
    buf_free(&b);
}

/* --- whole answers ------------------------------------------------------------------ */

static bool take(struct buf *to, const struct store_text *from)
{
    *to = BUF_INIT(REPLAY_MAX);
    return !from->s || buf_append(to, from->s, from->n) == DAC_OK;
}

static void answer(struct http_exchange *ex, const struct replay *rp,
                   const struct turn_view *v)
{
    const struct store_turn *t = rp->turn;
    struct member m = {.ex = ex, .dialect = rp->dialect, .role = JOIN_HIT};
    struct turn_result r = {.has_request = true,
                            .usage = v->usage,
                            .generation = (uint16_t)t->generation,
                            .ended = true,
                            .end = v->end};

    turn_request_init(&r.request);
    snprintf(r.request.org, sizeof r.request.org, "%s", t->org);
    snprintf(r.request.provider, sizeof r.request.provider, "%s", t->provider);
    snprintf(r.request.model, sizeof r.request.model, "%s", t->model);
    r.request.thread_id = t->thread_id;
    r.request.user_message_id = t->user_message_id;
    r.request.assistant_message_id = t->assistant_message_id;
    if (take(&r.request.content, &t->user_content) &&
        take(&r.text, &t->assistant_content) && take(&r.citations, &t->citations) &&
        take(&r.tools, &t->tool_calls))
        rp->dialect->answer(v, &m, &r);
    else
        http_respond_no_memory(ex);
    turn_result_free(&r);
}

struct replayed {
    const struct store_turn *turn;
    const struct turn_view *view;
};

static void describe(struct http_exchange *ex, void *user, struct http_report *out)
{
    const struct replayed *r = user;

    (void)ex;
    out->turn = r->view->turn_id;
    out->org = r->turn->org;
    out->role = "hit";
}

void replay_turn(struct http_exchange *ex, const struct replay *rp)
{
    static const struct http_callbacks callbacks = {.describe = describe};
    struct turn_view v;
    struct replayed about = {.turn = rp->turn, .view = &v};

    make_view(rp, &v);
    http_set_callbacks(ex, &callbacks, &about);
    if (v.end.status == TURN_CANCELLED)
        http_set_ending(ex, "cancelled", false);
    else if (v.end.status != TURN_COMPLETE)
        http_set_ending(ex, v.end.code, false); /* an old one, told when it came */
    if (rp->cache_status)
        http_add_header(ex, "Cache-Status", rp->cache_status);
    http_add_header(ex, "x-dac-turn-id", v.turn_id);
    if (rp->dialect->stream)
        stream(ex, rp, &v);
    else
        answer(ex, rp, &v);
}
