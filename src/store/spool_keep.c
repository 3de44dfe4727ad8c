/*
 * What the spool keeps beyond the queue: a cache of threads by least recent use, with
 * turns that PostgreSQL has as well, and idempotency keys. Runs in the recorder.
 */
#include "base/log.h"
#include "store/spool_internal.h"
#include "store/sqlite.h"
#include "store/sqlite_writer.h"

/* Commits of the cache need not reach the disk: what is lost of them is in PostgreSQL. */
void spool_durable(struct spool *sp, bool yes)
{
    (void)sqlite3_exec(sp->db,
                       yes ? "PRAGMA synchronous = FULL" : "PRAGMA synchronous = NORMAL",
                       NULL, NULL, NULL);
}

bool spool_is_overlong(struct spool *sp, const struct id *thread)
{
    sqlite3_stmt *s = sp->stmt[S_OVERLONG];
    int64_t found = 0;

    return (sqlite_bind_id(s, 1, thread) |
            sqlite3_bind_int64(s, 2, (int64_t)(sp->turns_kept + sp->turns_kept / 8))) ==
               0 &&
           spool_read_number(sp, S_OVERLONG, &found, NULL) == SQLITE_OK && found > 0;
}

void spool_trim(struct spool *sp, const struct id *thread, size_t keep, int depth)
{
    static const int steps[] = {S_TRIM_MESSAGES, S_TRIM_TURNS};
    int gone = 0;

    for (size_t i = 0; i < DAC_ARRAY_LEN(steps); i++) {
        sqlite3_stmt *s = sp->stmt[steps[i]];
        if ((sqlite_bind_id(s, 1, thread) | sqlite3_bind_int64(s, 2, (int64_t)keep)) !=
                0 ||
            spool_run(sp, steps[i]) != SQLITE_OK)
            return;
        gone = sqlite3_changes(sp->db);
    }
    if (gone > 0 && (sqlite_bind_id(sp->stmt[S_TRIM_DEPTH], 1, thread) |
                     sqlite3_bind_int(sp->stmt[S_TRIM_DEPTH], 2, depth)) == 0)
        (void)spool_run(sp, S_TRIM_DEPTH);
}

/* Whether a row is of the cache. Keys are, however much threads take up. */
static bool is_kept(const struct store_row *row, bool full)
{
    const struct id *thread = spool_thread_of(row);

    return row->kind == STORE_ALIAS || (thread && !id_is_zero(thread) && !full);
}

void spool_keep(struct spool *sp, struct store_row *rows, size_t n)
{
    bool full = spool_bytes_used(sp) + spool_rows_size(sp, rows, n) > sp->max_bytes / 2;
    bool worth_it = false;

    for (size_t i = 0; i < n; i++) {
        if (!is_kept(&rows[i], full))
            rows[i].result = DAC_E_STATE;
        worth_it = worth_it || rows[i].result == DAC_OK;
    }
    if (!worth_it)
        return;
    spool_durable(sp, false);
    enum dac_err e = spool_put_rows(sp, rows, n, false);

    if (e != DAC_OK)
        log_debug(0, "spool \"%s\" does not keep %zu rows: %s", sp->path, n, sp->error);
    spool_durable(sp, true);
    sp->way = WAY_THREADS;
    if (e == DAC_E_CORRUPT && sp->rows == 0 && spool_renew(sp) != DAC_OK)
        log_error(0, "%s", sp->error);
}

bool spool_knows_history(struct spool *sp, const struct id *thread)
{
    sqlite3_stmt *s = sp->stmt[S_DEPTH];
    bool known = sqlite_bind_id(s, 1, thread) == 0 && sqlite3_step(s) == SQLITE_ROW &&
                 sqlite3_column_int(s, 0) > 0;

    sqlite3_reset(s);
    return known;
}

void spool_filled(struct spool *sp, const struct id *thread, bool whole)
{
    sqlite3_stmt *s = sp->stmt[S_SET_DEPTH];

    spool_durable(sp, false);
    if ((sqlite_bind_id(s, 1, thread) | sqlite3_bind_int(s, 2, whole ? 2 : 1)) == 0)
        (void)spool_run(sp, S_SET_DEPTH);
    spool_durable(sp, true);
}
