/*
 * What comes out of the spool: the oldest rows of its queue, and what becomes of them
 * when PostgreSQL has them. Runs in the recorder.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "shm/crash.h"
#include "store/rejected.h"
#include "store/spool_internal.h"
#include "store/sqlite.h"
#include "store/sqlite_writer.h"

static const char *const kind_names[] = {[STORE_THREAD] = "thread",
                                         [STORE_TURN] = "turn",
                                         [STORE_COUNTS] = "counts",
                                         [STORE_TITLE] = "title",
                                         [STORE_DELETE] = "delete"};

static bool copy_text(struct spool_batch *b, sqlite3_stmt *s, int i,
                      struct store_text *out)
{
    *out = (struct store_text){0};
    if (sqlite3_column_type(s, i) == SQLITE_NULL)
        return true;
    const unsigned char *text = sqlite3_column_text(s, i);
    size_t n = (size_t)sqlite3_column_bytes(s, i);

    out->s = text ? arena_copy(&b->texts, text, n) : NULL;
    out->n = n;
    return out->s != NULL;
}

static bool copy_word(struct spool_batch *b, sqlite3_stmt *s, int i, const char **out)
{
    struct store_text text;
    bool ok = copy_text(b, s, i, &text);

    *out = text.s;
    return ok;
}

static enum dac_err take_turn(struct spool_batch *b, sqlite3_stmt *s, const char *org,
                              struct store_turn *t)
{
    if (!sqlite_read_digest(s, 22, t->key_digest) || !sqlite_read_id(s, 2, &t->id) ||
        !sqlite_read_id(s, 3, &t->thread_id) ||
        !sqlite_read_time(s, 23, &t->created_us) ||
        !sqlite_read_time(s, 24, &t->finished_us) ||
        !sqlite_read_id(s, 25, &t->user_message_id) ||
        !sqlite_read_id(s, 27, &t->assistant_message_id))
        return DAC_E_CORRUPT;
    t->org = org;
    sqlite_read_figures(s, 14, t);
    bool ok = copy_word(b, s, 9, &t->provider) && copy_word(b, s, 10, &t->model) &&
              copy_word(b, s, 11, &t->status) && copy_word(b, s, 12, &t->finish_reason) &&
              copy_word(b, s, 13, &t->error_code) &&
              copy_text(b, s, 26, &t->user_content) &&
              copy_text(b, s, 28, &t->assistant_content) &&
              copy_text(b, s, 29, &t->citations) && copy_text(b, s, 35, &t->tool_calls) &&
              copy_word(b, s, 30, &t->fetcher);
    return ok ? DAC_OK : DAC_E_NOMEM;
}

static enum dac_err take_rejected(struct spool_batch *b, sqlite3_stmt *s, const char *org,
                                  const struct store_text *kind, struct store_rejected *j)
{
    *j = (struct store_rejected){
        .kind = kind->s, .org = org, .at_us = sqlite3_column_int64(s, 6)};
    if (!kind->s || !sqlite_read_id(s, 2, &j->id))
        return DAC_E_CORRUPT;
    if (!copy_word(b, s, 31, &j->reason) || !copy_text(b, s, 32, &j->data))
        return DAC_E_NOMEM;
    return j->reason ? DAC_OK : DAC_E_CORRUPT;
}

/* Fills in one row of the queue. DAC_E_CORRUPT: it cannot be what was put there. */
static enum dac_err take_row(struct spool_batch *b, sqlite3_stmt *s,
                             struct store_row *row)
{
    struct store_text title;
    const char *org;
    struct id thread;

    memset(row, 0, sizeof *row);
    if (!copy_word(b, s, 4, &org) || !copy_text(b, s, 5, &title))
        return DAC_E_NOMEM;
    if (!sqlite_read_id(s, 3, &thread))
        return DAC_E_CORRUPT;
    int kind = sqlite3_column_int(s, 1);

    row->kind = (enum store_row_kind)kind;
    switch (kind) {
    case STORE_THREAD:
        row->u.thread = (struct store_thread){.id = thread,
                                              .org = org,
                                              .title = title,
                                              .created_us = sqlite3_column_int64(s, 6)};
        return DAC_OK;
    case STORE_TURN:
        return take_turn(b, s, org, &row->u.turn);
    case STORE_COUNTS:
        row->u.counts.followers = sqlite3_column_int64(s, 7);
        row->u.counts.hits = sqlite3_column_int64(s, 8);
        return sqlite_read_id(s, 2, &row->u.counts.turn) ? DAC_OK : DAC_E_CORRUPT;
    case STORE_TITLE:
    case STORE_DELETE:
        row->u.change = (struct store_change){.thread = thread,
                                              .org = org,
                                              .title = title,
                                              .at_us = sqlite3_column_int64(s, 6)};
        return DAC_OK;
    case STORE_REJECTED:
        return take_rejected(b, s, org, &title, &row->u.rejected);
    case STORE_ALIAS:
        row->u.alias.org = org;
        row->u.alias.created_us = sqlite3_column_int64(s, 6);
        return org && sqlite_read_id(s, 2, &row->u.alias.turn) &&
                       sqlite_read_digest(s, 33, row->u.alias.key_digest) &&
                       sqlite_read_digest(s, 34, row->u.alias.body_digest)
                   ? DAC_OK
                   : DAC_E_CORRUPT;
    default:
        return DAC_E_CORRUPT;
    }
}

enum dac_err spool_next(struct spool *sp, size_t max, size_t bytes,
                        struct spool_batch *out)
{
    sqlite3_stmt *s = sp->stmt[S_NEXT];
    enum dac_err e;
    size_t sum = 0;
    int rc = SQLITE_DONE;
    bool aside;

    memset(out, 0, sizeof *out);
    e = spool_hand_take(sp, &max, &aside);
    if (e == DAC_E_CORRUPT)
        return spool_renew(sp);
    if (e != DAC_OK)
        return e;
    out->rows = calloc(max, sizeof *out->rows);
    if (!out->rows)
        return DAC_E_NOMEM;
    if (sqlite3_bind_int64(s, 1, (int64_t)max) != SQLITE_OK)
        return DAC_E_NOMEM;
    while (e == DAC_OK && out->n < max && sum < bytes &&
           (rc = sqlite3_step(s)) == SQLITE_ROW) {
        e = take_row(out, s, &out->rows[out->n]);
        if (e == DAC_E_CORRUPT) {
            log_error(0, "spool \"%s\": entry %lld of its queue is damaged; left out",
                      sp->path, (long long)sqlite3_column_int64(s, 0));
            out->last_seq = sqlite3_column_int64(s, 0);
            e = DAC_OK;
            continue;
        }
        out->last_seq = sqlite3_column_int64(s, 0);
        CRASH_POINT_FOR("spool_row_read", out->rows[out->n].kind == STORE_TURN
                                              ? out->rows[out->n].u.turn.model
                                              : NULL);
        if (e == DAC_OK)
            sum += store_row_bytes(&out->rows[out->n++]);
    }
    sqlite3_reset(s);
    if (e == DAC_OK && rc != SQLITE_ROW && rc != SQLITE_DONE)
        e = spool_fail(sp, rc, "could not read spool");
    if (e == DAC_E_CORRUPT && (e = spool_renew(sp)) == DAC_OK) {
        out->n = 0;
        out->last_seq = 0;
    }
    if (e == DAC_OK && aside && out->n == 1)
        (void)spool_set_aside(out);
    if (e == DAC_OK && out->last_seq == 0) {
        sp->rows = 0;
        sp->oldest_us = 0;
    }
    return e;
}

static int set_aside(struct spool *sp, const struct store_row *row)
{
    sqlite3_stmt *s = sp->stmt[S_REJECT];

    if ((sqlite_bind_id(s, 1, rejected_id(row)) |
         sqlite_bind_str(s, 2, kind_names[row->kind]) |
         sqlite_bind_str(s, 3, rejected_org(row)) | sqlite_bind_str(s, 4, row->why) |
         sqlite_bind_time(s, 5, clock_wall_us())) != 0)
        return SQLITE_NOMEM;
    return spool_run(sp, S_REJECT);
}

enum dac_err spool_done(struct spool *sp, const struct spool_batch *batch)
{
    enum dac_err e = sqlite_writer_begin(sp->st);
    int rc = SQLITE_OK;

    if (e != DAC_OK)
        return spool_store_failed(sp, e);
    for (size_t i = 0; rc == SQLITE_OK && i < batch->n; i++) {
        const struct store_row *row = &batch->rows[i];
        if (row->kind == STORE_ALIAS && row->result != DAC_OK)
            rc = spool_alias_drop(sp, &row->u.alias);
        else if (row->result == DAC_E_NOT_FOUND && row->kind != STORE_COUNTS)
            rc = set_aside(sp, row);
    }
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_int64(sp->stmt[S_FORGET], 1, batch->last_seq);
    if (rc == SQLITE_OK)
        rc = spool_run(sp, S_FORGET);
    if (rc == SQLITE_OK)
        rc = sqlite3_bind_int64(sp->stmt[S_DONE], 1, batch->last_seq);
    if (rc == SQLITE_OK)
        rc = spool_run(sp, S_DONE);
    if (rc == SQLITE_OK)
        rc = spool_hand_done(sp, batch->last_seq);
    if (rc == SQLITE_OK)
        rc = spool_recount(sp);
    if (rc != SQLITE_OK)
        e = spool_fail(sp, rc, "could not take rows off spool");
    else if ((e = sqlite_writer_commit(sp->st)) != DAC_OK)
        e = spool_store_failed(sp, e);
    sp->loose = true;
    sp->way = WAY_THREADS; /* what left the queue is only kept now */
    if (e != DAC_OK)
        spool_give_up(sp);
    return e == DAC_E_CORRUPT ? spool_renew(sp) : e;
}

void spool_batch_free(struct spool_batch *batch)
{
    free(batch->rows);
    arena_free(&batch->texts);
    buf_free(&batch->data);
    memset(batch, 0, sizeof *batch);
}

enum dac_err spool_queue_all(struct spool *sp)
{
    static const char sql[] =
        "INSERT INTO spool_queue (kind, id, thread_id, org, title, at_us, queued_us) "
        "SELECT 0, id, id, org, title, CAST(strftime('%s', created_at) AS INTEGER) * "
        "1000000 + CAST(substr(created_at, 21) AS INTEGER), 1 FROM threads h WHERE NOT "
        "EXISTS (SELECT 1 FROM spool_queue q WHERE q.id = h.id AND q.kind = 0) "
        "ORDER BY id;"
        "INSERT INTO spool_queue (kind, id, thread_id, org, queued_us) "
        "SELECT 1, id, thread_id, org, 1 FROM turns t WHERE NOT EXISTS "
        "(SELECT 1 FROM spool_queue q WHERE q.id = t.id AND q.kind = 1) "
        "ORDER BY created_at, id;";
    enum dac_err e = sqlite_writer_begin(sp->st);
    int rc;

    if (e != DAC_OK)
        return spool_store_failed(sp, e);
    rc = sqlite3_exec(sp->db, sql, NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        rc = spool_recount(sp);
    if (rc != SQLITE_OK)
        e = spool_fail(sp, rc, "could not read spool");
    else if ((e = sqlite_writer_commit(sp->st)) != DAC_OK)
        e = spool_store_failed(sp, e);
    if (e != DAC_OK)
        spool_give_up(sp);
    return e;
}
