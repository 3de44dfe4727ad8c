/*
 * See sqlite_query.h. A query is one read transaction, so its statements see one moment.
 * Contents are fetched turn by turn and never sorted by SQLite, so memory is bounded by
 * the page and not by the thread.
 */
#include "store/sqlite_query.h"

#include <string.h>

#include "store/sqlite.h"

const char *const sqlite_query_sql[R_N] = {
    [R_BEGIN] = "BEGIN",
    [R_END] = "COMMIT",
    [R_THREAD] = "SELECT h.id, h.title, h.created_at, (SELECT t.id FROM turns t WHERE "
                 "t.thread_id = h.id ORDER BY t.created_at DESC, t.id DESC LIMIT 1) "
                 "FROM threads h WHERE h.id = ?1 AND h.org = ?2 AND h.deleted_at IS NULL",
    [R_THREAD_AT] = "SELECT created_at FROM threads WHERE id = ?1 AND org = ?2",
    [R_THREADS] =
        "SELECT h.id, h.title, h.created_at, (SELECT t.id FROM turns t WHERE "
        "t.thread_id = h.id ORDER BY t.created_at DESC, t.id DESC LIMIT 1) "
        "FROM threads h WHERE h.org = ?1 AND h.deleted_at IS NULL AND "
        "(h.created_at, h.id) < (?2, ?3) ORDER BY h.created_at DESC, h.id DESC LIMIT ?4",
    [R_THREAD_LIVES] =
        "SELECT 1 FROM threads WHERE id = ?1 AND org = ?2 AND deleted_at IS NULL",
    [R_TURN_AT] = "SELECT created_at FROM turns WHERE id = ?1 AND thread_id = ?2",
    [R_MESSAGE_AT] = "SELECT t.created_at, t.id FROM messages m JOIN turns t ON t.id = "
                     "m.turn_id WHERE m.id = ?1 AND t.thread_id = ?2",
    [R_TURNS_FROM] = "SELECT id FROM turns WHERE thread_id = ?1 AND (created_at, id) >= "
                     "(?2, ?3) ORDER BY created_at, id",
    [R_TURNS_UNTIL] = "SELECT id FROM turns WHERE thread_id = ?1 AND (created_at, id) <= "
                      "(?2, ?3) ORDER BY created_at DESC, id DESC",
    [R_MESSAGES] = "SELECT id, role, content, citations, created_at FROM messages "
                   "WHERE turn_id = ?1 ORDER BY role DESC",
    [R_TURN] =
        "SELECT t.id, t.thread_id, t.provider, t.model, t.status, t.finish_reason, "
        "t.error_code, t.ttft_ms, t.latency_ms, t.queue_wait_ms, t.prompt_tokens, "
        "t.completion_tokens, t.followers, t.hits, t.generation, t.key_digest, "
        "t.created_at, t.finished_at, (SELECT tool_calls FROM messages WHERE "
        "turn_id = t.id AND role = 'assistant') FROM turns t LEFT JOIN threads h "
        "ON h.id = t.thread_id WHERE t.id = ?1 AND t.org = ?2 AND "
        "h.deleted_at IS NULL",
    [R_ALIAS] = "SELECT turn_id, key_digest, body_digest, created_at FROM idempotency "
                "WHERE org = ?1 AND key_digest = ?2 AND created_at >= ?3",
};

/* --- columns ------------------------------------------------------------------------ */

/* Copies a column's text into the query; NULL stays NULL. */
static enum dac_err copy_text(struct store_query *q, sqlite3_stmt *s, int i,
                              struct store_text *out)
{
    out->s = NULL;
    out->n = 0;
    if (sqlite3_column_type(s, i) == SQLITE_NULL)
        return DAC_OK;
    const unsigned char *text = sqlite3_column_text(s, i);
    size_t n = (size_t)sqlite3_column_bytes(s, i);

    if (text == NULL)
        return DAC_E_NOMEM;
    out->s = arena_copy(&q->rows.texts, text, n);
    if (out->s == NULL)
        return DAC_E_NOMEM;
    out->n = n;
    q->rows.bytes += n;
    return DAC_OK;
}

static enum dac_err copy_word(struct store_query *q, sqlite3_stmt *s, int i,
                              const char **out)
{
    struct store_text text;
    enum dac_err e = copy_text(q, s, i, &text);

    *out = text.s;
    return e;
}

/* Steps a statement that finds at most one row. DAC_OK: it stands on it. */
static enum dac_err find(sqlite3_stmt *s)
{
    int rc = sqlite3_step(s);

    if (rc == SQLITE_ROW)
        return DAC_OK;
    return rc == SQLITE_DONE ? DAC_E_NOT_FOUND : sqlite_map(rc);
}

/* The end of a loop over rows by its last code. */
static enum dac_err ended(int rc)
{
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? DAC_OK : sqlite_map(rc);
}

/* --- threads ------------------------------------------------------------------------ */

static enum dac_err take_thread(struct store_query *q, sqlite3_stmt *s)
{
    struct store_thread *t = query_add_thread(&q->rows);

    if (t == NULL)
        return DAC_E_NOMEM;
    t->org = q->org;
    if (!sqlite_read_id(s, 0, &t->id) || !sqlite_read_time(s, 2, &t->created_us) ||
        !sqlite_read_id(s, 3, &t->last_turn_id))
        return DAC_E_CORRUPT;
    return copy_text(q, s, 1, &t->title);
}

static enum dac_err run_thread(sqlite3_stmt *const st[], struct store_query *q)
{
    sqlite3_stmt *s = st[R_THREAD];

    if ((sqlite_bind_id(s, 1, &q->id) | sqlite_bind_str(s, 2, q->org)) != 0)
        return DAC_E_NOMEM;
    enum dac_err e = find(s);

    return e == DAC_OK ? take_thread(q, s) : e;
}

static enum dac_err run_threads(sqlite3_stmt *const st[], struct store_query *q)
{
    sqlite3_stmt *at = st[R_THREAD_AT];
    sqlite3_stmt *s = st[R_THREADS];
    enum dac_err e = DAC_OK;
    int bad =
        sqlite_bind_str(s, 1, q->org) | sqlite3_bind_int64(s, 4, (int64_t)q->limit + 1);
    int rc = SQLITE_DONE;

    if (id_is_zero(&q->cursor)) {
        bad |=
            sqlite_bind_str(s, 2, "~") | sqlite_bind_str(s, 3, "~"); /* above any time */
    } else {
        bad |= sqlite_bind_id(at, 1, &q->cursor) | sqlite_bind_str(at, 2, q->org);
        e = bad != 0 ? DAC_E_NOMEM : find(at);
        if (e != DAC_OK)
            return e == DAC_E_NOT_FOUND ? DAC_E_INVALID : e;
        bad |= sqlite3_bind_value(s, 2, sqlite3_column_value(at, 0)) |
               sqlite_bind_id(s, 3, &q->cursor);
    }
    if (bad != 0)
        return DAC_E_NOMEM;
    while (e == DAC_OK && !q->rows.more && (rc = sqlite3_step(s)) == SQLITE_ROW) {
        if (q->rows.n == q->limit)
            q->rows.more = true;
        else
            e = take_thread(q, s);
    }
    return e != DAC_OK ? e : ended(rc);
}

/* --- messages ----------------------------------------------------------------------- */

static enum dac_err thread_lives(sqlite3_stmt *const st[], struct store_query *q)
{
    sqlite3_stmt *s = st[R_THREAD_LIVES];

    if ((sqlite_bind_id(s, 1, &q->id) | sqlite_bind_str(s, 2, q->org)) != 0)
        return DAC_E_NOMEM;
    return find(s);
}

static enum dac_err take_message(struct store_query *q, sqlite3_stmt *s,
                                 const struct id *turn)
{
    struct store_message *m = query_add_message(&q->rows);
    const char *role = (const char *)sqlite3_column_text(s, 1);

    if (m == NULL || role == NULL)
        return DAC_E_NOMEM;
    m->turn_id = *turn;
    m->role = strcmp(role, "user") == 0 ? "user" : "assistant";
    if (!sqlite_read_id(s, 0, &m->id) || !sqlite_read_time(s, 4, &m->created_us))
        return DAC_E_CORRUPT;
    enum dac_err e = copy_text(q, s, 2, &m->content);

    return e == DAC_OK ? copy_text(q, s, 3, &m->citations) : e;
}

/* Adds one turn's messages to the page, those behind the cursor only while *skipping. */
static enum dac_err page_turn(sqlite3_stmt *s, struct store_query *q,
                              const struct id *turn, bool *skipping)
{
    enum dac_err e = DAC_OK;
    int rc = SQLITE_DONE;

    if (sqlite_bind_id(s, 1, turn) != 0)
        return DAC_E_NOMEM;
    while (e == DAC_OK && !q->rows.more && (rc = sqlite3_step(s)) == SQLITE_ROW) {
        struct id id;

        if (*skipping) {
            if (!sqlite_read_id(s, 0, &id))
                e = DAC_E_CORRUPT;
            else if (id_equal(&id, &q->cursor))
                *skipping = false;
        } else if (q->rows.n >= q->limit || q->rows.bytes > STORE_PAGE_BYTES_MAX) {
            q->rows.more = true;
        } else {
            e = take_message(q, s, turn);
        }
    }
    sqlite3_reset(s);
    return e != DAC_OK ? e : ended(rc);
}

static enum dac_err run_messages(sqlite3_stmt *const st[], struct store_query *q)
{
    sqlite3_stmt *at = st[R_MESSAGE_AT];
    sqlite3_stmt *turns = st[R_TURNS_FROM];
    bool skipping = !id_is_zero(&q->cursor);
    enum dac_err e = thread_lives(st, q);
    int bad = sqlite_bind_id(turns, 1, &q->id);
    int rc = SQLITE_DONE;

    if (e != DAC_OK)
        return e;
    if (!skipping) {
        bad |= sqlite_bind_str(turns, 2, "") | sqlite_bind_str(turns, 3, "");
    } else {
        bad |= sqlite_bind_id(at, 1, &q->cursor) | sqlite_bind_id(at, 2, &q->id);
        e = bad != 0 ? DAC_E_NOMEM : find(at);
        if (e != DAC_OK)
            return e == DAC_E_NOT_FOUND ? DAC_E_INVALID : e;
        bad |= sqlite3_bind_value(turns, 2, sqlite3_column_value(at, 0)) |
               sqlite3_bind_value(turns, 3, sqlite3_column_value(at, 1));
    }
    if (bad != 0)
        return DAC_E_NOMEM;
    while (e == DAC_OK && !q->rows.more && (rc = sqlite3_step(turns)) == SQLITE_ROW) {
        struct id turn;

        e = sqlite_read_id(turns, 0, &turn)
                ? page_turn(st[R_MESSAGES], q, &turn, &skipping)
                : DAC_E_CORRUPT;
    }
    return e != DAC_OK ? e : ended(rc);
}

/* --- history ------------------------------------------------------------------------ */

/* Adds one turn in front, that is its answer and then its question, for the rows are
 * turned around at the end. Leaves the rows as they were if it has no answer; sets `more`
 * and leaves them if it does not fit. */
static enum dac_err history_turn(sqlite3_stmt *s, struct store_query *q,
                                 const struct id *turn)
{
    struct query_rows *rows = &q->rows;
    size_t n = rows->n;
    size_t bytes = rows->bytes;
    bool answered = false;
    enum dac_err e = DAC_OK;
    int rc = SQLITE_DONE;

    if (sqlite_bind_id(s, 1, turn) != 0)
        return DAC_E_NOMEM;
    while (e == DAC_OK && (rc = sqlite3_step(s)) == SQLITE_ROW) {
        e = take_message(q, s, turn);
        answered |= e == DAC_OK && strcmp(rows->messages[rows->n - 1].role, "user") != 0;
    }
    sqlite3_reset(s);
    if (e != DAC_OK || ended(rc) != DAC_OK)
        return e != DAC_OK ? e : ended(rc);
    if (answered && (rows->n > q->limit || rows->bytes > q->max_bytes))
        rows->more = true;
    if (!answered || rows->more) {
        rows->n = n;
        rows->bytes = bytes;
        return DAC_OK;
    }
    if (rows->n - n == 2) {
        struct store_message user = rows->messages[n];

        rows->messages[n] = rows->messages[n + 1];
        rows->messages[n + 1] = user;
    }
    return DAC_OK;
}

static void rows_reverse(struct query_rows *rows)
{
    for (size_t i = 0, j = rows->n; i + 1 < j; i++) {
        struct store_message m = rows->messages[i];

        rows->messages[i] = rows->messages[--j];
        rows->messages[j] = m;
    }
}

static enum dac_err run_history(sqlite3_stmt *const st[], struct store_query *q)
{
    sqlite3_stmt *at = st[R_TURN_AT];
    sqlite3_stmt *turns = st[R_TURNS_UNTIL];
    enum dac_err e = thread_lives(st, q);
    int rc = SQLITE_DONE;

    if (e != DAC_OK || id_is_zero(&q->cursor))
        return e;
    if ((sqlite_bind_id(at, 1, &q->cursor) | sqlite_bind_id(at, 2, &q->id)) != 0)
        return DAC_E_NOMEM;
    e = find(at);
    if (e != DAC_OK)
        return e;
    if ((sqlite_bind_id(turns, 1, &q->id) |
         sqlite3_bind_value(turns, 2, sqlite3_column_value(at, 0)) |
         sqlite_bind_id(turns, 3, &q->cursor)) != 0)
        return DAC_E_NOMEM;
    for (int i = 0; e == DAC_OK && !q->rows.more; i++) {
        struct id turn;

        rc = sqlite3_step(turns);
        if (rc != SQLITE_ROW)
            break;
        if (i == STORE_HISTORY_TURNS_MAX)
            q->rows.more = true;
        else if (!sqlite_read_id(turns, 0, &turn))
            e = DAC_E_CORRUPT;
        else
            e = history_turn(st[R_MESSAGES], q, &turn);
    }
    rows_reverse(&q->rows);
    return e != DAC_OK ? e : ended(rc);
}

/* --- one turn ----------------------------------------------------------------------- */

static enum dac_err take_turn(struct store_query *q, sqlite3_stmt *s)
{
    struct store_turn *t = &q->rows.turn;
    const struct {
        int column;
        const char **out;
    } words[] = {
        {2, &t->provider},      {3, &t->model},      {4, &t->status},
        {5, &t->finish_reason}, {6, &t->error_code},
    };

    t->org = q->org;
    if (!sqlite_read_id(s, 0, &t->id) || !sqlite_read_id(s, 1, &t->thread_id) ||
        !sqlite_read_time(s, 16, &t->created_us) ||
        !sqlite_read_time(s, 17, &t->finished_us) ||
        !sqlite_read_digest(s, 15, t->key_digest))
        return DAC_E_CORRUPT;
    sqlite_read_figures(s, 7, t);
    for (size_t i = 0; i < DAC_ARRAY_LEN(words); i++) {
        enum dac_err e = copy_word(q, s, words[i].column, words[i].out);

        if (e != DAC_OK)
            return e;
    }
    return copy_text(q, s, 18, &t->tool_calls);
}

static enum dac_err run_turn(sqlite3_stmt *const st[], struct store_query *q)
{
    sqlite3_stmt *s = st[R_TURN];
    struct store_turn *t = &q->rows.turn;
    bool skipping = false;

    if ((sqlite_bind_id(s, 1, &q->id) | sqlite_bind_str(s, 2, q->org)) != 0)
        return DAC_E_NOMEM;
    enum dac_err e = find(s);

    if (e == DAC_OK)
        e = take_turn(q, s);
    q->limit = 2;
    if (e == DAC_OK)
        e = page_turn(st[R_MESSAGES], q, &t->id, &skipping);
    for (size_t i = 0; e == DAC_OK && i < q->rows.n; i++) {
        const struct store_message *m = &q->rows.messages[i];

        if (strcmp(m->role, "user") == 0) {
            t->user_message_id = m->id;
            t->user_content = m->content;
        } else {
            t->assistant_message_id = m->id;
            t->assistant_content = m->content;
            t->citations = m->citations;
        }
    }
    return e;
}

/* --- one alias ---------------------------------------------------------------------- */

static enum dac_err run_alias(sqlite3_stmt *const st[], struct store_query *q)
{
    sqlite3_stmt *s = st[R_ALIAS];
    struct store_alias *a = &q->rows.alias;

    if ((sqlite_bind_str(s, 1, q->org) |
         sqlite3_bind_blob(s, 2, q->key_digest, sizeof(q->key_digest), SQLITE_STATIC) |
         sqlite_bind_time(s, 3, q->since_us > 0 ? q->since_us : 0)) != 0)
        return DAC_E_NOMEM;
    enum dac_err e = find(s);

    if (e != DAC_OK)
        return e;
    a->org = q->org;
    return sqlite_read_id(s, 0, &a->turn) && sqlite_read_digest(s, 1, a->key_digest) &&
                   sqlite_read_digest(s, 2, a->body_digest) &&
                   sqlite_read_time(s, 3, &a->created_us)
               ? DAC_OK
               : DAC_E_CORRUPT;
}

/* --- the whole ---------------------------------------------------------------------- */

static enum dac_err (*const runners[])(sqlite3_stmt *const[], struct store_query *) = {
    [QUERY_THREAD] = run_thread,     [QUERY_THREADS] = run_threads,
    [QUERY_MESSAGES] = run_messages, [QUERY_HISTORY] = run_history,
    [QUERY_TURN] = run_turn,         [QUERY_ALIAS] = run_alias,
};

static int failure_code(sqlite3_stmt *const stmts[])
{
    int rc = sqlite3_extended_errcode(sqlite3_db_handle(stmts[R_BEGIN]));

    return (rc & 0xff) == SQLITE_ROW || (rc & 0xff) == SQLITE_DONE ? SQLITE_OK : rc;
}

enum dac_err sqlite_query_run(sqlite3_stmt *const stmts[R_N], struct store_query *q,
                              int *code)
{
    enum dac_err e = DAC_E_SYS;

    query_rows_reset(&q->rows);
    if (sqlite3_step(stmts[R_BEGIN]) == SQLITE_DONE)
        e = runners[q->kind](stmts, q);
    *code = e == DAC_OK ? SQLITE_OK : failure_code(stmts);
    for (int i = R_BEGIN; i < R_N; i++) {
        sqlite3_reset(stmts[i]);
        sqlite3_clear_bindings(stmts[i]);
    }
    /* Nothing was written, so ending it cannot fail in a way that matters to the rows;
     * should it, the next query's BEGIN says so. */
    (void)sqlite3_step(stmts[R_END]);
    sqlite3_reset(stmts[R_END]);
    if (e != DAC_OK)
        query_rows_reset(&q->rows);
    return e;
}
