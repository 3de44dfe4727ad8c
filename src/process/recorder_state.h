/*
 * The parts of the recorder and what they share. Internal to the recorder's files; its
 * process only.
 */
#ifndef DAC_PROCESS_RECORDER_STATE_H
#define DAC_PROCESS_RECORDER_STATE_H

#include "process/child.h"
#include "shm/flight.h"
#include "store/store.h"

#define COUNTS_MAX 8192
#define BATCH_KEYS 256 /* rows of Idempotency-Keys in one batch */

/* What this recorder knows of one flight's present use. Forgotten when it dies: then
 * numbers are written once more, which changes nothing. */
struct flight_note {
    uint64_t orphan_read_ns; /* since when an orphan has readers, 0: it has none */
    uint64_t orphan_word;    /* the flight's word that the time above speaks of */
    bool pending;            /* in recorder.pending */
    bool late;               /* in recorder.late */
    bool counted;            /* the two numbers below are in the store */
    uint32_t incarnation;    /* of the use that `counted` speaks of */
    uint64_t followers;
    uint64_t hits;
};

/* Final numbers of a turn that left memory. */
struct count_update {
    struct id turn;
    uint64_t followers;
    uint64_t hits;
};

struct recycle_candidate; /* recorder_recycle.c's own */
struct recorder_batch;    /* recorder_batch.c's own */
struct key_rows;          /* recorder_keys.c's own */

struct recorder {
    const struct child_context *ctx;
    struct shm *shm;
    struct store *store;
    struct event_base *base;
    struct event *wake;  /* the slot's eventfd */
    struct event *beat;  /* every BEAT_NS */
    struct event *again; /* one shot: store more, or try once more */
    struct event *tidy;  /* one shot: the store's upkeep */
    struct child_stop stop;

    struct flight_note *notes; /* owned, one per flight */
    uint32_t *pending;         /* owned: flights to store, each once; room for all */
    size_t pending_count;
    uint32_t *late; /* owned: stored flights whose keys are not all stored, each once */
    size_t late_count;
    struct count_update *counts; /* owned, at most COUNTS_MAX */
    size_t count_count;
    struct recycle_candidate *candidates; /* owned, room for all flights */
    struct recorder_batch *batch;         /* owned, the one that is being written */
    struct key_rows *keys;                /* owned, those of the batch */

    uint64_t live_seen;    /* see child_live() */
    uint32_t kicks;        /* as last seen in the header */
    bool failing;          /* the last batch was lost; said so in the log */
    uint64_t backoff_ns;   /* before the next try */
    uint64_t retry_at_ns;  /* 0: at once */
    uint64_t reconnects;   /* to the database, as counted so far */
    uint64_t recycled_ns;  /* when recycling last ran */
    uint64_t stopping_ns;  /* since when the service stops, 0: it runs */
    uint64_t finishing_ns; /* since when all others are gone, 0: not yet */
    bool ready;            /* the master knows that this process works */
    bool over;             /* all done */
    int failed;            /* what to exit with instead, EXIT_OK: nothing failed */
};

/* recorder.c: looks at one flight: whether it is to be ended or stored. */
void recorder_look(struct recorder *r, uint32_t flight);

/* recorder_adopt.c: whether an ORPHANED flight is left alone for now, for somebody to
 * take it over. */
bool recorder_leaves_orphan(struct recorder *r, uint32_t flight, struct flight_word w);
/* recorder_adopt.c: ends an ORPHANED flight, or one of this recorder's that it could not
 * end before. Whether the flight has ended now. */
bool recorder_end_orphan(struct recorder *r, uint32_t flight, struct flight_word w);

/* Whether anything waits to be stored. */
static inline bool recorder_has_work(const struct recorder *r)
{
    return r->pending_count > 0 || r->late_count > 0 || r->count_count > 0;
}

/* recorder.c: a batch is over, one way or the other: goes on with what waits, or ends. */
void recorder_continue(struct recorder *r);
/* Looks at the flights that others have named since. */
void recorder_take_dirty(struct recorder *r);
/* The store's upkeep is to be seen to, when those who were told have had time to run. */
void recorder_tidy_soon(struct recorder *r);
/* What a line about this flight names. The org may be NULL. */
struct flight_about {
    char turn[ID_TEXT_SIZE];
    char trace[TRACE_ID_TEXT_SIZE];
    struct log_about about; /* points to the above */
};
const struct log_about *recorder_about(const struct recorder *r, uint32_t flight,
                                       const char *org, struct flight_about *out);
/* Tells the world how the store is doing. */
void recorder_note_store(struct recorder *r);

/* recorder_batch.c: a new recorder counts the death of the last one for each flight that
 * was in its hands. */
void recorder_count_deaths(struct recorder *r);
/* recorder_batch.c: nothing is in this recorder's hands: the batch is over, or given up.
 */
void recorder_put_down(struct recorder *r);
/* recorder_batch.c: begins to store a batch of what waits, if it is time and none is
 * being stored; recorder_continue() follows. */
void recorder_store(struct recorder *r, uint64_t now_ns);
/* Room for one batch; NULL without memory. Freed after the store was closed. */
struct recorder_batch *recorder_batch_new(void);
void recorder_batch_free(struct recorder_batch *b);

/* recorder_keys.c: adds rows for those Idempotency-Keys of a turn in this batch that are
 * not stored, as many as there is room for; returns how many. `org` is borrowed. */
size_t recorder_keys_add(struct recorder *r, uint32_t flight, const char *org,
                         struct store_row *rows);
/* recorder_keys.c: the same for turns that were stored before. DAC_E_NOMEM: no batch can
 * be made now. */
enum dac_err recorder_keys_add_late(struct recorder *r, struct store_row *rows,
                                    size_t *n) DAC_CHECK;
/* recorder_keys.c: nothing is to be stored for this flight's keys. */
void recorder_keys_dismiss(struct recorder *r, uint32_t flight);
/* recorder_keys.c: a flight that is stored: lists it if its keys are not. */
void recorder_keys_look(struct recorder *r, uint32_t flight);
/* recorder_keys.c: the batch is committed: marks what it had. */
void recorder_keys_committed(struct recorder *r);
/* recorder_keys.c: the batch is lost. */
void recorder_keys_forget(struct recorder *r);
/* NULL without memory; freed by free(). */
struct key_rows *recorder_keys_new(void);

/* recorder_recycle.c: frees flights: those whose time is over, and under pressure the
 * oldest that may go. */
void recorder_recycle(struct recorder *r, uint64_t now_ns);
/* Room for `n` candidates, owned by the caller; NULL without memory. */
struct recycle_candidate *recorder_recycle_table(uint32_t n);
/* Notes the present numbers of all stored flights for the next batch, where they have
 * changed. At the end of the service. */
void recorder_collect_counts(struct recorder *r);

#endif
