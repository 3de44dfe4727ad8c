/*
 * The PostgreSQL reader: a worker's own connection, its queries in a pipeline. A query
 * waits in one list, in the order of asking, until its answer has come and those before
 * it were called back; while the connection is away it waits too, and one whose
 * connection was lost is asked again, since reading changes nothing.
 *
 *   WAITING -> SENT -> DONE -> handed back        (SENT -> WAITING: connection lost)
 *
 * Bounds: QUERIES_MAX queries, of which WINDOW are with the server; 2 s for each, then
 * DAC_E_TIMEOUT; the server has the same limit for each statement, so that one that hangs
 * behind a lock does not hang for ever. A server that owes answers and gives none for
 * SILENCE_NS loses the connection. Runs in the workers.
 */
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "store/internal.h"
#include "store/postgres_conn.h"
#include "store/postgres_query.h"
#include "store/postgres_session.h"

#define QUERIES_MAX     1000
#define WINDOW          32
#define SILENCE_NS      (STORE_QUERY_WAIT_NS + 500 * NS_PER_MS)
#define COMPLAIN_GAP_NS (10 * NS_PER_S)
#define SETTINGS        1 /* of the session: there is one set of them */

enum { WAITING, SENT, DONE };

/* What is with the server. The query may be gone before its answer comes. */
struct flying {
    struct postgres_reader *reader;
    struct store_query *q; /* NULL: nobody wants to know */
    uint64_t sent_ns;
    bool failed; /* the first failure was taken */
};

struct postgres_reader {
    struct store_reader core; /* first */
    struct postgres_conn *conn;
    struct postgres_session session;
    char *conninfo;          /* owned */
    char *application;       /* owned */
    struct query_list asked; /* in the order of asking */
    size_t asked_count;
    struct flying flying[WINDOW]; /* a ring, in the order of sending */
    size_t first_flying, flying_count;
    uint64_t answered_ns; /* when an answer came last */
    struct postgres_args args;
    struct event *timer;
    uint64_t timer_ns;      /* when it fires; 0: it does not */
    uint64_t complained_ns; /* 0: never */
};

static struct postgres_reader *self(struct store_reader *r)
{
    return (struct postgres_reader *)r;
}

/* A callback carries only a code, so the cause goes to the log, but not once per query.
 */
static void complain(struct postgres_reader *r, const char *why)
{
    uint64_t now = clock_now_ns();

    if (r->complained_ns != 0 && now - r->complained_ns < COMPLAIN_GAP_NS)
        return;
    r->complained_ns = now;
    log_warn(0, "could not read from PostgreSQL: %s", why);
}

/* --- handing back ------------------------------------------------------------------- */

static void settle(struct store_query *q, enum dac_err e)
{
    q->state = DONE;
    q->result = e;
    if (e != DAC_OK)
        query_rows_reset(&q->rows);
}

/* Hands back what is done, up to the first that is not. */
static void deliver(struct postgres_reader *r)
{
    struct store_query *q;

    while ((q = TAILQ_FIRST(&r->asked)) != NULL && q->state == DONE) {
        TAILQ_REMOVE(&r->asked, q, link);
        r->asked_count--;
        query_finish(q, q->result);
    }
}

/* The oldest that is with the server is taken from the ring. */
static void land(struct postgres_reader *r)
{
    r->flying[r->first_flying].q = NULL;
    r->first_flying = (r->first_flying + 1) % WINDOW;
    r->flying_count--;
}

/* Nobody wants the answer to q any more. */
static void forget(struct postgres_reader *r, const struct store_query *q)
{
    for (size_t i = 0; i < r->flying_count; i++) {
        struct flying *f = &r->flying[(r->first_flying + i) % WINDOW];

        if (f->q == q)
            f->q = NULL;
    }
}

/* When the server counts as silent; 0: it owes nothing. */
static uint64_t silent_at(const struct postgres_reader *r)
{
    if (r->flying_count == 0)
        return 0;
    uint64_t since = r->flying[r->first_flying].sent_ns;

    return (since > r->answered_ns ? since : r->answered_ns) + SILENCE_NS;
}

/* --- time --------------------------------------------------------------------------- */

/* Sees to it that the timer fires when the first query is overdue, or the server silent.
 */
static void arm(struct postgres_reader *r)
{
    const struct store_query *q = TAILQ_FIRST(&r->asked);
    uint64_t at = q != NULL ? q->deadline_ns : 0;
    uint64_t silent = silent_at(r);
    uint64_t now = clock_now_ns();

    if (silent != 0 && (at == 0 || silent < at))
        at = silent;
    if (at == r->timer_ns)
        return;
    r->timer_ns = at;
    if (at == 0) {
        event_del(r->timer);
        return;
    }
    uint64_t us = at > now ? (at - now) / NS_PER_US + 1 : 1;
    struct timeval tv = {.tv_sec = (time_t)(us / 1000000),
                         .tv_usec = (suseconds_t)(us % 1000000)};

    if (event_add(r->timer, &tv) != 0) /* no memory for it: the next event tries again */
        r->timer_ns = 0;
}

/* All wait equally long, so those that are overdue are the first ones. */
static void time_is_over(evutil_socket_t fd, short what, void *arg)
{
    struct postgres_reader *r = arg;
    uint64_t now = clock_now_ns();
    uint64_t silent = silent_at(r);
    struct store_query *q;

    (void)fd;
    (void)what;
    r->timer_ns = 0;
    TAILQ_FOREACH (q, &r->asked, link) {
        if (q->deadline_ns > now)
            break;
        if (q->state == DONE)
            continue;
        forget(r, q);
        settle(q, DAC_E_TIMEOUT);
        complain(r, postgres_conn_is_up(r->conn) ? "no answer in 2 s"
                                                 : postgres_conn_error(r->conn));
    }
    if (silent != 0 && silent <= now)
        postgres_conn_drop(r->conn, "the server does not answer");
    deliver(r);
    arm(r);
}

/* --- asking ------------------------------------------------------------------------- */

static void pump(struct postgres_reader *r);

/* An error that comes with the loss of the connection, or that the connection mends by
 * itself, so that the same query may well be answered next time. */
static bool passes(const char *sqlstate)
{
    return strncmp(sqlstate, "57P", 3) == 0 || strncmp(sqlstate, "08", 2) == 0 ||
           strcmp(sqlstate, "26000") == 0 || strcmp(sqlstate, "42P05") == 0 ||
           strncmp(sqlstate, "40", 2) == 0;
}

static enum dac_err failure(struct postgres_reader *r, const PGresult *res)
{
    const char *sqlstate = postgres_sqlstate(res);
    char why[STORE_ERROR_SIZE];

    postgres_explain(res, why, sizeof(why));
    complain(r, why);
    if (strcmp(sqlstate, "57014") == 0 || strcmp(sqlstate, "55P03") == 0)
        return DAC_E_TIMEOUT;
    if (strcmp(sqlstate, "42501") == 0)
        return DAC_E_DENIED;
    return DAC_E_SYS;
}

/* The limit's result is of no interest but where it failed, which fails the question. */
static void limit_answered(void *arg, PGresult *res)
{
    struct flying *f = arg;
    const char *sqlstate = postgres_sqlstate(res);

    if (PQresultStatus(res) == PGRES_TUPLES_OK || f->q == NULL)
        return;
    f->failed = true;
    if (passes(sqlstate))
        f->q->state = WAITING;
    else
        settle(f->q, failure(f->reader, res));
}

static void question_answered(void *arg, PGresult *res)
{
    struct flying *f = arg;
    struct store_query *q = f->q;

    if (q == NULL || f->failed)
        return;
    if (PQresultStatus(res) == PGRES_TUPLES_OK) {
        enum dac_err e = postgres_query_take(q, res);

        if (e == DAC_E_CORRUPT)
            complain(f->reader, "a row has a value that this program did not write");
        settle(q, e);
        postgres_conn_works(f->reader->conn);
    } else if (passes(postgres_sqlstate(res))) {
        q->state = WAITING;
    } else {
        settle(q, failure(f->reader, res));
    }
}

static void pipeline_answered(void *arg, PGresult *res)
{
    struct flying *f = arg;
    struct postgres_reader *r = f->reader;

    (void)res;
    r->answered_ns = clock_now_ns();
    land(r);
    deliver(r);
    pump(r);
}

/* False: nothing can be sent now; `down` follows, or the query is settled. */
static bool send_query(struct postgres_reader *r, struct store_query *q)
{
    size_t i = (r->first_flying + r->flying_count) % WINDOW;
    struct flying *f = &r->flying[i];
    int which;

    if (postgres_session_set(&r->session, NULL, SETTINGS, limit_answered, f) != DAC_OK)
        return false;
    postgres_args_reset(&r->args);
    which = postgres_query_build(q, &r->args);
    if (postgres_run(r->conn, (size_t)which, &r->args, question_answered, f) != DAC_OK ||
        postgres_sync(r->conn, pipeline_answered, f) != DAC_OK)
        return false;
    *f = (struct flying){.reader = r, .q = q, .sent_ns = clock_now_ns()};
    r->flying_count++;
    q->state = SENT;
    return true;
}

static void pump(struct postgres_reader *r)
{
    struct store_query *q;

    if (postgres_conn_is_up(r->conn)) {
        TAILQ_FOREACH (q, &r->asked, link) {
            if (r->flying_count == WINDOW)
                break;
            if (q->state == WAITING && !send_query(r, q))
                break;
        }
    } else if (r->asked_count > 0) {
        postgres_conn_wanted(r->conn);
    }
    arm(r);
}

static void postgres_reader_start(struct store_reader *core, struct store_query *q)
{
    struct postgres_reader *r = self(core);

    if (r->asked_count == QUERIES_MAX) {
        complain(r, "too many queries wait for it");
        query_finish(q, DAC_E_BUSY);
        return;
    }
    q->state = WAITING;
    TAILQ_INSERT_TAIL(&r->asked, q, link);
    r->asked_count++;
    pump(r);
}

static void postgres_reader_cancel(struct store_reader *core, struct store_query *q)
{
    struct postgres_reader *r = self(core);

    if (q->state == SENT)
        forget(r, q);
    TAILQ_REMOVE(&r->asked, q, link);
    r->asked_count--;
    deliver(r);
    arm(r);
}

/* --- connection --------------------------------------------------------------------- */

static const struct postgres_session_sql session_sql = {
    .pid = PQ_PID, .session = PQ_SESSION, .local = PQ_LIMIT};

static void came_up(void *arg)
{
    struct postgres_reader *r = arg;

    /* Should it fail, the connection goes down and tells. */
    if (postgres_prepare(r->conn) != DAC_OK)
        return;
    postgres_session_begin(&r->session, r->conn, &session_sql);
    pump(r);
}

static void went_down(void *arg, const char *why)
{
    struct postgres_reader *r = arg;

    while (r->flying_count > 0) {
        struct store_query *q = r->flying[r->first_flying].q;

        if (q != NULL && q->state == SENT)
            q->state = WAITING;
        land(r);
    }
    complain(r, why);
    deliver(r);
    if (r->asked_count > 0)
        postgres_conn_wanted(r->conn);
    arm(r);
}

/* --- life --------------------------------------------------------------------------- */

static void postgres_reader_close(struct store_reader *core)
{
    struct postgres_reader *r = self(core);

    while (!TAILQ_EMPTY(&r->asked))
        store_query_cancel(TAILQ_FIRST(&r->asked));
    /* What cancelling has handed back. */
    while (!TAILQ_EMPTY(&core->finished))
        store_query_cancel(TAILQ_FIRST(&core->finished));
    postgres_conn_free(r->conn);
    if (r->timer != NULL)
        event_free(r->timer);
    postgres_args_free(&r->args);
    free(r->conninfo);
    free(r->application);
    reader_fini(core);
    free(r);
}

static bool postgres_reader_up(const struct store_reader *r)
{
    return postgres_conn_is_up(((const struct postgres_reader *)r)->conn);
}

static void postgres_reader_want(struct store_reader *r)
{
    postgres_conn_wanted(self(r)->conn);
}

static const struct store_reader_ops postgres_reader_ops = {
    .close = postgres_reader_close,
    .start = postgres_reader_start,
    .cancel = postgres_reader_cancel,
    .up = postgres_reader_up,
    .want = postgres_reader_want,
};

enum dac_err store_postgres_reader_open(struct event_base *base,
                                        const struct store_options *opt,
                                        struct store_reader **out, char *why, size_t n)
{
    struct postgres_reader *r = calloc(1, sizeof(*r));
    enum dac_err e = DAC_E_NOMEM;

    snprintf(why, n, "out of memory");
    if (r == NULL)
        return e;
    TAILQ_INIT(&r->asked);
    r->args = POSTGRES_ARGS_INIT;
    e = reader_init(&r->core, &postgres_reader_ops, base);
    if (e != DAC_OK)
        goto fail;
    r->conninfo = strdup(opt->postgres);
    r->application = strdup(opt->application != NULL ? opt->application : "dac");
    r->timer = evtimer_new(base, time_is_over, r);
    e = DAC_E_NOMEM;
    if (r->conninfo == NULL || r->application == NULL || r->timer == NULL)
        goto fail;
    e = postgres_conn_new(base,
                          &(struct postgres_options){
                              .conninfo = r->conninfo,
                              .application = r->application,
                              .statements = postgres_query_statements,
                              .statement_count = PQ_N,
                              .up = came_up,
                              .down = went_down,
                              .arg = r,
                          },
                          &r->conn, why, n);
    if (e != DAC_OK)
        goto fail;
    *out = &r->core;
    return DAC_OK;

fail:
    postgres_reader_close(&r->core);
    return e;
}
