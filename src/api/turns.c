/*
 * Turns: GET /api/turns/{id}, from memory or from the store, and POST …/cancel.
 */
#include <stdio.h>
#include <string.h>

#include "api/input.h"
#include "api/native.h"
#include "api/read.h"
#include "api/routes.h"
#include "flight/result.h"

#define ANSWER_MAX (128u << 20)

static void put_text(struct buf *b, const char *name, const char *s)
{
    buf_printf(b, ",\"%s\":", name);
    if (s)
        json_put_string(b, s, strlen(s));
    else
        buf_puts(b, "null");
}

static void put_count(struct buf *b, const char *name, int64_t n)
{
    if (n < 0)
        buf_printf(b, "\"%s\":null", name);
    else
        buf_printf(b, "\"%s\":%lld", name, (long long)n);
}

static void put_message(struct buf *b, const char *name, const struct id *id,
                        const char *role, const struct store_text *content)
{
    char text[ID_TEXT_SIZE];
    id_format(id, text);
    buf_printf(b, ",\"%s\":{\"id\":\"%s\",\"role\":\"%s\",\"content\":", name, text,
               role);
    json_put_string(b, content->s ? content->s : "", content->n);
}

static void put_figures(struct buf *b, const struct store_turn *t)
{
    int64_t total = t->prompt_tokens >= 0 && t->completion_tokens >= 0
                        ? t->prompt_tokens + t->completion_tokens
                        : -1;

    buf_puts(b, ",\"usage\":{");
    put_count(b, "prompt_tokens", t->prompt_tokens);
    buf_putc(b, ',');
    put_count(b, "completion_tokens", t->completion_tokens);
    buf_putc(b, ',');
    put_count(b, "total_tokens", total);
    buf_puts(b, "},\"timing\":{\"ttft_ms\":");
    native_put_ms(b, t->ttft_ms);
    buf_puts(b, ",\"latency_ms\":");
    native_put_ms(b, t->latency_ms);
    buf_puts(b, ",\"queue_wait_ms\":");
    native_put_ms(b, t->queue_wait_ms);
    buf_putc(b, '}');
}

static void put_stored_turn(struct buf *b, const struct store_turn *t)
{
    char id[ID_TEXT_SIZE];

    id_format(&t->id, id);
    buf_printf(b, "{\"turn_id\":\"%s\"", id);
    if (id_is_zero(&t->thread_id)) {
        put_text(b, "thread_id", NULL);
    } else {
        id_format(&t->thread_id, id);
        put_text(b, "thread_id", id);
    }
    put_text(b, "status", t->status);
    put_text(b, "provider", t->provider);
    put_text(b, "model", t->model);
    put_message(b, "user_message", &t->user_message_id, "user", &t->user_content);
    buf_putc(b, '}');
    put_message(b, "assistant_message", &t->assistant_message_id, "assistant",
                &t->assistant_content);
    buf_puts(b, ",\"citations\":");
    if (t->citations.s)
        buf_append(b, t->citations.s, t->citations.n);
    else
        buf_puts(b, "[]");
    if (t->tool_calls.s) {
        buf_puts(b, ",\"tool_calls\":");
        buf_append(b, t->tool_calls.s, t->tool_calls.n);
    }
    buf_putc(b, '}');
    put_text(b, "finish_reason", t->finish_reason);
    put_figures(b, t);
    put_text(b, "stored", flight_stored_name(turn_stored_at(t->place)));
    if (t->error_code) {
        buf_puts(b, ",\"error\":{\"code\":");
        json_put_string(b, t->error_code, strlen(t->error_code));
        buf_putc(b, '}');
    }
    buf_putc(b, '}');
}

static void on_turn(void *arg, enum dac_err e, const struct store_turn *t)
{
    struct read *rd = arg;
    bool cancel = rd->cancel;
    struct http_exchange *ex = read_done(rd);
    struct buf b = BUF_INIT(ANSWER_MAX);
    char id[ID_TEXT_SIZE];

    if (e != DAC_OK) {
        read_refuse(ex, e, "turn");
        return;
    }
    if (cancel) {
        id_format(&t->id, id);
        buf_printf(&b, "{\"turn_id\":\"%s\",\"status\":\"%s\"}", id, t->status);
    } else {
        put_stored_turn(&b, t);
    }
    native_respond(ex, 200, &b);
}

static void read_stored(struct api *api, struct http_exchange *ex, const char *org,
                        const struct id *id, bool cancel)
{
    struct read *rd = read_new(api, ex);
    if (!rd)
        return;
    rd->cancel = cancel;
    read_started(rd, store_read_turn(api->reader, org, id, on_turn, rd));
}

void api_turn_get(struct http_exchange *ex, void *ctx)
{
    struct api *api = ctx;
    char org[ORG_MAX + 1];
    struct turn_result r;
    struct turn_view v;
    struct id id;

    if (!input_org(ex, org) || !input_path_id(ex, 0, "turn", &id))
        return;
    enum dac_err e = flights_peek(api->flights, &id, org, &r, &v);
    if (e == DAC_E_NOT_FOUND) {
        read_stored(api, ex, org, &id, false);
        return;
    }
    if (e != DAC_OK) {
        read_refuse(ex, e, "turn");
        return;
    }
    struct buf b = BUF_INIT(ANSWER_MAX);
    native_put_turn(&b, &v, &r, NULL);
    turn_result_free(&r);
    native_respond(ex, 200, &b);
}

void api_turn_cancel(struct http_exchange *ex, void *ctx)
{
    struct api *api = ctx;
    char org[ORG_MAX + 1];
    struct id id;

    if (!input_org(ex, org) || !input_path_id(ex, 0, "turn", &id))
        return;
    enum dac_err e = flights_attach(api->flights, &id, org, &native_cancel, true, ex);
    if (e == DAC_E_NOT_FOUND)
        read_stored(api, ex, org, &id, true);
    else if (e != DAC_OK)
        read_refuse(ex, e, "turn");
}
