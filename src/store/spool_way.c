/*
 * What is kept makes way: for newer threads, and for the queue, which may need all of the
 * file. What is let go of, in this order, and each time least recently used first:
 *
 *   WAY_THREADS    threads that have nothing in the queue
 *   WAY_TURNS      turns that no history takes any more, of the others
 *   WAY_HISTORIES  and the rest of what they have, but for the queue: until PostgreSQL is
 *                  there nobody can ask in them. For who runs already, not for newcomers
 *   WAY_NOTHING    all there is is queued, or remembered keys
 *
 * A step takes a while at most, and goes on where the last one ended. Runs in the
 * recorder.
 */
#include "base/clock.h"
#include "store/spool_internal.h"
#include "store/sqlite.h"
#include "store/sqlite_writer.h"

#define AT_ONCE    64          /* threads */
#define TIDY_BYTES (32u << 20) /* that one tidying lets go of */

struct some_threads {
    struct id id[AT_ONCE];
    int64_t used[AT_ONCE];
    size_t n;
};

/* Ids, and when they were used, by a statement whose parameters are bound. */
static void list(struct spool *sp, int which, struct some_threads *out)
{
    sqlite3_stmt *s = sp->stmt[which];

    out->n = 0;
    while (out->n < AT_ONCE && sqlite3_step(s) == SQLITE_ROW)
        if (sqlite_read_id(s, 0, &out->id[out->n]))
            out->used[out->n++] = sqlite3_column_int64(s, 1);
    sqlite3_reset(s);
    sqlite3_clear_bindings(s);
}

/* Threads that are not in the queue, but for the `keep` that were used last. */
static void list_stale(struct spool *sp, size_t keep, struct some_threads *out)
{
    sqlite3_stmt *s = sp->stmt[S_STALE];

    out->n = 0;
    if ((sqlite3_bind_int64(s, 1, (int64_t)keep) | sqlite3_bind_int(s, 2, AT_ONCE)) == 0)
        list(sp, S_STALE, out);
}

/* Threads with turns that are not in the queue, from the last one looked at on. */
static void list_heavy(struct spool *sp, struct some_threads *out)
{
    sqlite3_stmt *s = sp->stmt[S_HEAVY];

    out->n = 0;
    if ((sqlite3_bind_int64(s, 1, sp->way_used) | sqlite_bind_id(s, 2, &sp->way_thread) |
         sqlite3_bind_int(s, 3, AT_ONCE)) == 0)
        list(sp, S_HEAVY, out);
}

static bool is_over(const struct spool_step *step)
{
    return clock_now_ns() >= step->until_ns;
}

enum dropped { DROP_FAILED, DROPPED, DROPPED_SOME };

/* A thread that has nothing in the queue: its turns, the oldest first, and once there are
 * none the thread. */
static enum dropped drop(struct spool *sp, const struct id *thread,
                         struct spool_step *step)
{
    static const int last[] = {S_DROP_THREAD, S_DROP_INDEX};

    if (spool_trim(sp, thread, 0, 0, step))
        return DROPPED_SOME;
    for (size_t i = 0; i < DAC_ARRAY_LEN(last); i++)
        if (sqlite_bind_id(sp->stmt[last[i]], 1, thread) != 0 ||
            spool_run(sp, last[i]) != SQLITE_OK)
            return DROP_FAILED;
    return DROPPED;
}

static void drop_above_number(struct spool *sp, struct spool_step *step)
{
    struct some_threads stale;
    enum dropped what = DROPPED;
    size_t i;

    list_stale(sp, sp->threads_max, &stale);
    for (i = 0; i < stale.n && what == DROPPED && !is_over(step); i++)
        what = drop(sp, &stale.id[i], step);
    sp->stale =
        what == DROPPED_SOME || (what == DROPPED && i < stale.n) || stale.n == AT_ONCE;
}

/* How many of the newest turns hold what a history takes. */
static size_t turns_of_history(struct spool *sp, const struct id *thread)
{
    sqlite3_stmt *s = sp->stmt[S_HISTORY];
    size_t n = 0, messages = 0;
    int64_t bytes = 0;

    if ((sqlite_bind_id(s, 1, thread) |
         sqlite3_bind_int64(s, 2, (int64_t)sp->turns_kept)) == 0) {
        for (; sqlite3_step(s) == SQLITE_ROW; n++) {
            if (sqlite3_column_int(s, 0) < 2) /* no answer: it is left out */
                continue;
            messages += 2;
            bytes += sqlite3_column_int64(s, 1);
            if (messages > SPOOL_HISTORY_MESSAGES || bytes > SPOOL_HISTORY_BYTES)
                break;
        }
    }
    sqlite3_reset(s);
    sqlite3_clear_bindings(s);
    return n;
}

static void to_next_way(struct spool *sp)
{
    static const struct id first;

    sp->way++;
    sp->way_used = INT64_MIN;
    sp->way_thread = first;
}

static void shorten_some(struct spool *sp, uint64_t target, struct spool_step *step)
{
    struct some_threads heavy;
    size_t i;

    list_heavy(sp, &heavy);
    for (i = 0; i < heavy.n && spool_bytes_used(sp) > target && !is_over(step); i++) {
        bool more = sp->way == WAY_TURNS
                        ? spool_trim(sp, &heavy.id[i], turns_of_history(sp, &heavy.id[i]),
                                     1, step)
                        : spool_trim(sp, &heavy.id[i], 0, 0, step);

        if (more)
            break;
        sp->way_used = heavy.used[i];
        sp->way_thread = heavy.id[i];
    }
    if (heavy.n == 0)
        to_next_way(sp);
}

static void drop_some(struct spool *sp, uint64_t target, struct spool_step *step)
{
    struct some_threads stale;
    enum dropped what = DROPPED;

    list_stale(sp, 0, &stale);
    for (size_t i = 0; i < stale.n && what == DROPPED && spool_bytes_used(sp) > target &&
                       !is_over(step);
         i++)
        what = drop(sp, &stale.id[i], step);
    if (stale.n == 0 || what == DROP_FAILED)
        to_next_way(sp);
}

/* As far as the ways before `end`. */
static void make_way(struct spool *sp, uint64_t target, enum spool_way end,
                     struct spool_step *step)
{
    while (sp->loose && spool_bytes_used(sp) > target && !is_over(step))
        sp->loose = spool_drop_loose(sp, step);
    while (sp->way < end && spool_bytes_used(sp) > target && !is_over(step)) {
        if (sp->way == WAY_THREADS)
            drop_some(sp, target, step);
        else
            shorten_some(sp, target, step);
    }
}

static bool begin(struct spool *sp)
{
    spool_durable(sp, false);
    if (sqlite_writer_begin(sp->st) == DAC_OK)
        return true;
    spool_durable(sp, true);
    return false;
}

static void end(struct spool *sp)
{
    if (sqlite_writer_commit(sp->st) != DAC_OK)
        spool_give_up(sp);
    spool_durable(sp, true);
}

void spool_make_way(struct spool *sp, uint64_t target)
{
    struct spool_step step = spool_step();

    if ((sp->loose || sp->way != WAY_NOTHING) && begin(sp)) {
        make_way(sp, target, WAY_NOTHING, &step);
        end(sp);
    }
}

/* How much may be used before what is kept makes way, between batches: while nothing is
 * queued the queue may soon need its half. */
static uint64_t limit_of_kept(const struct spool *sp)
{
    return sp->rows == 0 ? sp->max_bytes / 2 : sp->max_bytes / 10 * 8;
}

void spool_tidy(struct spool *sp)
{
    uint64_t used = spool_bytes_used(sp), limit = limit_of_kept(sp);
    bool loose = sp->loose && sp->rows == 0;
    bool crowded = used > limit && sp->way < WAY_HISTORIES;
    struct spool_step step = spool_step();

    if ((sp->stale || loose || crowded || spool_alias_crowded(sp)) && begin(sp)) {
        if (loose)
            sp->loose = spool_drop_loose(sp, &step);
        if (spool_alias_crowded(sp))
            spool_alias_trim(sp);
        if (sp->stale)
            drop_above_number(sp, &step);
        if (crowded) /* not all at once, if it is much */
            make_way(sp, used - limit < TIDY_BYTES ? limit : used - TIDY_BYTES,
                     WAY_HISTORIES, &step);
        end(sp);
    }
    store_tidy(sp->st);
}
