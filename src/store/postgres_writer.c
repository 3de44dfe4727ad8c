/*
 * The PostgreSQL writer: a batch is one pipeline and one transaction. Runs in the
 * recorder; never waits.
 *
 *   ALL      everything in one transaction            -> done, or
 *            (fewer rows are new than were sent)      -> LOOK
 *            (refused for its data)                   -> EACH
 *            (serialization, deadlock, lost names)    -> ALL once more
 *   LOOK     which of them are there, in their org    -> done, or ASIDE
 *   EACH     each row in a transaction of its own, in one pipeline; what fails for its
 *            data is refused, the others are in       -> done, or
 *   ASIDE    what was refused goes to `rejected`      -> done
 *
 * A transaction is what stands between two syncs: neither BEGIN nor COMMIT is sent, so
 * that nothing is left open whatever fails, and a sync that answers without an error
 * before it says that the commit is durable. A row is reported as stored only if that
 * commit has put it in, or if it is read again, in its org: by LOOK, which comes behind
 * the commit and so sees what others have committed, or in EACH by the same transaction.
 *
 * The caller's patience counts from the last answer of a transaction, so that EACH comes
 * to an end however many rows there are; of a batch that nobody waits for it counts from
 * the last byte that moved, so that a slow line is no reason to begin again. When it is
 * over the connection is dropped: the server may still commit, and writing again
 * converges.
 */
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "shm/crash.h"
#include "store/internal.h"
#include "store/postgres_migrate.h"
#include "store/postgres_session.h"
#include "store/postgres_sql.h"
#include "store/rejected.h"

#define RETRIES_MAX 2

enum stage { STAGE_NONE, STAGE_ALL, STAGE_LOOK, STAGE_EACH, STAGE_ASIDE };

struct postgres_store {
    struct store core; /* first */
    struct postgres_conn *conn;
    struct postgres_migration migration;
    char *conninfo;    /* owned */
    char *application; /* owned */
    bool migrated;
    bool refused; /* by the last migration: the database is newer */
    bool told;    /* the reason for being away is in the log */
    struct event *patience;
    struct postgres_session session;
    struct postgres_args args;
    /* The batch that runs. */
    enum stage stage;
    unsigned retries;
    size_t new_threads;  /* rows that the statement of ALL puts in if all are new */
    size_t new_messages; /* likewise */
    bool look;           /* there were fewer */
    size_t next;         /* row whose answer comes next: of those sent singly; or EACH */
    size_t aside;        /* row from which on to set aside */
    enum dac_err failed; /* the first failure since the last sync, DAC_OK: none */
    char sqlstate[8];    /* of that, "" where it has none */
    char why[STORE_WHY_SIZE];
};

static struct postgres_store *self(struct store *st)
{
    return (struct postgres_store *)st;
}

/* --- what a failure means ----------------------------------------------------------- */

static bool is_class(const char *sqlstate, const char *class)
{
    return strncmp(sqlstate, class, 2) == 0;
}

/* Of the row, whatever the database's state: an invalid value, a broken constraint, a
 * limit of the program, an exception of a trigger. */
static bool about_data(const char *sqlstate)
{
    return is_class(sqlstate, "22") || is_class(sqlstate, "23") ||
           is_class(sqlstate, "54") || is_class(sqlstate, "P0");
}

/* Of the moment: the same again may work. */
static bool about_moment(const char *sqlstate)
{
    return is_class(sqlstate, "40") || strcmp(sqlstate, "26000") == 0 ||
           strcmp(sqlstate, "42P05") == 0;
}

static enum dac_err meaning(const char *sqlstate)
{
    static const struct {
        const char *prefix;
        enum dac_err e;
    } table[] = {
        {"53200", DAC_E_NOMEM},  {"53", DAC_E_FULL},   {"57014", DAC_E_TIMEOUT},
        {"55P03", DAC_E_BUSY},   {"40", DAC_E_BUSY},   {"25006", DAC_E_DENIED},
        {"42501", DAC_E_DENIED}, {"28", DAC_E_DENIED}, {"42", DAC_E_STATE},
        {"3", DAC_E_STATE},      {"57", DAC_E_CLOSED}, {"08", DAC_E_CLOSED},
    };

    for (size_t i = 0; i < DAC_ARRAY_LEN(table); i++) {
        if (strncmp(sqlstate, table[i].prefix, strlen(table[i].prefix)) == 0)
            return table[i].e;
    }
    return about_data(sqlstate) ? DAC_E_INVALID : DAC_E_SYS;
}

/* Failures after which another connection may be better off: a server that only reads
 * (another one may have taken over), a schema that is not what it was. */
static bool wants_reconnect(const char *sqlstate)
{
    return is_class(sqlstate, "25") || is_class(sqlstate, "42") ||
           is_class(sqlstate, "3D") || is_class(sqlstate, "3F");
}

/* --- the end of a batch ------------------------------------------------------------- */

static void end(struct postgres_store *s, enum dac_err e)
{
    s->stage = STAGE_NONE;
    event_del(s->patience);
    if (e == DAC_OK) {
        postgres_conn_works(s->conn);
        CRASH_POINT("recorder_after_commit");
    }
    store_finish(&s->core, e);
}

static void be_patient(struct postgres_store *s, uint64_t ns)
{
    const struct timeval tv = {.tv_sec = (time_t)(ns / NS_PER_S),
                               .tv_usec = (suseconds_t)(ns % NS_PER_S / NS_PER_US)};

    event_add(s->patience, &tv);
}

static void lost_patience(evutil_socket_t fd, short what, void *arg)
{
    struct postgres_store *s = arg;

    (void)fd;
    (void)what;
    if (s->stage == STAGE_NONE)
        return;
    uint64_t since = postgres_conn_still_since_ns(s->conn);
    uint64_t still_ns = clock_now_ns() - since;

    if (s->core.patient && still_ns < s->core.timeout_ns) {
        be_patient(s, s->core.timeout_ns - still_ns);
        return;
    }
    snprintf(s->core.error, sizeof(s->core.error),
             "PostgreSQL did not answer within %.1f s",
             (double)s->core.timeout_ns / (double)NS_PER_S);
    postgres_conn_drop(s->conn, s->core.error);
    end(s, DAC_E_TIMEOUT);
}

/* --- answers ------------------------------------------------------------------------ */

/* Remembers the first failure since the last sync. Whether `res` is one. */
static bool note_failure(struct postgres_store *s, const PGresult *res)
{
    bool aborted = PQresultStatus(res) == PGRES_PIPELINE_ABORTED;

    if (!aborted && PQresultStatus(res) != PGRES_FATAL_ERROR)
        return false;
    if (s->failed == DAC_OK && aborted) { /* by what nobody has looked at */
        s->failed = DAC_E_SYS;
        snprintf(s->why, sizeof(s->why), "PostgreSQL: the transaction was aborted");
    } else if (s->failed == DAC_OK) {
        snprintf(s->sqlstate, sizeof(s->sqlstate), "%s", postgres_sqlstate(res));
        s->failed = meaning(s->sqlstate);
        postgres_explain(res, s->why, sizeof(s->why));
    }
    return true;
}

static void on_statement(void *arg, PGresult *res)
{
    (void)note_failure(arg, res);
}

static void on_inserted(struct postgres_store *s, PGresult *res, size_t expected)
{
    if (!note_failure(s, res) && strtoull(PQcmdTuples(res), NULL, 10) != expected)
        s->look = true;
}

static void on_threads(void *arg, PGresult *res)
{
    struct postgres_store *s = arg;

    on_inserted(s, res, s->new_threads);
}

static void on_turns(void *arg, PGresult *res)
{
    struct postgres_store *s = arg;

    on_inserted(s, res, s->new_messages);
}

/* The row of `kind` at `place` (from 1) of those that were sent. In EACH it is the one
 * whose turn it is. */
static struct store_row *row_at(struct postgres_store *s, enum store_row_kind kind,
                                int64_t place)
{
    if (s->stage == STAGE_EACH)
        return &s->core.rows[s->next];
    for (size_t i = 0; i < s->core.n; i++) {
        struct store_row *row = &s->core.rows[i];

        /* Those refused by this very answer still count. */
        if (row->kind == kind && row->sent && --place == 0)
            return row;
    }
    return NULL;
}

static void refuse_missing(struct store_row *row, bool exists)
{
    char text[ID_TEXT_SIZE];

    if (exists || row->kind == STORE_THREAD) {
        id_format(rejected_id(row), text);
        store_row_refuse(row, DAC_E_INVALID, "%s exists in another org", text);
    } else {
        id_format(&row->u.turn.thread_id, text);
        store_row_refuse(row, DAC_E_NOT_FOUND, "thread %s does not exist in its org",
                         text);
    }
}

static void on_missing(struct postgres_store *s, const PGresult *res,
                       enum store_row_kind kind)
{
    if (note_failure(s, res))
        return;
    for (int i = 0; i < PQntuples(res); i++) {
        struct store_row *row = NULL;
        int64_t place;
        bool exists;

        if (postgres_get_int(res, i, 0, &place) && postgres_get_bool(res, i, 1, &exists))
            row = row_at(s, kind, place);
        if (row != NULL)
            refuse_missing(row, exists);
    }
}

static void on_threads_missing(void *arg, PGresult *res)
{
    on_missing(arg, res, STORE_THREAD);
}

static void on_turns_missing(void *arg, PGresult *res)
{
    on_missing(arg, res, STORE_TURN);
}

/* All but threads and turns are sent one by one, and answer so. */
static void on_single(void *arg, PGresult *res)
{
    struct postgres_store *s = arg;
    char text[ID_TEXT_SIZE];
    struct store_row *row;

    if (s->stage != STAGE_EACH) {
        while (s->next < s->core.n && (!s->core.rows[s->next].sent ||
                                       s->core.rows[s->next].kind == STORE_THREAD ||
                                       s->core.rows[s->next].kind == STORE_TURN))
            s->next++;
    }
    DAC_ASSERT(s->next < s->core.n);
    row = &s->core.rows[s->next];
    if (s->stage != STAGE_EACH)
        s->next++;
    if (note_failure(s, res) || strcmp(PQcmdTuples(res), "0") != 0)
        return;
    if (row->kind == STORE_REJECTED) {
        row->u.rejected.was_stored = true;
        return;
    }
    id_format(rejected_id(row), text);
    if (row->kind == STORE_COUNTS || row->kind == STORE_ALIAS)
        store_row_refuse(row, DAC_E_NOT_FOUND, "turn %s is not stored", text);
    else
        store_row_refuse(row, DAC_E_NOT_FOUND, "thread %s does not exist in its org",
                         text);
}

/* --- sending ------------------------------------------------------------------------ */

/* What cannot be sent is a lost connection, whose `down` follows. */
static void send_statement(struct postgres_store *s, int which, postgres_result_cb cb)
{
    if (postgres_run(s->conn, (size_t)which, &s->args, cb, s) != DAC_OK)
        log_debug(0, "a statement could not be sent");
}

static void send_sync(struct postgres_store *s, postgres_result_cb cb)
{
    if (postgres_sync(s->conn, cb, s) != DAC_OK)
        log_debug(0, "a batch could not be sent");
}

static bool has_kind(const struct store_row *rows, size_t n, enum store_row_kind kind)
{
    for (size_t i = 0; i < n; i++) {
        if (rows[i].kind == kind && rows[i].result == DAC_OK)
            return true;
    }
    return false;
}

static void send_single(struct postgres_store *s, const struct store_row *row)
{
    switch (row->kind) {
    case STORE_COUNTS:
        postgres_put_counts(&s->args, &row->u.counts);
        send_statement(s, W_COUNTS, on_single);
        break;
    case STORE_TITLE:
        postgres_put_title(&s->args, &row->u.change);
        send_statement(s, W_TITLE, on_single);
        break;
    case STORE_DELETE:
        postgres_put_delete(&s->args, &row->u.change);
        send_statement(s, W_DELETE, on_single);
        break;
    case STORE_REJECTED:
        postgres_put_aside(&s->args, &row->u.rejected);
        send_statement(s, W_ASIDE, on_single);
        break;
    case STORE_ALIAS:
        postgres_put_alias(&s->args, &row->u.alias);
        send_statement(s, W_ALIAS, on_single);
        break;
    case STORE_THREAD:
    case STORE_TURN:
        break;
    }
}

static void send_limits(struct postgres_store *s)
{
    postgres_put_limits(&s->args, s->core.timeout_ns);
    if (postgres_session_set(&s->session, &s->args, s->core.timeout_ns, on_statement,
                             s) != DAC_OK)
        log_debug(0, "a transaction could not be begun");
}

/* Asks which of the threads and turns are not there, in their org. */
static void send_look(struct postgres_store *s, const struct store_row *rows, size_t n)
{
    if (has_kind(rows, n, STORE_THREAD)) {
        postgres_put_ids(&s->args, rows, n, STORE_THREAD);
        send_statement(s, W_THREADS_MISSING, on_threads_missing);
    }
    if (has_kind(rows, n, STORE_TURN)) {
        postgres_put_ids(&s->args, rows, n, STORE_TURN);
        send_statement(s, W_TURNS_MISSING, on_turns_missing);
    }
}

/* One transaction, without its sync. */
static void send_rows(struct postgres_store *s, struct store_row *rows, size_t n)
{
    int which;

    send_limits(s);
    if (has_kind(rows, n, STORE_THREAD)) {
        which = postgres_put_threads(&s->args, rows, n, &s->new_threads);
        send_statement(s, which, on_threads);
    }
    if (has_kind(rows, n, STORE_TURN)) {
        which = postgres_put_turns(&s->args, rows, n, &s->new_messages);
        send_statement(s, which, on_turns);
    }
    for (size_t i = 0; i < n; i++) {
        rows[i].sent = rows[i].result == DAC_OK;
        if (rows[i].sent)
            send_single(s, &rows[i]);
    }
}

static void on_all(void *arg, PGresult *res);
static void on_look(void *arg, PGresult *res);
static void on_each(void *arg, PGresult *res);
static void on_aside(void *arg, PGresult *res);

static void begin_transaction(struct postgres_store *s)
{
    s->failed = DAC_OK;
    s->sqlstate[0] = '\0';
    s->why[0] = '\0';
    be_patient(s, s->core.timeout_ns);
}

static void send_all(struct postgres_store *s)
{
    s->stage = STAGE_ALL;
    s->look = false;
    s->next = 0;
    begin_transaction(s);
    send_rows(s, s->core.rows, s->core.n);
    CRASH_POINT("recorder_before_commit");
    send_sync(s, on_all);
}

/* Behind the commit. Threads and turns are all as they were sent: nothing has refused one
 * of them yet. */
static void look(struct postgres_store *s)
{
    s->stage = STAGE_LOOK;
    begin_transaction(s);
    send_limits(s);
    send_look(s, s->core.rows, s->core.n);
    send_sync(s, on_look);
}

/* Takes back what an answer of the failed transaction said about single rows. */
static void forget_answers(struct postgres_store *s)
{
    for (size_t i = 0; i < s->core.n; i++) {
        if (s->core.rows[i].sent)
            s->core.rows[i].result = DAC_OK;
    }
}

static void to_next_sent(struct postgres_store *s)
{
    while (s->next < s->core.n && !s->core.rows[s->next].sent)
        s->next++;
}

static void send_each(struct postgres_store *s)
{
    forget_answers(s);
    s->stage = STAGE_EACH;
    s->next = 0;
    to_next_sent(s);
    begin_transaction(s);
    for (size_t i = 0; i < s->core.n; i++) {
        if (!s->core.rows[i].sent)
            continue;
        send_rows(s, &s->core.rows[i], 1);
        send_look(s, &s->core.rows[i], 1);
        send_sync(s, on_each);
    }
}

/* Sets the next refused row aside, one at a time: they are rare, and one that cannot be
 * set aside must not take another one with it. */
static void send_aside(struct postgres_store *s)
{
    s->stage = STAGE_ASIDE;
    while (s->aside < s->core.n && !rejected_wanted(&s->core.rows[s->aside]))
        s->aside++;
    if (s->aside == s->core.n) {
        end(s, DAC_OK);
        return;
    }
    begin_transaction(s);
    send_limits(s);
    postgres_put_rejected(&s->args, &s->core.rows[s->aside],
                          s->core.rows[s->aside].sqlstate);
    send_statement(s, W_REJECTED, on_statement);
    send_sync(s, on_aside);
}

/* --- between two transactions ------------------------------------------------------- */

static void batch_failed(struct postgres_store *s)
{
    snprintf(s->core.error, sizeof(s->core.error), "%s", s->why);
    if (wants_reconnect(s->sqlstate))
        postgres_conn_drop(s->conn, s->why);
    end(s, s->failed == DAC_E_INVALID ? DAC_E_SYS : s->failed);
}

static void on_all(void *arg, PGresult *res)
{
    struct postgres_store *s = arg;

    if (s->stage != STAGE_ALL)
        return;
    (void)note_failure(s, res);
    if (s->failed == DAC_OK && s->look) {
        look(s);
    } else if (s->failed == DAC_OK) {
        send_aside(s);
    } else if (about_data(s->sqlstate)) {
        send_each(s);
    } else if (about_moment(s->sqlstate) && s->retries++ < RETRIES_MAX) {
        forget_answers(s);
        send_all(s);
    } else {
        batch_failed(s);
    }
}

static void on_look(void *arg, PGresult *res)
{
    struct postgres_store *s = arg;

    if (s->stage != STAGE_LOOK)
        return;
    (void)note_failure(s, res);
    if (s->failed == DAC_OK)
        send_aside(s);
    else
        batch_failed(s);
}

static void on_each(void *arg, PGresult *res)
{
    struct postgres_store *s = arg;
    struct store_row *row;

    if (s->stage != STAGE_EACH)
        return;
    (void)note_failure(s, res);
    row = &s->core.rows[s->next];
    if (s->failed != DAC_OK && about_data(s->sqlstate)) {
        store_row_refuse(row, DAC_E_INVALID, "%s", s->why);
        memcpy(row->sqlstate, s->sqlstate, sizeof(row->sqlstate));
    } else if (s->failed != DAC_OK) {
        /* The others of this pipeline will answer to nobody. */
        if (!wants_reconnect(s->sqlstate))
            postgres_conn_drop(s->conn, s->why);
        batch_failed(s);
        return;
    }
    s->next++;
    to_next_sent(s);
    if (s->next < s->core.n)
        begin_transaction(s);
    else
        send_aside(s);
}

static void on_aside(void *arg, PGresult *res)
{
    struct postgres_store *s = arg;

    if (s->stage != STAGE_ASIDE)
        return;
    (void)note_failure(s, res);
    if (s->failed != DAC_OK && !about_data(s->sqlstate)) {
        batch_failed(s);
        return;
    }
    if (s->failed != DAC_OK)
        log_error(0, "a refused row could not be set aside either: %s", s->why);
    s->aside++;
    send_aside(s);
}

/* --- the connection ----------------------------------------------------------------- */

static const struct postgres_session_sql session_sql = {
    .pid = W_PID, .session = W_SESSION, .local = W_LIMITS};

static void on_migrated(void *arg, enum dac_err e, const char *why)
{
    struct postgres_store *s = arg;

    s->refused = e == DAC_E_STATE;
    if (e != DAC_OK) {
        postgres_conn_drop(s->conn, why);
        return;
    }
    if (postgres_prepare(s->conn) != DAC_OK)
        return; /* `down` follows */
    postgres_session_begin(&s->session, s->conn, &session_sql);
    s->migrated = true;
    s->core.error[0] = '\0';
    if (s->told || postgres_conn_reconnects(s->conn) > 0)
        log_info(0, "PostgreSQL is there");
    s->told = false;
    store_changed(&s->core);
}

static void on_up(void *arg)
{
    struct postgres_store *s = arg;

    postgres_migrate(&s->migration, s->conn, on_migrated, s);
}

static void on_down(void *arg, const char *why)
{
    struct postgres_store *s = arg;

    s->migrated = false;
    snprintf(s->core.error, sizeof(s->core.error), "%s", why);
    if (!s->told)
        log_error(0, "PostgreSQL cannot be used: %s; trying again until it can", why);
    s->told = true;
    if (s->stage != STAGE_NONE)
        end(s, DAC_E_CLOSED);
    store_changed(&s->core);
}

/* --- the store ---------------------------------------------------------------------- */

static bool postgres_store_up(const struct store *st)
{
    return ((const struct postgres_store *)st)->migrated;
}

static bool postgres_store_refused(const struct store *st)
{
    return ((const struct postgres_store *)st)->refused;
}

static void postgres_store_write(struct store *st)
{
    struct postgres_store *s = self(st);

    if (!s->migrated) {
        if (st->error[0] == '\0')
            snprintf(st->error, sizeof(st->error), "PostgreSQL is not connected yet");
        store_finish(st, DAC_E_CLOSED);
        return;
    }
    s->retries = 0;
    s->aside = 0;
    send_all(s);
}

static void postgres_store_abort(struct store *st)
{
    struct postgres_store *s = self(st);

    s->stage = STAGE_NONE;
    event_del(s->patience);
    postgres_conn_drop(s->conn, "a batch was given up");
}

static void postgres_store_tidy(struct store *st)
{
    (void)st;
}

static void postgres_store_want(struct store *st)
{
    postgres_conn_wanted(self(st)->conn);
}

/* It migrates whenever it connects. */
static enum dac_err postgres_store_migrate(struct store *st, char *why, size_t n)
{
    (void)st;
    (void)why;
    (void)n;
    return DAC_OK;
}

static void postgres_store_close(struct store *st)
{
    struct postgres_store *s = self(st);

    postgres_conn_free(s->conn);
    postgres_migrate_free(&s->migration);
    postgres_args_free(&s->args);
    if (s->patience != NULL)
        event_free(s->patience);
    free(s->conninfo);
    free(s->application);
    store_fini(st);
    free(s);
}

static void postgres_store_stats(const struct store *st, struct store_stats *out)
{
    out->reconnects = postgres_conn_reconnects(((const struct postgres_store *)st)->conn);
}

static const struct store_ops postgres_ops = {
    .kind = "postgres",
    .place = STORE_IN_POSTGRES,
    .migrate = postgres_store_migrate,
    .close = postgres_store_close,
    .up = postgres_store_up,
    .refused = postgres_store_refused,
    .write = postgres_store_write,
    .abort = postgres_store_abort,
    .tidy = postgres_store_tidy,
    .want = postgres_store_want,
    .stats = postgres_store_stats,
};

enum dac_err store_postgres_open(struct event_base *base, const struct store_options *opt,
                                 struct store **out, char *why, size_t n)
{
    struct postgres_store *s = calloc(1, sizeof(*s));
    enum dac_err e = DAC_E_NOMEM;

    snprintf(why, n, "out of memory");
    if (s == NULL)
        return e;
    s->args = POSTGRES_ARGS_INIT;
    s->conninfo = strdup(opt->postgres);
    s->application = strdup(opt->application != NULL ? opt->application : "dac");
    s->patience = evtimer_new(base, lost_patience, s);
    if (store_init(&s->core, &postgres_ops, base, opt) != DAC_OK || s->conninfo == NULL ||
        s->application == NULL || s->patience == NULL)
        goto fail;
    const struct postgres_options conn = {.conninfo = s->conninfo,
                                          .application = s->application,
                                          .statements = postgres_writer_sql,
                                          .statement_count = W_N,
                                          .up = on_up,
                                          .down = on_down,
                                          .arg = s};
    char detail[256];

    e = postgres_conn_new(base, &conn, &s->conn, detail, sizeof(detail));
    if (e != DAC_OK) {
        snprintf(why, n, "postgres in [store]: %s", detail);
        goto fail;
    }
    *out = &s->core;
    return DAC_OK;

fail:
    postgres_store_close(&s->core);
    return e;
}
