/*
 * See sqlite_rows.h. A turn that breaks a constraint by its messages is taken out again
 * alone: a savepoint around each would cost the good ones a fifth of their time.
 */
#include "store/sqlite_rows.h"

#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "store/rejected.h"
#include "store/sqlite.h"

const char *const sqlite_rows_sql[W_N] = {
    [W_BEGIN] = "BEGIN IMMEDIATE",
    [W_COMMIT] = "COMMIT",
    [W_ROLLBACK] = "ROLLBACK",
    [W_THREAD] =
        "INSERT INTO threads (id, org, title, created_at) VALUES (?1, ?2, ?3, ?4) "
        "ON CONFLICT (id) DO NOTHING",
    [W_THREAD_ORG] = "SELECT org FROM threads WHERE id = ?1",
    [W_TURN] =
        "INSERT INTO turns (id, org, thread_id, provider, model, status, "
        "finish_reason, error_code, ttft_ms, latency_ms, queue_wait_ms, prompt_tokens, "
        "completion_tokens, followers, hits, generation, key_digest, created_at, "
        "finished_at, fetcher) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, "
        "?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20) ON CONFLICT (id) DO NOTHING",
    [W_TURN_ORG] = "SELECT org FROM turns WHERE id = ?1",
    [W_MESSAGE] =
        "INSERT INTO messages (id, turn_id, thread_id, role, content, citations, "
        "tool_calls, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    [W_COUNTS] = "UPDATE turns SET followers = ?2, hits = ?3 WHERE id = ?1",
    [W_TITLE] = "UPDATE threads SET title = ?3 WHERE id = ?1 AND org = ?2 AND "
                "deleted_at IS NULL",
    [W_DELETE] = "UPDATE threads SET deleted_at = coalesce(deleted_at, ?3) WHERE id = ?1 "
                 "AND org = ?2",
    [W_UNDO_MESSAGES] = "DELETE FROM messages WHERE turn_id = ?1",
    [W_UNDO_TURN] = "DELETE FROM turns WHERE id = ?1",
    [W_ASIDE] =
        "INSERT INTO rejected (id, kind, org, reason, data, created_at) "
        "SELECT ?1, ?2, ?3, ?4, ?5, ?6 "
        "WHERE NOT (?2 = 'turn' AND EXISTS (SELECT 1 FROM turns WHERE id = ?1)) "
        "AND NOT (?2 = 'thread' AND EXISTS (SELECT 1 FROM threads WHERE id = ?1)) "
        "ON CONFLICT (id, kind) DO UPDATE SET reason = excluded.reason",
    [W_REJECTED] = "INSERT INTO rejected (id, kind, org, reason, data, created_at) "
                   "VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (id, kind) DO NOTHING",
    [W_ALIAS] =
        "INSERT INTO idempotency (org, key_digest, body_digest, turn_id, created_at) "
        "VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (org, key_digest) DO UPDATE SET "
        "body_digest = excluded.body_digest, turn_id = excluded.turn_id, "
        "created_at = excluded.created_at WHERE created_at < ?6",
};

enum dac_err sqlite_rows_fail(struct sqlite_store *s, int rc, const char *what)
{
    enum dac_err e =
        sqlite_explain(s->db, s->path, rc, what, s->core.error, sizeof(s->core.error));

    return e == DAC_E_CORRUPT ? DAC_E_SYS : e;
}

int sqlite_rows_run(struct sqlite_store *s, int which)
{
    int rc = sqlite3_step(s->stmt[which]);

    if (rc == SQLITE_ROW)
        rc = SQLITE_DONE;
    int rc2 = sqlite3_reset(s->stmt[which]);

    if (rc != SQLITE_DONE)
        return rc;
    return rc2;
}

/* Whether the row of `id` that `which` finds is of `org`; *found: whether there is one.
 */
static int same_org(struct sqlite_store *s, int which, const struct id *id,
                    const char *org, bool *found, bool *same)
{
    sqlite3_stmt *q = s->stmt[which];

    *found = *same = false;
    if (sqlite_bind_id(q, 1, id) != 0)
        return SQLITE_NOMEM;
    int rc = sqlite3_step(q);

    if (rc == SQLITE_ROW) {
        const char *text = (const char *)sqlite3_column_text(q, 0);

        *found = true;
        *same = text != NULL && strcmp(text, org) == 0;
        rc = SQLITE_DONE;
    }
    sqlite3_reset(q);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* What a statement's failure means: DAC_OK if the row alone is refused, else the batch is
 * lost. */
static enum dac_err row_failed(struct sqlite_store *s, struct store_row *row, int rc,
                               const char *what)
{
    enum dac_err e = sqlite_rows_fail(s, rc, what);

    if (e != DAC_E_INVALID)
        return e;
    store_row_refuse(row, e, "%s %s", what, sqlite3_errmsg(s->db));
    s->core.error[0] = '\0';
    return DAC_OK;
}

/* The row was there before. That is a replay, unless it is another org's. */
static enum dac_err check_replay(struct sqlite_store *s, struct store_row *row, int which,
                                 const struct id *id, const char *org)
{
    char text[ID_TEXT_SIZE];
    bool found, same;
    int rc = same_org(s, which, id, org, &found, &same);

    if (rc != SQLITE_OK)
        return sqlite_rows_fail(s, rc, "could not read database");
    if (same)
        return DAC_OK;
    id_format(id, text);
    store_row_refuse(row, DAC_E_INVALID, "%s exists in another org", text);
    return DAC_OK;
}

static enum dac_err put_thread(struct sqlite_store *s, struct store_row *row)
{
    const struct store_thread *t = &row->u.thread;
    sqlite3_stmt *q = s->stmt[W_THREAD];
    int rc = SQLITE_NOMEM;

    if ((sqlite_bind_id(q, 1, &t->id) | sqlite_bind_str(q, 2, t->org) |
         sqlite_bind_text(q, 3, &t->title) | sqlite_bind_time(q, 4, t->created_us)) == 0)
        rc = sqlite_rows_run(s, W_THREAD);
    sqlite3_clear_bindings(q);
    if (rc != SQLITE_OK)
        return row_failed(s, row, rc, "could not store a thread in");
    if (sqlite3_changes(s->db) == 0)
        return check_replay(s, row, W_THREAD_ORG, &t->id, t->org);
    return DAC_OK;
}

static int bind_real(sqlite3_stmt *q, int i, double v)
{
    return v < 0 ? sqlite3_bind_null(q, i) : sqlite3_bind_double(q, i, v);
}

static int bind_count(sqlite3_stmt *q, int i, int64_t v)
{
    return v < 0 ? sqlite3_bind_null(q, i) : sqlite3_bind_int64(q, i, v);
}

static int insert_turn(struct sqlite_store *s, const struct store_turn *t)
{
    sqlite3_stmt *q = s->stmt[W_TURN];
    int rc = SQLITE_NOMEM;
    int bad =
        sqlite_bind_id(q, 1, &t->id) | sqlite_bind_str(q, 2, t->org) |
        sqlite_bind_id(q, 3, &t->thread_id) | sqlite_bind_str(q, 4, t->provider) |
        sqlite_bind_str(q, 5, t->model) | sqlite_bind_str(q, 6, t->status) |
        sqlite_bind_str(q, 7, t->finish_reason) | sqlite_bind_str(q, 8, t->error_code) |
        bind_real(q, 9, t->ttft_ms) | bind_real(q, 10, t->latency_ms) |
        bind_real(q, 11, t->queue_wait_ms) | bind_count(q, 12, t->prompt_tokens) |
        bind_count(q, 13, t->completion_tokens) |
        sqlite3_bind_int64(q, 14, t->followers) | sqlite3_bind_int64(q, 15, t->hits) |
        sqlite3_bind_int(q, 16, t->generation) |
        sqlite3_bind_blob(q, 17, t->key_digest, sizeof(t->key_digest), SQLITE_STATIC) |
        sqlite_bind_time(q, 18, t->created_us) | sqlite_bind_time(q, 19, t->finished_us) |
        sqlite_bind_str(q, 20, t->fetcher);

    if (bad == 0)
        rc = sqlite_rows_run(s, W_TURN);
    sqlite3_clear_bindings(q);
    return rc;
}

static int insert_message(struct sqlite_store *s, const struct store_turn *t, bool answer)
{
    static const struct store_text none = {NULL, 0};
    sqlite3_stmt *q = s->stmt[W_MESSAGE];
    int rc = SQLITE_NOMEM;
    int bad =
        sqlite_bind_id(q, 1, answer ? &t->assistant_message_id : &t->user_message_id) |
        sqlite_bind_id(q, 2, &t->id) | sqlite_bind_id(q, 3, &t->thread_id) |
        sqlite_bind_str(q, 4, answer ? "assistant" : "user") |
        sqlite_bind_text(q, 5, answer ? &t->assistant_content : &t->user_content) |
        sqlite_bind_text(q, 6, answer ? &t->citations : &none) |
        sqlite_bind_text(q, 7, answer ? &t->tool_calls : &none) |
        sqlite_bind_time(q, 8, answer ? t->finished_us : t->created_us);

    if (bad == 0)
        rc = sqlite_rows_run(s, W_MESSAGE);
    sqlite3_clear_bindings(q);
    return rc;
}

/* Takes out a turn that this batch has put in without all of its messages. */
static bool undo_turn(struct sqlite_store *s, const struct id *turn)
{
    static const int statements[] = {W_UNDO_MESSAGES, W_UNDO_TURN};

    for (size_t i = 0; i < DAC_ARRAY_LEN(statements); i++) {
        if (sqlite_bind_id(s->stmt[statements[i]], 1, turn) != 0 ||
            sqlite_rows_run(s, statements[i]) != SQLITE_OK)
            return false;
    }
    return true;
}

static void refuse_thread(struct store_row *row, const struct id *thread)
{
    char text[ID_TEXT_SIZE];

    id_format(thread, text);
    store_row_refuse(row, DAC_E_NOT_FOUND, "thread %s does not exist in its org", text);
}

static enum dac_err check_thread(struct sqlite_store *s, struct store_row *row,
                                 const struct store_turn *t)
{
    bool found, same;

    if (id_is_zero(&t->thread_id))
        return DAC_OK;
    int rc = same_org(s, W_THREAD_ORG, &t->thread_id, t->org, &found, &same);

    if (rc != SQLITE_OK)
        return sqlite_rows_fail(s, rc, "could not read database");
    if (!same)
        refuse_thread(row, &t->thread_id);
    return DAC_OK;
}

static enum dac_err put_turn(struct sqlite_store *s, struct store_row *row)
{
    static const char what[] = "could not store a turn in";
    const struct store_turn *t = &row->u.turn;
    enum dac_err e = check_thread(s, row, t);

    if (e != DAC_OK || row->result != DAC_OK)
        return e;
    int rc = insert_turn(s, t);

    if (rc != SQLITE_OK)
        return row_failed(s, row, rc, what);
    if (sqlite3_changes(s->db) == 0) /* and its messages with it */
        return check_replay(s, row, W_TURN_ORG, &t->id, t->org);
    rc = insert_message(s, t, false);
    if (rc == SQLITE_OK && t->assistant_content.s != NULL)
        rc = insert_message(s, t, true);
    if (rc == SQLITE_OK)
        return DAC_OK;
    e = row_failed(s, row, rc, what);
    /* Any other failure loses the batch anyway. */
    return e == DAC_OK && !undo_turn(s, &t->id) ? DAC_E_SYS : e;
}

static void refuse_turn(struct store_row *row, const struct id *turn)
{
    char text[ID_TEXT_SIZE];

    id_format(turn, text);
    store_row_refuse(row, DAC_E_NOT_FOUND, "turn %s is not stored", text);
}

static enum dac_err put_counts(struct sqlite_store *s, struct store_row *row)
{
    const struct store_counts *c = &row->u.counts;
    sqlite3_stmt *q = s->stmt[W_COUNTS];
    int rc = SQLITE_NOMEM;

    if ((sqlite_bind_id(q, 1, &c->turn) | sqlite3_bind_int64(q, 2, c->followers) |
         sqlite3_bind_int64(q, 3, c->hits)) == 0)
        rc = sqlite_rows_run(s, W_COUNTS);
    sqlite3_clear_bindings(q);
    if (rc != SQLITE_OK)
        return row_failed(s, row, rc, "could not store counts in");
    if (sqlite3_changes(s->db) == 0)
        refuse_turn(row, &c->turn);
    return DAC_OK;
}

static enum dac_err put_change(struct sqlite_store *s, struct store_row *row)
{
    const struct store_change *c = &row->u.change;
    int which = row->kind == STORE_TITLE ? W_TITLE : W_DELETE;
    sqlite3_stmt *q = s->stmt[which];
    int rc = SQLITE_NOMEM;

    if ((sqlite_bind_id(q, 1, &c->thread) | sqlite_bind_str(q, 2, c->org) |
         (which == W_TITLE ? sqlite_bind_text(q, 3, &c->title)
                           : sqlite_bind_time(q, 3, c->at_us))) == 0)
        rc = sqlite_rows_run(s, which);
    sqlite3_clear_bindings(q);
    if (rc != SQLITE_OK)
        return row_failed(s, row, rc, "could not change a thread in");
    if (sqlite3_changes(s->db) == 0)
        refuse_thread(row, &c->thread);
    return DAC_OK;
}

static int insert_alias(struct sqlite_store *s, const struct store_alias *a)
{
    sqlite3_stmt *q = s->stmt[W_ALIAS];
    int64_t dead_us = a->created_us - STORE_ALIAS_LIFE_US;
    int rc = SQLITE_NOMEM;
    int bad =
        sqlite_bind_str(q, 1, a->org) |
        sqlite3_bind_blob(q, 2, a->key_digest, sizeof(a->key_digest), SQLITE_STATIC) |
        sqlite3_bind_blob(q, 3, a->body_digest, sizeof(a->body_digest), SQLITE_STATIC) |
        sqlite_bind_id(q, 4, &a->turn) | sqlite_bind_time(q, 5, a->created_us) |
        sqlite_bind_time(q, 6, dead_us > 0 ? dead_us : 0);

    if (bad == 0)
        rc = sqlite_rows_run(s, W_ALIAS);
    sqlite3_clear_bindings(q);
    return rc;
}

static enum dac_err put_alias(struct sqlite_store *s, struct store_row *row)
{
    const struct store_alias *a = &row->u.alias;
    bool found, same;
    int rc = same_org(s, W_TURN_ORG, &a->turn, a->org, &found, &same);

    if (rc != SQLITE_OK)
        return sqlite_rows_fail(s, rc, "could not read database");
    if (!same) {
        refuse_turn(row, &a->turn);
        return DAC_OK;
    }
    rc = insert_alias(s, a);
    return rc == SQLITE_OK
               ? DAC_OK
               : row_failed(s, row, rc, "could not store an idempotency key in");
}

static int run_rejected(struct sqlite_store *s, int which, const struct store_rejected *j)
{
    sqlite3_stmt *q = s->stmt[which];
    int rc = SQLITE_NOMEM;

    if ((sqlite_bind_id(q, 1, &j->id) | sqlite_bind_str(q, 2, j->kind) |
         sqlite_bind_str(q, 3, j->org) | sqlite_bind_str(q, 4, j->reason) |
         sqlite_bind_text(q, 5, &j->data) | sqlite_bind_time(q, 6, j->at_us)) == 0)
        rc = sqlite_rows_run(s, which);
    sqlite3_clear_bindings(q);
    return rc;
}

static enum dac_err put_rejected(struct sqlite_store *s, struct store_row *row)
{
    int rc = run_rejected(s, W_ASIDE, &row->u.rejected);

    if (rc != SQLITE_OK)
        return row_failed(s, row, rc, "could not set a row aside in");
    row->u.rejected.was_stored = sqlite3_changes(s->db) == 0;
    return DAC_OK;
}

/* A row that was refused goes to `rejected`, in the same transaction. */
enum dac_err sqlite_rows_set_aside(struct sqlite_store *s, const struct store_row *row)
{
    struct buf data = BUF_INIT(REJECTED_DATA_MAX);
    enum dac_err e = DAC_OK;
    struct store_row aside;
    int rc;

    rejected_make(row, row->why, &data, &aside);
    rc = run_rejected(s, W_REJECTED, &aside.u.rejected);
    if (rc != SQLITE_OK &&
        sqlite_rows_fail(s, rc, "could not set a row aside in") != DAC_E_INVALID)
        e = DAC_E_SYS;
    else if (rc != SQLITE_OK)
        log_error(0, "a refused row could not be set aside either: %s", s->core.error);
    buf_free(&data);
    return e;
}

enum dac_err sqlite_rows_put(struct sqlite_store *s, struct store_row *row)
{
    switch (row->kind) {
    case STORE_THREAD:
        return put_thread(s, row);
    case STORE_TURN:
        return put_turn(s, row);
    case STORE_COUNTS:
        return put_counts(s, row);
    case STORE_TITLE:
    case STORE_DELETE:
        return put_change(s, row);
    case STORE_REJECTED:
        return put_rejected(s, row);
    case STORE_ALIAS:
        return put_alias(s, row);
    }
    return DAC_E_STATE;
}
