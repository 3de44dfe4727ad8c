/*
 * See postgres_sql.h. Recorder only; no state.
 */
#include "store/postgres_sql.h"

#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "store/rejected.h"

/* The parameters of a thread `t` and a turn `t`, in the order of the statements: type,
 * and how `a` gets it. X makes of each what is needed: values of one row, or arrays. */
#define THREAD_PARAMETERS(X)                                                             \
    X(POSTGRES_UUID, postgres_add_id(a, &t->id))                                         \
    X(POSTGRES_TEXT, postgres_add_str(a, t->org))                                        \
    X(POSTGRES_TEXT, postgres_add_text(a, &t->title))                                    \
    X(POSTGRES_TIMESTAMPTZ, postgres_add_time(a, t->created_us))
#define TURN_PARAMETERS(X)                                                               \
    X(POSTGRES_UUID, postgres_add_id(a, &t->id))                                         \
    X(POSTGRES_TEXT, postgres_add_str(a, t->org))                                        \
    X(POSTGRES_UUID, postgres_add_id(a, &t->thread_id))                                  \
    X(POSTGRES_TEXT, postgres_add_str(a, t->provider))                                   \
    X(POSTGRES_TEXT, postgres_add_str(a, t->model))                                      \
    X(POSTGRES_TEXT, postgres_add_str(a, t->status))                                     \
    X(POSTGRES_TEXT, postgres_add_str(a, t->finish_reason))                              \
    X(POSTGRES_TEXT, postgres_add_str(a, t->error_code))                                 \
    X(POSTGRES_FLOAT8, postgres_add_duration(a, t->ttft_ms))                             \
    X(POSTGRES_FLOAT8, postgres_add_duration(a, t->latency_ms))                          \
    X(POSTGRES_FLOAT8, postgres_add_duration(a, t->queue_wait_ms))                       \
    X(POSTGRES_INT8, postgres_add_count(a, t->prompt_tokens))                            \
    X(POSTGRES_INT8, postgres_add_count(a, t->completion_tokens))                        \
    X(POSTGRES_INT8, postgres_add_int(a, t->followers))                                  \
    X(POSTGRES_INT8, postgres_add_int(a, t->hits))                                       \
    X(POSTGRES_INT8, postgres_add_int(a, t->generation))                                 \
    X(POSTGRES_TEXT, postgres_add_str(a, storable_str(t->fetcher)))                      \
    X(POSTGRES_BYTEA, postgres_add_bytes(a, t->key_digest, sizeof(t->key_digest)))       \
    X(POSTGRES_TIMESTAMPTZ, postgres_add_time(a, t->created_us))                         \
    X(POSTGRES_TIMESTAMPTZ, postgres_add_time(a, t->finished_us))                        \
    X(POSTGRES_UUID, postgres_add_id(a, &t->user_message_id))                            \
    X(POSTGRES_TEXT, postgres_add_text(a, &t->user_content))                             \
    X(POSTGRES_UUID, postgres_add_id(a, answer_id(t)))                                   \
    X(POSTGRES_TEXT, postgres_add_text(a, &t->assistant_content))                        \
    X(POSTGRES_TEXT, postgres_add_text(a, &t->citations))                                \
    X(POSTGRES_TEXT, postgres_add_text(a, &t->tool_calls))

#define TYPE(oid, add)       oid,
#define ARRAY_TYPE(oid, add) oid##_ARRAY,
#define VALUE(oid, add)      add;

static const Oid thread_types[] = {THREAD_PARAMETERS(TYPE)};
static const Oid threads_types[] = {THREAD_PARAMETERS(ARRAY_TYPE)};
static const Oid turn_types[] = {TURN_PARAMETERS(TYPE)};
static const Oid turns_types[] = {TURN_PARAMETERS(ARRAY_TYPE)};
static const Oid id_types[] = {POSTGRES_UUID_ARRAY, POSTGRES_TEXT_ARRAY};
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

/* An operator's synchronous_commit stands, unless it takes away durability. Plans are
 * made once, since making one takes longer than running it, and a kept plan must look ids
 * up in their indexes also if the table was small when it was made. `local`: until the
 * end of the transaction. */
#define LIMITS(local)                                                                    \
    "SELECT set_config('statement_timeout', $1, " local "), "                            \
    "set_config('synchronous_commit', CASE current_setting('synchronous_commit') "       \
    "WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, " local "), "  \
    "set_config('plan_cache_mode', 'force_generic_plan', " local "), "                   \
    "set_config('enable_seqscan', 'off', " local ")"

#define TURN_COLUMNS                                                                     \
    "id, org, thread_id, provider, model, status, finish_reason, error_code, ttft_ms, "  \
    "latency_ms, queue_wait_ms, prompt_tokens, completion_tokens, followers, hits, "     \
    "generation, fetcher, key_digest, created_at, finished_at"

#define MESSAGE_COLUMNS                                                                  \
    "id, turn_id, thread_id, role, content, citations, tool_calls, created_at"

const struct postgres_statement postgres_writer_sql[W_N] = {
    [W_PID] = {"SELECT pg_backend_pid()", .params = 0},
    [W_SESSION] = {LIMITS("false"), TYPES(limit_types)},
    [W_LIMITS] = {LIMITS("true"), TYPES(limit_types)},
    [W_THREAD] = {"INSERT INTO threads (id, org, title, created_at) "
                  "VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING",
                  TYPES(thread_types)},
    [W_THREADS] = {"INSERT INTO threads (id, org, title, created_at) "
                   "SELECT * FROM unnest($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING",
                   TYPES(threads_types)},
    [W_THREADS_MISSING] =
        {"SELECT i.place, EXISTS (SELECT FROM threads t WHERE t.id = i.id) "
         "FROM unnest($1, $2) WITH ORDINALITY AS i (id, org, place) "
         "WHERE (SELECT t.org FROM threads t WHERE t.id = i.id) IS DISTINCT FROM i.org",
         TYPES(id_types)},
    [W_TURN] = {"WITH new AS (INSERT INTO turns (" TURN_COLUMNS
                ") SELECT $1, $2, $3, $4, $5, "
                "$6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20 "
                "WHERE $3 IS NULL OR (SELECT t.org FROM threads t WHERE t.id = $3) = $2 "
                "ON CONFLICT (id) DO NOTHING RETURNING id) "
                "INSERT INTO messages (" MESSAGE_COLUMNS
                ") SELECT m.id, new.id, $3, m.role, "
                "m.content, m.citations, m.tool_calls, m.created_at FROM new, "
                "(VALUES ($21, 'user', $22, NULL::json, NULL::json, $19), "
                "($23, 'assistant', $24, $25::json, $26::json, $20)) "
                "AS m (id, role, content, citations, tool_calls, created_at) "
                "WHERE m.content IS NOT NULL",
                TYPES(turn_types)},
    [W_TURNS] =
        {"WITH i AS MATERIALIZED (SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, "
         "$9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, "
         "$25, $26) AS i (" TURN_COLUMNS ", user_id, question, assistant_id, answer, "
         "citations, tool_calls)), "
         "new AS (INSERT INTO turns (" TURN_COLUMNS ") SELECT " TURN_COLUMNS " FROM i "
         "WHERE thread_id IS NULL OR (SELECT t.org FROM threads t WHERE t.id = "
         "i.thread_id) = i.org ON CONFLICT (id) DO NOTHING RETURNING id) "
         "INSERT INTO messages (" MESSAGE_COLUMNS ") SELECT user_id, id, thread_id, "
         "'user', question, NULL::json, NULL::json, created_at FROM i "
         "WHERE id IN (SELECT id FROM new) UNION ALL "
         "SELECT assistant_id, id, thread_id, 'assistant', answer, citations::json, "
         "tool_calls::json, finished_at FROM i WHERE answer IS NOT NULL AND id IN "
         "(SELECT id FROM new)",
         TYPES(turns_types)},
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

static const char *storable_str(const char *s)
{
    return s != NULL && utf8_valid(s, strlen(s)) ? s : NULL;
}

static const struct id *answer_id(const struct store_turn *t)
{
    static const struct id none;

    return t->assistant_content.s != NULL ? &t->assistant_message_id : &none;
}

/* The first row of `kind` that is to be sent, and with `count` how many there are. */
static const struct store_row *find(const struct store_row *rows, size_t n,
                                    enum store_row_kind kind, size_t *count)
{
    const struct store_row *first = NULL;

    *count = 0;
    for (size_t i = 0; i < n; i++) {
        if (!is_of(&rows[i], kind))
            continue;
        first = first != NULL ? first : &rows[i];
        ++*count;
    }
    return first;
}

/* One array: `add` for each row of `kind`, whose member of `u` is `t`. */
#define ARRAY(kind_, member, oid, add)                                                   \
    postgres_array_begin(a, oid);                                                        \
    for (size_t i = 0; i < n; i++) {                                                     \
        if (is_of(&rows[i], kind_)) {                                                    \
            const struct store_##member *t = &rows[i].u.member;                          \
            add;                                                                         \
        }                                                                                \
    }                                                                                    \
    postgres_array_end(a);
#define THREAD_ARRAY(oid, add) ARRAY(STORE_THREAD, thread, oid, add)
#define TURN_ARRAY(oid, add)   ARRAY(STORE_TURN, turn, oid, add)

int postgres_put_threads(struct postgres_args *a, const struct store_row *rows, size_t n,
                         size_t *expected)
{
    const struct store_row *first = find(rows, n, STORE_THREAD, expected);

    postgres_args_reset(a);
    if (*expected == 1) {
        const struct store_thread *t = &first->u.thread;

        THREAD_PARAMETERS(VALUE)
        return W_THREAD;
    }
    THREAD_PARAMETERS(THREAD_ARRAY)
    return W_THREADS;
}

int postgres_put_turns(struct postgres_args *a, const struct store_row *rows, size_t n,
                       size_t *expected)
{
    size_t turns;
    const struct store_row *first = find(rows, n, STORE_TURN, &turns);

    *expected = turns;
    for (size_t i = 0; i < n; i++)
        *expected +=
            is_of(&rows[i], STORE_TURN) && rows[i].u.turn.assistant_content.s != NULL;
    postgres_args_reset(a);
    if (turns == 1) {
        const struct store_turn *t = &first->u.turn;

        TURN_PARAMETERS(VALUE)
        return W_TURN;
    }
    TURN_PARAMETERS(TURN_ARRAY)
    return W_TURNS;
}

void postgres_put_ids(struct postgres_args *a, const struct store_row *rows, size_t n,
                      enum store_row_kind kind)
{
    postgres_args_reset(a);
    if (kind == STORE_THREAD) {
        THREAD_ARRAY(POSTGRES_UUID, postgres_add_id(a, &t->id))
        THREAD_ARRAY(POSTGRES_TEXT, postgres_add_str(a, t->org))
    } else {
        TURN_ARRAY(POSTGRES_UUID, postgres_add_id(a, &t->id))
        TURN_ARRAY(POSTGRES_TEXT, postgres_add_str(a, t->org))
    }
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
