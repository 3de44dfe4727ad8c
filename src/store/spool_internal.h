/*
 * What the files of the spool share. The file's own tables: the queue, the idempotency
 * keys in the order in which they were stored, and an index of the threads that are kept,
 * with how deep each of them is:
 *
 *   0  some turns; older ones may be missing from a history
 *   1  as many of the newest as a history takes
 *   2  all there are
 */
#ifndef DAC_STORE_SPOOL_INTERNAL_H
#define DAC_STORE_SPOOL_INTERNAL_H

#include <sqlite3.h>

#include "store/internal.h"
#include "store/spool.h"

enum {
    S_QUEUE,
    S_PLACEHOLDER,
    S_TOUCH,
    S_DEPTH,
    S_SET_DEPTH,
    S_OVERLONG,
    S_OLD_TURNS,
    S_LOOSE_TURNS,
    S_DROP_MESSAGES,
    S_DROP_TURN,
    S_TRIM_DEPTH,
    S_NEXT,
    S_FORGET,
    S_DONE,
    S_REJECT,
    S_COUNT,
    S_PAGES,
    S_FREE_PAGES,
    S_STALE,
    S_HEAVY,
    S_HISTORY,
    S_HAND,
    S_HELD,
    S_DEATHS,
    S_SUSPECTS,
    S_SUSPECT,
    S_CLEARED,
    S_LEAVE,
    S_LEAVE_QUEUE,
    S_LEAVE_DEATHS,
    S_DROP_THREAD,
    S_DROP_INDEX,
    S_ALIAS,
    S_ALIAS_DEAD,
    S_ALIAS_REFUSED,
    S_ALIAS_DROP,
    S_ALIAS_TRIM,
    S_ALIAS_COUNT,
    S_N
};

#define SPOOL_HISTORY_MESSAGES 40 /* of a history, as questions take them along */
#define SPOOL_HISTORY_BYTES    (256u << 10)

/* spool_way.c */
enum spool_way { WAY_THREADS, WAY_TURNS, WAY_HISTORIES, WAY_NOTHING };

struct spool {
    struct store *st; /* owned; the file's ordinary tables */
    sqlite3 *db;      /* st's */
    sqlite3_stmt *stmt[S_N];
    char *path;               /* owned */
    struct spool_options opt; /* for spool_renew() */
    uint64_t max_bytes;
    size_t threads_max;
    size_t turns_kept;
    uint64_t page_size;
    uint64_t used;    /* bytes of the file in use, if `used_known`, */
    int used_changes; /* as of this count of SQLite's */
    bool used_known;
    uint64_t rows;    /* in the queue */
    uint64_t aliases; /* remembered */
    uint64_t aliases_max;
    int64_t oldest_us;
    size_t held;        /* rows in hand, as the file says */
    bool suspects;      /* some rows in the queue have deaths */
    bool loose;         /* turns without a thread may be left behind the queue */
    bool stale;         /* threads may be too many */
    enum spool_way way; /* what can make way for the queue, as far as is known */
    int64_t way_used;   /* the last thread that has, in the order of their use */
    struct id way_thread;
    char error[STORE_ERROR_SIZE];
};

/* One stretch of upkeep: it may take so long at most, for the recorder waits for it. */
struct spool_step {
    uint64_t until_ns; /* on the monotonic clock */
    size_t turns;      /* that were let go of */
};

/* Fills in spool_error(); what the code means. */
enum dac_err spool_fail(struct spool *sp, int rc, const char *what);
/* The same for a failure of the ordinary tables. */
enum dac_err spool_store_failed(struct spool *sp, enum dac_err e);
/* Ends a transaction that failed. */
void spool_give_up(struct spool *sp);
/* Counts what is queued. SQLite's code. */
int spool_recount(struct spool *sp);
/* Runs a statement to its end, and forgets what was bound. SQLite's code. */
int spool_run(struct spool *sp, int which);
/* One transaction; `queued`: for PostgreSQL, not only to be kept. */
enum dac_err spool_put_rows(struct spool *sp, struct store_row *rows, size_t n,
                            bool queued);
/* A statement that finds one row of one or two numbers; `second` may be NULL. */
int spool_read_number(struct spool *sp, int which, int64_t *first, int64_t *second);
/* The file turned out to be damaged: sets it aside and begins a new one. On failure the
 * old one stays open, as useless as it is. */
enum dac_err spool_renew(struct spool *sp) DAC_CHECK;
uint64_t spool_bytes_used(struct spool *sp);
/* Whose thread a row is; NULL: of none. */
const struct id *spool_thread_of(const struct store_row *row);
/* Whether a thread has an eighth more turns than are kept of it: trimming takes far
 * longer than asking this. */
bool spool_is_overlong(struct spool *sp, const struct id *thread);
/* Begins a stretch of upkeep. */
struct spool_step spool_step(void);
/* Lets go of the oldest turns of a thread, but for its `keep` newest and those in the
 * queue; if there are any, it is `depth` deep at most. True: others are left for the next
 * time, for it would take too long, however many or large they are. */
bool spool_trim(struct spool *sp, const struct id *thread, size_t keep, int depth,
                struct spool_step *step);
/* The same of the turns without a thread that have left the queue. */
bool spool_drop_loose(struct spool *sp, struct spool_step *step);
/* Commits of the cache need not reach the disk: what is lost of them is in PostgreSQL.
 * Outside of transactions. */
void spool_durable(struct spool *sp, bool yes);
/* At most so many bytes of the file will a batch take. */
size_t spool_rows_size(const struct spool *sp, const struct store_row *rows, size_t n);
/* Lets go of what is only kept until no more than `target` bytes are used, or nothing is
 * left that can go, or it takes too long. */
void spool_make_way(struct spool *sp, uint64_t target);

/* spool_hand.c. A new recorder counts the death of the last one; SQLite's code. */
int spool_hand_open(struct spool *sp);
/* Takes the first rows in hand, at most `max`, which becomes how many they may be.
 * `aside`: the first one is to be set aside, alone. */
enum dac_err spool_hand_take(struct spool *sp, size_t *max, bool *aside) DAC_CHECK;
/* In a transaction of the caller's; SQLite's code. Those up to `last_seq` are stored. */
int spool_hand_done(struct spool *sp, int64_t last_seq);
/* Makes the only row of a batch one for table `rejected`. False: it cannot be. */
bool spool_set_aside(struct spool_batch *batch);

/* In a transaction of the caller's; SQLite's code. Remembers an alias; if its turn was
 * refused here, row->result says so. */
int spool_alias_put(struct spool *sp, struct store_row *row);
/* Forgets what spool_alias_put() has remembered of this very alias. */
int spool_alias_drop(struct spool *sp, const struct store_alias *a);
/* Counts them anew: at the start, and after a transaction that failed. */
int spool_alias_recount(struct spool *sp);
/* Whether there are so many that some of the oldest are to be forgotten. */
bool spool_alias_crowded(const struct spool *sp);
void spool_alias_trim(struct spool *sp);

#endif
