/*
 * The writer's front: chooses the implementation, and checks every row the same way for
 * all of them, so that what one store takes no other refuses for its form. It promises
 * that store_error() names the row but never shows its content. Runs in the recorder.
 */
#include "store/store.h"

#include <event2/event.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "store/internal.h"

static const char *const status_words[] = {"complete", "cancelled", "incomplete",
                                           "failed"};

enum dac_err store_open(struct event_base *base, const struct store_options *opt,
                        struct store **out, char *why, size_t n)
{
    *out = NULL;
    if (opt->postgres != NULL && opt->postgres[0] != '\0')
        return opt->spool != NULL ? store_spooled_open(base, opt, out, why, n)
                                  : store_postgres_open(base, opt, out, why, n);
    if (opt->sqlite == NULL || opt->sqlite[0] == '\0') {
        snprintf(why, n, "no database is configured: set sqlite in [store]");
        return DAC_E_INVALID;
    }
    return store_sqlite_open(base, opt, out, why, n);
}

enum dac_err store_migrate(struct store *st, char *why, size_t n)
{
    DAC_ASSERT(st->magic == STORE_MAGIC && st->pid == getpid() && !st->busy);
    return st->ops->migrate(st, why, n);
}

void store_close(struct store *st)
{
    if (st == NULL)
        return;
    DAC_ASSERT(st->magic == STORE_MAGIC && st->pid == getpid());
    store_abort(st);
    st->ops->close(st);
}

const char *store_kind(const struct store *st)
{
    return st->ops->kind;
}

bool store_up(const struct store *st)
{
    DAC_ASSERT(st->magic == STORE_MAGIC);
    return st->ops->up(st);
}

bool store_refused(const struct store *st)
{
    DAC_ASSERT(st->magic == STORE_MAGIC);
    return st->ops->refused != NULL && st->ops->refused(st);
}

const char *store_error(const struct store *st)
{
    return st->error;
}

/* --- what every store refuses ------------------------------------------------------- */

void store_row_refuse(struct store_row *row, enum dac_err e, const char *fmt, ...)
{
    va_list ap;

    row->result = e;
    va_start(ap, fmt);
    vsnprintf(row->why, sizeof(row->why), fmt, ap);
    va_end(ap);
}

size_t store_row_bytes(const struct store_row *row)
{
    const struct store_turn *t = &row->u.turn;

    switch (row->kind) {
    case STORE_TURN:
        return t->user_content.n + t->assistant_content.n + t->citations.n +
               t->tool_calls.n;
    case STORE_THREAD:
        return row->u.thread.title.n;
    case STORE_TITLE:
        return row->u.change.title.n;
    case STORE_REJECTED:
        return row->u.rejected.data.n;
    case STORE_COUNTS:
    case STORE_DELETE:
    case STORE_ALIAS:
        break;
    }
    return 0;
}

static enum dac_err refuse(struct store_row *row, const char *what, const struct id *id,
                           const char *fmt, ...) DAC_PRINTF(4, 5);

static enum dac_err refuse(struct store_row *row, const char *what, const struct id *id,
                           const char *fmt, ...)
{
    char text[ID_TEXT_SIZE];
    char detail[128];
    va_list ap;

    id_format(id, text);
    va_start(ap, fmt);
    vsnprintf(detail, sizeof(detail), fmt, ap);
    va_end(ap);
    store_row_refuse(row, DAC_E_INVALID, "%s %s was refused: %s", what, text, detail);
    return DAC_E_INVALID;
}

static bool text_storable(const char *s, size_t n)
{
    return n <= STORE_TEXT_MAX && memchr(s, '\0', n) == NULL && utf8_valid(s, n);
}

static bool word_storable(const char *s)
{
    return s != NULL && s[0] != '\0' && utf8_valid(s, strlen(s));
}

static bool time_storable(int64_t us)
{
    return us >= 0 && us <= STORE_TIME_MAX_US;
}

static enum dac_err check_thread(struct store_row *row, const struct store_thread *t)
{
    if (id_is_zero(&t->id))
        return refuse(row, "thread", &t->id, "it has no id");
    if (!word_storable(t->org))
        return refuse(row, "thread", &t->id, "its org is empty or not UTF-8");
    if (t->title.s != NULL && !text_storable(t->title.s, t->title.n))
        return refuse(row, "thread", &t->id,
                      "its title is too large or not UTF-8 without NUL");
    if (!time_storable(t->created_us))
        return refuse(row, "thread", &t->id, "its time is out of range");
    return DAC_OK;
}

static bool status_known(const char *status)
{
    for (size_t i = 0; status != NULL && i < DAC_ARRAY_LEN(status_words); i++) {
        if (strcmp(status, status_words[i]) == 0)
            return true;
    }
    return false;
}

static enum dac_err check_turn_words(struct store_row *row, const struct store_turn *t)
{
    const struct {
        const char *name, *s;
        bool optional;
    } words[] = {
        {"org", t->org, false},
        {"provider", t->provider, false},
        {"model", t->model, false},
        {"finish reason", t->finish_reason, true},
        {"error code", t->error_code, true},
    };

    for (size_t i = 0; i < DAC_ARRAY_LEN(words); i++) {
        if (words[i].s == NULL && words[i].optional)
            continue;
        if (!word_storable(words[i].s))
            return refuse(row, "turn", &t->id, "its %s is empty or not UTF-8",
                          words[i].name);
    }
    if (!status_known(t->status))
        return refuse(row, "turn", &t->id, "its status is none that can be stored");
    return DAC_OK;
}

static enum dac_err check_turn(struct store_row *row, const struct store_turn *t)
{
    const struct {
        const char *name;
        const struct store_text *text;
        bool optional;
    } texts[] = {
        {"question", &t->user_content, false},
        {"answer", &t->assistant_content, true},
        {"citations", &t->citations, true},
        {"tool calls", &t->tool_calls, true},
    };

    if (id_is_zero(&t->id) || id_is_zero(&t->user_message_id) ||
        (t->assistant_content.s != NULL && id_is_zero(&t->assistant_message_id)))
        return refuse(row, "turn", &t->id, "it or one of its messages has no id");
    enum dac_err e = check_turn_words(row, t);

    if (e != DAC_OK)
        return e;
    for (size_t i = 0; i < DAC_ARRAY_LEN(texts); i++) {
        const struct store_text *text = texts[i].text;

        if (text->s == NULL && texts[i].optional)
            continue;
        if (text->s == NULL || !text_storable(text->s, text->n))
            return refuse(row, "turn", &t->id,
                          "its %s is missing, too large, or not UTF-8 without NUL",
                          texts[i].name);
    }
    if (!isfinite(t->ttft_ms) || !isfinite(t->latency_ms) || !isfinite(t->queue_wait_ms))
        return refuse(row, "turn", &t->id, "a duration is not a number");
    if (!time_storable(t->created_us) || !time_storable(t->finished_us))
        return refuse(row, "turn", &t->id, "a time is out of range");
    return DAC_OK;
}

static enum dac_err check_change(struct store_row *row, const struct store_change *c)
{
    if (id_is_zero(&c->thread))
        return refuse(row, "change of thread", &c->thread, "it has no id");
    if (!word_storable(c->org))
        return refuse(row, "change of thread", &c->thread,
                      "its org is empty or not UTF-8");
    if (c->title.s != NULL && !text_storable(c->title.s, c->title.n))
        return refuse(row, "change of thread", &c->thread,
                      "its title is too large or not UTF-8 without NUL");
    if (!time_storable(c->at_us))
        return refuse(row, "change of thread", &c->thread, "its time is out of range");
    return DAC_OK;
}

static enum dac_err check_rejected(struct store_row *row, struct store_rejected *j)
{
    j->was_stored = false;
    if (id_is_zero(&j->id) || !word_storable(j->reason) || !time_storable(j->at_us))
        return refuse(row, "what is set aside as", &j->id,
                      "it has no id, no reason or no time");
    return DAC_OK;
}

static enum dac_err check_alias(struct store_row *row, const struct store_alias *a)
{
    if (id_is_zero(&a->turn) || !word_storable(a->org) || !time_storable(a->created_us))
        return refuse(row, "idempotency key of turn", &a->turn,
                      "it has no turn, no org or no time");
    return DAC_OK;
}

static void check_row(struct store_row *row, enum store_place place)
{
    enum dac_err e = DAC_OK;

    switch (row->kind) {
    case STORE_THREAD:
        e = check_thread(row, &row->u.thread);
        break;
    case STORE_TURN:
        e = check_turn(row, &row->u.turn);
        break;
    case STORE_COUNTS:
        break;
    case STORE_TITLE:
    case STORE_DELETE:
        e = check_change(row, &row->u.change);
        break;
    case STORE_REJECTED:
        e = check_rejected(row, &row->u.rejected);
        break;
    case STORE_ALIAS:
        e = check_alias(row, &row->u.alias);
        break;
    }
    if (e == DAC_OK) {
        row->result = DAC_OK;
        row->place = place;
        row->why[0] = '\0';
    }
    row->sqlstate[0] = '\0';
}

/* --- batches ------------------------------------------------------------------------ */

static void deliver(evutil_socket_t fd, short what, void *arg)
{
    struct store *st = arg;

    (void)fd;
    (void)what;
    if (!st->busy || !st->ended) /* given up meanwhile */
        return;
    st->busy = st->ended = false;
    st->rows = NULL;
    st->n = 0;
    st->cb(st->cb_arg, st->result);
}

enum dac_err store_init(struct store *st, const struct store_ops *ops,
                        struct event_base *base, const struct store_options *opt)
{
    st->magic = STORE_MAGIC;
    st->ops = ops;
    st->pid = getpid();
    st->base = base;
    st->alive = opt->alive;
    st->changed = opt->changed;
    st->opt_arg = opt->arg;
    st->deliver = event_new(base, -1, 0, deliver, st);
    return st->deliver != NULL ? DAC_OK : DAC_E_NOMEM;
}

void store_fini(struct store *st)
{
    if (st->deliver != NULL)
        event_free(st->deliver);
    st->deliver = NULL;
    st->magic = 0;
}

void store_alive(struct store *st)
{
    if (st->alive != NULL)
        st->alive(st->opt_arg);
}

void store_changed(struct store *st)
{
    if (st->changed != NULL)
        st->changed(st->opt_arg);
}

void store_check_rows(struct store_row *rows, size_t n, enum store_place place)
{
    for (size_t i = 0; i < n; i++)
        check_row(&rows[i], place);
}

void store_stats(const struct store *st, struct store_stats *out)
{
    *out = (struct store_stats){.up = store_up(st)};
    if (st->ops->stats != NULL)
        st->ops->stats(st, out);
}

void store_batch_max(const struct store *st, size_t *rows, size_t *bytes)
{
    *rows = *bytes = SIZE_MAX;
    if (st->ops->batch_max != NULL)
        st->ops->batch_max(st, rows, bytes);
}

static void begin(struct store *st, struct store_row *rows, size_t n, uint64_t timeout_ns,
                  bool patient, store_write_cb cb, void *arg)
{
    DAC_ASSERT(st->magic == STORE_MAGIC && st->pid == getpid() && !st->busy);
    store_check_rows(rows, n, st->ops->place);
    st->rows = rows;
    st->n = n;
    st->timeout_ns = timeout_ns;
    st->patient = patient;
    st->cb = cb;
    st->cb_arg = arg;
    st->busy = true;
    st->ended = false;
    st->ops->write(st);
}

void store_write(struct store *st, struct store_row *rows, size_t n, uint64_t timeout_ns,
                 store_write_cb cb, void *arg)
{
    begin(st, rows, n, timeout_ns, false, cb, arg);
}

void store_write_patiently(struct store *st, struct store_row *rows, size_t n,
                           uint64_t timeout_ns, store_write_cb cb, void *arg)
{
    begin(st, rows, n, timeout_ns, true, cb, arg);
}

void store_finish(struct store *st, enum dac_err e)
{
    DAC_ASSERT(st->busy && !st->ended);
    st->ended = true;
    st->result = e;
    event_active(st->deliver, EV_TIMEOUT, 0);
}

bool store_busy(const struct store *st)
{
    return st->busy;
}

void store_abort(struct store *st)
{
    DAC_ASSERT(st->magic == STORE_MAGIC);
    if (!st->busy)
        return;
    if (!st->ended)
        st->ops->abort(st);
    event_del(st->deliver);
    st->busy = st->ended = false;
    st->rows = NULL;
    st->n = 0;
}

void store_tidy(struct store *st)
{
    DAC_ASSERT(st->magic == STORE_MAGIC);
    st->ops->tidy(st);
}
