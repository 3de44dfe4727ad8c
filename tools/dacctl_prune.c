/*
 * `dacctl prune --older-than 90d`: really deletes what ended longer ago: turns with their
 * messages, then threads that have no turns left, rejected rows, and idempotency keys
 * that count no longer. The service never deletes, so this runs as the database's owner.
 * Each batch is a transaction of its own, followed by a pause as long as it took, so that
 * the service keeps half of the server; it may be interrupted at any time.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "config/value.h"
#include "dacctl_exit.h"
#include "dacctl_store.h"
#include "store/sqlite.h"

#define BATCH         "500"
#define BATCH_THREADS "2000"
#define KEYS_LIVE_NS  (24 * 3600 * NS_PER_S)
#define PROGRESS_NS   NS_PER_S
#define PAUSE_MAX_NS  (5 * NS_PER_S)
#define TIME_SIZE     (SQLITE_TIME_LEN + 4)

#define OLD_TURNS                                                                        \
    "(SELECT id FROM turns WHERE finished_at < $1 ORDER BY finished_at, id LIMIT " BATCH \
    ")"
#define OLD_THREADS                                                                      \
    "FROM threads h WHERE coalesce(h.deleted_at, h.created_at) < $1 AND "                \
    "NOT EXISTS (SELECT 1 FROM turns t WHERE t.thread_id = h.id)"

struct pruned {
    int64_t turns, messages, threads, rejected, keys;
};

static void time_ago(const struct database *d, uint64_t ago_ns, char out[TIME_SIZE])
{
    int64_t us = clock_wall_us() - (int64_t)(ago_ns / NS_PER_US);

    sqlite_time_format(us > 0 ? us : 0, out);
    if (d->pg != NULL)
        strcat(out, "+00");
}

/* --- batches ------------------------------------------------------------------------ */

/* Both statements of a batch have to see the same turns. */
static bool begin(struct database *d)
{
    return database_run(d, "begin a transaction",
                        d->pg != NULL ? "BEGIN ISOLATION LEVEL REPEATABLE READ"
                                      : "BEGIN IMMEDIATE",
                        NULL, NULL, NULL);
}

static bool prune_turns(struct database *d, const char *before, struct pruned *sum,
                        int64_t *turns)
{
    int64_t messages = 0;

    *turns = 0;
    if (!begin(d) ||
        !database_run(d, "delete messages",
                      "DELETE FROM messages WHERE turn_id IN " OLD_TURNS, before, NULL,
                      &messages) ||
        !database_run(d, "delete turns", "DELETE FROM turns WHERE id IN " OLD_TURNS,
                      before, NULL, turns) ||
        !database_run(d, "commit", "COMMIT", NULL, NULL, NULL))
        return false;
    sum->messages += messages;
    sum->turns += *turns;
    return true;
}

static bool prune_threads(struct database *d, const char *before, struct pruned *sum,
                          int64_t *threads)
{
    *threads = 0;
    if (!database_run(d, "delete threads",
                      "DELETE FROM threads WHERE id IN (SELECT h.id " OLD_THREADS
                      " ORDER BY h.id LIMIT " BATCH_THREADS ")",
                      before, NULL, threads))
        return false;
    sum->threads += *threads;
    return true;
}

static void rest(uint64_t took_ns)
{
    uint64_t ns = took_ns < PAUSE_MAX_NS ? took_ns : PAUSE_MAX_NS;
    struct timespec pause = {.tv_sec = (time_t)(ns / NS_PER_S),
                             .tv_nsec = (long)(ns % NS_PER_S)};

    nanosleep(&pause, NULL);
}

/* Runs batches until one finds nothing; tells how far it is. */
static bool repeat(struct database *d, const char *before, struct pruned *sum,
                   bool (*batch)(struct database *, const char *, struct pruned *,
                                 int64_t *),
                   const char *what, int64_t total)
{
    uint64_t told = clock_now_ns();
    int64_t n, done = 0;

    do {
        uint64_t began = clock_now_ns();

        if (!batch(d, before, sum, &n))
            return false;
        uint64_t now = clock_now_ns();

        done += n;
        if (n > 0 && now - told >= PROGRESS_NS) {
            fprintf(stderr, "dacctl: %" PRId64 " of %" PRId64 " %s\n", done, total, what);
            told = now;
        }
        if (n > 0)
            rest(now - began);
    } while (n > 0);
    return true;
}

/* --- the whole ---------------------------------------------------------------------- */

static bool count(struct database *d, const char *before, struct pruned *out)
{
    return database_run(d, "count turns",
                        "SELECT count(*) FROM turns WHERE finished_at < $1", before, NULL,
                        &out->turns) &&
           database_run(
               d, "count messages",
               "SELECT count(*) FROM messages m JOIN turns t ON t.id = m.turn_id "
               "WHERE t.finished_at < $1",
               before, NULL, &out->messages) &&
           database_run(d, "count threads",
                        "SELECT count(*) FROM threads h WHERE coalesce(h.deleted_at, "
                        "h.created_at) < $1 AND NOT EXISTS (SELECT 1 FROM turns t WHERE "
                        "t.thread_id = h.id AND t.finished_at >= $1)",
                        before, NULL, &out->threads) &&
           database_run(d, "count rejected rows",
                        "SELECT count(*) FROM rejected WHERE created_at < $1", before,
                        NULL, &out->rejected);
}

static bool prune(struct database *d, const char *before, const char *keys_before,
                  struct pruned *sum)
{
    struct pruned total = {0};

    return count(d, before, &total) &&
           database_run(d, "delete idempotency keys",
                        "DELETE FROM idempotency WHERE created_at < $1", keys_before,
                        NULL, &sum->keys) &&
           repeat(d, before, sum, prune_turns, "turns", total.turns) &&
           repeat(d, before, sum, prune_threads, "threads", total.threads) &&
           database_run(d, "delete rejected rows",
                        "DELETE FROM rejected WHERE created_at < $1", before, NULL,
                        &sum->rejected);
}

static int tell(const struct store_arguments *args, const char *before,
                const struct pruned *sum, bool whole)
{
    struct buf b = BUF_INIT(4096);

    if (args->json)
        buf_printf(&b,
                   "{\"dry_run\":%s,\"before\":\"%.10sT%.8sZ\",\"turns\":%" PRId64
                   ",\"messages\":%" PRId64 ",\"threads\":%" PRId64
                   ",\"rejected\":%" PRId64 ",\"idempotency_keys\":%" PRId64
                   ",\"complete\":%s}\n",
                   args->dry_run ? "true" : "false", before, before + 11, sum->turns,
                   sum->messages, sum->threads, sum->rejected, sum->keys,
                   whole ? "true" : "false");
    else if (whole || sum->turns > 0)
        buf_printf(&b,
                   "%s before %.19s UTC: %" PRId64 " turns, %" PRId64
                   " messages, %" PRId64 " threads, %" PRId64 " rejected rows%s\n",
                   args->dry_run ? "to be deleted" : "deleted", before, sum->turns,
                   sum->messages, sum->threads, sum->rejected,
                   whole ? "" : "; it did not get to the end");
    return store_print(&b, whole ? EXIT_DONE : EXIT_NOT_DONE);
}

int dacctl_prune(const struct store_arguments *args)
{
    char before[TIME_SIZE], keys_before[TIME_SIZE];
    struct database d;
    struct pruned sum = {0};
    uint64_t age_ns;
    bool ok;
    int rc;

    if (args->older_than == NULL || !value_parse_duration(args->older_than, &age_ns) ||
        age_ns == 0) {
        fputs("dacctl: prune needs --older-than and an age, such as 90d\n", stderr);
        return EXIT_UNUSABLE;
    }
    rc = database_open(args, &d);
    if (rc != EXIT_DONE)
        return store_say_no(args, rc);
    time_ago(&d, age_ns, before);
    time_ago(&d, KEYS_LIVE_NS, keys_before);
    ok = args->dry_run ? count(&d, before, &sum) : prune(&d, before, keys_before, &sum);
    database_close(&d);
    return tell(args, before, &sum, ok);
}
