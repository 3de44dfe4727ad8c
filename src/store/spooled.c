/*
 * PostgreSQL with a spool before it: the writer that the recorder uses where `postgres`
 * is configured. A batch ends where it can be made durable soonest:
 *
 *   PostgreSQL up, queue empty    -> PostgreSQL; fails or takes too long -> spool
 *   PostgreSQL down, or the queue
 *   holds more than one batch     -> spool
 *   the last batch of the queue
 *   is on its way, or the spool
 *   has no room                   -> waits for what is drained, then as above
 *
 * So the order within a thread is kept: nothing passes what waits in the queue. The queue
 * is drained batch by batch while PostgreSQL is up; a row leaves it after the commit, and
 * one that was written twice is there once, by its id. Batches that PostgreSQL does not
 * commit in time are followed by smaller ones (pace.h).
 *
 * After a commit the rows are copied, and store_tidy(), which comes after those who
 * waited were told, has the spool keep them, so that threads in use stay readable while
 * PostgreSQL is away. Of a thread that is new to the spool the older turns are fetched.
 * Runs in the recorder.
 */
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "shm/crash.h"
#include "store/internal.h"
#include "store/pace.h"
#include "store/rejected.h"
#include "store/spool.h"
#include "store/spooled_fill.h"

#define BATCH_ROWS      256
#define BATCH_BYTES     (16u << 20)
#define DRAIN_MIN_NS    (100 * NS_PER_MS) /* before the next try after a failure */
#define DRAIN_MAX_NS    (5 * NS_PER_S)
#define PATIENCE_MIN_NS (10 * NS_PER_S) /* with a batch that nobody waits for; */
#define PATIENCE_MAX_NS (60 * NS_PER_S) /* what it grows to with a row that needs it */
#define TICK_NS         (100 * NS_PER_MS)
#define KEEP_BYTES_MAX  (16u << 20) /* copied rows that wait for store_tidy() */
#define KEEP_ROWS       512         /* likewise */
#define TURNS_KEPT      64
/* Idempotency keys that the spool remembers; with a small one less, so that they take an
 * eighth of it at most, at ALIAS_BYTES each. */
#define ALIASES_KEPT 100000
#define ALIAS_BYTES  256

/* What PostgreSQL is doing. */
enum doing { NOTHING, DIRECT, DRAINING };

/* Copies of committed rows. */
struct copies {
    struct store_row rows[KEEP_ROWS];
    size_t n;
    size_t bytes;
    struct arena texts;
};

struct spooled {
    struct store core; /* first */
    struct store *pg;
    struct spool *spool;
    struct spooled_fill *fill;    /* NULL until PostgreSQL was there */
    struct store_options reading; /* how `fill` reads; strings are the owner's */
    struct event *tick;           /* drains, and tries again */
    enum doing doing;
    uint64_t held_ns; /* since when the core's batch waits for the one that is drained; 0:
                       * it does not */
    bool settled;     /* PostgreSQL was reached, or could not be */
    bool away;        /* said so in the log */
    bool stuck;       /* the last batch could be stored nowhere */
    bool draining;    /* said so in the log */
    uint64_t drained_rows;
    struct spool_batch batch; /* what is drained */
    uint64_t sent_ns;         /* when it was; 0: so long ago that it only waits */
    uint64_t retry_at_ns;
    uint64_t backoff_ns;
    struct pace pace;       /* of batches that go to PostgreSQL while somebody waits */
    struct pace drain_pace; /* of those from the queue */
    uint64_t patience_ns;   /* with the latter */
    struct copies copies;
};

static struct spooled *self(struct store *st)
{
    return (struct spooled *)st;
}

static void pass_on(struct spooled *s);

/* --- what is kept ------------------------------------------------------------------- */

static const char *copy_word(struct arena *a, const char *word)
{
    return word ? arena_copy(a, word, strlen(word)) : NULL;
}

static struct store_text copy_text(struct arena *a, const struct store_text *t)
{
    struct store_text out = {.n = t->n};

    out.s = t->s ? arena_copy(a, t->s, t->n) : NULL;
    return out;
}

static void copy_turn(struct arena *a, struct store_turn *t)
{
    t->org = copy_word(a, t->org);
    t->provider = copy_word(a, t->provider);
    t->model = copy_word(a, t->model);
    t->status = copy_word(a, t->status);
    t->finish_reason = copy_word(a, t->finish_reason);
    t->error_code = copy_word(a, t->error_code);
    t->fetcher = copy_word(a, t->fetcher);
    t->user_content = copy_text(a, &t->user_content);
    t->assistant_content = copy_text(a, &t->assistant_content);
    t->citations = copy_text(a, &t->citations);
    t->tool_calls = copy_text(a, &t->tool_calls);
}

static void keep_copies(struct spooled *s)
{
    struct copies *c = &s->copies;

    if (c->n == 0)
        return;
    spool_keep(s->spool, c->rows, c->n);
    for (size_t i = 0; i < c->n; i++) {
        const struct store_turn *t = &c->rows[i].u.turn;
        if (c->rows[i].kind == STORE_TURN && c->rows[i].result == DAC_OK && s->fill &&
            !spool_knows_history(s->spool, &t->thread_id))
            spooled_fill_want(s->fill, t->org, &t->thread_id, &t->id);
    }
    arena_free(&c->texts);
    c->n = 0;
    c->bytes = 0;
}

static void copy_row(struct copies *c, const struct store_row *row)
{
    struct store_row *to = &c->rows[c->n++];

    *to = *row;
    if (to->kind == STORE_TURN) {
        copy_turn(&c->texts, &to->u.turn);
    } else if (to->kind == STORE_THREAD) {
        to->u.thread.org = copy_word(&c->texts, to->u.thread.org);
        to->u.thread.title = copy_text(&c->texts, &to->u.thread.title);
    } else if (to->kind == STORE_ALIAS) {
        to->u.alias.org = copy_word(&c->texts, to->u.alias.org);
    } else {
        to->u.change.org = copy_word(&c->texts, to->u.change.org);
        to->u.change.title = copy_text(&c->texts, &to->u.change.title);
    }
    c->bytes += store_row_bytes(to);
}

static void copy_rows(struct spooled *s, const struct store_row *rows, size_t n)
{
    struct copies *c = &s->copies;

    for (size_t i = 0; i < n; i++) {
        if (rows[i].result != DAC_OK || rows[i].kind == STORE_COUNTS ||
            rows[i].kind == STORE_REJECTED)
            continue;
        if (c->n == KEEP_ROWS || c->bytes + store_row_bytes(&rows[i]) > KEEP_BYTES_MAX)
            keep_copies(s);
        copy_row(c, &rows[i]);
    }
}

/* --- draining ----------------------------------------------------------------------- */

static uint64_t queued(const struct spooled *s)
{
    return spool_rows(s->spool);
}

static void arm(struct spooled *s, uint64_t ns)
{
    const struct timeval tv = {.tv_sec = (time_t)(ns / NS_PER_S),
                               .tv_usec = (suseconds_t)(ns % NS_PER_S / NS_PER_US)};

    if (!event_pending(s->tick, EV_TIMEOUT, NULL) || ns == 0)
        event_add(s->tick, &tv);
}

static void back_off(struct spooled *s)
{
    s->backoff_ns = s->backoff_ns == 0 ? DRAIN_MIN_NS : s->backoff_ns * 2;
    if (s->backoff_ns > DRAIN_MAX_NS)
        s->backoff_ns = DRAIN_MAX_NS;
    s->retry_at_ns = clock_now_ns() + s->backoff_ns;
}

/* Of a row that is a turn's, or about one. */
static bool names_turn(const struct store_row *row)
{
    return row->kind == STORE_TURN || row->kind == STORE_COUNTS ||
           row->kind == STORE_ALIAS ||
           (row->kind == STORE_REJECTED && strcmp(rejected_kind(row), "turn") == 0);
}

static struct log_about about_row(const struct store_row *row, char turn[ID_TEXT_SIZE])
{
    id_format(rejected_id(row), turn);
    return (struct log_about){.turn = names_turn(row) ? turn : NULL,
                              .org = rejected_org(row)};
}

static void tell_refused(const struct store_row *row)
{
    char turn[ID_TEXT_SIZE];
    const struct log_about about = about_row(row, turn);

    if (row->result == DAC_OK ||
        (row->result == DAC_E_NOT_FOUND && row->kind == STORE_COUNTS))
        return;
    if (row->kind == STORE_ALIAS)
        log_error_about(&about, 0, "an idempotency key of the spool was dropped: %s",
                        row->why);
    else
        log_error_about(&about, 0, "a row of the spool was set aside: %s", row->why);
}

static void tell_set_aside(const struct store_rejected *j)
{
    char text[ID_TEXT_SIZE];
    const struct log_about about = {.turn = strcmp(j->kind, "turn") == 0 ? text : NULL,
                                    .org = j->org};

    id_format(&j->id, text);
    if (!j->was_stored)
        log_error_about(&about, 0, "a row of the spool was set aside: %s %s: %s", j->kind,
                        text, j->reason);
}

static size_t texts_of(const struct store_row *rows, size_t n)
{
    size_t bytes = 0;

    for (size_t i = 0; i < n; i++)
        bytes += store_row_bytes(&rows[i]);
    return bytes;
}

static void note_pace(struct pace *p, const struct store_row *rows, size_t n,
                      enum dac_err e)
{
    if (e == DAC_OK)
        pace_worked(p, n, texts_of(rows, n));
    else if (e == DAC_E_TIMEOUT)
        pace_failed(p, n, texts_of(rows, n));
}

/* A single row cannot be made smaller; it may be a lock that it waits for. */
static void note_patience(struct spooled *s, enum dac_err e)
{
    char text[ID_TEXT_SIZE];
    struct log_about about;

    if (e == DAC_OK)
        s->patience_ns = PATIENCE_MIN_NS;
    if (e != DAC_E_TIMEOUT || s->batch.n > 1)
        return;
    about = about_row(&s->batch.rows[0], text);
    log_error_about(
        &about, 0, "PostgreSQL did not commit %s %s of the spool in %.0f s; trying again",
        rejected_kind(&s->batch.rows[0]), text,
        (double)s->patience_ns / (double)NS_PER_S);
    s->patience_ns *= 2;
    if (s->patience_ns > PATIENCE_MAX_NS)
        s->patience_ns = PATIENCE_MAX_NS;
}

/* What PostgreSQL said of the batch from the queue. */
static void drained(struct spooled *s, enum dac_err e)
{
    if (e == DAC_OK && spool_done(s->spool, &s->batch) != DAC_OK) {
        log_error(0, "%s; it is tried again", spool_error(s->spool));
        e = DAC_E_SYS;
    }
    if (e == DAC_OK) {
        s->drained_rows += s->batch.n;
        s->backoff_ns = 0;
        s->retry_at_ns = 0;
    } else {
        spool_put_back(s->spool);
        back_off(s);
    }
    if (queued(s) == 0 && s->draining) {
        log_info(0, "PostgreSQL has all %llu rows of the spool",
                 (unsigned long long)s->drained_rows);
        s->draining = false;
        s->drained_rows = 0;
        spool_tidy(s->spool);
    }
    if (e == DAC_OK && s->batch.set_aside)
        tell_set_aside(&s->batch.rows[0].u.rejected);
    for (size_t i = 0; e == DAC_OK && i < s->batch.n; i++)
        tell_refused(&s->batch.rows[i]);
    spool_batch_free(&s->batch);
}

static void on_drained(void *arg, enum dac_err e)
{
    struct spooled *s = arg;

    s->doing = NOTHING;
    note_pace(&s->drain_pace, s->batch.rows, s->batch.n, e);
    note_patience(s, e);
    drained(s, e);
    if (s->held_ns != 0) {
        s->held_ns = 0;
        pass_on(s);
    }
    if (queued(s) > 0)
        arm(s, s->backoff_ns);
}

static void drain(struct spooled *s)
{
    enum dac_err e;

    if (s->doing != NOTHING || queued(s) == 0 || clock_now_ns() < s->retry_at_ns ||
        !store_up(s->pg))
        return;
    e = spool_next(s->spool, s->drain_pace.rows, s->drain_pace.bytes, &s->batch);
    if (e != DAC_OK) {
        log_error(0, "%s", spool_error(s->spool));
        spool_batch_free(&s->batch);
        spool_put_back(s->spool);
        back_off(s);
        return;
    }
    if (!s->draining && s->batch.n > 0)
        log_info(0, "PostgreSQL is there: the spool is drained");
    s->draining = true;
    if (s->batch.n == 0) { /* entries that were left out, or none */
        drained(s, DAC_OK);
        return;
    }
    s->doing = DRAINING;
    s->sent_ns = clock_now_ns();
    for (size_t i = 0; i < s->batch.n; i++)
        CRASH_POINT_FOR("spool_row_sent", s->batch.rows[i].kind == STORE_TURN
                                              ? s->batch.rows[i].u.turn.model
                                              : NULL);
    store_write_patiently(s->pg, s->batch.rows, s->batch.n, s->patience_ns, on_drained,
                          s);
}

static void to_spool(struct spooled *s)
{
    struct store *st = &s->core;
    enum dac_err e;

    keep_copies(s); /* what was stored before stands before it */
    e = spool_put(s->spool, st->rows, st->n);

    if (e != DAC_OK)
        snprintf(st->error, sizeof st->error, "%s", spool_error(s->spool));
    else
        arm(s, TICK_NS);
    s->stuck = e != DAC_OK;
    store_finish(st, e);
}

static void on_tick(evutil_socket_t fd, short what, void *arg)
{
    struct spooled *s = arg;

    (void)fd;
    (void)what;
    drain(s);
    if (s->doing == DRAINING && s->sent_ns != 0 &&
        clock_now_ns() - s->sent_ns > TICK_NS) {
        s->sent_ns = 0;
        spool_wait(s->spool);
    }
    if (s->held_ns != 0 && clock_now_ns() - s->held_ns > s->core.timeout_ns) {
        s->held_ns = 0;
        to_spool(s);
    }
    if (s->held_ns != 0 || s->doing == DRAINING || (s->doing == NOTHING && queued(s) > 0))
        arm(s, TICK_NS);
}

/* --- a batch ------------------------------------------------------------------------ */

static void on_direct(void *arg, enum dac_err e)
{
    struct spooled *s = arg;
    struct store *st = &s->core;

    s->doing = NOTHING;
    note_pace(&s->pace, st->rows, st->n, e);
    if (e == DAC_OK) {
        if (s->away)
            log_info(0, "turns go to PostgreSQL again");
        s->away = s->stuck = false;
        copy_rows(s, st->rows, st->n);
        store_finish(st, DAC_OK);
        return;
    }
    if (!s->away)
        log_error(0, "PostgreSQL did not take %zu rows: %s; they go to the spool", st->n,
                  store_error(s->pg));
    s->away = true;
    back_off(s);
    store_check_rows(st->rows, st->n, STORE_IN_SPOOL);
    to_spool(s);
}

/* The core's batch, to where it can go now. */
static void pass_on(struct spooled *s)
{
    uint64_t rows = queued(s);

    if (s->doing == DRAINING && (rows <= s->batch.n || s->stuck)) {
        s->held_ns = clock_now_ns();
        arm(s, TICK_NS);
    } else if (s->doing == NOTHING && rows == 0 && store_up(s->pg)) {
        s->doing = DIRECT;
        store_write(s->pg, s->core.rows, s->core.n, s->core.timeout_ns, on_direct, s);
    } else {
        if (!store_up(s->pg))
            store_want(s->pg);
        if (!store_up(s->pg) && !s->away) {
            log_error(0, "PostgreSQL is away: turns go to the spool: %s",
                      store_error(s->pg));
            s->away = true;
        }
        to_spool(s);
    }
}

static void spooled_write(struct store *st)
{
    pass_on(self(st));
}

static void spooled_abort(struct store *st)
{
    struct spooled *s = self(st);

    s->held_ns = 0;
    if (s->doing != DIRECT)
        return;
    store_abort(s->pg);
    s->doing = NOTHING;
}

/* --- the rest ----------------------------------------------------------------------- */

static void on_changed(void *arg)
{
    struct spooled *s = arg;
    char why[STORE_ERROR_SIZE];

    s->settled = true;
    s->retry_at_ns = 0;
    /* Not before: what is not migrated yet has nothing to read. */
    if (!s->fill && store_up(s->pg) &&
        spooled_fill_new(s->core.base, &s->reading, s->spool, &s->fill, why,
                         sizeof why) != DAC_OK)
        log_warn(0, "older turns are not fetched for the spool: %s", why);
    if (store_up(s->pg) && queued(s) > 0)
        arm(s, 0);
    store_changed(&s->core);
}

/* The spool always is; but at the start PostgreSQL is given its first chance. */
static bool spooled_up(const struct store *st)
{
    return ((const struct spooled *)st)->settled;
}

static bool spooled_refused(const struct store *st)
{
    return store_refused(((const struct spooled *)st)->pg);
}

static enum dac_err spooled_migrate(struct store *st, char *why, size_t n)
{
    return store_migrate(self(st)->pg, why, n);
}

static void spooled_tidy(struct store *st)
{
    struct spooled *s = self(st);

    keep_copies(s);
    spool_tidy(s->spool);
}

static void spooled_batch_max(const struct store *st, size_t *rows, size_t *bytes)
{
    const struct spooled *s = (const struct spooled *)st;

    *rows = s->pace.rows;
    *bytes = s->pace.bytes;
    spool_fit(s->spool, rows, bytes);
}

static void spooled_stats(const struct store *st, struct store_stats *out)
{
    const struct spooled *s = (const struct spooled *)st;
    struct spool_stats spool;

    store_stats(s->pg, out);
    spool_stats(s->spool, &spool);
    out->spool_rows = spool.rows;
    out->spool_bytes = spool.bytes;
    out->spool_oldest_us = spool.oldest_us;
    out->spool_full = spool.nearly_full || s->stuck;
}

static void spooled_close(struct store *st)
{
    struct spooled *s = self(st);

    spooled_fill_free(s->fill);
    store_close(s->pg);
    spool_batch_free(&s->batch);
    if (s->spool)
        spool_put_back(s->spool);
    spool_close(s->spool);
    arena_free(&s->copies.texts);
    if (s->tick)
        event_free(s->tick);
    store_fini(st);
    free(s);
}

static const struct store_ops spooled_ops = {
    .kind = "postgres",
    .place = STORE_IN_POSTGRES,
    .migrate = spooled_migrate,
    .close = spooled_close,
    .up = spooled_up,
    .refused = spooled_refused,
    .write = spooled_write,
    .abort = spooled_abort,
    .tidy = spooled_tidy,
    .batch_max = spooled_batch_max,
    .stats = spooled_stats,
};

static size_t aliases_max(uint64_t spool_max_bytes)
{
    uint64_t fit = spool_max_bytes / 8 / ALIAS_BYTES;

    return fit < ALIASES_KEPT ? (size_t)fit : ALIASES_KEPT;
}

enum dac_err store_spooled_open(struct event_base *base, const struct store_options *opt,
                                struct store **out, char *why, size_t n)
{
    struct spooled *s = calloc(1, sizeof *s);
    struct store_options inner = *opt;
    const struct spool_options spool = {.base = base,
                                        .path = opt->spool,
                                        .max_bytes = opt->spool_max_bytes,
                                        .threads_max = opt->thread_cache,
                                        .turns_kept = TURNS_KEPT,
                                        .aliases_max = aliases_max(opt->spool_max_bytes),
                                        .alive = opt->alive,
                                        .arg = opt->arg};
    enum dac_err e = DAC_E_NOMEM;

    snprintf(why, n, "out of memory");
    if (!s)
        return e;
    s->reading = *opt;
    pace_init(&s->pace, BATCH_ROWS, BATCH_BYTES);
    pace_init(&s->drain_pace, BATCH_ROWS, BATCH_BYTES);
    s->patience_ns = PATIENCE_MIN_NS;
    inner.changed = on_changed;
    inner.arg = s;
    inner.alive = NULL;
    s->tick = evtimer_new(base, on_tick, s);
    if (s->tick)
        e = store_init(&s->core, &spooled_ops, base, opt);
    if (e == DAC_OK)
        e = spool_open(&spool, &s->spool, why, n);
    if (e == DAC_OK)
        e = store_postgres_open(base, &inner, &s->pg, why, n);
    if (e != DAC_OK) {
        spooled_close(&s->core);
        return e;
    }
    if (queued(s) > 0)
        log_info(0, "the spool holds %llu rows that PostgreSQL has not got",
                 (unsigned long long)queued(s));
    *out = &s->core;
    return DAC_OK;
}
