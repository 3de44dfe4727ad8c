/*
 * What the spool keeps beyond the queue: a cache of threads by least recent use, with
 * turns that PostgreSQL has as well, and idempotency keys. Runs in the recorder.
 */
#include "base/log.h"
#include "store/spool_internal.h"
#include "store/sqlite.h"
#include "store/sqlite_writer.h"

#define DROP_AT_ONCE 64 /* threads that one tidying drops */

/* Commits of the cache need not reach the disk: what is lost of them is in PostgreSQL. */
static void durable(struct spool *sp, bool yes)
{
    (void)sqlite3_exec(sp->db,
                       yes ? "PRAGMA synchronous = FULL" : "PRAGMA synchronous = NORMAL",
                       NULL, NULL, NULL);
}

void spool_trim(struct spool *sp, const struct id *thread)
{
    static const int steps[] = {S_TRIM_MESSAGES, S_TRIM_TURNS};
    int gone = 0;

    for (size_t i = 0; i < DAC_ARRAY_LEN(steps); i++) {
        sqlite3_stmt *s = sp->stmt[steps[i]];
        if ((sqlite_bind_id(s, 1, thread) |
             sqlite3_bind_int64(s, 2, (int64_t)sp->turns_kept)) != 0 ||
            spool_run(sp, steps[i]) != SQLITE_OK)
            return;
        gone = sqlite3_changes(sp->db);
    }
    if (gone > 0 && sqlite_bind_id(sp->stmt[S_TRIM_DEPTH], 1, thread) == 0)
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
    bool full = spool_bytes_used(sp) >= sp->max_bytes / 2;
    bool worth_it = false;

    for (size_t i = 0; i < n; i++) {
        if (!is_kept(&rows[i], full))
            rows[i].result = DAC_E_STATE;
        worth_it = worth_it || rows[i].result == DAC_OK;
    }
    if (!worth_it)
        return;
    durable(sp, false);
    enum dac_err e = spool_put_rows(sp, rows, n, false);

    if (e != DAC_OK)
        log_debug(0, "spool \"%s\" does not keep %zu rows: %s", sp->path, n, sp->error);
    durable(sp, true);
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

    durable(sp, false);
    if ((sqlite_bind_id(s, 1, thread) | sqlite3_bind_int(s, 2, whole ? 2 : 1)) == 0)
        (void)spool_run(sp, S_SET_DEPTH);
    durable(sp, true);
}

static bool drop(struct spool *sp, const struct id *thread)
{
    static const int steps[] = {S_DROP_MESSAGES, S_DROP_TURNS, S_DROP_THREAD,
                                S_DROP_INDEX};

    for (size_t i = 0; i < DAC_ARRAY_LEN(steps); i++)
        if (sqlite_bind_id(sp->stmt[steps[i]], 1, thread) != 0 ||
            spool_run(sp, steps[i]) != SQLITE_OK)
            return false;
    return true;
}

/* Whether what is kept takes room that the queue may soon need. */
static bool is_crowded(struct spool *sp)
{
    return sp->rows == 0 && spool_bytes_used(sp) >= sp->max_bytes / 2;
}

/* Drops threads above the limit, least recently used first; where the file is crowded, as
 * many as it takes. */
static void drop_stale(struct spool *sp)
{
    bool crowded = is_crowded(sp);
    struct id stale[DROP_AT_ONCE];
    size_t n = 0;
    sqlite3_stmt *s = sp->stmt[S_STALE];

    if ((sqlite3_bind_int64(s, 1, crowded ? 0 : (int64_t)sp->threads_max) |
         sqlite3_bind_int(s, 2, DROP_AT_ONCE)) == 0)
        while (n < DROP_AT_ONCE && sqlite3_step(s) == SQLITE_ROW)
            if (sqlite_read_id(s, 0, &stale[n]))
                n++;
    sqlite3_reset(s);
    sqlite3_clear_bindings(s);
    for (size_t i = 0; i < n && (!crowded || is_crowded(sp)); i++)
        if (!drop(sp, &stale[i]))
            break;
    sp->stale = n == DROP_AT_ONCE;
}

static void drop_loose(struct spool *sp)
{
    sp->loose = false;
    if (spool_run(sp, S_DROP_LOOSE_MESSAGES) == SQLITE_OK)
        (void)spool_run(sp, S_DROP_LOOSE);
}

void spool_tidy(struct spool *sp)
{
    bool loose = sp->loose && sp->rows == 0;

    if (sp->stale || loose || is_crowded(sp) || spool_alias_crowded(sp)) {
        durable(sp, false);
        if (sqlite_writer_begin(sp->st) == DAC_OK) {
            if (loose)
                drop_loose(sp);
            if (spool_alias_crowded(sp))
                spool_alias_trim(sp);
            if (sp->stale || is_crowded(sp))
                drop_stale(sp);
            if (sqlite_writer_commit(sp->st) != DAC_OK) {
                sqlite_writer_rollback(sp->st);
                (void)spool_alias_recount(sp);
            }
        }
        durable(sp, true);
    }
    store_tidy(sp->st);
}
