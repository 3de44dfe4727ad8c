/*
 * The reader's front: makes queries, hands them to the implementation, and calls back
 * from the event loop, never from inside the call that asked. Callbacks come in the order
 * in which the queries finished, which an implementation keeps equal to the order of
 * asking. Runs in the workers.
 */
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "store/internal.h"

enum dac_err store_reader_open(struct event_base *base, const struct store_options *opt,
                               struct store_reader **out, char *why, size_t n)
{
    *out = NULL;
    if (opt->postgres != NULL && opt->postgres[0] != '\0')
        return opt->spool != NULL ? store_spooled_reader_open(base, opt, out, why, n)
                                  : store_postgres_reader_open(base, opt, out, why, n);
    if (opt->sqlite == NULL || opt->sqlite[0] == '\0') {
        snprintf(why, n, "no database is configured: set sqlite in [store]");
        return DAC_E_INVALID;
    }
    return store_sqlite_reader_open(base, opt->sqlite, out, why, n);
}

/* --- a query's rows ----------------------------------------------------------------- */

void query_rows_reset(struct query_rows *rows)
{
    arena_free(&rows->texts);
    free(rows->threads);
    free(rows->messages);
    memset(rows, 0, sizeof(*rows));
}

/* Room for one row more of `size` bytes in *array, by doubling. */
static void *rows_add(struct query_rows *rows, void **array, size_t size)
{
    if (rows->n == rows->cap) {
        size_t cap = rows->cap == 0 ? 16 : rows->cap * 2;
        void *p = reallocarray(*array, cap, size);

        if (p == NULL)
            return NULL;
        *array = p;
        rows->cap = cap;
    }
    void *row = (char *)*array + rows->n++ * size;

    memset(row, 0, size);
    return row;
}

struct store_thread *query_add_thread(struct query_rows *rows)
{
    void *array = rows->threads;
    struct store_thread *t = rows_add(rows, &array, sizeof(*t));

    rows->threads = array;
    return t;
}

struct store_message *query_add_message(struct query_rows *rows)
{
    void *array = rows->messages;
    struct store_message *m = rows_add(rows, &array, sizeof(*m));

    rows->messages = array;
    return m;
}

/* --- life of a query ---------------------------------------------------------------- */

static void query_free(struct store_query *q)
{
    query_rows_reset(&q->rows);
    free(q->org);
    free(q);
}

static struct store_query *query_new(struct store_reader *r, enum query_kind kind,
                                     const char *org, const struct id *id,
                                     const struct id *cursor)
{
    DAC_ASSERT(r->magic == STORE_READER_MAGIC && r->pid == getpid());
    if (r->closing)
        return NULL;
    struct store_query *q = calloc(1, sizeof(*q));

    if (q == NULL)
        return NULL;
    q->org = strdup(org);
    if (q->org == NULL) {
        free(q);
        return NULL;
    }
    q->reader = r;
    q->kind = kind;
    if (id != NULL)
        q->id = *id;
    if (cursor != NULL)
        q->cursor = *cursor;
    q->deadline_ns = clock_now_ns() + STORE_QUERY_WAIT_NS;
    return q;
}

static struct store_query *query_start(struct store_query *q)
{
    q->reader->ops->start(q->reader, q);
    return q;
}

void query_finish(struct store_query *q, enum dac_err e)
{
    struct store_reader *r = q->reader;

    q->result = e;
    q->finished = true;
    q->seq = ++r->finished_seq;
    TAILQ_INSERT_TAIL(&r->finished, q, link);
    if (!r->delivering)
        event_active(r->deliver, EV_TIMEOUT, 0);
}

void store_query_cancel(struct store_query *q)
{
    if (q->finished)
        TAILQ_REMOVE(&q->reader->finished, q, link);
    else
        q->reader->ops->cancel(q->reader, q);
    query_free(q);
}

static void query_call(struct store_query *q)
{
    const struct query_rows *rows = &q->rows;
    bool ok = q->result == DAC_OK;
    size_t n = ok ? rows->n : 0;
    bool more = ok && rows->more;

    switch (q->kind) {
    case QUERY_THREAD:
        q->cb.thread(q->arg, q->result, ok ? rows->threads : NULL);
        break;
    case QUERY_THREADS:
        q->cb.threads(q->arg, q->result, n > 0 ? rows->threads : NULL, n, more);
        break;
    case QUERY_MESSAGES:
    case QUERY_HISTORY:
        q->cb.messages(q->arg, q->result, n > 0 ? rows->messages : NULL, n, more);
        break;
    case QUERY_TURN:
        q->cb.turn(q->arg, q->result, ok ? &rows->turn : NULL);
        break;
    case QUERY_ALIAS:
        q->cb.alias(q->arg, q->result, ok ? &rows->alias : NULL);
        break;
    }
}

/* Queries made by these callbacks are called back after the loop has looked at its other
 * events, so a chain of queries cannot keep it: hence the timer, for libevent runs what
 * is activated by a callback in the same pass. */
static void reader_deliver(evutil_socket_t fd, short what, void *arg)
{
    struct store_reader *r = arg;
    struct store_query *q;
    uint64_t until = r->finished_seq;

    (void)fd;
    (void)what;
    r->delivering = true;
    while (!r->closing && (q = TAILQ_FIRST(&r->finished)) != NULL && q->seq <= until) {
        TAILQ_REMOVE(&r->finished, q, link);
        query_call(q);
        query_free(q);
    }
    r->delivering = false;
    if (r->closing) {
        r->closing = false;
        store_reader_close(r);
    } else if (!TAILQ_EMPTY(&r->finished)) {
        static const struct timeval soon = {0, 0};

        if (event_add(r->deliver, &soon) != 0) /* no memory for the timer */
            event_active(r->deliver, EV_TIMEOUT, 0);
    }
}

/* --- life of a reader --------------------------------------------------------------- */

enum dac_err reader_init(struct store_reader *r, const struct store_reader_ops *ops,
                         struct event_base *base)
{
    r->magic = STORE_READER_MAGIC;
    r->ops = ops;
    r->base = base;
    r->pid = getpid();
    TAILQ_INIT(&r->finished);
    r->deliver = event_new(base, -1, 0, reader_deliver, r);
    return r->deliver != NULL ? DAC_OK : DAC_E_NOMEM;
}

void reader_fini(struct store_reader *r)
{
    if (r->deliver != NULL)
        event_free(r->deliver);
    r->deliver = NULL;
    r->magic = 0;
}

void store_reader_close(struct store_reader *r)
{
    if (r == NULL)
        return;
    DAC_ASSERT(r->magic == STORE_READER_MAGIC);
    if (r->delivering) {
        r->closing = true;
        return;
    }
    while (!TAILQ_EMPTY(&r->finished))
        store_query_cancel(TAILQ_FIRST(&r->finished));
    r->ops->close(r);
}

/* --- the questions ------------------------------------------------------------------ */

static size_t rows_limit(size_t limit)
{
    return limit < STORE_ROWS_MAX ? limit : STORE_ROWS_MAX;
}

struct store_query *store_read_thread(struct store_reader *r, const char *org,
                                      const struct id *id, store_thread_cb cb, void *arg)
{
    struct store_query *q = query_new(r, QUERY_THREAD, org, id, NULL);

    if (q == NULL)
        return NULL;
    q->cb.thread = cb;
    q->arg = arg;
    return query_start(q);
}

struct store_query *store_read_threads(struct store_reader *r, const char *org,
                                       const struct id *after, size_t limit,
                                       store_threads_cb cb, void *arg)
{
    struct store_query *q = query_new(r, QUERY_THREADS, org, NULL, after);

    if (q == NULL)
        return NULL;
    q->limit = rows_limit(limit);
    q->cb.threads = cb;
    q->arg = arg;
    return query_start(q);
}

struct store_query *store_read_messages(struct store_reader *r, const char *org,
                                        const struct id *thread, const struct id *after,
                                        size_t limit, store_messages_cb cb, void *arg)
{
    struct store_query *q = query_new(r, QUERY_MESSAGES, org, thread, after);

    if (q == NULL)
        return NULL;
    q->limit = rows_limit(limit);
    q->cb.messages = cb;
    q->arg = arg;
    return query_start(q);
}

struct store_query *store_read_history(struct store_reader *r, const char *org,
                                       const struct id *thread, const struct id *until,
                                       size_t max_messages, size_t max_bytes,
                                       store_messages_cb cb, void *arg)
{
    struct store_query *q = query_new(r, QUERY_HISTORY, org, thread, until);

    if (q == NULL)
        return NULL;
    q->limit = max_messages;
    q->max_bytes =
        max_bytes < STORE_HISTORY_BYTES_MAX ? max_bytes : STORE_HISTORY_BYTES_MAX;
    q->cb.messages = cb;
    q->arg = arg;
    return query_start(q);
}

struct store_query *store_read_turn(struct store_reader *r, const char *org,
                                    const struct id *turn, store_turn_cb cb, void *arg)
{
    struct store_query *q = query_new(r, QUERY_TURN, org, turn, NULL);

    if (q == NULL)
        return NULL;
    q->cb.turn = cb;
    q->arg = arg;
    return query_start(q);
}

struct store_query *store_read_alias(struct store_reader *r, const char *org,
                                     const uint8_t key_digest[32], int64_t since_us,
                                     store_alias_cb cb, void *arg)
{
    struct store_query *q = query_new(r, QUERY_ALIAS, org, NULL, NULL);

    if (q == NULL)
        return NULL;
    memcpy(q->key_digest, key_digest, sizeof(q->key_digest));
    q->since_us = since_us;
    q->cb.alias = cb;
    q->arg = arg;
    return query_start(q);
}
