/*
 * The workers' reader where PostgreSQL has a spool before it. A question goes
 *
 *   to the spool       if the queue holds something of its thread or turn
 *   to PostgreSQL      else; if that has not answered in PATIENCE_NS, or failed:
 *   to the spool       if that knows the thread as far as the question needs
 *   to PostgreSQL      again and again, until its deadline, 2 s after it was asked
 *
 * What the spool knows: a thread it keeps; its history, if the newest turns are there;
 * its messages, if all are there; a turn it keeps. Lists of threads come from PostgreSQL
 * alone. Answers come in the order in which they are found, not in that of asking.
 *
 * An idempotency key is looked for in the spool and then in PostgreSQL, and is not found
 * if that fails or does not answer in PATIENCE_NS: better a question asked again than one
 * that cannot be asked. It is not asked at all once it has been away for that long; at
 * the start it has the time of a question to come up, since keys from before a restart
 * count.
 *
 * The file is looked for again when it is not there, or another one has its name.
 */
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/log.h"
#include "store/internal.h"
#include "store/sqlite.h"

#define PATIENCE_NS (300 * NS_PER_MS)
#define SWEEP_NS    (20 * NS_PER_MS)
#define REOPEN_NS   (500 * NS_PER_MS)

#define COMPLAIN_GAP_NS (10 * NS_PER_S)

/* Where a question is; store_query.state. */
enum { IN_POSTGRES, IN_SPOOL, NOWHERE };

enum { K_QUEUED, K_DEPTH, K_TURN, K_ALIAS, K_N };

static const char *const know_sql[K_N] = {
    /* An alias, which has its turn's id, changes nothing of that turn. */
    [K_QUEUED] = "SELECT 1 FROM spool_queue WHERE (thread_id = ?1 OR id = ?1) AND "
                 "kind <> 6 LIMIT 1",
    [K_DEPTH] = "SELECT depth FROM spool_threads WHERE thread_id = ?1",
    [K_TURN] = "SELECT 1 FROM turns WHERE id = ?1",
    [K_ALIAS] = "SELECT turn_id, body_digest, created_us FROM spool_aliases "
                "WHERE org = ?1 AND key_digest = ?2 AND created_us >= ?3",
};

_Static_assert(STORE_ALIAS == 6, "K_QUEUED says so");

struct spooled_reader {
    struct store_reader core; /* first */
    struct store_reader *pg;
    struct store_reader *spool; /* NULL while there is no file */
    sqlite3 *db;                /* what the spool knows; NULL likewise */
    sqlite3_stmt *know[K_N];
    char *path; /* owned */
    struct stat file;
    uint64_t looked_ns;     /* for the file, last */
    uint64_t away_ns;       /* from when on PostgreSQL counts as away; 0: it was up */
    uint64_t complained_ns; /* 0: never */
    struct query_list asked;
    struct event *sweep;
};

static struct spooled_reader *self(struct store_reader *r)
{
    return (struct spooled_reader *)r;
}

/* --- the file ----------------------------------------------------------------------- */

static void close_spool(struct spooled_reader *r)
{
    store_reader_close(r->spool);
    r->spool = NULL;
    sqlite_finalize_all(r->know, K_N);
    memset(r->know, 0, sizeof r->know);
    sqlite3_close(r->db);
    r->db = NULL;
}

static bool is_same_file(const struct spooled_reader *r)
{
    struct stat st;

    return stat(r->path, &st) == 0 && st.st_dev == r->file.st_dev &&
           st.st_ino == r->file.st_ino;
}

static bool spool_in_use(const struct spooled_reader *r)
{
    const struct store_query *q;

    TAILQ_FOREACH (q, &r->asked, link)
        if (q->inner && q->state == IN_SPOOL)
            return true;
    return false;
}

/* Whether there is a spool to read; (re)opens it where it must. */
static bool have_spool(struct spooled_reader *r)
{
    char why[STORE_ERROR_SIZE];
    uint64_t now = clock_now_ns();

    if (r->db && (now - r->looked_ns < REOPEN_NS || is_same_file(r) || spool_in_use(r)))
        return true;
    if (!r->db && r->looked_ns != 0 && now - r->looked_ns < REOPEN_NS)
        return false;
    r->looked_ns = now;
    if (r->db)
        close_spool(r);
    if (stat(r->path, &r->file) != 0 ||
        store_sqlite_reader_open(r->core.base, r->path, &r->spool, why, sizeof why) !=
            DAC_OK)
        return false;
    if (sqlite_connect(r->path, SQLITE_OPEN_READWRITE, &r->db, why, sizeof why) ==
            DAC_OK &&
        sqlite3_db_config(r->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL) ==
            SQLITE_OK &&
        sqlite3_busy_timeout(r->db, 0) == SQLITE_OK &&
        sqlite_prepare_all(r->db, know_sql, K_N, r->know) == SQLITE_OK)
        return true;
    close_spool(r);
    return false;
}

/* The first column of what a statement finds for an id; -1: nothing, or it failed. */
static int find(struct spooled_reader *r, int which, const struct id *id)
{
    sqlite3_stmt *s = r->know[which];
    int found = -1;

    if (sqlite_bind_id(s, 1, id) == 0 && sqlite3_step(s) == SQLITE_ROW)
        found = sqlite3_column_int(s, 0);
    sqlite3_reset(s);
    sqlite3_clear_bindings(s);
    return found;
}

/* Whether PostgreSQL lacks something of what is asked for. */
static bool is_queued(struct spooled_reader *r, const struct store_query *q)
{
    return q->kind != QUERY_THREADS && q->kind != QUERY_ALIAS && have_spool(r) &&
           find(r, K_QUEUED, &q->id) > 0;
}

static bool spool_knows(struct spooled_reader *r, const struct store_query *q)
{
    static const int depth[] = {
        [QUERY_THREAD] = 0, [QUERY_HISTORY] = 1, [QUERY_MESSAGES] = 2};

    if (q->kind == QUERY_THREADS || q->kind == QUERY_ALIAS || !have_spool(r))
        return false;
    if (q->kind == QUERY_TURN)
        return find(r, K_TURN, &q->id) > 0;
    return find(r, K_DEPTH, &q->id) >= depth[q->kind];
}

/* --- asking ------------------------------------------------------------------------- */

static void ask(struct spooled_reader *r, struct store_query *q, int where);

static bool is_verdict(enum dac_err e)
{
    return e == DAC_OK || e == DAC_E_NOT_FOUND || e == DAC_E_INVALID || e == DAC_E_NOMEM;
}

static void finish(struct spooled_reader *r, struct store_query *q, enum dac_err e)
{
    TAILQ_REMOVE(&r->asked, q, link);
    if (TAILQ_EMPTY(&r->asked))
        event_del(r->sweep);
    query_finish(q, e);
}

/* The inner question was answered. Its rows are moved, not copied. */
static void answered(struct store_query *q, enum dac_err e)
{
    struct spooled_reader *r = self(q->reader);
    struct store_query *inner = q->inner;

    q->inner = NULL;
    if (is_verdict(e)) {
        if (q->state == IN_POSTGRES)
            r->away_ns = 0;
        q->rows = inner->rows;
        memset(&inner->rows, 0, sizeof inner->rows);
        for (size_t i = 0; q->rows.threads && i < q->rows.n; i++)
            q->rows.threads[i].org = q->org; /* what it had goes with the inner one */
        q->rows.turn.org = q->rows.alias.org = q->org;
        if (q->state == IN_SPOOL)
            q->rows.turn.place = is_queued(r, q) ? STORE_IN_SPOOL : STORE_IN_POSTGRES;
        finish(r, q, e);
    } else if (q->state == IN_POSTGRES && spool_knows(r, q)) {
        ask(r, q, IN_SPOOL);
    } else {
        q->state = NOWHERE; /* the sweep asks again, until the deadline */
    }
}

static void on_thread(void *arg, enum dac_err e, const struct store_thread *t)
{
    (void)t;
    answered(arg, e);
}

static void on_threads(void *arg, enum dac_err e, const struct store_thread *t, size_t n,
                       bool more)
{
    (void)t, (void)n, (void)more;
    answered(arg, e);
}

static void on_messages(void *arg, enum dac_err e, const struct store_message *m,
                        size_t n, bool more)
{
    (void)m, (void)n, (void)more;
    answered(arg, e);
}

static void on_turn(void *arg, enum dac_err e, const struct store_turn *t)
{
    (void)t;
    answered(arg, e);
}

static void on_alias(void *arg, enum dac_err e, const struct store_alias *a)
{
    (void)a;
    answered(arg, e);
}

static struct store_query *ask_reader(struct store_reader *to, struct store_query *q)
{
    switch (q->kind) {
    case QUERY_THREAD:
        return store_read_thread(to, q->org, &q->id, on_thread, q);
    case QUERY_THREADS:
        return store_read_threads(to, q->org, &q->cursor, q->limit, on_threads, q);
    case QUERY_MESSAGES:
        return store_read_messages(to, q->org, &q->id, &q->cursor, q->limit, on_messages,
                                   q);
    case QUERY_HISTORY:
        return store_read_history(to, q->org, &q->id, &q->cursor, q->limit, q->max_bytes,
                                  on_messages, q);
    case QUERY_TURN:
        return store_read_turn(to, q->org, &q->id, on_turn, q);
    case QUERY_ALIAS:
        return store_read_alias(to, q->org, q->key_digest, q->since_us, on_alias, q);
    }
    return NULL;
}

/* Where a question goes now. */
static int place_for(struct spooled_reader *r, const struct store_query *q)
{
    if (is_queued(r, q))
        return spool_knows(r, q) ? IN_SPOOL : NOWHERE;
    return !store_reader_up(r->pg) && spool_knows(r, q) ? IN_SPOOL : IN_POSTGRES;
}

static void ask(struct spooled_reader *r, struct store_query *q, int where)
{
    q->state = where;
    if (where == NOWHERE)
        return;
    q->asked_ns = clock_now_ns();
    q->inner = ask_reader(where == IN_SPOOL ? r->spool : r->pg, q);
    if (!q->inner)
        finish(r, q, DAC_E_NOMEM);
}

static void arm_sweep(struct spooled_reader *r)
{
    const struct timeval tv = {.tv_usec = (suseconds_t)(SWEEP_NS / NS_PER_US)};

    if (!event_pending(r->sweep, EV_TIMEOUT, NULL))
        event_add(r->sweep, &tv);
}

static void withdraw(struct store_query *q)
{
    if (q->inner)
        store_query_cancel(q->inner);
    q->inner = NULL;
}

/* --- aliases ------------------------------------------------------------------------ */

/* Whether the spool remembers it; then it is in q's rows. */
static bool find_alias(struct spooled_reader *r, struct store_query *q)
{
    struct store_alias *a = &q->rows.alias;
    sqlite3_stmt *s;
    bool found = false;

    if (!have_spool(r))
        return false;
    s = r->know[K_ALIAS];
    if ((sqlite_bind_str(s, 1, q->org) |
         sqlite3_bind_blob(s, 2, q->key_digest, sizeof q->key_digest, SQLITE_STATIC) |
         sqlite3_bind_int64(s, 3, q->since_us)) == 0 &&
        sqlite3_step(s) == SQLITE_ROW) {
        const void *body = sqlite3_column_blob(s, 1);

        a->org = q->org;
        memcpy(a->key_digest, q->key_digest, sizeof a->key_digest);
        a->created_us = sqlite3_column_int64(s, 2);
        found = sqlite_read_id(s, 0, &a->turn) && body &&
                sqlite3_column_bytes(s, 1) == sizeof a->body_digest;
        if (found)
            memcpy(a->body_digest, body, sizeof a->body_digest);
    }
    sqlite3_reset(s);
    sqlite3_clear_bindings(s);
    return found;
}

static bool is_away(struct spooled_reader *r, uint64_t now_ns)
{
    if (store_reader_up(r->pg)) {
        r->away_ns = 0;
        return false;
    }
    if (r->away_ns == 0)
        r->away_ns = now_ns + PATIENCE_NS;
    return now_ns >= r->away_ns;
}

/* Nobody can tell whether there is one. */
static void give_up(struct spooled_reader *r, struct store_query *q, uint64_t now_ns)
{
    if (r->complained_ns == 0 || now_ns - r->complained_ns > COMPLAIN_GAP_NS) {
        log_warn(0,
                 "PostgreSQL does not answer: idempotency keys that the spool does not "
                 "remember count as new");
        r->complained_ns = now_ns;
    }
    withdraw(q);
    finish(r, q, DAC_E_NOT_FOUND);
}

static void start_alias(struct spooled_reader *r, struct store_query *q)
{
    uint64_t now = clock_now_ns();

    if (find_alias(r, q))
        finish(r, q, DAC_OK);
    else if (is_away(r, now))
        give_up(r, q, now);
    else
        ask(r, q, IN_POSTGRES);
}

static void look_at_alias(struct spooled_reader *r, struct store_query *q,
                          uint64_t now_ns)
{
    bool away = is_away(r, now_ns);
    uint64_t asked_ns = q->asked_ns;

    if (r->away_ns != 0 && !away) /* patience counts from when it is up */
        asked_ns = q->asked_ns = now_ns;
    if (away || now_ns >= q->deadline_ns || now_ns - asked_ns > PATIENCE_NS) {
        give_up(r, q, now_ns);
    } else if (q->state == NOWHERE) {
        ask(r, q, IN_POSTGRES);
        q->asked_ns = asked_ns;
    }
}

/* --- time --------------------------------------------------------------------------- */

/* One question whose time may have come. */
static void look_at(struct spooled_reader *r, struct store_query *q, uint64_t now_ns)
{
    if (q->kind == QUERY_ALIAS) {
        look_at_alias(r, q, now_ns);
    } else if (now_ns >= q->deadline_ns) {
        withdraw(q);
        finish(r, q, DAC_E_TIMEOUT);
    } else if (q->state == IN_POSTGRES && now_ns - q->asked_ns > PATIENCE_NS) {
        if (spool_knows(r, q)) {
            withdraw(q);
            ask(r, q, IN_SPOOL);
        }
    } else if (q->state == NOWHERE) {
        ask(r, q, place_for(r, q));
    }
}

static void on_sweep(evutil_socket_t fd, short what, void *arg)
{
    struct spooled_reader *r = arg;
    struct store_query *q, *next;
    uint64_t now = clock_now_ns();

    (void)fd;
    (void)what;
    for (q = TAILQ_FIRST(&r->asked); q; q = next) {
        next = TAILQ_NEXT(q, link);
        look_at(r, q, now);
    }
    if (!TAILQ_EMPTY(&r->asked))
        arm_sweep(r);
}

static void spooled_start(struct store_reader *core, struct store_query *q)
{
    struct spooled_reader *r = self(core);

    TAILQ_INSERT_TAIL(&r->asked, q, link);
    arm_sweep(r);
    if (!store_reader_up(r->pg))
        store_reader_want(r->pg);
    if (q->kind == QUERY_ALIAS)
        start_alias(r, q);
    else
        ask(r, q, place_for(r, q));
}

static void spooled_cancel(struct store_reader *core, struct store_query *q)
{
    struct spooled_reader *r = self(core);

    withdraw(q);
    TAILQ_REMOVE(&r->asked, q, link);
    if (TAILQ_EMPTY(&r->asked))
        event_del(r->sweep);
}

/* --- life --------------------------------------------------------------------------- */

static void spooled_close(struct store_reader *core)
{
    struct spooled_reader *r = self(core);

    while (!TAILQ_EMPTY(&r->asked))
        store_query_cancel(TAILQ_FIRST(&r->asked));
    close_spool(r);
    store_reader_close(r->pg);
    if (r->sweep)
        event_free(r->sweep);
    free(r->path);
    reader_fini(core);
    free(r);
}

static bool spooled_up(const struct store_reader *core)
{
    (void)core;
    return true;
}

static const struct store_reader_ops spooled_reader_ops = {
    .close = spooled_close,
    .start = spooled_start,
    .cancel = spooled_cancel,
    .up = spooled_up,
};

enum dac_err store_spooled_reader_open(struct event_base *base,
                                       const struct store_options *opt,
                                       struct store_reader **out, char *why, size_t n)
{
    struct spooled_reader *r = calloc(1, sizeof *r);
    enum dac_err e = DAC_E_NOMEM;

    snprintf(why, n, "out of memory");
    if (!r)
        return e;
    TAILQ_INIT(&r->asked);
    r->away_ns = clock_now_ns() + STORE_QUERY_WAIT_NS;
    e = reader_init(&r->core, &spooled_reader_ops, base);
    r->path = strdup(opt->spool);
    r->sweep = evtimer_new(base, on_sweep, r);
    if (e == DAC_OK && (!r->path || !r->sweep))
        e = DAC_E_NOMEM;
    if (e == DAC_OK)
        e = store_postgres_reader_open(base, opt, &r->pg, why, n);
    if (e != DAC_OK) {
        spooled_close(&r->core);
        return e;
    }
    *out = &r->core;
    return DAC_OK;
}
