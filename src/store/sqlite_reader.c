/*
 * The SQLite reader: an own connection that only reads. A query runs at once, inside the
 * call that made it, since the rows come from the page cache; while the database is
 * locked (another process recovers the log) it waits on a timer and those behind it wait
 * too, so their order stays. Never sleeps in SQLite after opening. Runs in the workers.
 */
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "store/internal.h"
#include "store/sqlite.h"
#include "store/sqlite_query.h"

#define RETRY_MIN_MS    2
#define RETRY_MAX_MS    50
#define COMPLAIN_GAP_NS (10 * NS_PER_S)

struct sqlite_reader {
    struct store_reader core; /* first */
    sqlite3 *db;
    char *path; /* owned */
    sqlite3_stmt *stmt[R_N];
    struct query_list waiting; /* the first one is tried again by the timer */
    struct event *retry;
    unsigned retry_ms;
    uint64_t complained_ns; /* 0: never */
};

static struct sqlite_reader *self(struct store_reader *r)
{
    return (struct sqlite_reader *)r;
}

/* A callback carries only a code, so the cause goes to the log, but not once per query.
 */
static void complain(struct sqlite_reader *r, enum dac_err e, int code)
{
    static const char what[] = "could not read database";
    char why[STORE_ERROR_SIZE];
    uint64_t now = clock_now_ns();

    if (e == DAC_E_NOT_FOUND || e == DAC_E_INVALID)
        return;
    if (r->complained_ns != 0 && now - r->complained_ns < COMPLAIN_GAP_NS)
        return;
    r->complained_ns = now;
    if (code != SQLITE_OK)
        (void)sqlite_explain(r->db, r->path, code, what, why, sizeof(why));
    else if (e == DAC_E_CORRUPT)
        snprintf(why, sizeof(why),
                 "%s \"%s\": a row has an id or a time that this program did not write",
                 what, r->path);
    else
        snprintf(why, sizeof(why), "%s \"%s\": %s", what, r->path, dac_err_text(e));
    log_warn(0, "%s", why);
}

/* Runs what waits, until one must wait on. */
static void pump(struct sqlite_reader *r)
{
    struct store_query *q;

    while ((q = TAILQ_FIRST(&r->waiting)) != NULL) {
        int code;
        enum dac_err e = sqlite_query_run(r->stmt, q, &code);

        if (e == DAC_E_BUSY && clock_now_ns() < q->deadline_ns) {
            struct timeval tv = {.tv_sec = 0, .tv_usec = (suseconds_t)r->retry_ms * 1000};

            if (event_add(r->retry, &tv) == 0) {
                r->retry_ms =
                    r->retry_ms * 2 < RETRY_MAX_MS ? r->retry_ms * 2 : RETRY_MAX_MS;
                return;
            }
            e = DAC_E_NOMEM;
        }
        if (e == DAC_E_BUSY)
            e = DAC_E_TIMEOUT;
        if (e != DAC_OK)
            complain(r, e, code);
        r->retry_ms = RETRY_MIN_MS;
        TAILQ_REMOVE(&r->waiting, q, link);
        query_finish(q, e);
    }
}

static void retry_fired(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    pump(arg);
}

static void sqlite_reader_start(struct store_reader *core, struct store_query *q)
{
    struct sqlite_reader *r = self(core);

    TAILQ_INSERT_TAIL(&r->waiting, q, link);
    if (TAILQ_FIRST(&r->waiting) == q)
        pump(r);
}

static void sqlite_reader_cancel(struct store_reader *core, struct store_query *q)
{
    struct sqlite_reader *r = self(core);

    TAILQ_REMOVE(&r->waiting, q, link);
    if (TAILQ_EMPTY(&r->waiting))
        event_del(r->retry);
}

static void sqlite_reader_close(struct store_reader *core)
{
    struct sqlite_reader *r = self(core);

    while (!TAILQ_EMPTY(&r->waiting))
        store_query_cancel(TAILQ_FIRST(&r->waiting));
    if (r->retry != NULL)
        event_free(r->retry);
    sqlite_finalize_all(r->stmt, R_N);
    sqlite3_close(r->db);
    free(r->path);
    reader_fini(core);
    free(r);
}

static const struct store_reader_ops sqlite_reader_ops = {
    .close = sqlite_reader_close,
    .start = sqlite_reader_start,
    .cancel = sqlite_reader_cancel,
};

/* --- opening ------------------------------------------------------------------------ */

static enum dac_err set_up(struct sqlite_reader *r, char *why, size_t n)
{
    int version = 0;
    /* Closing must not checkpoint: that is the recorder's, and would hold up the worker.
     */
    int rc = sqlite3_db_config(r->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);

    if (rc == SQLITE_OK)
        rc = sqlite_version(r->db, &version);
    if (rc == SQLITE_OK) {
        enum dac_err e =
            sqlite_version_check(r->path, version, sqlite_version_newest(), why, n);

        if (e != DAC_OK)
            return e;
        if (version < sqlite_version_newest()) {
            snprintf(
                why, n,
                "database \"%s\" has version %d, this program needs %d: it has not been "
                "migrated yet",
                r->path, version, sqlite_version_newest());
            return DAC_E_STATE;
        }
        rc = sqlite3_exec(r->db,
                          "PRAGMA query_only = ON; PRAGMA cache_size = -2048; "
                          "PRAGMA wal_autocheckpoint = 0",
                          NULL, NULL, NULL);
    }
    if (rc == SQLITE_OK)
        rc = sqlite_prepare_all(r->db, sqlite_query_sql, R_N, r->stmt);
    if (rc == SQLITE_OK)
        rc = sqlite3_busy_timeout(r->db, 0);
    if (rc == SQLITE_OK)
        return DAC_OK;
    return sqlite_explain(r->db, r->path, rc, "could not read database", why, n);
}

enum dac_err store_sqlite_reader_open(struct event_base *base, const char *path,
                                      struct store_reader **out, char *why, size_t n)
{
    struct sqlite_reader *r = calloc(1, sizeof(*r));
    enum dac_err e = DAC_E_NOMEM;

    snprintf(why, n, "out of memory");
    if (r == NULL)
        return e;
    TAILQ_INIT(&r->waiting);
    r->retry_ms = RETRY_MIN_MS;
    e = reader_init(&r->core, &sqlite_reader_ops, base);
    if (e != DAC_OK)
        goto fail;
    e = DAC_E_NOMEM;
    r->path = strdup(path);
    r->retry = evtimer_new(base, retry_fired, r);
    if (r->path == NULL || r->retry == NULL)
        goto fail;
    e = sqlite_connect(path, SQLITE_OPEN_READWRITE, &r->db, why, n);
    if (e == DAC_OK)
        e = set_up(r, why, n);
    if (e != DAC_OK)
        goto fail;
    *out = &r->core;
    return DAC_OK;

fail:
    sqlite_reader_close(&r->core);
    return e;
}
