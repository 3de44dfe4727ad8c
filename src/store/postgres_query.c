/*
 * See postgres_query.h. A statement that finds its thread gives one row at least, also
 * where there is nothing to show: so "no such thread", "no such cursor" and "nothing
 * there" are told apart in one round trip. Lengths come from the stored values' headers,
 * so a text that does not fit is never read.
 */
#include "store/postgres_query.h"

#include <string.h>

#define STRING(x)  STRING_(x)
#define STRING_(x) #x

/* internal.h has the same numbers; SQL wants them spelled out. */
#define PAGE_BYTES    8388608
#define HISTORY_TURNS 1000
_Static_assert(PAGE_BYTES == STORE_PAGE_BYTES_MAX, "pages end at the same length");
_Static_assert(HISTORY_TURNS == STORE_HISTORY_TURNS_MAX, "histories look as far back");

#define LAST_TURN                                                                        \
    "(SELECT t.id FROM turns t WHERE t.thread_id = h.id "                                \
    "ORDER BY t.created_at DESC, t.id DESC LIMIT 1)"

/* Every question is for a few rows that an index has in their order. A planner does not
 * know that: it takes a thread for one of average length, and a limit that is a parameter
 * for a share of the table, so that it would read all of a long thread for each of its
 * pages. What this makes of its costs must not have it compile the plan. */
#define BY_INDEX(local)                                                                  \
    "(SELECT count(set_config(s, 'off', " local ")) FROM unnest('{enable_seqscan,"       \
    "enable_bitmapscan,enable_sort,enable_hashjoin,enable_mergejoin,jit}'::text[]) s)"
/* One plan suits all, then, and making it takes longer than running it. */
#define LIMIT(local)                                                                     \
    "SELECT set_config('statement_timeout', '2000', " local "), "                        \
    "set_config('plan_cache_mode', 'force_generic_plan', " local "), " BY_INDEX(local)

/* --- a page of messages --- */

#define PAGE_FITS "p.k <= $3 AND p.before <= " STRING(PAGE_BYTES)
#define PAGE_COLUMNS                                                                     \
    "p.id, p.turn_id, p.role, p.created_at, " PAGE_FITS ", CASE WHEN " PAGE_FITS         \
    " THEN p.content END, CASE WHEN " PAGE_FITS " THEN p.citations END FROM threads h "
/* A turn has one message at least, so a page of $3 messages needs no more turns than
 * that, one for what follows, and one that the cursor is in. */
#define PAGE_FROM_TURNS                                                                  \
    "LEFT JOIN LATERAL (SELECT m.id, m.turn_id, m.role, m.created_at, m.content, "       \
    "m.citations::text AS citations, row_number() OVER w AS k, "                         \
    "coalesce(sum(octet_length(m.content) + coalesce(octet_length(m.citations::text), "  \
    "0)) OVER (w ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before "       \
    "FROM (SELECT t.id, t.created_at FROM turns t WHERE t.thread_id = h.id "
#define PAGE_TO_MESSAGES                                                                 \
    "ORDER BY t.created_at, t.id LIMIT $3 + 2) t JOIN messages m ON m.turn_id = t.id "
#define PAGE_END                                                                         \
    "WINDOW w AS (ORDER BY t.created_at, t.id, m.role DESC)) p ON p.k <= $3 + 1 "        \
    "WHERE h.id = $1 AND h.org = $2 AND h.deleted_at IS NULL ORDER BY p.k"

/* --- a history --- */

#define HISTORY_MOST STRING(HISTORY_TURNS)
#define HISTORY_LENGTH                                                                   \
    "octet_length(u.content) + octet_length(a.content) + "                               \
    "coalesce(octet_length(u.citations::text), 0) + "                                    \
    "coalesce(octet_length(a.citations::text), 0)"
/* Turns newest first, numbered as they come, that have an answer; one more than may fit,
 * or the 1,001st, to show that there was more. The order is that of the index, in which
 * both are found, so that messages are looked up for no turn that is not wanted. */
#define HISTORY_TURNS_FOUND                                                              \
    "SELECT t.n, t.id AS turn_id, u.id AS user_id, a.id AS assistant_id, u.created_at, " \
    "a.created_at AS finished_at, u.content AS question, u.citations::text AS asked, "   \
    "a.content AS answer, a.citations::text AS citations, " HISTORY_LENGTH " AS length " \
    "FROM (SELECT t.id, t.created_at, row_number() OVER (ORDER BY t.created_at DESC, "   \
    "t.id DESC) AS n FROM turns t WHERE t.thread_id = h.id AND "                         \
    "(t.created_at, t.id) <= (c.created_at, c.id) "                                      \
    "ORDER BY t.created_at DESC, t.id DESC LIMIT " HISTORY_MOST " + 1) t "               \
    "JOIN messages u ON u.turn_id = t.id AND u.role = 'user' "                           \
    "LEFT JOIN messages a ON a.turn_id = t.id AND a.role = 'assistant' "                 \
    "WHERE a.id IS NOT NULL OR t.n > " HISTORY_MOST                                      \
    " ORDER BY t.created_at DESC, t.id DESC LIMIT $4 / 2 + 1"

static const Oid thread_types[] = {POSTGRES_UUID, POSTGRES_TEXT};
static const Oid threads_types[] = {POSTGRES_TEXT, POSTGRES_INT8, POSTGRES_UUID};
static const Oid messages_types[] = {POSTGRES_UUID, POSTGRES_TEXT, POSTGRES_INT8,
                                     POSTGRES_UUID};
static const Oid alias_types[] = {POSTGRES_TEXT, POSTGRES_BYTEA, POSTGRES_TIMESTAMPTZ};
static const Oid history_types[] = {POSTGRES_UUID, POSTGRES_TEXT, POSTGRES_UUID,
                                    POSTGRES_INT8, POSTGRES_INT8};

const struct postgres_statement postgres_query_statements[PQ_N] = {
    /* Not SET LOCAL, which complains where the transaction is the pipeline's own. */
    [PQ_LIMIT] = {LIMIT("true"), 0, NULL},
    [PQ_SESSION] = {LIMIT("false"), 0, NULL},
    [PQ_PID] = {"SELECT pg_backend_pid()", 0, NULL},
    [PQ_THREAD] = {"SELECT h.id, h.title, h.created_at, " LAST_TURN " FROM threads h "
                   "WHERE h.id = $1 AND h.org = $2 AND h.deleted_at IS NULL",
                   2, thread_types},
    [PQ_THREADS] = {"SELECT h.id, h.title, h.created_at, " LAST_TURN " FROM threads h "
                    "WHERE h.org = $1 AND h.deleted_at IS NULL "
                    "ORDER BY h.created_at DESC, h.id DESC LIMIT $2 + 1",
                    2, threads_types},
    [PQ_THREADS_AFTER] =
        {"SELECT h.id, h.title, h.created_at, h.last FROM threads c LEFT JOIN LATERAL ("
         "SELECT h.id, h.title, h.created_at, " LAST_TURN " AS last FROM threads h "
         "WHERE h.org = c.org AND h.deleted_at IS NULL AND "
         "(h.created_at, h.id) < (c.created_at, c.id) "
         "ORDER BY h.created_at DESC, h.id DESC LIMIT $2 + 1) h ON true "
         "WHERE c.id = $3 AND c.org = $1 ORDER BY h.created_at DESC, h.id DESC",
         3, threads_types},
    [PQ_MESSAGES] = {"SELECT true, " PAGE_COLUMNS PAGE_FROM_TURNS PAGE_TO_MESSAGES
                         PAGE_END,
                     3, messages_types},
    [PQ_MESSAGES_AFTER] =
        {"SELECT c.id IS NOT NULL, " PAGE_COLUMNS
         "LEFT JOIN LATERAL (SELECT t.id, t.created_at, m.role FROM messages m "
         "JOIN turns t ON t.id = m.turn_id WHERE m.id = $4 AND t.thread_id = h.id) c "
         "ON true " PAGE_FROM_TURNS
         "AND (t.created_at, t.id) >= (c.created_at, c.id) " PAGE_TO_MESSAGES
         "WHERE m.turn_id <> c.id OR m.role < c.role " PAGE_END,
         4, messages_types},
    [PQ_HISTORY] =
        {"SELECT c.id IS NOT NULL, p.n, p.turn_id, p.created_at, p.fits, "
         "p.user_id, p.assistant_id, p.finished_at, "
         "CASE WHEN p.fits THEN p.question END, CASE WHEN p.fits THEN p.asked END, "
         "CASE WHEN p.fits THEN p.answer END, CASE WHEN p.fits THEN p.citations END "
         "FROM threads h LEFT JOIN turns c ON c.id = $3 AND c.thread_id = h.id "
         "LEFT JOIN LATERAL (SELECT l.*, l.n <= " HISTORY_MOST
         " AND 2 * row_number() OVER w <= $4 AND sum(l.length) OVER w <= $5 AS fits "
         "FROM (" HISTORY_TURNS_FOUND ") l WINDOW w AS (ORDER BY l.n)) p ON true "
         "WHERE h.id = $1 AND h.org = $2 AND h.deleted_at IS NULL ORDER BY p.n DESC",
         5, history_types},
    [PQ_TURN] =
        {"SELECT t.id, t.thread_id, t.provider, t.model, t.status, t.finish_reason, "
         "t.error_code, t.ttft_ms, t.latency_ms, t.queue_wait_ms, t.prompt_tokens, "
         "t.completion_tokens, t.followers, t.hits, t.generation, t.key_digest, "
         "t.created_at, t.finished_at, u.id, u.content, a.id, a.content, "
         "a.citations::text, a.tool_calls::text FROM turns t LEFT JOIN threads h ON h.id "
         "= t.thread_id "
         "LEFT JOIN messages u ON u.turn_id = t.id AND u.role = 'user' "
         "LEFT JOIN messages a ON a.turn_id = t.id AND a.role = 'assistant' "
         "WHERE t.id = $1 AND t.org = $2 AND h.deleted_at IS NULL",
         2, thread_types},
    [PQ_ALIAS] = {"SELECT turn_id, key_digest, body_digest, created_at FROM idempotency "
                  "WHERE org = $1 AND key_digest = $2 AND created_at >= $3",
                  3, alias_types},
};

/* --- asking ------------------------------------------------------------------------- */

/* What a statement gets for a bound that may be SIZE_MAX. */
static int64_t bound(size_t n, size_t most)
{
    return (int64_t)(n < most ? n : most);
}

int postgres_query_build(const struct store_query *q, struct postgres_args *args)
{
    bool first = id_is_zero(&q->cursor);

    switch (q->kind) {
    case QUERY_THREADS:
        postgres_add_str(args, q->org);
        postgres_add_int(args, (int64_t)q->limit);
        if (!first)
            postgres_add_id(args, &q->cursor);
        return first ? PQ_THREADS : PQ_THREADS_AFTER;
    case QUERY_MESSAGES:
        postgres_add_id(args, &q->id);
        postgres_add_str(args, q->org);
        postgres_add_int(args, (int64_t)q->limit);
        if (!first)
            postgres_add_id(args, &q->cursor);
        return first ? PQ_MESSAGES : PQ_MESSAGES_AFTER;
    case QUERY_HISTORY:
        postgres_add_id(args, &q->id);
        postgres_add_str(args, q->org);
        postgres_add_id(args, &q->cursor);
        postgres_add_int(args, bound(q->limit, 2 * STORE_HISTORY_TURNS_MAX));
        postgres_add_int(args, bound(q->max_bytes, STORE_HISTORY_BYTES_MAX));
        return PQ_HISTORY;
    case QUERY_ALIAS:
        postgres_add_str(args, q->org);
        postgres_add_bytes(args, q->key_digest, sizeof(q->key_digest));
        postgres_add_time(args, q->since_us);
        return PQ_ALIAS;
    case QUERY_TURN:
    case QUERY_THREAD:
        break;
    }
    postgres_add_id(args, &q->id);
    postgres_add_str(args, q->org);
    return q->kind == QUERY_TURN ? PQ_TURN : PQ_THREAD;
}

/* --- columns ------------------------------------------------------------------------ */

/* One row being read. What is wrong with it is remembered. */
struct row {
    struct store_query *q;
    const PGresult *res;
    int row;
    enum dac_err e;
};

static void note(struct row *r, enum dac_err e)
{
    if (r->e == DAC_OK)
        r->e = e;
}

static void get_id(struct row *r, int column, struct id *out)
{
    if (!postgres_get_id(r->res, r->row, column, out))
        note(r, DAC_E_CORRUPT);
}

static void get_time(struct row *r, int column, int64_t *out)
{
    if (!postgres_get_time(r->res, r->row, column, out))
        note(r, DAC_E_CORRUPT);
}

static void get_int(struct row *r, int column, int64_t *out)
{
    if (!postgres_get_int(r->res, r->row, column, out))
        note(r, DAC_E_CORRUPT);
}

static void get_real(struct row *r, int column, double *out)
{
    if (!postgres_get_real(r->res, r->row, column, out))
        note(r, DAC_E_CORRUPT);
}

static bool get_bool(struct row *r, int column)
{
    bool v = false;

    if (!postgres_get_bool(r->res, r->row, column, &v))
        note(r, DAC_E_CORRUPT);
    return v;
}

/* Copies the text; NULL stays NULL. */
static void get_text(struct row *r, int column, struct store_text *out)
{
    struct store_text text;

    memset(out, 0, sizeof(*out));
    if (!postgres_get_text(r->res, r->row, column, &text)) {
        note(r, DAC_E_CORRUPT);
        return;
    }
    if (text.s == NULL)
        return;
    out->s = arena_copy(&r->q->rows.texts, text.s, text.n);
    out->n = out->s != NULL ? text.n : 0;
    if (out->s == NULL)
        note(r, DAC_E_NOMEM);
}

static void get_word(struct row *r, int column, const char **out)
{
    struct store_text text;

    get_text(r, column, &text);
    *out = text.s;
}

static bool is_null(const struct row *r, int column)
{
    return PQgetisnull(r->res, r->row, column) != 0;
}

/* --- threads ------------------------------------------------------------------------ */

static void take_thread(struct row *r)
{
    struct store_thread *t = query_add_thread(&r->q->rows);

    if (t == NULL) {
        note(r, DAC_E_NOMEM);
        return;
    }
    t->org = r->q->org;
    get_id(r, 0, &t->id);
    get_text(r, 1, &t->title);
    get_time(r, 2, &t->created_us);
    get_id(r, 3, &t->last_turn_id);
}

static enum dac_err take_one_thread(struct row *r)
{
    if (PQntuples(r->res) == 0)
        return DAC_E_NOT_FOUND;
    take_thread(r);
    return r->e;
}

static enum dac_err take_threads(struct row *r)
{
    struct store_query *q = r->q;

    if (PQntuples(r->res) == 0)
        return id_is_zero(&q->cursor) ? DAC_OK : DAC_E_INVALID;
    for (; r->e == DAC_OK && r->row < PQntuples(r->res); r->row++) {
        if (is_null(r, 0))
            break; /* nothing behind the cursor */
        if (q->rows.n == q->limit)
            q->rows.more = true;
        else
            take_thread(r);
    }
    return r->e;
}

/* --- messages ----------------------------------------------------------------------- */

static const char *role_of(struct row *r, int column)
{
    struct store_text text = {NULL, 0};

    if (!postgres_get_text(r->res, r->row, column, &text) || text.s == NULL)
        note(r, DAC_E_CORRUPT);
    return text.n == 4 ? "user" : "assistant";
}

static void take_message(struct row *r)
{
    struct store_message *m = query_add_message(&r->q->rows);

    if (m == NULL) {
        note(r, DAC_E_NOMEM);
        return;
    }
    get_id(r, 1, &m->id);
    get_id(r, 2, &m->turn_id);
    m->role = role_of(r, 3);
    get_time(r, 4, &m->created_us);
    get_text(r, 6, &m->content);
    get_text(r, 7, &m->citations);
}

static enum dac_err take_messages(struct row *r)
{
    if (PQntuples(r->res) == 0)
        return DAC_E_NOT_FOUND;
    if (!get_bool(r, 0))
        return r->e != DAC_OK ? r->e : DAC_E_INVALID;
    for (; r->e == DAC_OK && r->row < PQntuples(r->res); r->row++) {
        if (is_null(r, 1))
            break; /* a thread, or a rest of it, without messages */
        if (get_bool(r, 5))
            take_message(r);
        else
            r->q->rows.more = true;
    }
    return r->e;
}

/* --- history ------------------------------------------------------------------------ */

/* Question and answer of one turn. */
static void take_history_turn(struct row *r)
{
    struct query_rows *rows = &r->q->rows;
    struct store_message *u = query_add_message(rows);
    struct store_message *a = u != NULL ? query_add_message(rows) : NULL;

    if (a == NULL) {
        note(r, DAC_E_NOMEM);
        return;
    }
    u = a - 1; /* adding the second one may have moved the first */
    get_id(r, 2, &u->turn_id);
    a->turn_id = u->turn_id;
    u->role = "user";
    a->role = "assistant";
    get_time(r, 3, &u->created_us);
    get_id(r, 5, &u->id);
    get_id(r, 6, &a->id);
    get_time(r, 7, &a->created_us);
    get_text(r, 8, &u->content);
    get_text(r, 9, &u->citations);
    get_text(r, 10, &a->content);
    get_text(r, 11, &a->citations);
}

static enum dac_err take_history(struct row *r)
{
    if (PQntuples(r->res) == 0)
        return DAC_E_NOT_FOUND;
    if (id_is_zero(&r->q->cursor))
        return DAC_OK;
    if (!get_bool(r, 0))
        return r->e != DAC_OK ? r->e : DAC_E_NOT_FOUND;
    for (; r->e == DAC_OK && r->row < PQntuples(r->res); r->row++) {
        if (is_null(r, 1))
            break; /* no turn has an answer */
        /* Of the 1,001st turn nothing but its being there is of interest. */
        if (!is_null(r, 4) && get_bool(r, 4))
            take_history_turn(r);
        else
            r->q->rows.more = true;
    }
    return r->e;
}

/* --- one turn ----------------------------------------------------------------------- */

static void get_digest(struct row *r, int column, uint8_t out[32])
{
    if (is_null(r, column) || PQgetlength(r->res, r->row, column) != 32)
        note(r, DAC_E_CORRUPT);
    else
        memcpy(out, PQgetvalue(r->res, r->row, column), 32);
}

static enum dac_err take_turn(struct row *r)
{
    struct store_turn *t = &r->q->rows.turn;
    int64_t generation = 0;

    if (PQntuples(r->res) == 0)
        return DAC_E_NOT_FOUND;
    t->org = r->q->org;
    t->place = STORE_IN_POSTGRES;
    get_id(r, 0, &t->id);
    get_id(r, 1, &t->thread_id);
    get_word(r, 2, &t->provider);
    get_word(r, 3, &t->model);
    get_word(r, 4, &t->status);
    get_word(r, 5, &t->finish_reason);
    get_word(r, 6, &t->error_code);
    get_real(r, 7, &t->ttft_ms);
    get_real(r, 8, &t->latency_ms);
    get_real(r, 9, &t->queue_wait_ms);
    get_int(r, 10, &t->prompt_tokens);
    get_int(r, 11, &t->completion_tokens);
    get_int(r, 12, &t->followers);
    get_int(r, 13, &t->hits);
    get_int(r, 14, &generation);
    t->generation = (int)generation;
    get_digest(r, 15, t->key_digest);
    get_time(r, 16, &t->created_us);
    get_time(r, 17, &t->finished_us);
    get_id(r, 18, &t->user_message_id);
    get_text(r, 19, &t->user_content);
    get_id(r, 20, &t->assistant_message_id);
    get_text(r, 21, &t->assistant_content);
    get_text(r, 22, &t->citations);
    get_text(r, 23, &t->tool_calls);
    return r->e;
}

static enum dac_err take_alias(struct row *r)
{
    struct store_alias *a = &r->q->rows.alias;

    if (PQntuples(r->res) == 0)
        return DAC_E_NOT_FOUND;
    a->org = r->q->org;
    get_id(r, 0, &a->turn);
    get_digest(r, 1, a->key_digest);
    get_digest(r, 2, a->body_digest);
    get_time(r, 3, &a->created_us);
    return r->e;
}

/* --- the whole ---------------------------------------------------------------------- */

enum dac_err postgres_query_take(struct store_query *q, const PGresult *res)
{
    static enum dac_err (*const takers[])(struct row *) = {
        [QUERY_THREAD] = take_one_thread, [QUERY_THREADS] = take_threads,
        [QUERY_MESSAGES] = take_messages, [QUERY_HISTORY] = take_history,
        [QUERY_TURN] = take_turn,         [QUERY_ALIAS] = take_alias,
    };
    struct row r = {.q = q, .res = res};

    query_rows_reset(&q->rows);
    enum dac_err e = takers[q->kind](&r);

    if (e != DAC_OK)
        query_rows_reset(&q->rows);
    return e;
}
