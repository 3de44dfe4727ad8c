/*
 * See postgres_sql.h. Recorder only; no state.
 */
#include "store/postgres_sql.h"

#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "store/rejected.h"

static const Oid thread_types[] = {POSTGRES_UUID_ARRAY, POSTGRES_TEXT_ARRAY,
                                   POSTGRES_TEXT_ARRAY, POSTGRES_TIMESTAMPTZ_ARRAY};
static const Oid id_types[] = {POSTGRES_UUID_ARRAY, POSTGRES_TEXT_ARRAY};
static const Oid turn_types[] = {
    POSTGRES_UUID_ARRAY,        POSTGRES_TEXT_ARRAY,        POSTGRES_UUID_ARRAY,
    POSTGRES_TEXT_ARRAY,        POSTGRES_TEXT_ARRAY,        POSTGRES_TEXT_ARRAY,
    POSTGRES_TEXT_ARRAY,        POSTGRES_TEXT_ARRAY,        POSTGRES_FLOAT8_ARRAY,
    POSTGRES_FLOAT8_ARRAY,      POSTGRES_FLOAT8_ARRAY,      POSTGRES_INT8_ARRAY,
    POSTGRES_INT8_ARRAY,        POSTGRES_INT8_ARRAY,        POSTGRES_INT8_ARRAY,
    POSTGRES_INT8_ARRAY,        POSTGRES_TEXT_ARRAY,        POSTGRES_BYTEA_ARRAY,
    POSTGRES_TIMESTAMPTZ_ARRAY, POSTGRES_TIMESTAMPTZ_ARRAY, POSTGRES_UUID_ARRAY,
    POSTGRES_TEXT_ARRAY,        POSTGRES_UUID_ARRAY,        POSTGRES_TEXT_ARRAY,
    POSTGRES_TEXT_ARRAY,        POSTGRES_TEXT_ARRAY};
static const Oid limit_types[] = {POSTGRES_TEXT};
static const Oid count_types[] = {POSTGRES_UUID, POSTGRES_INT8, POSTGRES_INT8};
static const Oid title_types[] = {POSTGRES_UUID, POSTGRES_TEXT, POSTGRES_TEXT};
static const Oid delete_types[] = {POSTGRES_UUID, POSTGRES_TEXT, POSTGRES_TIMESTAMPTZ};
static const Oid aside_types[] = {POSTGRES_UUID, POSTGRES_TEXT, POSTGRES_TEXT,
                                  POSTGRES_TEXT, POSTGRES_TEXT, POSTGRES_TIMESTAMPTZ};
static const Oid alias_types[] = {POSTGRES_UUID, POSTGRES_TEXT, POSTGRES_BYTEA,
                                  POSTGRES_BYTEA, POSTGRES_TIMESTAMPTZ};
static const Oid rejected_types[] = {POSTGRES_UUID,       POSTGRES_TEXT, POSTGRES_TEXT,
                                     POSTGRES_TEXT,       POSTGRES_TEXT, POSTGRES_TEXT,
                                     POSTGRES_TIMESTAMPTZ};

#define TYPES(t) .params = (int)DAC_ARRAY_LEN(t), .types = (t)

const struct postgres_statement postgres_writer_sql[W_N] = {
    /* An operator's synchronous_commit stands, unless it takes away durability. */
    [W_LIMITS] = {"SELECT set_config('statement_timeout', $1, true), "
                  "set_config('synchronous_commit', CASE "
                  "current_setting('synchronous_commit') WHEN 'off' THEN 'on' ELSE "
                  "current_setting('synchronous_commit') END, true)",
                  TYPES(limit_types)},
    [W_THREADS] = {"INSERT INTO threads (id, org, title, created_at) "
                   "SELECT * FROM unnest($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING",
                   TYPES(thread_types)},
    [W_THREADS_MISSING] =
        {"SELECT i.place, EXISTS (SELECT FROM threads t WHERE t.id = i.id) "
         "FROM unnest($1, $2) WITH ORDINALITY AS i (id, org, place) "
         "WHERE (SELECT t.org FROM threads t WHERE t.id = i.id) IS DISTINCT FROM i.org",
         TYPES(id_types)},
    [W_TURNS] =
        {"WITH i AS MATERIALIZED (SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, "
         "$9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, "
         "$25, $26) AS i (id, org, thread_id, provider, model, status, finish_reason, "
         "error_code, ttft_ms, latency_ms, queue_wait_ms, prompt_tokens, "
         "completion_tokens, followers, hits, generation, fetcher, key_digest, "
         "created_at, finished_at, user_id, question, assistant_id, answer, citations, "
         "tool_calls)), "
         "new AS (INSERT INTO turns (id, org, thread_id, provider, model, status, "
         "finish_reason, error_code, ttft_ms, latency_ms, queue_wait_ms, prompt_tokens, "
         "completion_tokens, followers, hits, generation, fetcher, key_digest, "
         "created_at, finished_at) SELECT id, org, thread_id, provider, model, status, "
         "finish_reason, error_code, ttft_ms, latency_ms, queue_wait_ms, prompt_tokens, "
         "completion_tokens, followers, hits, generation, fetcher, key_digest, "
         "created_at, finished_at FROM i WHERE thread_id IS NULL OR (SELECT t.org FROM "
         "threads t WHERE t.id = i.thread_id) = i.org "
         "ON CONFLICT (id) DO NOTHING RETURNING id) "
         "INSERT INTO messages (id, turn_id, thread_id, role, content, citations, "
         "tool_calls, created_at) SELECT user_id, id, thread_id, 'user', question, "
         "NULL::json, NULL::json, created_at FROM i WHERE id IN (SELECT id FROM new) "
         "UNION ALL SELECT assistant_id, id, thread_id, 'assistant', answer, "
         "citations::json, tool_calls::json, finished_at FROM i WHERE answer IS NOT NULL "
         "AND id IN (SELECT id FROM new)",
         TYPES(turn_types)},
    [W_TURNS_MISSING] =
        {"SELECT i.place, EXISTS (SELECT FROM turns t WHERE t.id = i.id) "
         "FROM unnest($1, $2) WITH ORDINALITY AS i (id, org, place) "
         "WHERE (SELECT t.org FROM turns t WHERE t.id = i.id) IS DISTINCT FROM i.org",
         TYPES(id_types)},
    [W_COUNTS] = {"UPDATE turns SET followers = $2, hits = $3 WHERE id = $1",
                  TYPES(count_types)},
    [W_TITLE] = {"UPDATE threads SET title = $3 WHERE id = $1 AND org = $2 AND "
                 "deleted_at IS NULL",
                 TYPES(title_types)},
    [W_DELETE] = {"UPDATE threads SET deleted_at = coalesce(deleted_at, $3) "
                  "WHERE id = $1 AND org = $2",
                  TYPES(delete_types)},
    [W_REJECTED] = {"INSERT INTO rejected (id, kind, org, reason, sqlstate, data, "
                    "created_at) VALUES ($1, $2, $3, $4, $5, $6::json, $7) "
                    "ON CONFLICT (id, kind) DO NOTHING",
                    TYPES(rejected_types)},
    [W_ASIDE] = {"INSERT INTO rejected (id, kind, org, reason, data, created_at) "
                 "SELECT $1, $2, $3, $4, $5::json, $6 "
                 "WHERE NOT ($2 = 'turn' AND EXISTS (SELECT FROM turns WHERE id = $1)) "
                 "AND NOT ($2 = 'thread' AND EXISTS (SELECT FROM threads WHERE id = $1)) "
                 "ON CONFLICT (id, kind) DO UPDATE SET reason = excluded.reason",
                 TYPES(aside_types)},
    [W_ALIAS] = {"WITH there AS MATERIALIZED (SELECT id FROM turns WHERE id = $1 AND "
                 "org = $2), new AS (INSERT INTO idempotency AS i (org, key_digest, "
                 "body_digest, turn_id, created_at) SELECT $2, $3, $4, id, $5 FROM there "
                 "ON CONFLICT (org, key_digest) DO UPDATE SET "
                 "body_digest = excluded.body_digest, turn_id = excluded.turn_id, "
                 "created_at = excluded.created_at "
                 "WHERE i.created_at < excluded.created_at - interval '24 hours') "
                 "SELECT id FROM there",
                 TYPES(alias_types)},
};

static bool is_of(const struct store_row *row, enum store_row_kind kind)
{
    return row->kind == kind && row->result == DAC_OK;
}

void postgres_put_limits(struct postgres_args *a, uint64_t timeout_ns)
{
    char text[24];

    /* A little less than the caller's patience, so that the server gives up first and
     * the connection stays. Of the text "1800", the unit is milliseconds. */
    snprintf(text, sizeof(text), "%llu",
             (unsigned long long)(timeout_ns / 10 * 9 / NS_PER_MS + 1));
    postgres_args_reset(a);
    postgres_add_str(a, text);
}

/* One array: element(row) of each row of `kind`. */
#define COLUMN(a, rows, n, kind, oid, element)                                           \
    do {                                                                                 \
        postgres_array_begin(a, oid);                                                    \
        for (size_t i_ = 0; i_ < (n); i_++) {                                            \
            const struct store_row *row = &(rows)[i_];                                   \
            if (is_of(row, kind))                                                        \
                element;                                                                 \
        }                                                                                \
        postgres_array_end(a);                                                           \
    } while (0)

#define THREAD_COLUMN(oid, element) COLUMN(a, rows, n, STORE_THREAD, oid, element)
#define TURN_COLUMN(oid, element)   COLUMN(a, rows, n, STORE_TURN, oid, element)

void postgres_put_threads(struct postgres_args *a, const struct store_row *rows, size_t n)
{
    postgres_args_reset(a);
    THREAD_COLUMN(POSTGRES_UUID, postgres_add_id(a, &row->u.thread.id));
    THREAD_COLUMN(POSTGRES_TEXT, postgres_add_str(a, row->u.thread.org));
    THREAD_COLUMN(POSTGRES_TEXT, postgres_add_text(a, &row->u.thread.title));
    THREAD_COLUMN(POSTGRES_TIMESTAMPTZ, postgres_add_time(a, row->u.thread.created_us));
}

void postgres_put_ids(struct postgres_args *a, const struct store_row *rows, size_t n,
                      enum store_row_kind kind)
{
    postgres_args_reset(a);
    COLUMN(
        a, rows, n, kind, POSTGRES_UUID,
        postgres_add_id(a, kind == STORE_THREAD ? &row->u.thread.id : &row->u.turn.id));
    COLUMN(
        a, rows, n, kind, POSTGRES_TEXT,
        postgres_add_str(a, kind == STORE_THREAD ? row->u.thread.org : row->u.turn.org));
}

static const char *storable_str(const char *s)
{
    return s != NULL && utf8_valid(s, strlen(s)) ? s : NULL;
}

void postgres_put_turns(struct postgres_args *a, const struct store_row *rows, size_t n)
{
    static const struct id no_id;

    postgres_args_reset(a);
    TURN_COLUMN(POSTGRES_UUID, postgres_add_id(a, &row->u.turn.id));
    TURN_COLUMN(POSTGRES_TEXT, postgres_add_str(a, row->u.turn.org));
    TURN_COLUMN(POSTGRES_UUID, postgres_add_id(a, &row->u.turn.thread_id));
    TURN_COLUMN(POSTGRES_TEXT, postgres_add_str(a, row->u.turn.provider));
    TURN_COLUMN(POSTGRES_TEXT, postgres_add_str(a, row->u.turn.model));
    TURN_COLUMN(POSTGRES_TEXT, postgres_add_str(a, row->u.turn.status));
    TURN_COLUMN(POSTGRES_TEXT, postgres_add_str(a, row->u.turn.finish_reason));
    TURN_COLUMN(POSTGRES_TEXT, postgres_add_str(a, row->u.turn.error_code));
    TURN_COLUMN(POSTGRES_FLOAT8, postgres_add_duration(a, row->u.turn.ttft_ms));
    TURN_COLUMN(POSTGRES_FLOAT8, postgres_add_duration(a, row->u.turn.latency_ms));
    TURN_COLUMN(POSTGRES_FLOAT8, postgres_add_duration(a, row->u.turn.queue_wait_ms));
    TURN_COLUMN(POSTGRES_INT8, postgres_add_count(a, row->u.turn.prompt_tokens));
    TURN_COLUMN(POSTGRES_INT8, postgres_add_count(a, row->u.turn.completion_tokens));
    TURN_COLUMN(POSTGRES_INT8, postgres_add_int(a, row->u.turn.followers));
    TURN_COLUMN(POSTGRES_INT8, postgres_add_int(a, row->u.turn.hits));
    TURN_COLUMN(POSTGRES_INT8, postgres_add_int(a, row->u.turn.generation));
    TURN_COLUMN(POSTGRES_TEXT, postgres_add_str(a, storable_str(row->u.turn.fetcher)));
    TURN_COLUMN(POSTGRES_BYTEA, postgres_add_bytes(a, row->u.turn.key_digest,
                                                   sizeof(row->u.turn.key_digest)));
    TURN_COLUMN(POSTGRES_TIMESTAMPTZ, postgres_add_time(a, row->u.turn.created_us));
    TURN_COLUMN(POSTGRES_TIMESTAMPTZ, postgres_add_time(a, row->u.turn.finished_us));
    TURN_COLUMN(POSTGRES_UUID, postgres_add_id(a, &row->u.turn.user_message_id));
    TURN_COLUMN(POSTGRES_TEXT, postgres_add_text(a, &row->u.turn.user_content));
    TURN_COLUMN(POSTGRES_UUID, postgres_add_id(a, row->u.turn.assistant_content.s != NULL
                                                      ? &row->u.turn.assistant_message_id
                                                      : &no_id));
    TURN_COLUMN(POSTGRES_TEXT, postgres_add_text(a, &row->u.turn.assistant_content));
    TURN_COLUMN(POSTGRES_TEXT, postgres_add_text(a, &row->u.turn.citations));
    TURN_COLUMN(POSTGRES_TEXT, postgres_add_text(a, &row->u.turn.tool_calls));
}

void postgres_put_counts(struct postgres_args *a, const struct store_counts *c)
{
    postgres_args_reset(a);
    postgres_add_id(a, &c->turn);
    postgres_add_int(a, c->followers);
    postgres_add_int(a, c->hits);
}

void postgres_put_title(struct postgres_args *a, const struct store_change *c)
{
    postgres_args_reset(a);
    postgres_add_id(a, &c->thread);
    postgres_add_str(a, c->org);
    postgres_add_text(a, &c->title);
}

void postgres_put_delete(struct postgres_args *a, const struct store_change *c)
{
    postgres_args_reset(a);
    postgres_add_id(a, &c->thread);
    postgres_add_str(a, c->org);
    postgres_add_time(a, c->at_us);
}

void postgres_put_rejected(struct postgres_args *a, const struct store_row *row,
                           const char *sqlstate)
{
    struct buf data = BUF_INIT(REJECTED_DATA_MAX);
    struct store_text text;

    rejected_data(row, &data);
    text = (struct store_text){data.failed ? NULL : data.data, data.len};
    postgres_args_reset(a);
    postgres_add_id(a, rejected_id(row));
    postgres_add_str(a, rejected_kind(row));
    postgres_add_str(a, rejected_org(row));
    postgres_add_str(a, row->why);
    postgres_add_str(a, sqlstate[0] != '\0' ? sqlstate : NULL);
    postgres_add_text(a, &text);
    postgres_add_time(a, clock_wall_us());
    buf_free(&data);
}

void postgres_put_aside(struct postgres_args *a, const struct store_rejected *j)
{
    postgres_args_reset(a);
    postgres_add_id(a, &j->id);
    postgres_add_str(a, j->kind);
    postgres_add_str(a, storable_str(j->org));
    postgres_add_str(a, j->reason);
    postgres_add_text(a, &j->data);
    postgres_add_time(a, j->at_us);
}

void postgres_put_alias(struct postgres_args *a, const struct store_alias *s)
{
    postgres_args_reset(a);
    postgres_add_id(a, &s->turn);
    postgres_add_str(a, s->org);
    postgres_add_bytes(a, s->key_digest, sizeof(s->key_digest));
    postgres_add_bytes(a, s->body_digest, sizeof(s->body_digest));
    postgres_add_time(a, s->created_us);
}
