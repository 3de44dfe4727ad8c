/*
 * A member of a flight's audience, and the dialect in which it hears the answer.
 *
 * A member is one client's exchange. Streaming members get pieces while the flight runs;
 * the others get one answer at its end. What all members of a dialect get alike is
 * encoded once per worker (`record`); what belongs to one client (`open`, `first`, `end`,
 * `done`) is encoded for it alone. Implementations: src/api/.
 *
 *   WAITING   nothing sent yet (dialects that wait for the provider's verdict, and JSON)
 *   LIVE      has everything up to the worker's cursor, and room for the next piece
 *   LAGGING   has its own cursor: replays from byte 0, or goes on behind a stall
 *   STALLED   the same, and its socket is full: nobody looks at it until that has room
 *   ENDING    has got everything up to END; waits for the commit
 */
#ifndef DAC_FLIGHT_DIALECT_H
#define DAC_FLIGHT_DIALECT_H

#include <sys/queue.h>

#include "flight/result.h"
#include "http/http.h"
#include "shm/index.h"

struct local_flight;
struct member;

/* Where a record stands in the answer: what event ids are made of. */
struct position {
    uint16_t generation;
    uint64_t text_bytes; /* of answer text up to and including this record */
};

/* What the encoders may know of a flight. */
struct turn_view {
    char turn_id[ID_TEXT_SIZE];
    const char *provider;
    const char *model;
    const char *thread_id; /* "" for stateless chat */
    int64_t created_us;
    struct turn_timing timing; /* filled in for `end`, `done` and `answer` */
    struct record_usage usage; /* -1: not said yet */
    struct record_end end;     /* status TURN_RUNNING until END was read */
    enum flight_stored stored; /* for `done` and `answer` */
};

struct dialect {
    const char *name;
    bool stream;    /* pieces; else `answer` at the end */
    bool eager;     /* status 200 and `open` at once; else with the first content */
    bool can_reset; /* its clients know how to begin anew in the middle of a stream */
    bool first_at_reasoning; /* `first` comes before reasoning, too, not only before
                                content */
    const char *content_type;

    /* Streams. Each appends to `out` and may append nothing. */
    void (*open)(const struct turn_view *v, const struct member *m, struct position at,
                 struct buf *out);
    void (*first)(const struct turn_view *v, const struct member *m, struct position at,
                  struct buf *out);
    void (*record)(const struct turn_view *v, enum record_type type, const void *payload,
                   size_t n, struct position at, struct buf *out);
    /* At END; true: that was all, the stream ends. */
    bool (*end)(const struct turn_view *v, const struct member *m, struct position at,
                struct buf *out);
    /* After the commit, or with v->stored STORED_NO when done_timeout is over. */
    void (*done)(const struct turn_view *v, const struct member *m, struct position at,
                 struct buf *out);
    void (*comment)(struct buf *out);

    /* A failure before anything was sent to this member: answers and ends the exchange.
     * Also for JSON dialects. */
    void (*reject)(const struct turn_view *v, struct member *m);
    /* JSON dialects: answers and ends the exchange. */
    void (*answer)(const struct turn_view *v, struct member *m,
                   const struct turn_result *r);
};

enum member_state {
    MEMBER_WAITING,
    MEMBER_LIVE,
    MEMBER_LAGGING,
    MEMBER_STALLED,
    MEMBER_ENDING
};

/* What a pass of fan-out looks at comes first, in 64 bytes. */
struct member {
    TAILQ_ENTRY(member) link;
    struct local_flight *flight; /* NULL: waits for room in the table */
    const struct dialect *dialect;
    struct http_exchange *ex; /* NULL once it is over */
    uint64_t last_sent_ns;
    enum member_state state;
    bool first_sent;    /* its `first` event went out */
    bool tail_sent;     /* its `end` went out */
    bool bypassed;      /* its flight is its own */
    bool include_usage; /* OpenAI's stream_options.include_usage */
    enum join_role role;
    bool by_key;    /* it came to a turn by its Idempotency-Key */
    uint32_t alias; /* of its key, + 1; 0: it has none, or that one is for another turn */
    bool broken;    /* it heard of a generation that is no more, and can't begin anew */
    bool resumed;   /* the two below are set */
    bool reset_first;          /* it resumes from a generation that is no more */
    uint16_t begin_generation; /* of the ids that it starts with */
    uint64_t begin;            /* where the answer that it knows begins in the log */
    struct position has; /* with reset_first: what the client has, up to the reset */
    uint64_t arrived_ns;
    uint64_t first_ns; /* when it was sent its first content; 0: not yet, or no stream */
    uint64_t skip_bytes; /* of answer text that it has already, when it resumes */
    uint64_t hit_ttl_ns; /* of a hit: what is left of the TTL */
    /* Of a LAGGING member. */
    struct blocklog_cursor cursor;
    struct position at;
};

#endif
