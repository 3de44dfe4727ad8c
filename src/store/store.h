/*
 * The store of threads and turns: one interface, several implementations. This header is
 * what the recorder (the only writer) and the workers (readers) know.
 *
 * Writer: one batch of rows at a time, durable when its callback says DAC_OK. Every row
 * is idempotent by id, so a replay converges, also in another store. Reader: every query
 * is asynchronous: the callback never runs before the call returned, always exactly once
 * unless cancelled, and rows are borrowed until it returns. No handle crosses a fork.
 * Text is UTF-8 without NUL. Times are wall clock, microseconds since 1970.
 */
#ifndef DAC_STORE_STORE_H
#define DAC_STORE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/ids.h"

struct event_base;
struct store;
struct store_reader;
struct store_query;

struct store_options {
    const char *postgres;    /* libpq connection string; NULL or empty: SQLite */
    const char *application; /* of PostgreSQL's sessions: "dac: recorder" */
    const char *sqlite;      /* database file; its folder must exist */
    const char *spool;       /* with postgres: file that takes over while that is away */
    uint64_t spool_max_bytes;
    size_t thread_cache; /* threads that the spool keeps readable */
    /* Writer: called between two steps of a call that may take long, so that a watchdog
     * sees life; NULL: nobody. */
    void (*alive)(void *arg);
    /* Writer: store_up() or store_refused() may say something else now; also called
     * after each attempt to connect that has failed. From the loop. NULL: nobody. */
    void (*changed)(void *arg);
    void *arg;
};

/* Where something stored is. */
enum store_place { STORE_IN_SQLITE, STORE_IN_POSTGRES, STORE_IN_SPOOL };

struct store_text {
    const char *s; /* NULL: SQL NULL */
    size_t n;
};

struct store_thread {
    struct id id;
    const char *org;
    struct store_text title;
    int64_t created_us;
    struct id last_turn_id; /* newest stored turn, zero if none (reading only) */
};

/* Status words as stored: "complete", "cancelled", "incomplete", "failed". */
struct store_turn {
    struct id id;
    const char *org;
    struct id thread_id; /* zero: stateless chat */
    const char *provider;
    const char *model;
    const char *status;
    const char *finish_reason; /* NULL: none */
    const char *error_code;    /* NULL: none */
    double ttft_ms;            /* negative: none */
    double latency_ms;
    double queue_wait_ms;
    int64_t prompt_tokens; /* negative: unknown */
    int64_t completion_tokens;
    int64_t followers;
    int64_t hits;
    int generation;
    const char *fetcher; /* who made the call, "worker 2"; NULL: unknown (writing only) */
    uint8_t key_digest[32];
    int64_t created_us;
    int64_t finished_us;
    struct id user_message_id;
    struct store_text user_content;
    struct id assistant_message_id;
    struct store_text assistant_content; /* s NULL: no assistant message is stored */
    struct store_text citations;         /* JSON array or NULL */
    struct store_text tool_calls;        /* the same; of an assistant message */
    enum store_place place;              /* the safest one it is in (reading only) */
};

struct store_message {
    struct id id;
    struct id turn_id;
    const char *role; /* "user" or "assistant" */
    struct store_text content;
    struct store_text citations;
    int64_t created_us;
};

/* What an Idempotency-Key header stands for: a stored turn of its org. */
struct store_alias {
    struct id turn;
    const char *org;
    uint8_t key_digest[32];  /* of the header's value */
    uint8_t body_digest[32]; /* of the request it came with */
    int64_t created_us;      /* when the key was first used */
};

/* How long a key stands for its turn, from created_us on. */
#define STORE_ALIAS_LIFE_US (INT64_C(24) * 3600 * 1000000)

/* --- writer: the recorder ----------------------------------------------------------- */

/* Final numbers of a turn that left memory. */
struct store_counts {
    struct id turn;
    int64_t followers;
    int64_t hits;
};

/* A new title of a thread, or its deletion, which is a mark. */
struct store_change {
    struct id thread;
    const char *org;
    struct store_text title; /* of STORE_TITLE; s NULL: none */
    int64_t at_us;           /* when it was asked for */
};

/* What is not to be stored where it belongs, but in table `rejected`. */
struct store_rejected {
    struct id id;     /* of the thread or turn */
    const char *kind; /* "thread", "turn", "counts", "title", "delete" */
    const char *org;  /* NULL: unknown */
    const char *reason;
    struct store_text data; /* all of it as a JSON object; s NULL: none */
    int64_t at_us;
    bool was_stored; /* out: the thread or turn is in the store all the same, and nothing
                      * was set aside */
};

enum store_row_kind {
    STORE_THREAD,
    STORE_TURN,
    STORE_COUNTS,
    STORE_TITLE,
    STORE_DELETE,
    STORE_REJECTED,
    STORE_ALIAS
};

#define STORE_WHY_SIZE 192

struct store_row {
    enum store_row_kind kind;
    union {
        struct store_thread thread;
        struct store_turn turn;
        struct store_counts counts;
        struct store_change change;
        struct store_rejected rejected;
        struct store_alias alias;
    } u;
    /* Written by the store before the callback; of use only if that says DAC_OK.
     * DAC_OK: stored, or it was there already. DAC_E_INVALID: refused for its data, and
     * it alone. DAC_E_NOT_FOUND: its thread does not exist in its org (a turn, a title, a
     * deletion), or its turn was never stored (counts, an alias). A thread that is marked
     * as deleted still takes turns, since they were asked before; its title is gone. Of
     * two aliases for one key of an org the first one stands, also if the other is for
     * another turn (DAC_OK all the same), unless it is older than STORE_ALIAS_LIFE_US
     * before the other. An alias that is refused is not set aside. */
    enum dac_err result;
    enum store_place place;   /* of a result that is DAC_OK */
    char why[STORE_WHY_SIZE]; /* of a result that is not DAC_OK; no content of the row */
    char sqlstate[8];         /* PostgreSQL's code of it, "" if there is none */
    bool sent;                /* the store's own note while the batch runs */
};

/* DAC_OK: all rows whose result says so are durable. Otherwise it is unknown whether any
 * of the batch is stored; writing the batch again converges: DAC_E_BUSY (SQLite: another
 * program has held the lock for 2 s), DAC_E_TIMEOUT, DAC_E_FULL, DAC_E_DENIED (may only
 * read), DAC_E_STATE (not migrated), DAC_E_CLOSED (away), DAC_E_NOMEM, DAC_E_SYS. */
typedef void (*store_write_cb)(void *arg, enum dac_err e);

/* Opens and creates if missing (mode 0600). `base` is where callbacks come from. On
 * failure `why` (of `n` bytes) says what and where for the operator. */
enum dac_err store_open(struct event_base *base, const struct store_options *opt,
                        struct store **out, char *why, size_t n) DAC_CHECK;
/* Applies what is missing of the numbered migrations, all or nothing; needed before the
 * first batch. A database from a newer program, or of another one, is refused.
 * PostgreSQL: does nothing. */
enum dac_err store_migrate(struct store *st, char *why, size_t n) DAC_CHECK;
/* Forgets a batch that runs. */
void store_close(struct store *st);
/* "sqlite" or "postgres"; what `stored` says in answers. */
const char *store_kind(const struct store *st);
/* Whether a batch is worth trying: opened and migrated. PostgreSQL connects by itself,
 * again and again, and migrates whenever it has. */
bool store_up(const struct store *st);
/* Whether the database is from a newer release, as store_error() says: it will not be
 * usable, unless somebody acts. */
bool store_refused(const struct store *st);

/* Writes a batch; one at a time. Threads go before turns, those before all others; apart
 * from that the rows' order counts. The rows and all they point to
 * are the store's until the callback, which comes from the loop, never from inside the
 * call. SQLite does the work inside the call, which may take 2 s and a commit.
 * `timeout_ns`: how long the store may take to answer (SQLite: not looked at). */
void store_write(struct store *st, struct store_row *rows, size_t n, uint64_t timeout_ns,
                 store_write_cb cb, void *arg);
/* Whether a batch runs: its callback is still to come. */
bool store_busy(const struct store *st);
/* Gives the rows back: no callback any more, and it is unknown what became of them.
 * Without effect if none runs. */
void store_abort(struct store *st);
/* How much a batch should hold now, in rows (final numbers apart from the others) and
 * bytes of their texts: less after one that was not committed in time, or where there is
 * little room. It may always hold one row, however large. */
void store_batch_max(const struct store *st, size_t *rows, size_t *bytes);
/* How it is going. */
struct store_stats {
    bool up;                 /* the database itself, not the spool */
    uint64_t reconnects;     /* connections made after the first one */
    uint64_t spool_rows;     /* that the database has not got; 0 also without a spool */
    uint64_t spool_bytes;    /* of the file in use, kept threads included */
    int64_t spool_oldest_us; /* since when the oldest of them waits; 0: none does */
    bool spool_full;         /* no new questions are to be taken */
};
void store_stats(const struct store *st, struct store_stats *out);

/* Upkeep that is due (SQLite: a checkpoint of the write-ahead log); may take as long as a
 * commit. Call when those who waited for a commit were told, also while the next batch
 * runs; a commit does it itself when it is long overdue. */
void store_tidy(struct store *st);
/* Text of the last failure of a whole batch, with the place and what to do; no content of
 * rows. Valid until the next call. */
const char *store_error(const struct store *st);

/* --- reader: the workers ------------------------------------------------------------ */

/* A reader never writes. SQLite: the database must have been migrated; may wait up to 2 s
 * for a lock. PostgreSQL: connects in the background, whatever the database is like;
 * queries wait for it. */
enum dac_err store_reader_open(struct event_base *base, const struct store_options *opt,
                               struct store_reader **out, char *why, size_t n) DAC_CHECK;
/* Cancels what runs. Allowed inside a callback. */
void store_reader_close(struct store_reader *r);
/* No callback any more. Not from inside that query's own callback. */
void store_query_cancel(struct store_query *q);

/* e: DAC_OK, DAC_E_NOT_FOUND (also: of another org, or deleted), DAC_E_TIMEOUT (locked,
 * away or silent for 2 s), DAC_E_INVALID (`after` is no thread or message there),
 * DAC_E_BUSY (PostgreSQL: 1,000 queries wait already), and the store's own failures:
 * DAC_E_SYS, DAC_E_NOMEM, DAC_E_CORRUPT. Unless DAC_OK, rows are NULL and n is 0.
 * Callbacks come in the order of asking, but that of DAC_E_BUSY, which waits for nobody.
 */
typedef void (*store_thread_cb)(void *arg, enum dac_err e, const struct store_thread *t);
typedef void (*store_threads_cb)(void *arg, enum dac_err e, const struct store_thread *t,
                                 size_t n, bool more);
typedef void (*store_messages_cb)(void *arg, enum dac_err e,
                                  const struct store_message *m, size_t n, bool more);
typedef void (*store_turn_cb)(void *arg, enum dac_err e, const struct store_turn *t);
typedef void (*store_alias_cb)(void *arg, enum dac_err e, const struct store_alias *a);

/* Each returns NULL if the query could not be made (no memory); then there is no
 * callback. */
struct store_query *store_read_thread(struct store_reader *r, const char *org,
                                      const struct id *id, store_thread_cb cb, void *arg);
/* Newest first, those older than `after` (zero: from the newest), at most `limit` (above
 * 200: 200). `more`: the page is not the last. */
struct store_query *store_read_threads(struct store_reader *r, const char *org,
                                       const struct id *after, size_t limit,
                                       store_threads_cb cb, void *arg);
/* Oldest turn first, its question before its answer; those behind message `after` (zero:
 * from the first), at most `limit` (above 200: 200). A page also ends when its texts pass
 * 8 MiB, but holds one message at least. */
struct store_query *store_read_messages(struct store_reader *r, const char *org,
                                        const struct id *thread, const struct id *after,
                                        size_t limit, store_messages_cb cb, void *arg);
/* What an upstream call gets as context: messages of the thread's turns up to and with
 * turn `until` (zero: none, an empty history), turns that have an assistant message only,
 * oldest first, the newest kept within both bounds; whole turns only. `more`: older ones
 * were left out. Turns are ordered by their creation; at most the 1,000 newest are looked
 * at. DAC_E_NOT_FOUND also: `until` is no turn of that thread. */
struct store_query *store_read_history(struct store_reader *r, const char *org,
                                       const struct id *thread, const struct id *until,
                                       size_t max_messages, size_t max_bytes,
                                       store_messages_cb cb, void *arg);
/* With its question and its answer. */
struct store_query *store_read_turn(struct store_reader *r, const char *org,
                                    const struct id *turn, store_turn_cb cb, void *arg);
/* The turn that a key stands for. DAC_E_NOT_FOUND also: the key is older than `since_us`.
 * Where there is a spool this never ends with DAC_E_TIMEOUT or DAC_E_BUSY: while
 * PostgreSQL is away, or if it does not answer in 300 ms, a key that the spool does not
 * remember (it does the last 100,000) is DAC_E_NOT_FOUND. */
struct store_query *store_read_alias(struct store_reader *r, const char *org,
                                     const uint8_t key_digest[32], int64_t since_us,
                                     store_alias_cb cb, void *arg);

#endif
