/*
 * The spool: a SQLite file that takes batches while PostgreSQL is away, and keeps the
 * threads that were used last, so that they stay readable meanwhile.
 *
 * It has the tables of a SQLite store, in which what is spooled and what is kept are
 * ordinary rows, and three of its own: the queue, which says what PostgreSQL has not got
 * yet and in which order, the index of the kept threads, and the idempotency keys that
 * were used last. A row is durable when spool_put() returns, and leaves the queue only
 * after PostgreSQL's commit. Kept rows are a cache: written without fsync, threads
 * dropped by least recent use, keys by age.
 *
 * Calls take as long as SQLite does and never wait for the network. Runs in the recorder;
 * workers read the file with the SQLite reader.
 */
#ifndef DAC_STORE_SPOOL_H
#define DAC_STORE_SPOOL_H

#include "base/bytes.h"
#include "store/arena.h"
#include "store/store.h"

struct spool;

struct spool_options {
    struct event_base *base;
    const char *path;
    uint64_t max_bytes;       /* of the file; above it nothing new is taken */
    size_t threads_max;       /* threads that are kept */
    size_t turns_kept;        /* of one thread, at least */
    size_t aliases_max;       /* idempotency keys that are remembered, besides those that
                               * PostgreSQL has not got yet; a little more for a while */
    bool as_it_is;            /* a file that is missing or of no use is an error, and
                               * nothing is renamed or made; not the service's own */
    void (*alive)(void *arg); /* as in struct store_options */
    void *arg;
};

struct spool_stats {
    uint64_t rows;     /* in the queue */
    uint64_t bytes;    /* of the file that are in use, kept threads included */
    int64_t oldest_us; /* when the first in the queue came; 0: it is empty */
    bool nearly_full;  /* above nine tenths of max_bytes, with rows in the queue, and no
                        * thread that could make way: newcomers are to be refused */
};

/* The oldest rows of the queue, to be written elsewhere. Rows and texts are its own. */
struct spool_batch {
    struct store_row *rows;
    size_t n;
    int64_t last_seq;
    bool set_aside; /* its only row is one that recorders died of; now STORE_REJECTED */
    struct arena texts;
    struct buf data; /* what is set aside */
};

/* Opens, or makes the file (mode 0600); but see `as_it_is`. One that is damaged, of
 * another program or of a newer version is renamed, never deleted; that is logged, and a
 * new one begun. On failure `why` is for the operator. */
enum dac_err spool_open(const struct spool_options *opt, struct spool **out, char *why,
                        size_t n) DAC_CHECK;
void spool_close(struct spool *sp);

/* Queues a batch, in its order; each row's result as store_write() says. What is kept
 * makes way for it. DAC_E_FULL: the file would pass its limit, or the disk is full;
 * nothing was taken. A file that turns out to be damaged is set aside as at the opening,
 * and the batch goes into a new one. */
enum dac_err spool_put(struct spool *sp, struct store_row *rows, size_t n) DAC_CHECK;
/* Lowers rows and bytes of text to what surely finds room now, as far as is known; it may
 * be less than the first row. */
void spool_fit(struct spool *sp, size_t *rows, size_t *bytes);
/* Keeps what PostgreSQL has just committed: threads, turns, titles and deletions of them,
 * aliases. A failure costs the cache, not the rows. */
void spool_keep(struct spool *sp, struct store_row *rows, size_t n);
/* Whether nothing older of this thread is missing from what a history takes. */
bool spool_knows_history(struct spool *sp, const struct id *thread);
/* The turns that history needs were kept by spool_keep(): `whole` is all of them. */
void spool_filled(struct spool *sp, const struct id *thread, bool whole);

/* The oldest rows, which are in hand from then on: should this process die of them, the
 * next one finds out which it was and goes on without (spool_hand.c). At most `max` and
 * about `bytes` of text; an empty batch: none. The caller frees it in either case. A
 * damaged file is set aside, and then there are none.
 */
enum dac_err spool_next(struct spool *sp, size_t max, size_t bytes,
                        struct spool_batch *out) DAC_CHECK;
/* Nothing was heard of the batch for a while: whoever dies now hardly dies of it. */
void spool_wait(struct spool *sp);
/* The batch came to nothing; its rows stay in the queue. Also before the process ends. */
void spool_put_back(struct spool *sp);
/* They are stored elsewhere: takes them off the queue. What was refused there for a
 * missing thread is set aside in table `rejected`; an alias that was refused is
 * forgotten.
 */
enum dac_err spool_done(struct spool *sp, const struct spool_batch *batch) DAC_CHECK;
void spool_batch_free(struct spool_batch *batch);

/* How many rows wait, about while they come in; takes no time, unlike the others. */
uint64_t spool_rows(const struct spool *sp);
/* Puts all threads and turns of the file into the queue that are not there, whether
 * PostgreSQL has them or not: for a file whose queue may have lost rows. */
enum dac_err spool_queue_all(struct spool *sp) DAC_CHECK;

/* Copies what can be read of another file, whose queue may be damaged, into `to`, a new
 * one. `whole`: nothing was unreadable. DAC_E_CORRUPT: all was. Leaves the other file as
 * it is. */
enum dac_err spool_salvage(struct spool *to, const char *path, bool *whole, char *why,
                           size_t n) DAC_CHECK;

void spool_stats(struct spool *sp, struct spool_stats *out);
/* Upkeep, between batches: the log of the file, and dropping what is kept too long. */
void spool_tidy(struct spool *sp);
/* Text of the last failure. Valid until the next call. */
const char *spool_error(const struct spool *sp);

#endif
