/*
 * See store_fixture.h.
 */
#include "store_fixture.h"

#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "postgres_fixture.h"

static struct event_base *loop;
static pid_t loop_pid;

bool fx_postgres;
char fx_dir[64];
char fx_db[96];
void (*fx_alive)(void);
uint64_t fx_patience_ns = UINT64_C(10000000000);

void fx_setup(void)
{
    snprintf(fx_dir, sizeof(fx_dir), "/tmp/dac-store-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(fx_dir));
    snprintf(fx_db, sizeof(fx_db), "%s/t.db", fx_dir);
    if (fx_postgres)
        px_setup();
}

void fx_teardown(void)
{
    char command[128];

    if (loop != NULL)
        event_base_free(loop);
    loop = NULL;
    if (fx_postgres)
        px_teardown();
    snprintf(command, sizeof(command), "rm -rf '%s'", fx_dir);
    ck_assert_int_eq(system(command), 0);
}

struct event_base *fx_base(void)
{
    if (loop == NULL || loop_pid != getpid())
        loop = event_base_new();
    loop_pid = getpid();
    ck_assert_ptr_nonnull(loop);
    return loop;
}

static void alive(void *arg)
{
    (void)arg;
    if (fx_alive != NULL)
        fx_alive();
}

struct store *fx_writer(void)
{
    struct store_options opt = {
        .sqlite = fx_db,
        .alive = alive,
        .postgres = fx_postgres ? px_conninfo : NULL,
        .application = "dac: recorder",
    };
    struct store *st = NULL;
    char why[512] = "";

    ck_assert_msg(store_open(fx_base(), &opt, &st, why, sizeof(why)) == DAC_OK, "%s",
                  why);
    ck_assert_msg(store_migrate(st, why, sizeof(why)) == DAC_OK, "%s", why);
    while (!store_up(st)) {
        ck_assert_msg(!store_refused(st), "%s", store_error(st));
        ck_assert_int_eq(event_base_loop(fx_base(), EVLOOP_ONCE), 0);
    }
    return st;
}

struct store_reader *fx_reader(struct event_base *base)
{
    struct store_options opt = {
        .sqlite = fx_db,
        .postgres = fx_postgres ? px_conninfo : NULL,
        .application = "dac: worker 0",
    };
    struct store_reader *r = NULL;
    char why[512] = "";

    ck_assert_msg(store_reader_open(base, &opt, &r, why, sizeof(why)) == DAC_OK, "%s",
                  why);
    return r;
}

struct id fx_id(char kind, unsigned n)
{
    struct id id = {{0}};

    id.b[0] = (uint8_t)kind;
    for (int i = 0; i < 4; i++)
        id.b[12 + i] = (uint8_t)(n >> (24 - 8 * i));
    return id;
}

struct store_text fx_text(const char *s)
{
    return (struct store_text){s, s != NULL ? strlen(s) : 0};
}

struct store_thread fx_thread(unsigned n)
{
    return (struct store_thread){
        .id = fx_id('h', n),
        .org = "acme",
        .title = fx_text("a title"),
        .created_us = FX_START_US + n * INT64_C(1000000),
    };
}

struct store_turn fx_turn(unsigned n, unsigned thread)
{
    struct store_turn t = {
        .id = fx_id('t', n),
        .org = "acme",
        .provider = "mock",
        .model = "small",
        .status = "complete",
        .finish_reason = "stop",
        .ttft_ms = 10.5,
        .latency_ms = 20.25,
        .queue_wait_ms = 0,
        .prompt_tokens = 3,
        .completion_tokens = 5,
        .fetcher = "worker 2",
        .key_digest = {1, 2, 3},
        .created_us = FX_START_US + n * INT64_C(1000000),
        .finished_us = FX_START_US + n * INT64_C(1000000) + 500000,
        .user_message_id = fx_id('u', n),
        .user_content = fx_text("question"),
        .assistant_message_id = fx_id('a', n),
        .assistant_content = fx_text("answer"),
    };

    if (thread != 0)
        t.thread_id = fx_id('h', thread);
    return t;
}

/* --- batches ------------------------------------------------------------------------ */

struct store_row fx_thread_row(const struct store_thread *t)
{
    return (struct store_row){.kind = STORE_THREAD, .u.thread = *t};
}

struct store_row fx_turn_row(const struct store_turn *t)
{
    return (struct store_row){.kind = STORE_TURN, .u.turn = *t};
}

struct store_row fx_counts_row(const struct id *turn, int64_t followers, int64_t hits)
{
    return (struct store_row){
        .kind = STORE_COUNTS,
        .u.counts = {.turn = *turn, .followers = followers, .hits = hits}};
}

struct store_row fx_change_row(enum store_row_kind kind, unsigned n, const char *title)
{
    return (struct store_row){.kind = kind,
                              .u.change = {.thread = fx_id('h', n),
                                           .org = "acme",
                                           .title = fx_text(title),
                                           .at_us = FX_START_US + 1}};
}

void fx_digest(unsigned key, uint8_t out[32])
{
    memset(out, 0x5a, 32);
    memcpy(out, &key, sizeof(key));
}

struct store_row fx_alias_row(unsigned key, unsigned turn, int64_t at_us)
{
    struct store_row row = {
        .kind = STORE_ALIAS,
        .u.alias = {.turn = fx_id('t', turn), .org = "acme", .created_us = at_us}};

    fx_digest(key, row.u.alias.key_digest);
    fx_digest(turn + 1000000, row.u.alias.body_digest);
    return row;
}

struct written {
    int calls;
    enum dac_err e;
};

static void on_written(void *arg, enum dac_err e)
{
    struct written *w = arg;

    w->calls++;
    w->e = e;
}

enum dac_err fx_write(struct store *st, struct store_row *rows, size_t n)
{
    struct written w = {0};

    store_write(st, rows, n, fx_patience_ns, on_written, &w);
    ck_assert_int_eq(w.calls, 0); /* never from inside the call */
    ck_assert(store_busy(st));
    while (w.calls == 0)
        ck_assert_int_eq(event_base_loop(fx_base(), EVLOOP_ONCE), 0);
    ck_assert_int_eq(w.calls, 1);
    ck_assert(!store_busy(st));
    return w.e;
}

enum dac_err fx_write_one(struct store *st, struct store_row row)
{
    enum dac_err e = fx_write(st, &row, 1);

    return e != DAC_OK ? e : row.result;
}

void fx_store_thread(struct store *st, unsigned n)
{
    struct store_thread t = fx_thread(n);

    ck_assert_int_eq(fx_write_one(st, fx_thread_row(&t)), DAC_OK);
}

void fx_store_turn(struct store *st, const struct store_turn *t)
{
    ck_assert_msg(fx_write_one(st, fx_turn_row(t)) == DAC_OK, "%s", store_error(st));
}

static sqlite3 *shell(void)
{
    sqlite3 *db;

    ck_assert_int_eq(sqlite3_open(fx_db, &db), SQLITE_OK);
    sqlite3_busy_timeout(db, 5000);
    return db;
}

long long fx_int(const char *sql)
{
    if (fx_postgres)
        return px_int(sql);
    sqlite3 *db = shell();
    sqlite3_stmt *s;

    ck_assert_msg(sqlite3_prepare_v2(db, sql, -1, &s, NULL) == SQLITE_OK, "%s: %s", sql,
                  sqlite3_errmsg(db));
    ck_assert_int_eq(sqlite3_step(s), SQLITE_ROW);
    long long v = sqlite3_column_int64(s, 0);

    sqlite3_finalize(s);
    sqlite3_close(db);
    return v;
}

void fx_exec(const char *sql)
{
    if (fx_postgres) {
        px_exec(sql);
        return;
    }
    sqlite3 *db = shell();

    ck_assert_msg(sqlite3_exec(db, sql, NULL, NULL, NULL) == SQLITE_OK, "%s: %s", sql,
                  sqlite3_errmsg(db));
    sqlite3_close(db);
}

/* --- answers ------------------------------------------------------------------------ */

static void copy(char *out, size_t size, const char *s)
{
    snprintf(out, size, "%s", s != NULL ? s : "(null)");
}

void fx_on_threads(void *arg, enum dac_err e, const struct store_thread *t, size_t n,
                   bool more)
{
    struct fx_answer *a = arg;

    a->calls++;
    a->e = e;
    a->n = n;
    a->more = more;
    for (size_t i = 0; i < n; i++) {
        a->ids[i] = t[i].id;
        a->last_turn = t[i].last_turn_id;
        ck_assert_str_eq(t[i].org, "acme");
        copy(a->texts[i], sizeof(a->texts[i]), t[i].title.s);
    }
}

void fx_on_thread(void *arg, enum dac_err e, const struct store_thread *t)
{
    ck_assert_int_eq(t != NULL, e == DAC_OK);
    fx_on_threads(arg, e, t, t != NULL ? 1 : 0, false);
}

void fx_on_messages(void *arg, enum dac_err e, const struct store_message *m, size_t n,
                    bool more)
{
    struct fx_answer *a = arg;

    a->calls++;
    a->e = e;
    a->n = n;
    a->more = more;
    for (size_t i = 0; i < n; i++) {
        a->ids[i] = m[i].id;
        a->roles[i] = m[i].role[0];
        ck_assert_uint_eq(strlen(m[i].content.s), m[i].content.n);
        copy(a->texts[i], sizeof(a->texts[i]), m[i].content.s);
    }
}

void fx_on_turn(void *arg, enum dac_err e, const struct store_turn *t)
{
    struct fx_answer *a = arg;

    a->calls++;
    a->e = e;
    a->n = t != NULL;
    ck_assert_int_eq(t != NULL, e == DAC_OK);
    if (t == NULL)
        return;
    a->turn = *t;
    copy(a->question, sizeof(a->question), t->user_content.s);
    copy(a->answer, sizeof(a->answer), t->assistant_content.s);
    copy(a->citations, sizeof(a->citations), t->citations.s);
    copy(a->tool_calls, sizeof(a->tool_calls), t->tool_calls.s);
    copy(a->status, sizeof(a->status), t->status);
    copy(a->finish, sizeof(a->finish), t->finish_reason);
    copy(a->error, sizeof(a->error), t->error_code);
}

void fx_on_alias(void *arg, enum dac_err e, const struct store_alias *s)
{
    struct fx_answer *a = arg;

    a->calls++;
    a->e = e;
    ck_assert_int_eq(s != NULL, e == DAC_OK);
    if (s != NULL)
        a->alias = *s;
    a->alias.org = NULL; /* borrowed until now */
}

void fx_ask_alias(struct event_base *base, struct store_reader *r, const char *org,
                  unsigned key, int64_t since_us, struct fx_answer *a)
{
    uint8_t digest[32];

    memset(a, 0, sizeof(*a));
    fx_digest(key, digest);
    ck_assert_ptr_nonnull(store_read_alias(r, org, digest, since_us, fx_on_alias, a));
    ck_assert_int_eq(a->calls, 0);
    fx_wait(base, a);
}

void fx_wait(struct event_base *base, const struct fx_answer *a)
{
    while (a->calls == 0)
        ck_assert_int_eq(event_base_loop(base, EVLOOP_ONCE), 0);
    ck_assert_int_eq(a->calls, 1);
}
