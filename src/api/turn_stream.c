/*
 * GET /api/turns/{id}/stream: attaches to a turn, or goes on from where a client was cut
 * off (Last-Event-ID, or ?from=), from memory or, when the turn has left it, from the
 * store.
 */
#include <stdio.h>
#include <string.h>

#include "api/input.h"
#include "api/native.h"
#include "api/read.h"
#include "api/routes.h"
#include "http/sse.h"

#define ANSWER_MAX (128u << 20)

static bool parse_from(const char *text, struct resume_from *out)
{
    const char *dash = strchr(text, '-');
    const char *bytes = dash ? dash + 1 : text;
    uint64_t generation = 0;

    memset(out, 0, sizeof *out);
    if (dash && !bytes_parse_u64(text, (size_t)(dash - text), UINT16_MAX, &generation))
        return false;
    out->has_generation = dash != NULL;
    out->generation = (uint16_t)generation;
    return bytes_parse_u64(bytes, strlen(bytes), UINT64_MAX / 2, &out->text_bytes);
}

static bool take_from(struct http_exchange *ex, struct resume_from *out)
{
    const char *header = http_header(ex, "Last-Event-ID");
    const char *query = http_query(ex, "from");
    const char *text = header ? header : query;

    memset(out, 0, sizeof *out);
    if (!text || parse_from(text, out))
        return true;
    input_refuse(ex, 400, "bad_position", header ? "Last-Event-ID" : "from",
                 "%s must be an event's id, such as 0-512, or a number of bytes",
                 header ? "Last-Event-ID" : "from");
    return false;
}

static void refuse_position(struct http_exchange *ex)
{
    input_refuse(ex, 416, "position_beyond_end", NULL,
                 "the answer has not so many bytes; ask without a position");
}

/* --- from the store ----------------------------------------------------------------- */

static void put_stored_events(struct buf *b, const struct store_turn *t,
                              const struct member *m, uint64_t skip, const char *kind)
{
    struct turn_view v = {.provider = t->provider,
                          .model = t->model,
                          .thread_id = "",
                          .created_us = t->created_us,
                          .timing = {t->ttft_ms, t->latency_ms, t->queue_wait_ms},
                          .usage = {t->prompt_tokens, t->completion_tokens, -1}};
    struct position at = {.generation = (uint16_t)t->generation};
    const char *text = t->assistant_content.s;
    size_t n = text ? t->assistant_content.n : 0;

    id_format(&t->id, v.turn_id);
    v.stored = strcmp(kind, "postgres") == 0 ? STORED_POSTGRES : STORED_SQLITE;
    if (t->prompt_tokens >= 0 && t->completion_tokens >= 0)
        v.usage.total_tokens = t->prompt_tokens + t->completion_tokens;
    for (int s = TURN_COMPLETE; s <= TURN_FAILED; s++)
        if (strcmp(turn_status_name((enum turn_status)s), t->status) == 0)
            v.end.status = (uint32_t)s;
    snprintf(v.end.finish_reason, sizeof v.end.finish_reason, "%s",
             t->finish_reason ? t->finish_reason : "");
    snprintf(v.end.code, sizeof v.end.code, "%s", t->error_code ? t->error_code : "");
    snprintf(v.end.message, sizeof v.end.message, "the answer ended as %s", t->status);
    at.text_bytes = skip;
    native_stream.open(&v, m, at, b);
    at.text_bytes = n;
    if (n > skip)
        native_stream.record(&v, RECORD_DELTA, text + skip, n - (size_t)skip, at, b);
    if (t->citations.s)
        native_stream.record(&v, RECORD_CITATIONS, t->citations.s, t->citations.n, at, b);
    if (!native_stream.end(&v, m, at, b))
        native_stream.done(&v, m, at, b);
}

static void on_turn(void *arg, enum dac_err e, const struct store_turn *t)
{
    struct read *rd = arg;
    struct resume_from from = rd->from;
    const char *kind = rd->api->store_kind;
    struct http_exchange *ex = read_done(rd);
    struct member m = {.role = JOIN_HIT};
    struct buf b = BUF_INIT(ANSWER_MAX);
    struct http_piece piece;

    if (e != DAC_OK) {
        read_refuse(ex, e, "turn");
        return;
    }
    size_t n = t->assistant_content.s ? t->assistant_content.n : 0;
    m.reset_first = from.has_generation && from.generation != t->generation;
    if (m.reset_first) {
        m.has = (struct position){from.generation, from.text_bytes};
        from.text_bytes = 0;
    }
    if (from.text_bytes > n) {
        refuse_position(ex);
        return;
    }
    http_add_header(ex, "Cache-Status", "dac; hit; detail=store");
    http_add_header(ex, "Cache-Control", "no-cache, no-transform");
    http_add_header(ex, "X-Accel-Buffering", "no");
    http_stream_begin(ex, 200, native_stream.content_type);
    http_piece_begin(&b);
    put_stored_events(&b, t, &m, from.text_bytes, kind);
    if (http_piece_end(&b, &piece) == DAC_OK)
        http_stream_finish(ex, &piece);
    else
        http_abort(ex);
    buf_free(&b);
}

void api_turn_stream(struct http_exchange *ex, void *ctx)
{
    struct api *api = ctx;
    char org[ORG_MAX + 1];
    struct resume_from from;
    struct id id;

    if (!input_org(ex, org) || !input_path_id(ex, 0, "turn", &id) ||
        !take_from(ex, &from))
        return;
    enum dac_err e = flights_resume(api->flights, &id, org, &native_stream, &from, ex);
    if (e == DAC_E_NOT_FOUND) {
        struct read *rd = read_new(api, ex);
        if (!rd)
            return;
        rd->from = from;
        read_started(rd, store_read_turn(api->reader, org, &id, on_turn, rd));
    } else if (e == DAC_E_TOO_LARGE) {
        refuse_position(ex);
    } else if (e != DAC_OK) {
        read_refuse(ex, e, "turn");
    }
}
