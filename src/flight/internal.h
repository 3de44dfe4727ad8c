/*
 * The structs of this folder and what its files call in each other. Not for others.
 *
 *   flights.c   the table of local flights, wake-ups, the tick
 *   join.c      asking, leaving
 *   keyed.c     asking with an Idempotency-Key
 *   attach.c    turns in memory by their id
 *   audience.c  the shared cursor, one encode per dialect, fan-out
 *   lag.c       members with a cursor of their own; endings
 *   takeover.c  an orphaned flight gets a new owner
 *   fetch.c     a flight this worker owns: history, pacer, call, retry, END
 *   fetch_log.c what the call produced, into the log
 */
#ifndef DAC_FLIGHT_INTERNAL_H
#define DAC_FLIGHT_INTERNAL_H

#include <event2/event.h>

#include "base/log.h"
#include "flight/ask.h"
#include "flight/dialect.h"
#include "flight/flights.h"

#define DIALECTS_MAX           8 /* different dialects among one flight's live members */
#define SENDS_PER_TURN         256         /* fan-out yields to the loop after so many */
#define ENCODE_MAX             (32u << 20) /* bytes of one encoded piece */
#define PASS_BYTES             (64u << 10) /* log bytes taken into one pass */
#define COMMENT_NS             UINT64_C(15000000000)
#define ROOM_WAIT_NS           UINT64_C(500000000) /* how long a request waits for room */
#define ROOM_RETRY_MS          10
#define ROOM_WAITERS_MAX       4096
#define VERDICT_AFTER_QUEUE_NS UINT64_C(10000000000)
#define VERDICT_IN_ALL_NS      UINT64_C(55000000000)

TAILQ_HEAD(member_list, member);
TAILQ_HEAD(fetch_list, fetch);
TAILQ_HEAD(local_list, local_flight);

/* What records brought; or'ed. */
enum content {
    CONTENT_ANSWER = 1, /* text, a tool call */
    CONTENT_REASONING = 2,
    CONTENT_RESET = 4, /* a new generation begins; never with anything else */
};

/* Whether a member's `first` is due before such a piece. */
static inline bool first_is_due(const struct member *m, unsigned content)
{
    return !m->first_sent &&
           ((content & CONTENT_ANSWER) != 0 ||
            ((content & CONTENT_REASONING) != 0 && m->dialect->first_at_reasoning));
}

/* The worker's encode of one pass for one dialect. */
struct encoder {
    const struct dialect *dialect;
    size_t live; /* members that listen to it; 0: the place is free */
    struct buf buf;
    struct http_piece piece;
};

/* One flight as this worker sees it: freed when it has neither members nor a fetch. */
struct local_flight {
    struct flights *fl;
    struct flight_ref ref;
    bool queued; /* in the run queue */
    TAILQ_ENTRY(local_flight) run_link;
    TAILQ_ENTRY(local_flight) all_link;
    bool reader;                /* this worker's reader bit is set for it */
    bool running;               /* audience_run() is at it: it is not freed now */
    struct member_list live;    /* LIVE; newcomers at the head, where a pass has been */
    struct member_list waiting; /* WAITING: those that stream, then those that don't */
    struct member_list lagging; /* LAGGING and ENDING */
    struct member_list stalled; /* STALLED */
    size_t member_count;
    struct blocklog_cursor cursor; /* of the live members */
    struct position at;
    bool content_seen; /* something of the answer lies before the cursor */
    bool end_seen;     /* END lies before the cursor */
    struct turn_view view;
    char provider[PROVIDER_MAX + 1];
    char model[MODEL_MAX + 1];
    char thread_id[ID_TEXT_SIZE];
    char org[ORG_MAX + 1];
    char trace[TRACE_ID_TEXT_SIZE]; /* of the request that led to it */
    char *leader; /* owned: id of the request that leads it here, or NULL; for the log */
    /* A pass: pieces that are being sent to live members. */
    struct member *pass_next; /* NULL: no pass under way */
    unsigned pass_content;    /* enum content of it */
    struct position pass_at;  /* position before the pass's content */
    bool pass_ended;          /* END came with it */
    struct encoder encoders[DIALECTS_MAX];
    struct turn_result
        *result;         /* the whole flight, read once for JSON answers; or NULL */
    struct fetch *fetch; /* this worker owns the flight; or NULL */
    /* Owned: the question as a follower brought it, while it is not in the log; or NULL.
     */
    struct turn_request *question;
};

enum fetch_phase {
    FETCH_ROOM,    /* for blocks, to log its request; at most ROOM_WAIT_NS */
    FETCH_QUEUED,  /* for the pacer; its history may still be read */
    FETCH_BACKOFF, /* waits before its second try */
    FETCH_CALLING,
};

/* A flight this worker owns. */
struct fetch {
    struct local_flight *lf;
    TAILQ_ENTRY(fetch) link; /* in its provider's queue while FETCH_QUEUED */
    enum fetch_phase phase;
    bool in_queue;
    uint32_t provider;
    struct turn_request request; /* owned */
    struct json_object *history; /* owned; array of messages, NULL until read */
    bool history_ready;
    struct store_query *query; /* reading history, or NULL */
    struct upstream_call *call;
    struct blocklog_writer writer;
    uint32_t permit;
    bool content; /* something of the answer was logged */
    bool retried;
    uint64_t created_ns;
    uint64_t started_ns;      /* of the first try, for retry_deadline */
    struct event *timer;      /* backoff before a retry, or waiting for room in the log */
    uint64_t timer_due_ns;    /* when it was last to fire, 0 once it has */
    struct event *grace;      /* runs while nobody listens */
    uint64_t unread_since_ns; /* nobody listens since; 0: somebody does */
    /* Records that found no room, in order; the call is paused meanwhile. */
    struct buf held;
    uint64_t held_since_ns;
    bool end_held;
    struct record_end end;
};

/* A request that waits for room in the flight table. */
struct room_waiter {
    TAILQ_ENTRY(room_waiter) link;
    struct flights *fl;
    struct member *member;
    struct ask ask; /* owns its request */
    uint64_t since_ns;
};
TAILQ_HEAD(room_list, room_waiter);

struct keyed;
TAILQ_HEAD(keyed_list, keyed);

struct provider_queue {
    struct fetch_list waiting;
    struct event *timer;
    struct upstream_provider upstream;
};

struct flights {
    struct event_base *base;
    struct shm *shm;
    const struct config *config;
    struct upstream *upstream;
    struct store_reader *reader;
    struct local_flight **table; /* by flight index */
    struct local_list all;
    struct local_list run; /* have something to do */
    bool in_run;           /* on_run() is at it: it comes back by itself */
    struct event *run_event;
    struct event *wake_event;
    struct event *room_timer;
    struct room_list room;
    size_t room_count;
    struct keyed_list keyed; /* requests whose Idempotency-Key is being looked at, or that
                              * wait for it or for room */
    size_t keyed_count;
    struct provider_queue providers[CONFIG_PROVIDERS_MAX];
    size_t members;
    size_t fetches;
    bool cutting;
    uint32_t kicks_seen;
    uint64_t
        pass_now_ns; /* time of the pass, for when a member was last sent something */
    char *scratch;   /* of one record, grown on demand */
    size_t scratch_size;
    struct buf text;  /* neighbouring text records, merged */
    struct buf piece; /* what is encoded for one member */
};

/* flights.c */
struct local_flight *local_get(struct flights *fl, struct flight_ref ref);
struct local_flight *local_new(struct flights *fl, struct flight_ref ref);
void local_schedule(struct local_flight *lf);
/* What lines about the flight name. Borrowed from `lf`. */
struct log_about local_about(const struct local_flight *lf);
/* Frees it, or drops the reader bit, if nothing holds it. */
void local_settle(struct local_flight *lf);
void *flights_scratch(struct flights *fl, size_t n);

/* join.c */
/* Of an exchange that has joined nothing yet; NULL without memory. */
struct member *member_new(struct http_exchange *ex, const struct dialect *dialect);
/* Adds it to the flight's audience. */
void member_join(struct member *m, struct local_flight *lf, enum join_role role);
void member_leave(struct member *m);
void member_free(struct member *m);
/* Answers the exchange of one that has joined nothing; a 503 may be tried again. */
void member_refuse(struct member *m, int status, const char *code, const char *text);
/* What its clients are told of the question. */
void local_set_names(struct local_flight *lf, const struct turn_request *r);
/* Joins or leads. DAC_E_FULL: nothing happened, and m can try again. Otherwise m is dealt
 * with. `alias`: a claimed one, to be bound to the flight, NULL: none; it is bound or
 * dropped in any case. */
enum dac_err join_try(struct flights *fl, struct member *m, struct ask *ask,
                      const uint32_t *alias);
void join_arm_timer(struct flights *fl);
void join_room_timer(evutil_socket_t fd, short what, void *arg);

/* keyed.c */
/* Deals with a question that has a key, and its member, now or later. */
void keyed_ask(struct flights *fl, struct member *m, struct ask *ask);
/* Some time went by: looks at those that wait. */
void keyed_retry(struct flights *fl);

/* attach.c */
/* A local flight of this use, of which this process is a reader already. NULL without
 * memory: it is none any more. `r`: its question if it is not logged yet, or NULL. */
struct local_flight *attach_local(struct flights *fl, struct flight_ref ref,
                                  const struct turn_request *r);

/* audience.c */
/* Does what there is to do for one flight; *budget sends at most. True: all done. */
bool audience_run(struct local_flight *lf, int *budget);
/* Brings a new member up: sends what its dialect sends at once, sets it LAGGING or
 * WAITING. */
void audience_enter(struct member *m);
void member_set_state(struct member *m, enum member_state state);
/* Begins the streamed response of a member that has none yet. */
void member_begin(struct member *m);
/* Begins a piece in `b`, whatever it held before. */
static inline void piece_begin(struct buf *b)
{
    buf_reset(b);
    http_piece_begin(b); /* a failure stays in b->failed */
}
/* Sends encoded bytes to one member; false: it must wait, or is gone. */
bool member_send(struct member *m, struct buf *encoded);

/* lag.c */
/* Sends a LAGGING or WAITING member what it has not got; false: the budget is used up. */
bool lag_run(struct member *m, int *budget);
/* For a member that has everything up to END: ends it, or waits for the commit. */
void lag_finish(struct member *m);
extern const struct http_callbacks member_callbacks;
/* Comment pings, late verdicts, done_timeout. */
void lag_tick(struct local_flight *lf, uint64_t now_ns);
/* Where a cursor of this flight begins: behind the last RESET. */
void cursor_begin(struct local_flight *lf, struct blocklog_cursor *c,
                  struct position *at);
/* A cursor that stands in a generation that is no more moves on: to the RESET if `told`
 * (the client has something of the old one), else behind it. */
void cursor_skip_old(struct local_flight *lf, struct blocklog_cursor *c,
                     struct position *at, bool told);
/* Encodes log records from *c on; the first *skip bytes of text are left out (NULL:
 * none); at most PASS_BYTES: merges neighbouring text. Returns DAC_OK if anything was
 * read, DAC_E_AGAIN, or DAC_E_CORRUPT. */
enum dac_err encode_records(struct local_flight *lf, struct blocklog_cursor *c,
                            struct position *at, const struct dialect *const *dialects,
                            struct buf *const *bufs, size_t n, const uint64_t *skip,
                            unsigned *content, bool *ended);

/* fetch.c */
/* What a fetch needs of memory before its flight is owned; NULL if there is none. Given
 * to fetch_begin(), fetch_resume() or fetch_discard(), which takes NULL, too. */
struct fetch *fetch_alloc(struct flights *fl);
void fetch_discard(struct fetch *f);
/* Takes the request over, logs it and queues. Whatever fails ends the flight. */
void fetch_begin(struct local_flight *lf, struct fetch *f,
                 const struct blocklog_writer *writer, struct turn_request *request,
                 uint32_t provider);
/* The same without a fetch so far. */
void fetch_new(struct local_flight *lf, struct blocklog_writer *writer,
               struct turn_request *request, uint32_t provider);
/* The same for a flight that was taken over: its REQUEST is in the log. */
void fetch_resume(struct local_flight *lf, struct fetch *f,
                  const struct blocklog_writer *writer, struct turn_request *request,
                  uint32_t provider);
/* The worker's beat: makes up for timers that found no memory. It may be gone then. */
void fetch_tick(struct fetch *f, uint64_t now_ns);
/* Notes time in code of ours (shm/timing.h). The flight is this process's. */
void fetch_spent(struct shm_flight *flight, uint64_t from_ns, uint64_t to_ns);
/* The provider is done with the call; `heard_ns`: when its last came. */
void fetch_answered(struct fetch *f, uint64_t heard_ns);
void fetch_check(struct fetch *f); /* its readers or requests changed */
void fetch_cancel(struct fetch *f, const char *code, const char *why);
void fetch_provider_ready(struct flights *fl, uint32_t provider);
void fetch_fail(struct fetch *f, int http_status, const char *code, const char *message);
void fetch_wait_for_room(struct fetch *f);
/* After a failure before the first content: true if it will be asked again. */
bool fetch_retry(struct fetch *f, const struct upstream_end *end);
void fetch_free(struct fetch *f);

/* takeover.c */
/* A follower joined before the leader had logged the question: takes it over, to be able
 * to go on in the leader's place. Without memory it is not kept. */
void takeover_keep_question(struct local_flight *lf, struct turn_request *question);
/* The question is in the log now, or the flight is let go. */
void takeover_drop_question(struct local_flight *lf);
/* If the flight is orphaned and a client here can begin anew: tries to own it. */
void takeover_try(struct local_flight *lf);

/* fetch_log.c */
extern const struct upstream_ops fetch_upstream_ops;
void fetch_end(struct fetch *f, const struct record_end *end);
/* Ends a flight that this process owns but has no fetch for: FAILED, 503, retryable. */
void fetch_end_unbegun(struct flights *fl, struct blocklog_writer *w, const char *code,
                       const char *message);
/* Has the recorder free what is finished, since there was no room in the log. */
void fetch_ask_for_room(struct fetch *f);
/* Tries again to log what was held. */
void fetch_room(struct fetch *f);

#endif
