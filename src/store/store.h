/*
 * The store of threads and turns: one interface, several implementations. This header is
 * what the recorder (the only writer) and the workers (readers) know.
 *
 * Writer: synchronous calls between store_begin() and store_commit(); durable when commit
 * returned DAC_OK. Every write is idempotent by id, so a replay converges. Reader: every
 * query is asynchronous: the callback never runs before the call returned, always exactly
 * once unless cancelled, and rows are borrowed until it returns. No handle crosses a
 * fork. Text is UTF-8 without NUL. Times are wall clock, microseconds since 1970.
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
    const char *sqlite; /* database file; its folder must exist */
};

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
    uint8_t key_digest[32];
    int64_t created_us;
    int64_t finished_us;
    struct id user_message_id;
    struct store_text user_content;
    struct id assistant_message_id;
    struct store_text assistant_content; /* s NULL: no assistant message is stored */
    struct store_text citations;         /* JSON array or NULL */
};

struct store_message {
    struct id id;
    struct id turn_id;
    const char *role; /* "user" or "assistant" */
    struct store_text content;
    struct store_text citations;
    int64_t created_us;
};

/* --- writer: the recorder ----------------------------------------------------------- */

/* Opens and creates if missing (mode 0600). On failure `why` (of `n` bytes) says what and
 * where for the operator. */
enum dac_err store_open(const struct store_options *opt, struct store **out, char *why,
                        size_t n) DAC_CHECK;
/* Applies what is missing of the numbered migrations, all or nothing; needed before the
 * first batch. A database from a newer program, or of another one, is refused. */
enum dac_err store_migrate(struct store *st, char *why, size_t n) DAC_CHECK;
void store_close(struct store *st);
/* "sqlite"; what `stored` says in answers. */
const char *store_kind(const struct store *st);

/* DAC_E_BUSY: another program has held the database's lock for 2 s. */
enum dac_err store_begin(struct store *st) DAC_CHECK;
/* DAC_E_EXISTS is not an error but DAC_OK: the row is there. DAC_E_INVALID: the store
 * refuses this row for its data; the others of the batch are untouched.
 * DAC_E_NOT_FOUND: the turn's thread does not exist in its org. Other (DAC_E_FULL,
 * DAC_E_SYS, ...): the batch is lost, roll back; a new batch may succeed. A thread that
 * is marked as deleted still takes turns, since they were asked before. */
enum dac_err store_put_thread(struct store *st, const struct store_thread *t) DAC_CHECK;
enum dac_err store_put_turn(struct store *st, const struct store_turn *t) DAC_CHECK;
/* Final numbers of a turn that leaves memory. DAC_E_NOT_FOUND: it was never stored; the
 * others of the batch are untouched. */
enum dac_err store_put_counts(struct store *st, const struct id *turn, int64_t followers,
                              int64_t hits) DAC_CHECK;
/* DAC_OK: on disk. Otherwise nothing of the batch is; roll back. */
enum dac_err store_commit(struct store *st) DAC_CHECK;
/* Without effect outside a batch. */
void store_rollback(struct store *st);
/* Upkeep that is due (SQLite: a checkpoint of the write-ahead log); may take as long as a
 * commit. Call between batches, after those who waited for the commit were told; a commit
 * does it itself when it is long overdue. */
void store_tidy(struct store *st);
/* Text of the last failure, with the file and what to do; no content of rows. Valid until
 * the next call. */
const char *store_error(const struct store *st);

/* --- reader: the workers ------------------------------------------------------------ */

/* The database must have been migrated. May wait up to 2 s for a lock. A reader never
 * writes. */
enum dac_err store_reader_open(struct event_base *base, const struct store_options *opt,
                               struct store_reader **out, char *why, size_t n) DAC_CHECK;
/* Cancels what runs. Allowed inside a callback. */
void store_reader_close(struct store_reader *r);
/* No callback any more. Not from inside that query's own callback. */
void store_query_cancel(struct store_query *q);

/* e: DAC_OK, DAC_E_NOT_FOUND (also: of another org, or deleted), DAC_E_TIMEOUT (locked
 * for 2 s), DAC_E_INVALID (`after` is no thread or message there), and the store's own
 * failures: DAC_E_SYS, DAC_E_NOMEM, DAC_E_CORRUPT. Unless DAC_OK, rows are NULL and n is
 * 0. Callbacks come in the order of asking. */
typedef void (*store_thread_cb)(void *arg, enum dac_err e, const struct store_thread *t);
typedef void (*store_threads_cb)(void *arg, enum dac_err e, const struct store_thread *t,
                                 size_t n, bool more);
typedef void (*store_messages_cb)(void *arg, enum dac_err e,
                                  const struct store_message *m, size_t n, bool more);
typedef void (*store_turn_cb)(void *arg, enum dac_err e, const struct store_turn *t);

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
struct store_query *store_read_turn(struct store_reader *r, const char *org,
                                    const struct id *turn, store_turn_cb cb, void *arg);

#endif
