/*
 * See postgres_conn.h. In the recorder and the workers.
 *
 *   state        waits for                  leaves it by
 *   WAITING      the timer                  the timer -> RESOLVING
 *   RESOLVING    addresses, or the timer    any known -> CONNECTING; none -> WAITING
 *   CONNECTING   the socket, or the timer   done -> UP; else -> WAITING
 *   UP           the socket                 lost -> WAITING
 *   DROPPED      the loop's next turn       -> WAITING
 *
 * One timer and one event for the loop's next turn serve all states. libpq closes and
 * opens sockets as it likes, while it connects and when it finds a connection lost; the
 * number may then be another's before we hear of it. So events are of a duplicate that is
 * ours alone, and made anew at each step of connecting. Where several servers are named
 * each gets a share of the time; the one that let it pass, or broke off, is the last one
 * of the next attempt.
 *
 * Answers come in the order of asking, so what was asked is a queue of callbacks.
 */
#include "store/postgres_conn.h"

#include <errno.h>
#include <event2/event.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/queue.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/ids.h"
#include "base/log.h"
#include "store/postgres_advice.h"
#include "store/postgres_hosts.h"
#include "store/postgres_value.h"

#define CONNECT_TIMEOUT_NS (5 * NS_PER_S)
#define HOST_TIMEOUT_NS    (1 * NS_PER_S) /* the least for one of several */
#define HOST_TIMEOUT_MAX_S 60
#define BACKOFF_MIN_NS     (100 * NS_PER_MS) /* before the next attempt, or half of it; */
#define BACKOFF_MAX_NS     (5 * NS_PER_S)    /* grows to this; */
#define WANTED_NS          (500 * NS_PER_MS) /* from its begin, where somebody waits */
#define ERROR_SIZE         1024
#define NAME_SIZE          24
#define NO_FILE            "/dev/null/none"

enum conn_state { CONN_WAITING, CONN_RESOLVING, CONN_CONNECTING, CONN_UP, CONN_DROPPED };

enum asked_kind { ASKED_STATEMENT, ASKED_SYNC, ASKED_SCRIPT };

/* What has not answered yet. */
struct asked {
    STAILQ_ENTRY(asked) link;
    enum asked_kind kind;
    bool answered; /* a statement: its result came, its end did not */
    postgres_result_cb cb;
    void *arg;
};

STAILQ_HEAD(asked_list, asked);

struct postgres_conn {
    struct event_base *base;
    struct postgres_options opt;
    enum conn_state state;
    struct postgres_hosts *hosts; /* owned */
    size_t first_host;            /* the next attempt begins with it */
    PGconn *pg;                   /* owned, NULL: none */
    int fd;                       /* owned: a duplicate of its socket, -1: none */
    struct event *io;             /* of fd, for reading; NULL: none */
    struct event *out;            /* of fd, for writing, while UP */
    struct event *timer;
    struct event *later; /* the loop's next turn */
    struct asked_list asked;
    size_t asked_count;
    PGresult *script; /* owned: what a script, or a failed commit, has said so far */
    bool named;       /* statements are prepared under names */
    uint64_t backoff_ns;
    uint64_t due_ns;     /* while WAITING: when it is over */
    uint64_t soonest_ns; /* the next attempt, however much it is wanted */
    uint64_t moved_ns;   /* when the socket last took or had something */
    int unsent;          /* what the kernel held when that was asked last */
    uint64_t ups;
    char (*names)[NAME_SIZE]; /* owned, one per statement */
    char why[ERROR_SIZE];
};

static void attempt(struct postgres_conn *c);
static void on_socket(evutil_socket_t fd, short what, void *arg);

/* --- what went wrong ---------------------------------------------------------------- */

static void note_conn_error(struct postgres_conn *c)
{
    postgres_failure(c->pg, postgres_hosts_open_passfile(c->hosts), c->why,
                     sizeof(c->why));
}

/* Notices of the server are of interest to nobody but a developer; their details may
 * quote rows. */
static void on_notice(void *arg, const PGresult *res)
{
    const char *words = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);

    (void)arg;
    log_debug(0, "PostgreSQL says: %s (SQLSTATE %s)", words != NULL ? words : "nothing",
              postgres_sqlstate(res));
}

/* --- the queue ---------------------------------------------------------------------- */

static enum dac_err ask(struct postgres_conn *c, enum asked_kind kind,
                        postgres_result_cb cb, void *arg)
{
    struct asked *a = calloc(1, sizeof(*a));

    if (a == NULL)
        return DAC_E_NOMEM;
    a->kind = kind;
    a->cb = cb;
    a->arg = arg;
    STAILQ_INSERT_TAIL(&c->asked, a, link);
    c->asked_count++;
    return DAC_OK;
}

static void pop(struct postgres_conn *c)
{
    struct asked *a = STAILQ_FIRST(&c->asked);

    STAILQ_REMOVE_HEAD(&c->asked, link);
    c->asked_count--;
    free(a);
}

/* --- losing it ---------------------------------------------------------------------- */

static void arm(struct postgres_conn *c, uint64_t ns)
{
    const struct timeval tv = {.tv_sec = (time_t)(ns / NS_PER_S),
                               .tv_usec = (suseconds_t)(ns % NS_PER_S / NS_PER_US)};

    event_add(c->timer, &tv);
}

static void forget_socket(struct postgres_conn *c)
{
    if (c->io != NULL)
        event_free(c->io);
    if (c->out != NULL)
        event_free(c->out);
    c->io = c->out = NULL;
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}

static void close_all(struct postgres_conn *c)
{
    forget_socket(c);
    event_del(c->timer);
    event_del(c->later);
    postgres_hosts_stop(c->hosts);
    PQclear(c->script);
    c->script = NULL;
    PQfinish(c->pg);
    c->pg = NULL;
    while (!STAILQ_EMPTY(&c->asked))
        pop(c);
}

/* Half of it or more, so that those who lost the same server do not all come at once. */
static uint64_t jittered(uint64_t ns)
{
    uint32_t random;

    random_bytes(&random, sizeof(random));
    return ns / 2 + ns / 2 * (random % 1024) / 1024;
}

/* From any state to WAITING, with c->why filled. */
static void lose(struct postgres_conn *c)
{
    uint64_t wait;

    close_all(c);
    c->state = CONN_WAITING;
    c->backoff_ns = c->backoff_ns == 0 ? BACKOFF_MIN_NS : c->backoff_ns * 2;
    if (c->backoff_ns > BACKOFF_MAX_NS)
        c->backoff_ns = BACKOFF_MAX_NS;
    wait = jittered(c->backoff_ns);
    c->due_ns = clock_now_ns() + wait;
    arm(c, wait);
    c->opt.down(c->opt.arg, c->why);
}

void postgres_conn_wanted(struct postgres_conn *c)
{
    uint64_t now = clock_now_ns();
    uint64_t at = c->soonest_ns > now ? c->soonest_ns : now;

    if (c->state != CONN_WAITING || c->due_ns <= at)
        return;
    c->due_ns = at;
    arm(c, at - now);
}

void postgres_conn_drop(struct postgres_conn *c, const char *why)
{
    if (c->state != CONN_UP)
        return;
    snprintf(c->why, sizeof(c->why), "%s", why);
    c->state = CONN_DROPPED;
    forget_socket(c);
    event_active(c->later, EV_TIMEOUT, 0);
}

static void drop_for_error(struct postgres_conn *c)
{
    char why[ERROR_SIZE];

    note_conn_error(c);
    memcpy(why, c->why, sizeof(why));
    postgres_conn_drop(c, why);
}

/* --- answers ------------------------------------------------------------------------ */

static void watch_for_loss_of_names(struct postgres_conn *c, const PGresult *res)
{
    const char *state = postgres_sqlstate(res);

    if (!c->named || (strcmp(state, "26000") != 0 && strcmp(state, "42P05") != 0))
        return;
    c->named = false;
    log_info(0, "PostgreSQL's prepared statements do not last (a pooler in transaction "
                "mode?): statements are sent as text from now on");
}

static void tell(const struct asked *a, PGresult *res)
{
    if (a->cb != NULL)
        a->cb(a->arg, res);
}

/* A script's end: the first error or the last result; then back to pipelining. */
static void end_script(struct postgres_conn *c)
{
    struct asked a = *STAILQ_FIRST(&c->asked);
    PGresult *res = c->script;

    c->script = NULL;
    pop(c);
    if (PQenterPipelineMode(c->pg) != 1)
        drop_for_error(c);
    else
        tell(&a, res);
    PQclear(res);
}

static bool failed(const PGresult *res)
{
    return res != NULL && PQresultStatus(res) == PGRES_FATAL_ERROR;
}

/* One result, or NULL for the end of one statement's. False: there is nothing to be had
 * now. */
static bool take(struct postgres_conn *c, PGresult *res)
{
    struct asked *a = STAILQ_FIRST(&c->asked);

    if (failed(res))
        watch_for_loss_of_names(c, res);
    if (a->kind == ASKED_SCRIPT) {
        if (res == NULL) {
            end_script(c);
        } else if (failed(c->script)) {
            PQclear(res);
        } else {
            PQclear(c->script);
            c->script = res;
        }
        return true;
    }
    if (res == NULL) {
        if (a->kind == ASKED_SYNC || !a->answered)
            return false;
        pop(c);
        return true;
    }
    if (a->kind == ASKED_SYNC) {
        struct asked copy = *a;

        /* A commit that fails says so before its sync is answered. */
        if (failed(res)) {
            PQclear(c->script);
            c->script = res;
            return true;
        }
        PGresult *commit = c->script;

        c->script = NULL;

        pop(c);
        tell(&copy, commit != NULL ? commit : res);
        PQclear(commit);
    } else if (!a->answered) {
        a->answered = true;
        tell(a, res);
    }
    PQclear(res);
    return true;
}

static void pump(struct postgres_conn *c)
{
    unsigned empty = 0;

    while (c->state == CONN_UP && !STAILQ_EMPTY(&c->asked) && !PQisBusy(c->pg)) {
        PGresult *res = PQgetResult(c->pg);

        if (PQstatus(c->pg) == CONNECTION_BAD) {
            /* A server that goes says why; libpq keeps that in its own message. */
            PQclear(res);
            drop_for_error(c);
            return;
        }
        /* An end that belongs to no statement may stand between two. */
        if (take(c, res))
            empty = 0;
        else if (++empty > 1)
            return;
    }
}

/* --- sending ------------------------------------------------------------------------ */

static void flush(struct postgres_conn *c)
{
    int rc = PQflush(c->pg);

    if (rc < 0)
        drop_for_error(c);
    else if (rc > 0 && event_add(c->out, NULL) != 0)
        postgres_conn_drop(c, "out of memory");
}

static void on_writable(evutil_socket_t fd, short what, void *arg)
{
    struct postgres_conn *c = arg;

    (void)fd;
    (void)what;
    if (c->state != CONN_UP)
        return;
    c->moved_ns = clock_now_ns();
    flush(c);
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
    struct postgres_conn *c = arg;

    (void)fd;
    (void)what;
    if (c->state != CONN_UP)
        return;
    c->moved_ns = clock_now_ns();
    if (PQconsumeInput(c->pg) != 1) {
        drop_for_error(c);
        return;
    }
    pump(c);
    if (c->state == CONN_UP && STAILQ_EMPTY(&c->asked))
        (void)PQisBusy(c->pg); /* takes in what nobody asked for: notices */
    if (c->state == CONN_UP && PQstatus(c->pg) == CONNECTION_BAD)
        drop_for_error(c);
}

static enum dac_err sent(struct postgres_conn *c, int ok, enum asked_kind kind,
                         postgres_result_cb cb, void *arg)
{
    if (ok == 1 && ask(c, kind, cb, arg) == DAC_OK)
        return DAC_OK;
    if (ok == 1)
        postgres_conn_drop(c, "out of memory");
    else
        drop_for_error(c);
    return DAC_E_NOMEM;
}

enum dac_err postgres_run(struct postgres_conn *c, size_t which,
                          const struct postgres_args *args, postgres_result_cb cb,
                          void *arg)
{
    const struct postgres_statement *s = &c->opt.statements[which];
    const char *values[POSTGRES_ARGS_MAX];
    int formats[POSTGRES_ARGS_MAX];
    int ok;

    DAC_ASSERT(which < c->opt.statement_count);
    DAC_ASSERT(args == NULL ? s->params == 0 : s->params == args->n);
    if (c->state != CONN_UP)
        return DAC_E_STATE;
    if (args != NULL && args->data.failed) {
        postgres_conn_drop(c, "out of memory");
        return DAC_E_NOMEM;
    }
    for (int i = 0; i < s->params; i++) {
        values[i] = args->length[i] < 0       ? NULL
                    : args->data.data != NULL ? args->data.data + args->start[i]
                                              : "";
        formats[i] = 1;
    }
    if (c->named)
        ok = PQsendQueryPrepared(c->pg, c->names[which], s->params, values,
                                 args != NULL ? args->length : NULL, formats, 1);
    else
        ok = PQsendQueryParams(c->pg, s->sql, s->params, s->types, values,
                               args != NULL ? args->length : NULL, formats, 1);
    return sent(c, ok, ASKED_STATEMENT, cb, arg);
}

enum dac_err postgres_run_text(struct postgres_conn *c, const char *sql,
                               postgres_result_cb cb, void *arg)
{
    if (c->state != CONN_UP)
        return DAC_E_STATE;
    return sent(c, PQsendQueryParams(c->pg, sql, 0, NULL, NULL, NULL, NULL, 1),
                ASKED_STATEMENT, cb, arg);
}

enum dac_err postgres_sync(struct postgres_conn *c, postgres_result_cb cb, void *arg)
{
    if (c->state != CONN_UP)
        return DAC_E_STATE;
    enum dac_err e = sent(c, PQpipelineSync(c->pg), ASKED_SYNC, cb, arg);

    if (e == DAC_OK)
        flush(c);
    return e;
}

enum dac_err postgres_script(struct postgres_conn *c, const char *sql,
                             postgres_result_cb cb, void *arg)
{
    if (c->state != CONN_UP || !STAILQ_EMPTY(&c->asked) || PQexitPipelineMode(c->pg) != 1)
        return DAC_E_STATE;
    enum dac_err e = sent(c, PQsendQuery(c->pg, sql), ASKED_SCRIPT, cb, arg);

    if (e == DAC_OK)
        flush(c);
    return e;
}

size_t postgres_in_flight(const struct postgres_conn *c)
{
    return c->asked_count;
}

/* --- statements --------------------------------------------------------------------- */

/* By the text (FNV-1a), so that two releases behind one pooler never share a name. */
static void name_statement(const char *sql, char out[NAME_SIZE])
{
    uint64_t hash = UINT64_C(14695981039346656037);

    for (const char *p = sql; *p != '\0'; p++)
        hash = (hash ^ (uint8_t)*p) * UINT64_C(1099511628211);
    snprintf(out, NAME_SIZE, "dac_%016" PRIx64, hash);
}

static void on_prepared(void *arg, PGresult *res)
{
    struct postgres_conn *c = arg;
    char why[ERROR_SIZE];

    if (!failed(res) || !c->named) /* without names it does not matter */
        return;
    postgres_explain(res, why, sizeof(why));
    postgres_conn_drop(c, why);
}

enum dac_err postgres_prepare(struct postgres_conn *c)
{
    if (c->state != CONN_UP)
        return DAC_E_STATE;
    if (!c->named)
        return DAC_OK;
    for (size_t i = 0; i < c->opt.statement_count; i++) {
        const struct postgres_statement *s = &c->opt.statements[i];
        enum dac_err e =
            sent(c, PQsendPrepare(c->pg, c->names[i], s->sql, s->params, s->types),
                 ASKED_STATEMENT, on_prepared, c);

        if (e != DAC_OK)
            return e;
    }
    return postgres_sync(c, NULL, NULL);
}

/* --- connecting --------------------------------------------------------------------- */

/* Has libpq's present socket watched. False: c->why says why not. */
static bool watch(struct postgres_conn *c, short what, event_callback_fn cb)
{
    forget_socket(c);
    c->fd = fcntl(PQsocket(c->pg), F_DUPFD_CLOEXEC, 0);
    if (c->fd < 0) {
        snprintf(c->why, sizeof(c->why), "could not watch PostgreSQL's socket: %s",
                 strerror(errno));
        return false;
    }
    c->io = event_new(c->base, c->fd, what, cb, c);
    if (c->io != NULL && event_add(c->io, NULL) == 0)
        return true;
    snprintf(c->why, sizeof(c->why), "out of memory");
    return false;
}

static void connected(struct postgres_conn *c)
{
    event_del(c->timer);
    if (!watch(c, EV_READ | EV_PERSIST, on_readable)) {
        lose(c);
        return;
    }
    c->out = event_new(c->base, c->fd, EV_WRITE, on_writable, c);
    if (c->out == NULL || PQsetnonblocking(c->pg, 1) != 0 ||
        PQenterPipelineMode(c->pg) != 1) {
        snprintf(c->why, sizeof(c->why), "out of memory");
        lose(c);
        return;
    }
    c->state = CONN_UP;
    c->ups++;
    c->opt.up(c->opt.arg);
}

/* One step of libpq's. A server that lets itself be reached and then fails ends the
 * attempt for libpq, also where others are named. */
static void step(struct postgres_conn *c)
{
    bool reached = PQstatus(c->pg) != CONNECTION_STARTED;
    PostgresPollingStatusType next = PQconnectPoll(c->pg);
    short what = next == PGRES_POLLING_READING ? EV_READ : EV_WRITE;

    switch (next) {
    case PGRES_POLLING_READING:
    case PGRES_POLLING_WRITING:
        if (!watch(c, what, on_socket))
            lose(c);
        return;
    case PGRES_POLLING_OK:
        connected(c);
        return;
    default:
        if (reached)
            c->first_host++;
        note_conn_error(c);
        lose(c);
    }
}

static void on_socket(evutil_socket_t fd, short what, void *arg)
{
    struct postgres_conn *c = arg;

    (void)fd;
    (void)what;
    forget_socket(c);
    step(c);
}

/* The string first, so that what stands behind it wins. */
static PGconn *start_libpq(struct postgres_conn *c)
{
    const char *keywords[8] = {"dbname", "application_name", "client_encoding"};
    const char *values[8] = {c->opt.conninfo, c->opt.application, "UTF8"};
    struct postgres_host_lists lists;
    size_t n = 3;

    if (!postgres_hosts_lists(c->hosts, c->first_host, &lists))
        return NULL;
    if (lists.host != NULL) {
        keywords[n] = "host", values[n++] = lists.host;
        keywords[n] = "hostaddr", values[n++] = lists.hostaddr;
        keywords[n] = "port", values[n++] = lists.port;
    }
    if (postgres_hosts_open_passfile(c->hosts) != NULL)
        keywords[n] = "passfile", values[n++] = NO_FILE;
    return PQconnectStartParams(keywords, values, 1);
}

/* How long one server may take: what the string says, or a share of the whole time. */
static uint64_t attempt_ns(const struct postgres_conn *c)
{
    size_t hosts = postgres_hosts_count(c->hosts);
    unsigned s = postgres_hosts_timeout_s(c->hosts);
    uint64_t ns = CONNECT_TIMEOUT_NS;

    if (s > 0)
        return (s < HOST_TIMEOUT_MAX_S ? s : HOST_TIMEOUT_MAX_S) * NS_PER_S;
    if (hosts > 1)
        ns /= hosts;
    return ns < HOST_TIMEOUT_NS ? HOST_TIMEOUT_NS : ns;
}

static void on_resolved(void *arg, const char *why)
{
    struct postgres_conn *c = arg;

    if (why == NULL) {
        c->pg = start_libpq(c);
        why = c->pg == NULL ? "out of memory" : NULL;
    }
    if (why != NULL) {
        snprintf(c->why, sizeof(c->why), "%s", why);
        lose(c);
        return;
    }
    PQsetNoticeReceiver(c->pg, on_notice, NULL);
    if (PQstatus(c->pg) == CONNECTION_BAD) {
        note_conn_error(c);
        lose(c);
        return;
    }
    c->state = CONN_CONNECTING;
    arm(c, attempt_ns(c)); /* how many there are is known only now */
    /* Before the first step libpq wants to hear that its socket is writable. */
    if (!watch(c, EV_WRITE, on_socket))
        lose(c);
}

static void attempt(struct postgres_conn *c)
{
    c->soonest_ns = clock_now_ns() + jittered(WANTED_NS);
    c->state = CONN_RESOLVING;
    arm(c, attempt_ns(c));
    postgres_hosts_resolve(c->hosts, on_resolved, c);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct postgres_conn *c = arg;

    (void)fd;
    (void)what;
    switch (c->state) {
    case CONN_WAITING:
        attempt(c);
        break;
    case CONN_RESOLVING:
        postgres_hosts_stop(c->hosts);
        on_resolved(c, postgres_hosts_count(c->hosts) > 0
                           ? NULL /* as they were */
                           : "the name server did not answer for PostgreSQL's host in "
                             "time");
        break;
    case CONN_CONNECTING:
        c->first_host++;
        snprintf(c->why, sizeof(c->why),
                 "PostgreSQL at \"%s\" port %s did not answer in time",
                 PQhost(c->pg) != NULL ? PQhost(c->pg) : "", PQport(c->pg));
        lose(c);
        break;
    case CONN_UP:
    case CONN_DROPPED:
        break;
    }
}

static void on_later(evutil_socket_t fd, short what, void *arg)
{
    struct postgres_conn *c = arg;

    (void)fd;
    (void)what;
    if (c->state == CONN_DROPPED)
        lose(c);
}

/* --- life --------------------------------------------------------------------------- */

enum dac_err postgres_conninfo_check(const char *conninfo, char *why, size_t n)
{
    struct postgres_hosts *h = NULL;
    enum dac_err e = postgres_hosts_new(NULL, conninfo, &h, why, n);

    postgres_hosts_free(h);
    return e;
}

enum dac_err postgres_conn_new(struct event_base *base,
                               const struct postgres_options *opt,
                               struct postgres_conn **out, char *why, size_t n)
{
    struct postgres_conn *c = calloc(1, sizeof(*c));
    enum dac_err e = DAC_E_NOMEM;

    *out = NULL;
    snprintf(why, n, "out of memory");
    if (c == NULL)
        return e;
    c->base = base;
    c->opt = *opt;
    c->fd = -1;
    c->named = true;
    STAILQ_INIT(&c->asked);
    c->timer = evtimer_new(base, on_timer, c);
    c->later = event_new(base, -1, 0, on_later, c);
    c->names = calloc(opt->statement_count + 1, sizeof(*c->names));
    if (c->timer == NULL || c->later == NULL || c->names == NULL)
        goto fail;
    for (size_t i = 0; i < opt->statement_count; i++)
        name_statement(opt->statements[i].sql, c->names[i]);
    e = postgres_hosts_new(base, opt->conninfo, &c->hosts, why, n);
    if (e != DAC_OK)
        goto fail;
    c->state = CONN_WAITING;
    arm(c, 0);
    *out = c;
    return DAC_OK;

fail:
    postgres_conn_free(c);
    return e;
}

void postgres_conn_free(struct postgres_conn *c)
{
    if (c == NULL)
        return;
    if (c->hosts != NULL)
        close_all(c);
    postgres_hosts_free(c->hosts);
    if (c->timer != NULL)
        event_free(c->timer);
    if (c->later != NULL)
        event_free(c->later);
    free(c->names);
    free(c);
}

bool postgres_conn_is_up(const struct postgres_conn *c)
{
    return c->state == CONN_UP;
}

uint64_t postgres_conn_reconnects(const struct postgres_conn *c)
{
    return c->ups > 0 ? c->ups - 1 : 0;
}

const char *postgres_conn_error(const struct postgres_conn *c)
{
    return c->why;
}

uint64_t postgres_conn_still_since_ns(struct postgres_conn *c)
{
    int unsent = 0;

    if (c->fd >= 0 && ioctl(c->fd, SIOCOUTQ, &unsent) == 0 && unsent != c->unsent) {
        c->unsent = unsent;
        c->moved_ns = clock_now_ns();
    }
    return c->moved_ns;
}

int postgres_conn_server_version(const struct postgres_conn *c)
{
    return c->state == CONN_UP ? PQserverVersion(c->pg) : 0;
}

int postgres_conn_backend_pid(const struct postgres_conn *c)
{
    return c->state == CONN_UP ? PQbackendPID(c->pg) : 0;
}

void postgres_conn_works(struct postgres_conn *c)
{
    c->backoff_ns = 0;
}
