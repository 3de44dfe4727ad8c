/*
 * See spooled_fill.h. One thread: its history names the turns, which are then read and
 * kept one by one, oldest first; at last the spool is told that the history is there.
 */
#include "store/spooled_fill.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/spool_internal.h"

#define WAITING_MAX                                                                      \
    1024 /* threads; those above are left out until they are used again                  \
          */

struct wanted {
    TAILQ_ENTRY(wanted) link;
    struct id thread;
    struct id until;
    char org[]; /* with its NUL */
};
TAILQ_HEAD(wanted_list, wanted);

struct spooled_fill {
    struct store_reader *reader;
    struct spool *spool;
    struct wanted_list waiting; /* the first one is at work while `query` is */
    size_t count;
    struct store_query *query;
    struct id turns[SPOOL_HISTORY_MESSAGES];
    size_t n;
    size_t next;
};

static void begin(struct spooled_fill *f);

static void finish(struct spooled_fill *f, bool filled)
{
    struct wanted *w = TAILQ_FIRST(&f->waiting);

    if (filled)
        spool_filled(f->spool, &w->thread, false);
    TAILQ_REMOVE(&f->waiting, w, link);
    f->count--;
    free(w);
    begin(f);
}

static void read_next(struct spooled_fill *f);

static void on_turn(void *arg, enum dac_err e, const struct store_turn *t)
{
    struct spooled_fill *f = arg;

    f->query = NULL;
    if (e == DAC_OK) {
        struct store_row row = {.kind = STORE_TURN, .u.turn = *t, .result = DAC_OK};
        spool_keep(f->spool, &row, 1);
        f->next++;
        read_next(f);
    } else {
        finish(f, false);
    }
}

static void read_next(struct spooled_fill *f)
{
    const struct wanted *w = TAILQ_FIRST(&f->waiting);

    if (f->next == f->n) {
        finish(f, true);
        return;
    }
    f->query = store_read_turn(f->reader, w->org, &f->turns[f->next], on_turn, f);
    if (!f->query)
        finish(f, false);
}

static void on_history(void *arg, enum dac_err e, const struct store_message *m, size_t n,
                       bool more)
{
    struct spooled_fill *f = arg;

    (void)more;
    f->query = NULL;
    f->n = f->next = 0;
    for (size_t i = 0; e == DAC_OK && i < n && f->n < SPOOL_HISTORY_MESSAGES; i++)
        if (f->n == 0 || !id_equal(&f->turns[f->n - 1], &m[i].turn_id))
            f->turns[f->n++] = m[i].turn_id;
    if (e == DAC_OK)
        read_next(f);
    else
        finish(f, false);
}

static void begin(struct spooled_fill *f)
{
    const struct wanted *w = TAILQ_FIRST(&f->waiting);

    if (!w || f->query)
        return;
    f->query =
        store_read_history(f->reader, w->org, &w->thread, &w->until,
                           SPOOL_HISTORY_MESSAGES, SPOOL_HISTORY_BYTES, on_history, f);
    if (!f->query)
        finish(f, false);
}

void spooled_fill_want(struct spooled_fill *f, const char *org, const struct id *thread,
                       const struct id *until)
{
    struct wanted *w;
    size_t n = strlen(org) + 1;

    TAILQ_FOREACH (w, &f->waiting, link)
        if (id_equal(&w->thread, thread))
            return;
    if (f->count == WAITING_MAX || !(w = malloc(sizeof *w + n)))
        return;
    w->thread = *thread;
    w->until = *until;
    memcpy(w->org, org, n);
    TAILQ_INSERT_TAIL(&f->waiting, w, link);
    f->count++;
    begin(f);
}

enum dac_err spooled_fill_new(struct event_base *base, const struct store_options *opt,
                              struct spool *spool, struct spooled_fill **out, char *why,
                              size_t n)
{
    struct spooled_fill *f = calloc(1, sizeof *f);

    if (!f) {
        snprintf(why, n, "out of memory");
        return DAC_E_NOMEM;
    }
    TAILQ_INIT(&f->waiting);
    f->spool = spool;
    enum dac_err e = store_postgres_reader_open(base, opt, &f->reader, why, n);
    if (e != DAC_OK) {
        free(f);
        return e;
    }
    *out = f;
    return DAC_OK;
}

void spooled_fill_free(struct spooled_fill *f)
{
    struct wanted *w;

    if (!f)
        return;
    store_reader_close(f->reader);
    while ((w = TAILQ_FIRST(&f->waiting)) != NULL) {
        TAILQ_REMOVE(&f->waiting, w, link);
        free(w);
    }
    free(f);
}
