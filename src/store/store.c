/*
 * The writer's front: chooses the implementation, and checks every row the same way for
 * all of them, so that what one store takes no other refuses for its form. It promises
 * that store_error() names the row but never shows its content. Runs in the recorder.
 */
#include "store/store.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/json.h"
#include "store/internal.h"

static const char *const status_words[] = {"complete", "cancelled", "incomplete",
                                           "failed"};

enum dac_err store_open(const struct store_options *opt, struct store **out, char *why,
                        size_t n)
{
    *out = NULL;
    if (opt->sqlite == NULL || opt->sqlite[0] == '\0') {
        snprintf(why, n, "no database is configured: set sqlite in [store]");
        return DAC_E_INVALID;
    }
    return store_sqlite_open(opt->sqlite, out, why, n);
}

enum dac_err store_migrate(struct store *st, char *why, size_t n)
{
    DAC_ASSERT(st->magic == STORE_MAGIC && st->pid == getpid() && !st->in_batch);
    return st->ops->migrate(st, why, n);
}

void store_close(struct store *st)
{
    if (st == NULL)
        return;
    DAC_ASSERT(st->magic == STORE_MAGIC && st->pid == getpid());
    store_rollback(st);
    st->ops->close(st);
}

const char *store_kind(const struct store *st)
{
    return st->ops->kind;
}

const char *store_error(const struct store *st)
{
    return st->error;
}

enum dac_err store_begin(struct store *st)
{
    DAC_ASSERT(st->magic == STORE_MAGIC && st->pid == getpid() && !st->in_batch);
    enum dac_err e = st->ops->begin(st);

    st->in_batch = e == DAC_OK;
    return e;
}

/* --- what every store refuses ------------------------------------------------------- */

static enum dac_err refuse(struct store *st, const char *what, const struct id *id,
                           const char *fmt, ...) DAC_PRINTF(4, 5);

static enum dac_err refuse(struct store *st, const char *what, const struct id *id,
                           const char *fmt, ...)
{
    char text[ID_TEXT_SIZE];
    char detail[128];
    va_list ap;

    id_format(id, text);
    va_start(ap, fmt);
    vsnprintf(detail, sizeof(detail), fmt, ap);
    va_end(ap);
    snprintf(st->error, sizeof(st->error), "%s %s was refused: %s", what, text, detail);
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

static enum dac_err check_thread(struct store *st, const struct store_thread *t)
{
    if (id_is_zero(&t->id))
        return refuse(st, "thread", &t->id, "it has no id");
    if (!word_storable(t->org))
        return refuse(st, "thread", &t->id, "its org is empty or not UTF-8");
    if (t->title.s != NULL && !text_storable(t->title.s, t->title.n))
        return refuse(st, "thread", &t->id,
                      "its title is too large or not UTF-8 without NUL");
    if (!time_storable(t->created_us))
        return refuse(st, "thread", &t->id, "its time is out of range");
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

static enum dac_err check_turn_words(struct store *st, const struct store_turn *t)
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
            return refuse(st, "turn", &t->id, "its %s is empty or not UTF-8",
                          words[i].name);
    }
    if (!status_known(t->status))
        return refuse(st, "turn", &t->id, "its status is none that can be stored");
    return DAC_OK;
}

static enum dac_err check_turn(struct store *st, const struct store_turn *t)
{
    const struct {
        const char *name;
        const struct store_text *text;
        bool optional;
    } texts[] = {
        {"question", &t->user_content, false},
        {"answer", &t->assistant_content, true},
        {"citations", &t->citations, true},
    };

    if (id_is_zero(&t->id) || id_is_zero(&t->user_message_id) ||
        (t->assistant_content.s != NULL && id_is_zero(&t->assistant_message_id)))
        return refuse(st, "turn", &t->id, "it or one of its messages has no id");
    enum dac_err e = check_turn_words(st, t);

    if (e != DAC_OK)
        return e;
    for (size_t i = 0; i < DAC_ARRAY_LEN(texts); i++) {
        const struct store_text *text = texts[i].text;

        if (text->s == NULL && texts[i].optional)
            continue;
        if (text->s == NULL || !text_storable(text->s, text->n))
            return refuse(st, "turn", &t->id,
                          "its %s is missing, too large, or not UTF-8 without NUL",
                          texts[i].name);
    }
    if (!isfinite(t->ttft_ms) || !isfinite(t->latency_ms) || !isfinite(t->queue_wait_ms))
        return refuse(st, "turn", &t->id, "a duration is not a number");
    if (!time_storable(t->created_us) || !time_storable(t->finished_us))
        return refuse(st, "turn", &t->id, "a time is out of range");
    return DAC_OK;
}

/* --- writing ------------------------------------------------------------------------ */

enum dac_err store_put_thread(struct store *st, const struct store_thread *t)
{
    DAC_ASSERT(st->magic == STORE_MAGIC && st->in_batch);
    enum dac_err e = check_thread(st, t);

    return e == DAC_OK ? st->ops->put_thread(st, t) : e;
}

enum dac_err store_put_turn(struct store *st, const struct store_turn *t)
{
    DAC_ASSERT(st->magic == STORE_MAGIC && st->in_batch);
    enum dac_err e = check_turn(st, t);

    return e == DAC_OK ? st->ops->put_turn(st, t) : e;
}

enum dac_err store_put_counts(struct store *st, const struct id *turn, int64_t followers,
                              int64_t hits)
{
    DAC_ASSERT(st->magic == STORE_MAGIC && st->in_batch);
    return st->ops->put_counts(st, turn, followers, hits);
}

enum dac_err store_commit(struct store *st)
{
    DAC_ASSERT(st->magic == STORE_MAGIC && st->in_batch);
    enum dac_err e = st->ops->commit(st);

    if (e == DAC_OK)
        st->in_batch = false;
    return e;
}

void store_rollback(struct store *st)
{
    DAC_ASSERT(st->magic == STORE_MAGIC);
    if (st->in_batch)
        st->ops->rollback(st);
    st->in_batch = false;
}

void store_tidy(struct store *st)
{
    DAC_ASSERT(st->magic == STORE_MAGIC && !st->in_batch);
    st->ops->tidy(st);
}
