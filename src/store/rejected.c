/*
 * See rejected.h. Recorder only; no state.
 */
#include "store/rejected.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"

bool rejected_wanted(const struct store_row *row)
{
    if (row->kind == STORE_REJECTED || row->kind == STORE_ALIAS ||
        id_is_zero(rejected_id(row)))
        return false;
    return row->result == DAC_E_INVALID ||
           (row->result == DAC_E_NOT_FOUND && row->kind == STORE_TURN);
}

const char *rejected_kind(const struct store_row *row)
{
    static const char *const words[] = {
        [STORE_THREAD] = "thread", [STORE_TURN] = "turn",     [STORE_COUNTS] = "counts",
        [STORE_TITLE] = "title",   [STORE_DELETE] = "delete", [STORE_ALIAS] = "alias",
    };

    if (row->kind == STORE_REJECTED)
        return row->u.rejected.kind;
    return words[row->kind];
}

const struct id *rejected_id(const struct store_row *row)
{
    switch (row->kind) {
    case STORE_THREAD:
        return &row->u.thread.id;
    case STORE_TURN:
        return &row->u.turn.id;
    case STORE_COUNTS:
        return &row->u.counts.turn;
    case STORE_REJECTED:
        return &row->u.rejected.id;
    case STORE_ALIAS:
        return &row->u.alias.turn;
    case STORE_TITLE:
    case STORE_DELETE:
        break;
    }
    return &row->u.change.thread;
}

const char *rejected_org(const struct store_row *row)
{
    const char *org = row->kind == STORE_THREAD     ? row->u.thread.org
                      : row->kind == STORE_TURN     ? row->u.turn.org
                      : row->kind == STORE_COUNTS   ? NULL
                      : row->kind == STORE_REJECTED ? row->u.rejected.org
                      : row->kind == STORE_ALIAS    ? row->u.alias.org
                                                    : row->u.change.org;

    return org != NULL && utf8_valid(org, strlen(org)) ? org : NULL;
}

/* --- the object --------------------------------------------------------------------- */

static void put_name(struct buf *out, const char *name)
{
    bool first = out->len > 0 && out->data[out->len - 1] == '{';

    (void)buf_printf(out, "%s\"%s\":", first ? "" : ",", name);
}

static void put_text(struct buf *out, const char *name, const struct store_text *t)
{
    struct buf clean = BUF_INIT(REJECTED_DATA_MAX);

    put_name(out, name);
    if (t->s == NULL) {
        (void)buf_puts(out, "null");
    } else if (memchr(t->s, '\0', t->n) == NULL) {
        json_put_string(out, t->s, t->n);
    } else { /* JSON could hold it, what reads JSON in SQL cannot */
        utf8_put_storable(&clean, t->s, t->n);
        json_put_string(out, clean.data, clean.len);
        out->failed = out->failed || clean.failed;
    }
    buf_free(&clean);
}

static void put_str(struct buf *out, const char *name, const char *s)
{
    const struct store_text t = {s, s != NULL ? strlen(s) : 0};

    put_text(out, name, &t);
}

static void put_id(struct buf *out, const char *name, const struct id *id)
{
    char text[ID_TEXT_SIZE];

    id_format(id, text);
    put_str(out, name, id_is_zero(id) ? NULL : text);
}

static void put_int(struct buf *out, const char *name, int64_t v)
{
    put_name(out, name);
    (void)buf_printf(out, "%" PRId64, v);
}

static void put_real(struct buf *out, const char *name, double v)
{
    put_name(out, name);
    if (isfinite(v))
        (void)buf_printf(out, "%.17g", v);
    else
        (void)buf_puts(out, "null");
}

static void put_turn(struct buf *out, const struct store_turn *t)
{
    char hex[sizeof(t->key_digest) * 2 + 1];

    bytes_hex(t->key_digest, sizeof(t->key_digest), hex);
    put_id(out, "id", &t->id);
    put_str(out, "org", t->org);
    put_id(out, "thread_id", &t->thread_id);
    put_str(out, "provider", t->provider);
    put_str(out, "model", t->model);
    put_str(out, "status", t->status);
    put_str(out, "finish_reason", t->finish_reason);
    put_str(out, "error_code", t->error_code);
    put_real(out, "ttft_ms", t->ttft_ms);
    put_real(out, "latency_ms", t->latency_ms);
    put_real(out, "queue_wait_ms", t->queue_wait_ms);
    put_int(out, "prompt_tokens", t->prompt_tokens);
    put_int(out, "completion_tokens", t->completion_tokens);
    put_int(out, "followers", t->followers);
    put_int(out, "hits", t->hits);
    put_int(out, "generation", t->generation);
    put_str(out, "fetcher", t->fetcher);
    put_str(out, "key_digest", hex);
    put_int(out, "created_us", t->created_us);
    put_int(out, "finished_us", t->finished_us);
    put_id(out, "user_message_id", &t->user_message_id);
    put_text(out, "question", &t->user_content);
    put_id(out, "assistant_message_id", &t->assistant_message_id);
    put_text(out, "answer", &t->assistant_content);
    put_text(out, "citations", &t->citations);
    put_text(out, "tool_calls", &t->tool_calls);
}

static void put_thread(struct buf *out, const struct store_thread *t)
{
    put_id(out, "id", &t->id);
    put_str(out, "org", t->org);
    put_text(out, "title", &t->title);
    put_int(out, "created_us", t->created_us);
}

void rejected_data(const struct store_row *row, struct buf *out)
{
    const struct store_change *c = &row->u.change;

    (void)buf_putc(out, '{');
    switch (row->kind) {
    case STORE_THREAD:
        put_thread(out, &row->u.thread);
        break;
    case STORE_TURN:
        put_turn(out, &row->u.turn);
        break;
    case STORE_COUNTS:
        put_id(out, "turn_id", &row->u.counts.turn);
        put_int(out, "followers", row->u.counts.followers);
        put_int(out, "hits", row->u.counts.hits);
        break;
    case STORE_TITLE:
        put_text(out, "title", &c->title);
        /* fall through */
    case STORE_DELETE:
        put_id(out, "thread_id", &c->thread);
        put_str(out, "org", c->org);
        put_int(out, "at_us", c->at_us);
        break;
    case STORE_REJECTED:
    case STORE_ALIAS:
        break;
    }
    (void)buf_putc(out, '}');
}

void rejected_make(const struct store_row *row, const char *reason, struct buf *data,
                   struct store_row *out)
{
    rejected_data(row, data);
    *out = (struct store_row){
        .kind = STORE_REJECTED,
        .u.rejected = {.id = *rejected_id(row),
                       .kind = rejected_kind(row),
                       .org = rejected_org(row),
                       .reason = reason,
                       .data = {data->failed ? NULL : data->data, data->len},
                       .at_us = clock_wall_us()}};
}
