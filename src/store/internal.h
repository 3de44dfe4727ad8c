/*
 * What the implementations of the store share: the tables of functions that store.c and
 * reader.c call, the objects that an implementation embeds as its first member, and what
 * a query is. For files of this folder only.
 *
 * A new kind of store adds a `struct store_ops` and a `struct store_reader_ops` and is
 * chosen in store_open() and store_reader_open(); checks, ordering, deferred callbacks
 * and cancelling stay here.
 */
#ifndef DAC_STORE_INTERNAL_H
#define DAC_STORE_INTERNAL_H

#include <sys/queue.h>
#include <sys/types.h>

#include "base/clock.h"
#include "store/arena.h"
#include "store/store.h"

#define STORE_MAGIC        0x53544f52u
#define STORE_READER_MAGIC 0x52454144u
#define STORE_ERROR_SIZE   1024

#define STORE_ROWS_MAX          200          /* rows of one page */
#define STORE_PAGE_BYTES_MAX    (8u << 20)   /* text of one page, but at least one row */
#define STORE_TEXT_MAX          (256u << 20) /* one text that is written */
#define STORE_HISTORY_TURNS_MAX 1000         /* turns that one history looks at */
#define STORE_HISTORY_BYTES_MAX (64u << 20)  /* whatever the caller allows */
#define STORE_TIME_MAX_US       253402300799999999 /* end of the year 9999 */
#define STORE_QUERY_WAIT_NS     (2 * NS_PER_S)     /* how long a query waits for a lock */

/* --- writer ------------------------------------------------------------------------- */

struct event;

struct store_ops {
    const char *kind;
    enum store_place place; /* of what it stores */
    enum dac_err (*migrate)(struct store *st, char *why, size_t n);
    void (*close)(struct store *st); /* no batch runs; does not free st's core */
    bool (*up)(const struct store *st);
    bool (*refused)(const struct store *st);
    /* Begins the batch of st; store_finish() ends it, and may be called at once. Rows
     * with another `result` than DAC_OK have been refused already; they are not to be
     * written. */
    void (*write)(struct store *st);
    void (*abort)(struct store *st); /* a batch runs */
    void (*tidy)(struct store *st);
    /* It would be written to if it were up. NULL: nothing is to be done. */
    void (*want)(struct store *st);
    /* Lowers what is too much. NULL: nothing is. */
    void (*batch_max)(const struct store *st, size_t *rows, size_t *bytes);
    /* Fills in what it knows of it; `out` is zero but for `up`. NULL: nothing. */
    void (*stats)(const struct store *st, struct store_stats *out);
};

/* First member of each implementation's writer. */
struct store {
    uint32_t magic;
    const struct store_ops *ops;
    pid_t pid; /* the process that opened it; no handle crosses a fork */
    struct event_base *base;
    struct event *deliver; /* calls back for a batch that has ended */
    void (*alive)(void *arg);
    void (*changed)(void *arg);
    void *opt_arg;
    /* The batch that runs, borrowed. */
    struct store_row *rows;
    size_t n;
    uint64_t timeout_ns;
    bool patient; /* timeout_ns counts from when the database last took or sent a byte */
    store_write_cb cb;
    void *cb_arg;
    enum dac_err result; /* of one that has ended and is not called back yet */
    bool busy;           /* from store_write() until its callback */
    bool ended;          /* busy, and only the callback is missing */
    char error[STORE_ERROR_SIZE];
};

/* The core's part; on failure nothing is left. */
enum dac_err store_init(struct store *st, const struct store_ops *ops,
                        struct event_base *base, const struct store_options *opt);
void store_fini(struct store *st);
/* The batch that runs has ended; the callback follows from the loop. */
void store_finish(struct store *st, enum dac_err e);
/* store_write() for a batch that nobody waits for: it may take as long as it takes, while
 * the database goes on with it. */
void store_write_patiently(struct store *st, struct store_row *rows, size_t n,
                           uint64_t timeout_ns, store_write_cb cb, void *arg);
/* Of a row's long texts. */
size_t store_row_bytes(const struct store_row *row);
/* Sets a row's result and reason. */
void store_row_refuse(struct store_row *row, enum dac_err e, const char *fmt, ...)
    DAC_PRINTF(3, 4);
/* It would be written to if it were up: not to be kept waiting for long. */
static inline void store_want(struct store *st)
{
    if (st->ops->want)
        st->ops->want(st);
}
/* Sets each row's result as the front does before a batch. */
void store_check_rows(struct store_row *rows, size_t n, enum store_place place);
/* Tells whoever watches that this process lives. */
void store_alive(struct store *st);
/* Tells the owner that `up` or `refused` may have changed. */
void store_changed(struct store *st);

enum dac_err store_postgres_open(struct event_base *base, const struct store_options *opt,
                                 struct store **out, char *why, size_t n);
/* PostgreSQL with a spool before it. */
enum dac_err store_spooled_open(struct event_base *base, const struct store_options *opt,
                                struct store **out, char *why, size_t n);
enum dac_err store_sqlite_open(struct event_base *base, const struct store_options *opt,
                               struct store **out, char *why, size_t n);

/* --- reader ------------------------------------------------------------------------- */

TAILQ_HEAD(query_list, store_query);

enum query_kind {
    QUERY_THREAD,
    QUERY_THREADS,
    QUERY_MESSAGES,
    QUERY_HISTORY,
    QUERY_TURN,
    QUERY_ALIAS
};

/* What a query has found; all text lives in `texts`. */
struct query_rows {
    struct arena texts;
    struct store_thread *threads;
    struct store_message *messages;
    struct store_turn turn;
    struct store_alias alias;
    size_t n;   /* rows in threads or messages */
    size_t cap; /* rows allocated there */
    size_t bytes;
    bool more;
};

/* Owned by its reader. On one list at any time: the implementation's own while it runs,
 * the reader's `finished` until its callback is called, none during the callback. */
struct store_query {
    TAILQ_ENTRY(store_query) link;
    struct store_reader *reader;
    enum query_kind kind;
    bool finished; /* on the reader's list, not on the implementation's */
    int state;     /* the implementation's own, from 0 */
    uint64_t seq;  /* place in the order of finishing */
    char *org;     /* owned */
    struct id id;
    struct store_query *inner; /* spooled_reader.c: asked of another reader, or NULL */
    uint64_t asked_ns;         /* spooled_reader.c: when that was */
    struct id cursor;          /* after or until */
    size_t limit;              /* rows; of a history messages */
    size_t max_bytes;          /* of a history */
    uint8_t key_digest[32];    /* of an alias */
    int64_t since_us;          /* likewise */
    uint64_t deadline_ns;
    union {
        store_thread_cb thread;
        store_threads_cb threads;
        store_messages_cb messages;
        store_turn_cb turn;
        store_alias_cb alias;
    } cb;
    void *arg;
    enum dac_err result;
    struct query_rows rows;
};

struct store_reader_ops {
    void (*close)(
        struct store_reader *r); /* its lists are empty; does not free r's core */
    /* Takes q over until query_finish(); may call that before it returns. */
    void (*start)(struct store_reader *r, struct store_query *q);
    /* Forgets q, which it has. */
    void (*cancel)(struct store_reader *r, struct store_query *q);
    bool (*up)(const struct store_reader *r); /* NULL: always */
    void (*want)(struct store_reader *r);     /* NULL: nothing is to be done */
};

/* First member of each implementation's reader. */
struct store_reader {
    uint32_t magic;
    const struct store_reader_ops *ops;
    struct event_base *base;
    struct event *deliver; /* runs the callbacks of `finished` */
    struct query_list finished;
    uint64_t finished_seq;
    pid_t pid;
    bool delivering;
    bool closing; /* closed from inside a callback */
};

/* Whether a query is answered soon, as far as is known. */
static inline bool store_reader_up(const struct store_reader *r)
{
    return !r->ops->up || r->ops->up(r);
}

/* It would be asked if it were up: not to be kept waiting for long. */
static inline void store_reader_want(struct store_reader *r)
{
    if (r->ops->want)
        r->ops->want(r);
}

/* The core's part; on failure nothing is left. */
enum dac_err reader_init(struct store_reader *r, const struct store_reader_ops *ops,
                         struct event_base *base);
void reader_fini(struct store_reader *r);
/* Hands a query back with its rows; the callback follows from the loop. */
void query_finish(struct store_query *q, enum dac_err e);
/* Rows found so far are dropped, for an attempt that starts over. */
void query_rows_reset(struct query_rows *rows);
/* Room for one more row, zeroed; NULL without memory. */
struct store_thread *query_add_thread(struct query_rows *rows);
struct store_message *query_add_message(struct query_rows *rows);

enum dac_err store_postgres_reader_open(struct event_base *base,
                                        const struct store_options *opt,
                                        struct store_reader **out, char *why, size_t n);
enum dac_err store_spooled_reader_open(struct event_base *base,
                                       const struct store_options *opt,
                                       struct store_reader **out, char *why, size_t n);
enum dac_err store_sqlite_reader_open(struct event_base *base, const char *path,
                                      struct store_reader **out, char *why, size_t n);

#endif
