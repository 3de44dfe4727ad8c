/*
 * The state of the mock provider: its counters, its own limits, barriers, queued scripts,
 * the log of what it saw, and the long polls of tests. One process, one thread;
 * everything here is reached from the one struct mock.
 */
#ifndef DAC_MOCK_MOCK_H
#define DAC_MOCK_MOCK_H

#include <event2/event.h>
#include <event2/event_struct.h>
#include <openssl/ssl.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "tools/mock/journal.h"
#include "tools/mock/spec.h"
#include "tools/mock/wire.h"

struct call;
struct waiter;

/* Counters since the start or the last reset; connections, active and waiting are levels.
 */
struct stats {
    uint64_t requests;    /* chat requests that arrived */
    uint64_t calls;       /* of these, let through by the limits and well-formed */
    uint64_t active;      /* calls that run now */
    uint64_t waiting;     /* of these, at a barrier */
    uint64_t stalled;     /* of these, in a scripted silence */
    uint64_t completed;   /* answered to the last byte, scripted errors included */
    uint64_t failed;      /* of these, with a scripted status of 300 and more */
    uint64_t cut;         /* broken off by script */
    uint64_t client_gone; /* closed or reset by the client before the end */
    uint64_t closed, reset;
    uint64_t rate_limited, bad_requests, unauthorized;
    uint64_t max_concurrent;
    uint64_t tokens_sent, bytes_sent;
    uint64_t connections; /* open now that carried a provider's request */
    uint64_t connections_total, tls_connections, h2_connections, h2_streams;
    uint64_t open; /* open now, of any kind */
};

/* What is above the limits gets 429. Token bucket as GCRA, see "generic cell rate
 * algorithm", ITU-T I.371. Zero: no limit. */
struct limits {
    double rps;
    uint64_t burst, concurrency;
    uint64_t slack_ns; /* forgiven to a call that comes too early */
    uint64_t tat_ns;   /* theoretical arrival time */
};

struct barrier {
    char name[SPEC_NAME_SIZE];
    bool open;
    uint64_t credit; /* calls that may pass though it is shut */
    TAILQ_HEAD(barrier_queue, call) waiting;
    uint64_t count;
    TAILQ_ENTRY(barrier) link;
};

/* A spec queued for the next calls, or for those that match. */
struct script {
    struct spec spec;
    uint64_t left; /* calls it still serves; SPEC_NEVER: all */
    char *match;   /* owned; must stand in the last user message; NULL: any */
    TAILQ_ENTRY(script) link;
};

struct mock {
    struct event_base *base;
    SSL_CTX *tls;
    const char *api_key; /* NULL: any */
    const char *models;  /* of /v1/models, separated by commas */
    bool quiet;
    struct stats stats;
    struct limits limits;
    struct spec defaults;
    struct journal journal;
    TAILQ_HEAD(script_list, script) scripts;
    TAILQ_HEAD(, barrier) barriers;
    TAILQ_HEAD(, waiter) waiters;
    TAILQ_HEAD(conn_list, conn) conns, graveyard;
    TAILQ_HEAD(, call) calls;
    struct event reap;    /* frees the graveyard */
    struct event changed; /* looks at the waiters */
    uint64_t next_conn, next_call;
    struct spec start_defaults; /* of the command line; a reset goes back to these */
    struct limits start_limits;
};

/* Routes a request that was read whole. */
void mock_dispatch(struct exchange *x);
/* A counter changed: waiters are looked at when the loop turns. */
void mock_changed(struct mock *m);
/* An OpenAI-style error answer. */
void mock_error(struct exchange *x, int status, const char *type, const char *code,
                const char *message);

/* POST /v1/chat/completions. */
void chat_request(struct exchange *x);
/* Everything under /mock/. */
void control_request(struct exchange *x);
/* Answers the long polls whose condition holds. */
void control_check_waiters(struct mock *m);

/* Whether the limits let one more call through; if not, after how long they would. */
bool limits_admit(struct limits *l, uint64_t active, uint64_t now_ns, uint64_t *wait_ns);

/* The barrier of that name, made if need be; NULL without memory. */
struct barrier *barrier_get(struct mock *m, const char *name);
/* True: may pass (a credit is taken). */
bool barrier_try(struct barrier *b);
/* Opens it for all and for good, or lets `n` through. */
void barrier_open(struct barrier *b, uint64_t n, bool all);
void barrier_reset_all(struct mock *m);

#endif
