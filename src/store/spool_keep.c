/*
 * What the spool keeps beyond the queue: a cache of threads by least recent use, with
 * turns that PostgreSQL has as well, and idempotency keys. Runs in the recorder.
 */
#include "base/clock.h"
#include "base/log.h"
#include "store/spool_internal.h"
#include "store/sqlite.h"
#include "store/sqlite_writer.h"

#define STEP_TURNS   256 /* that one statement's upkeep lets go of */
#define STEP_LONGEST (100 * NS_PER_MS)

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

struct spool_step spool_step(void)
{
    return (struct spool_step){.until_ns = clock_now_ns() + STEP_LONGEST};
}

static bool drop_turn(struct spool *sp, const struct id *turn)
{
    static const int steps[] = {S_DROP_MESSAGES, S_DROP_TURN};

    for (size_t i = 0; i < DAC_ARRAY_LEN(steps); i++)
        if (sqlite_bind_id(sp->stmt[steps[i]], 1, turn) != 0 ||
            spool_run(sp, steps[i]) != SQLITE_OK)
            return false;
    return true;
}

/* Lets go of the turns that a statement finds, whose parameters are bound; of some of
 * them, if they are many, or so large that it takes its time. A failure leaves none for
 * the next time, lest it be tried forever. */
static bool drop_found(struct spool *sp, int which, struct spool_step *step)
{
    sqlite3_stmt *s = sp->stmt[which];
    struct id found[STEP_TURNS];
    size_t n = 0, i = 0;

    while (n < STEP_TURNS && sqlite3_step(s) == SQLITE_ROW)
        if (sqlite_read_id(s, 0, &found[n]))
            n++;
    sqlite3_reset(s);
    sqlite3_clear_bindings(s);
    do {
        if (i == n)
            return n == STEP_TURNS;
        if (!drop_turn(sp, &found[i++]))
            return false;
        step->turns++;
    } while (clock_now_ns() < step->until_ns);
    return i < n || n == STEP_TURNS;
}

bool spool_trim(struct spool *sp, const struct id *thread, size_t keep, int depth,
                struct spool_step *step)
{
    sqlite3_stmt *s = sp->stmt[S_OLD_TURNS], *shallow = sp->stmt[S_TRIM_DEPTH];
    size_t before = step->turns;
    bool more;

    if ((sqlite_bind_id(s, 1, thread) | sqlite3_bind_int64(s, 2, (int64_t)keep)) != 0)
        return false;
    more = drop_found(sp, S_OLD_TURNS, step);
    if (step->turns > before &&
        (sqlite_bind_id(shallow, 1, thread) | sqlite3_bind_int(shallow, 2, depth)) == 0)
        (void)spool_run(sp, S_TRIM_DEPTH);
    return more;
}

bool spool_drop_loose(struct spool *sp, struct spool_step *step)
{
    return drop_found(sp, S_LOOSE_TURNS, step);
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
