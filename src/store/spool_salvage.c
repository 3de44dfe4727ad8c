/*
 * Copies what can be read of a damaged spool into a new one: table by table in the order
 * of rowids, without indexes. Where a page is damaged it looks for the next rowid that
 * can be read, and reads from there in both directions. What is found is as it was
 * written; a row of which anything is missing is left out. For dacctl.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "store/spool_internal.h"
#include "store/sqlite.h"
#include "store/sqlite_writer.h"

#define SQL_MAX  4096
#define STEP_MAX (INT64_C(1) << 40)

struct copying {
    struct spool *to;
    sqlite3 *from;
    const char *table;
    sqlite3_stmt *forwards;  /* rowid > ?1, and all columns */
    sqlite3_stmt *backwards; /* ?1 < rowid < ?2, descending */
    sqlite3_stmt *insert;    /* rowid, and all columns */
    uint64_t rows;
    bool whole; /* nothing was unreadable */
};

static int prepare(sqlite3 *db, sqlite3_stmt **out, const char *fmt, ...)
    DAC_PRINTF(3, 4);

static int prepare(sqlite3 *db, sqlite3_stmt **out, const char *fmt, ...)
{
    char sql[SQL_MAX];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(sql, sizeof sql, fmt, ap);
    va_end(ap);
    return sqlite3_prepare_v2(db, sql, -1, out, NULL);
}

/* The columns by name: a file of an older release has fewer. */
static int prepare_insert(struct copying *c)
{
    struct buf names = BUF_INIT(SQL_MAX), places = BUF_INIT(SQL_MAX);
    int n = sqlite3_column_count(c->forwards);
    int rc = SQLITE_NOMEM;

    for (int i = 1; i < n; i++) {
        (void)buf_printf(&names, ", %s", sqlite3_column_name(c->forwards, i));
        (void)buf_printf(&places, ", ?%d", i + 1);
    }
    if (!names.failed && !places.failed)
        rc = prepare(c->to->db, &c->insert,
                     "INSERT OR IGNORE INTO %s (rowid%s) VALUES (?1%s)", c->table,
                     buf_cstr(&names), buf_cstr(&places));
    buf_free(&names);
    buf_free(&places);
    return rc;
}

/* The row that `s` stands on; its rowid. */
static int copy_row(struct copying *c, sqlite3_stmt *s, int64_t *rowid)
{
    int rc = SQLITE_OK;

    *rowid = sqlite3_column_int64(s, 0);
    for (int i = 0; rc == SQLITE_OK && i < sqlite3_column_count(s); i++)
        rc = sqlite3_bind_value(c->insert, i + 1, sqlite3_column_value(s, i));
    if (rc == SQLITE_OK)
        rc = sqlite3_step(c->insert);
    if (rc == SQLITE_DONE)
        c->rows += (uint64_t)sqlite3_changes(c->to->db);
    sqlite3_reset(c->insert);
    sqlite3_clear_bindings(c->insert);
    return rc == SQLITE_DONE || sqlite_map(rc) == DAC_E_INVALID ? SQLITE_OK : rc;
}

/* From behind *last to the end, or to where it cannot be read: SQLITE_DONE or why. */
static int copy_forwards(struct copying *c, int64_t *last)
{
    int rc = sqlite3_bind_int64(c->forwards, 1, *last);
    int written = SQLITE_OK;

    while (rc == SQLITE_OK && (rc = sqlite3_step(c->forwards)) == SQLITE_ROW &&
           (written = copy_row(c, c->forwards, last)) == SQLITE_OK)
        rc = SQLITE_OK;
    sqlite3_reset(c->forwards);
    return written != SQLITE_OK ? SQLITE_FULL : rc;
}

/* From before `end` back to where it cannot be read, or to `begin`. */
static int copy_backwards(struct copying *c, int64_t begin, int64_t end)
{
    int64_t rowid;
    int rc = sqlite3_bind_int64(c->backwards, 1, begin) |
             sqlite3_bind_int64(c->backwards, 2, end);
    int written = SQLITE_OK;

    while (rc == SQLITE_OK && (rc = sqlite3_step(c->backwards)) == SQLITE_ROW &&
           (written = copy_row(c, c->backwards, &rowid)) == SQLITE_OK)
        rc = SQLITE_OK;
    sqlite3_reset(c->backwards);
    return written != SQLITE_OK ? SQLITE_FULL : SQLITE_OK;
}

/* A rowid behind `last` from which on something can be read; false: there is none. */
static bool find_readable(struct copying *c, int64_t last, int64_t *found)
{
    for (int64_t step = 1; step < STEP_MAX; step *= 2) {
        int rc = sqlite3_bind_int64(c->forwards, 1, last + step);

        if (rc == SQLITE_OK)
            rc = sqlite3_step(c->forwards);
        sqlite3_reset(c->forwards);
        *found = last + step;
        if (rc == SQLITE_ROW)
            return true;
        if (rc == SQLITE_DONE) { /* the end, but something may be in between */
            *found = last + step + 1;
            return step > 1;
        }
    }
    return false;
}

static int copy_rows(struct copying *c)
{
    int64_t last = INT64_MIN, found;
    int rc;

    while ((rc = copy_forwards(c, &last)) != SQLITE_DONE && rc != SQLITE_FULL) {
        c->whole = false;
        if (last == INT64_MIN) /* rowids begin with 1 */
            last = 0;
        if (!find_readable(c, last, &found))
            break;
        rc = copy_backwards(c, last, found + 1);
        if (rc != SQLITE_OK)
            break;
        last = found;
    }
    return rc == SQLITE_FULL ? rc : SQLITE_OK;
}

/* SQLITE_OK also where the table cannot be read. */
static int copy_table(struct copying *c)
{
    int rc = prepare(c->from, &c->forwards,
                     "SELECT rowid AS rowid_, * FROM %s NOT INDEXED WHERE rowid > ?1 "
                     "ORDER BY rowid",
                     c->table);

    if (rc == SQLITE_OK)
        rc = prepare(c->from, &c->backwards,
                     "SELECT rowid AS rowid_, * FROM %s NOT INDEXED WHERE rowid > ?1 AND "
                     "rowid < ?2 ORDER BY rowid DESC",
                     c->table);
    if (rc == SQLITE_OK)
        rc = prepare_insert(c);
    if (rc != SQLITE_OK)
        c->whole = false;
    else
        rc = copy_rows(c);
    sqlite3_finalize(c->forwards);
    sqlite3_finalize(c->backwards);
    sqlite3_finalize(c->insert);
    c->forwards = c->backwards = c->insert = NULL;
    return sqlite_map(rc) == DAC_E_CORRUPT || rc == SQLITE_ERROR ? SQLITE_OK : rc;
}

/* Whoever lost its thread gets one without a title; who lost its question goes. */
static const char mend[] =
    "INSERT OR IGNORE INTO threads (id, org, title, created_at) SELECT thread_id, "
    "min(org), NULL, min(created_at) FROM turns WHERE thread_id IS NOT NULL "
    "GROUP BY thread_id;"
    "DELETE FROM messages WHERE turn_id NOT IN (SELECT id FROM turns);"
    "DELETE FROM turns WHERE NOT EXISTS (SELECT 1 FROM messages m WHERE "
    "m.turn_id = turns.id AND m.role = 'user') OR (status = 'complete' AND NOT EXISTS "
    "(SELECT 1 FROM messages m WHERE m.turn_id = turns.id AND m.role = 'assistant'));"
    "DELETE FROM messages WHERE turn_id NOT IN (SELECT id FROM turns);"
    "DELETE FROM spool_queue WHERE kind = 1 AND id NOT IN (SELECT id FROM turns);";

static int copy_all(struct copying *c)
{
    static const char *const tables[] = {"threads",  "turns",       "messages",
                                         "rejected", "spool_queue", "spool_left"};
    int rc =
        sqlite3_exec(c->to->db, "PRAGMA foreign_keys = OFF; BEGIN", NULL, NULL, NULL);

    for (size_t i = 0; rc == SQLITE_OK && i < DAC_ARRAY_LEN(tables); i++) {
        c->table = tables[i];
        rc = copy_table(c);
    }
    if (rc == SQLITE_OK)
        rc = sqlite3_exec(c->to->db, mend, NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        rc =
            sqlite3_exec(c->to->db, "COMMIT; PRAGMA foreign_keys = ON", NULL, NULL, NULL);
    return rc;
}

enum dac_err spool_salvage(struct spool *to, const char *path, bool *whole, char *why,
                           size_t n)
{
    struct copying c = {.to = to, .whole = true};
    enum dac_err e = sqlite_connect(path, SQLITE_OPEN_READWRITE, &c.from, why, n);

    *whole = false;
    if (e != DAC_OK)
        return e;
    (void)sqlite3_db_config(c.from, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    int rc = copy_all(&c);

    if (rc == SQLITE_OK)
        rc = spool_recount(to);
    if (rc != SQLITE_OK) {
        e = sqlite_explain(to->db, to->path, rc, "could not copy to", why, n);
    } else if (c.rows == 0 && !c.whole) {
        snprintf(why, n, "nothing of \"%s\" can be read", path);
        e = DAC_E_CORRUPT;
    }
    *whole = c.whole;
    sqlite3_close(c.from);
    return e;
}
