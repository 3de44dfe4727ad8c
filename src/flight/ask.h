/*
 * How a route asks: joins the flight of a question or leads a new one, and becomes a
 * member of its audience. Worker, event loop thread only.
 */
#ifndef DAC_FLIGHT_ASK_H
#define DAC_FLIGHT_ASK_H

#include "flight/dialect.h"
#include "flight/flights.h"

/* An Idempotency-Key: requests of an org that have the same one get the same turn. */
struct ask_key {
    bool given;
    uint8_t digest[32]; /* of the header's value */
    uint8_t body[32];   /* of the request, so that another one is refused */
};

struct ask {
    struct http_exchange *ex;
    const struct dialect *dialect;
    enum flight_kind kind;
    struct turn_request request;  /* FLIGHT_TURN; moved: the callee frees it */
    struct thread_request thread; /* FLIGHT_THREAD; moved likewise */
    char parent[ID_TEXT_SIZE];    /* "" or parent_turn_id: part of the key */
    struct ask_key key;           /* FLIGHT_TURN */
    uint32_t provider;            /* index in the configuration */
    bool bypass;                  /* a flight of its own */
    bool unshared;                /* since it asked for one, or cannot be shared */
    bool no_finished;             /* joins what runs, takes nothing finished */
    bool include_usage;
    uint64_t store_ns; /* that the store took to find the thread */
    uint64_t result_ttl_ns;
    uint64_t abandon_grace_ns; /* already bounded */
};

/* Frees one that was allocated, with its request and thread; not its exchange. */
void ask_free(struct ask *ask);

/* Takes over the exchange: it will be answered, whatever happens, and its callbacks are
 * set here. `ask` itself is the caller's, its request and thread are emptied. */
void flights_ask(struct flights *fl, struct ask *ask);

/* Makes the exchange a member of a turn that is in memory, as a hit or follower of no
 * account (no counter moves). `cancel` asks its owner to stop first. DAC_E_NOT_FOUND: not
 * in memory, or of another org: nothing was touched. DAC_E_BUSY. */
enum dac_err flights_attach(struct flights *fl, const struct id *turn, const char *org,
                            const struct dialect *dialect, bool cancel,
                            struct http_exchange *ex) DAC_CHECK;

/* Where a client goes on: an event id, "<generation>-<bytes>", or bare bytes. */
struct resume_from {
    bool has_generation;
    uint16_t generation;
    uint64_t text_bytes;
};

/* Makes the exchange a member of a turn in memory, from that place on; of another
 * generation, from the start with a reset. DAC_E_TOO_LARGE: there is not so much text.
 * Otherwise like flights_attach(). */
enum dac_err flights_resume(struct flights *fl, const struct id *turn, const char *org,
                            const struct dialect *dialect, const struct resume_from *from,
                            struct http_exchange *ex) DAC_CHECK;

/* Reads a turn that is in memory, running or not. DAC_E_NOT_FOUND, DAC_E_BUSY. The result
 * is to be freed on DAC_OK only; *view borrows from it. */
enum dac_err flights_peek(struct flights *fl, const struct id *turn, const char *org,
                          struct turn_result *out, struct turn_view *view) DAC_CHECK;

/* Value of Cache-Status (RFC 9211) for this member; and for one whose Idempotency-Key
 * stands for a finished turn, in memory or not. */
#define MEMBER_HIT_BY_KEY "dac; hit; detail=idempotency_key"
void member_cache_status(const struct member *m, char *out, size_t n);

#endif
