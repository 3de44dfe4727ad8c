/*
 * A real HTTP server on 127.0.0.1 in a thread of the test, and a small client that reads
 * whole answers. Handlers of the test's own run on the server's thread;
 * http_fixture_call() runs a function there, so that tests decide when held exchanges go
 * on.
 */
#ifndef DAC_TESTS_HTTP_FIXTURE_H
#define DAC_TESTS_HTTP_FIXTURE_H

#include <event2/event.h>
#include <event2/event_struct.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>

#include "http/http.h"

#define FIXTURE_HELD_MAX 2048

struct http_fixture {
    struct event_base *base;
    struct http_server *server;
    pthread_t thread;
    int listen_fd;
    int port;
    int wake[2];
    struct event ev_wake;
    struct event ev_tick; /* keeps the loop alive */
    void (*fn)(struct http_fixture *f, void *arg);
    void *arg;
    sem_t done;
    struct http_exchange
        *held[FIXTURE_HELD_MAX]; /* in the order of arrival; NULL: over */
    size_t held_count;
    atomic_int holding; /* == held_count, readable from the test */
    atomic_int gone;
    atomic_int writable;
    atomic_bool refuse; /* may_accept() says no */
    /* of /pump: pieces still to be sent */
    unsigned pump_left;
    struct buf pump_buf;
    struct http_piece pump_piece;
};

/* header_max 2048, body_max 65536, all times 5 s. */
extern const struct http_limits http_fixture_limits;

void http_fixture_start(struct http_fixture *f, const struct http_limits *limits);
/* The same on a listening socket of the caller. */
void http_fixture_start_on(struct http_fixture *f, const struct http_limits *limits,
                           int fd);
void http_fixture_stop(struct http_fixture *f);
/* Runs fn on the server's thread and waits for it. */
void http_fixture_call(struct http_fixture *f,
                       void (*fn)(struct http_fixture *f, void *arg), void *arg);
struct http_stats http_fixture_stats(struct http_fixture *f);
/* Waits up to 5 s for *value to reach `want`. */
void http_fixture_await(atomic_int *value, int want);
/* Waits up to 5 s for that many open connections. */
void http_fixture_await_connections(struct http_fixture *f, uint64_t want);

struct client {
    int fd;
    struct buf in; /* received, not yet returned */
};

struct reply {
    int status; /* 0: the connection ended before a whole answer */
    bool whole; /* false: the body was cut */
    struct buf head;
    struct buf body;
};

struct client client_open(struct http_fixture *f);
void client_close(struct client *c);
void client_send(struct client *c, const char *data, size_t n);
void client_puts(struct client *c, const char *raw);
/* Reads one answer (1xx too). `head_only`: of a HEAD request. Free with reply_free(). */
struct reply client_reply(struct client *c, bool head_only);
void reply_free(struct reply *r);
/* Value of a header of the answer, or NULL. */
const char *reply_header(struct reply *r, const char *name);
/* Whether the server closed: nothing more comes but the end. Waits up to `ms`. */
bool client_sees_end(struct client *c, int ms);

#endif
