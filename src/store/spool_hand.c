/*
 * Rows that a recorder dies of. The oldest rows of the queue are in hand from when they
 * are read until it is known what became of them, and the file says so; a recorder that
 * finds it said by one that lives no more counts its death for each of them. Which of
 * them it was nobody knows, so they go in ever smaller batches from then on.
 *
 *   deaths     0          goes with others
 *              1          goes with a few others
 *              2, 3       goes alone
 *              4          is set aside in PostgreSQL's table `rejected`
 *              5          is left in the table `spool_left` of the file, and not looked
 * at
 *
 * The last two deaths are of a row alone: with fewer, one that a recorder happened to
 * have in hand when somebody killed it would be set aside, although its client was told
 * that it is stored. For the same reason a row that only waits for PostgreSQL's answer is
 * hardly a suspect: such a death counts a quarter.
 *
 * What the file says need not be on the disk: it is about processes, not about the
 * machine. Runs in the recorder.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "store/rejected.h"
#include "store/spool_internal.h"
#include "store/sqlite.h"
#include "store/sqlite_writer.h"

#define DEATH_AT_WORK 4
#define DEATH_WAITING 1
#define DEATHS_ALONE  (2 * DEATH_AT_WORK)
#define DEATHS_ASIDE  (4 * DEATH_AT_WORK)
#define DEATHS_LEFT   (5 * DEATH_AT_WORK)
#define FEW           16 /* rows */

static int mark(struct spool *sp, size_t held, int weight)
{
    sqlite3_stmt *s = sp->stmt[S_HAND];

    if ((sqlite3_bind_int64(s, 1, (int64_t)held) |
         sqlite3_bind_int64(s, 2, (int64_t)getpid()) | sqlite3_bind_int(s, 3, weight)) !=
        0)
        return SQLITE_NOMEM;
    int rc = spool_run(sp, S_HAND);

    if (rc == SQLITE_OK)
        sp->held = held;
    return rc;
}

static void mark_alone(struct spool *sp, size_t held, int weight)
{
    spool_durable(sp, false);
    if (mark(sp, held, weight) != SQLITE_OK)
        log_debug(0, "spool \"%s\": what is in hand is not noted", sp->path);
    spool_durable(sp, true);
}

/* --- a new recorder ----------------------------------------------------------------- */

static bool lives(int64_t pid)
{
    return pid > 0 && pid != getpid() && (kill((pid_t)pid, 0) == 0 || errno == EPERM);
}

static int count_suspects(struct spool *sp)
{
    int64_t n = 0;
    int rc = spool_read_number(sp, S_SUSPECTS, &n, NULL);

    sp->suspects = n > 0;
    return rc;
}

static int add_deaths(struct spool *sp, int64_t held, int weight)
{
    sqlite3_stmt *s = sp->stmt[S_DEATHS];

    if ((sqlite3_bind_int64(s, 1, held) | sqlite3_bind_int(s, 2, weight)) != 0)
        return SQLITE_NOMEM;
    return spool_run(sp, S_DEATHS);
}

int spool_hand_open(struct spool *sp)
{
    sqlite3_stmt *s = sp->stmt[S_HELD];
    int64_t held = 0, pid = 0;
    int weight = 0, rc = sqlite3_step(s);

    if (rc == SQLITE_ROW) {
        held = sqlite3_column_int64(s, 0);
        pid = sqlite3_column_int64(s, 1);
        weight = sqlite3_column_int(s, 2);
    }
    sqlite3_reset(s);
    if (rc != SQLITE_ROW && rc != SQLITE_DONE)
        return rc;
    if (held <= 0 || lives(pid))
        return count_suspects(sp);
    log_info(0, "a recorder died with %" PRIu64 " rows of the spool in hand",
             (uint64_t)held);
    rc = sqlite3_exec(sp->db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        rc = add_deaths(sp, held, weight);
    if (rc == SQLITE_OK)
        rc = mark(sp, 0, 0);
    if (rc == SQLITE_OK)
        rc = sqlite3_exec(sp->db, "COMMIT", NULL, NULL, NULL);
    if (rc != SQLITE_OK)
        (void)sqlite3_exec(sp->db, "ROLLBACK", NULL, NULL, NULL);
    return rc == SQLITE_OK ? count_suspects(sp) : rc;
}

/* --- taking in hand ----------------------------------------------------------------- */

/* The row that is never to be touched again: out of the queue, by SQLite alone. */
static enum dac_err leave(struct spool *sp, int64_t seq)
{
    static const int steps[] = {S_LEAVE, S_LEAVE_QUEUE, S_LEAVE_DEATHS};
    enum dac_err e = sqlite_writer_begin(sp->st);
    int rc = SQLITE_OK;

    if (e != DAC_OK)
        return spool_store_failed(sp, e);
    rc = sqlite_bind_time(sp->stmt[S_LEAVE], 2, clock_wall_us());
    for (size_t i = 0; rc == SQLITE_OK && i < DAC_ARRAY_LEN(steps); i++) {
        rc = sqlite3_bind_int64(sp->stmt[steps[i]], 1, seq);
        if (rc == SQLITE_OK)
            rc = spool_run(sp, steps[i]);
    }
    if (rc == SQLITE_OK)
        rc = spool_recount(sp);
    if (rc == SQLITE_OK)
        rc = count_suspects(sp);
    if (rc != SQLITE_OK)
        e = spool_fail(sp, rc, "could not leave a row of spool");
    else if ((e = sqlite_writer_commit(sp->st)) != DAC_OK)
        e = spool_store_failed(sp, e);
    sp->loose = true;
    if (e != DAC_OK)
        spool_give_up(sp);
    return e;
}

/* A row of the queue that recorders have died of. */
struct suspect {
    int deaths;    /* in quarters; 0: there is none */
    int kind;      /* of the row */
    size_t before; /* rows of the queue before it, if there are not many */
    char id[ID_TEXT_SIZE];
};

/* The first of those that have so many. */
static int find_suspect(struct spool *sp, int deaths, int64_t *seq, struct suspect *out)
{
    sqlite3_stmt *s = sp->stmt[S_SUSPECT];
    int rc = sqlite3_bind_int(s, 1, deaths);

    memset(out, 0, sizeof *out);
    if (rc == SQLITE_OK)
        rc = sqlite3_step(s);
    if (rc == SQLITE_ROW) {
        const char *id = (const char *)sqlite3_column_text(s, 2);

        *seq = sqlite3_column_int64(s, 0);
        out->deaths = sqlite3_column_int(s, 1);
        out->kind = sqlite3_column_int(s, 3);
        out->before = (size_t)sqlite3_column_int64(s, 4);
        snprintf(out->id, sizeof out->id, "%s", id ? id : "");
    }
    sqlite3_reset(s);
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* Leaves what nobody is to touch any more. `alone`: the first row that goes by itself. */
static enum dac_err leave_the_deadly(struct spool *sp, struct suspect *alone)
{
    for (;;) {
        int64_t seq = 0;
        int rc = find_suspect(sp, DEATHS_ALONE, &seq, alone);

        if (rc != SQLITE_OK)
            return spool_fail(sp, rc, "could not read spool");
        /* Table `rejected` knows no keys. */
        if (alone->before > 0 ||
            alone->deaths < (alone->kind == STORE_ALIAS ? DEATHS_ASIDE : DEATHS_LEFT))
            return DAC_OK;
        enum dac_err e = leave(sp, seq);

        if (e != DAC_OK)
            return e;
        log_error(
            0,
            "recorders die of row %s of the spool: it is left in table spool_left of "
            "\"%s\"",
            alone->id, sp->path);
    }
}

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

enum dac_err spool_hand_take(struct spool *sp, size_t *max, bool *aside)
{
    struct suspect first = {0}, alone = {0};
    int64_t seq = 0;

    *aside = false;
    if (sp->suspects) {
        enum dac_err e = leave_the_deadly(sp, &alone);

        if (e != DAC_OK)
            return e;
        int rc = find_suspect(sp, 1, &seq, &first);

        if (rc != SQLITE_OK)
            return spool_fail(sp, rc, "could not read spool");
    }
    if (alone.deaths > 0 && alone.before == 0) {
        *aside = alone.deaths >= DEATHS_ASIDE;
        *max = 1;
    } else if (first.deaths > 0) {
        *max = least(*max, first.before > 0 ? first.before : FEW);
        if (alone.deaths > 0)
            *max = least(*max, alone.before);
    }
    mark_alone(sp, *max, DEATH_AT_WORK);
    return DAC_OK;
}

int spool_hand_done(struct spool *sp, int64_t last_seq)
{
    int rc = mark(sp, 0, 0);

    if (rc != SQLITE_OK || !sp->suspects)
        return rc;
    rc = sqlite3_bind_int64(sp->stmt[S_CLEARED], 1, last_seq);
    if (rc == SQLITE_OK)
        rc = spool_run(sp, S_CLEARED);
    return rc == SQLITE_OK ? count_suspects(sp) : rc;
}

void spool_wait(struct spool *sp)
{
    if (sp->held > 0)
        mark_alone(sp, sp->held, DEATH_WAITING);
}

void spool_put_back(struct spool *sp)
{
    if (sp->held > 0)
        mark_alone(sp, 0, 0);
}

/* --- setting aside ------------------------------------------------------------------ */

bool spool_set_aside(struct spool_batch *batch)
{
    static const char why[] = "it was in hand when the recorder died, four times";
    struct store_row *row = &batch->rows[0];
    struct store_row aside;

    if (row->kind == STORE_REJECTED || id_is_zero(rejected_id(row)))
        return false;
    const struct buf data = BUF_INIT(REJECTED_DATA_MAX);
    batch->data = data;
    rejected_make(row, why, &batch->data, &aside);
    *row = aside;
    batch->set_aside = true;
    return true;
}
