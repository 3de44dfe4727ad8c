/*
 * For the tests of upstream: a provider in threads of the test that does what a script
 * says, and calls whose callbacks are written down. The last user message of a request
 * names the script.
 *
 * The provider speaks HTTP/1.1 in clear text, or HTTP/2 over TLS (upstream_h2_fixture.c),
 * where only the names "hold" (a head and one event, then silence), "silent" (nothing)
 * and "text" (ten events, complete) are known.
 */
#ifndef DAC_TESTS_UPSTREAM_FIXTURE_H
#define DAC_TESTS_UPSTREAM_FIXTURE_H

#include <event2/event.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "upstream/upstream.h"

#define HEAD                                                                             \
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"                             \
    "Transfer-Encoding: chunked\r\n\r\n"
#define LAST_CHUNK "0\r\n\r\n"
#define TEXT(t)                                                                          \
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"" t "\"}}]}\n\n"
#define STOP                                                                             \
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"
#define DONE "data: [DONE]\n\n"

#define BIG_EVENTS 5000
#define SENDS_MAX  12
#define SEEN_MAX   4096

enum script_after {
    AFTER_KEEP,  /* read the next request of the connection */
    AFTER_CLOSE, /* close it */
    AFTER_RESET, /* TCP reset */
    AFTER_HOLD,  /* wait until the client closes it */
};

struct script {
    const char *name;
    /* What begins with "data:" or ':' is sent as a chunk of its own, all else as it is.
     */
    const char *send[SENDS_MAX];
    enum script_after after;
    int gap_ms;   /* in front of each but the first */
    int delay_ms; /* in front of the first */
};

struct seen_request {
    char script[32];
    int connection; /* from 0 */
    uint64_t arrived_ns;
    _Atomic uint64_t gone_ns; /* when the client was seen to leave; 0: it was not */
};

struct fake_provider {
    int fd;
    int port;
    pthread_t thread;
    const struct script *scripts; /* ends with a NULL name */
    atomic_int connections;
    atomic_int accepted; /* connections, whatever came on them */
    atomic_int threads;
    atomic_int requests;
    atomic_int resets; /* RST_STREAM frames */
    atomic_bool stop;
    _Atomic uint64_t closed_ns; /* when a connection was last seen closed */
    struct seen_request seen[SEEN_MAX];
    struct buf last; /* bytes of the last request; read it when all is quiet */
    pthread_mutex_t lock;
    void *tls; /* SSL_CTX of HTTP/2 */
    char ca_path[64];
};

void provider_start(struct fake_provider *p, const struct script *scripts);
void provider_start_h2(struct fake_provider *p);
void provider_stop(struct fake_provider *p);
struct seen_request *provider_note(struct fake_provider *p, const char *script, size_t n,
                                   int connection);
/* Waits up to 5 s for that many requests. */
void provider_await(struct fake_provider *p, int requests);
/* Waits up to 5 s until the client of request i was seen to leave; nanoseconds from
 * `since` to then. */
uint64_t provider_gone_after(struct fake_provider *p, int i, uint64_t since);
/* For connection threads: they end when `stop` is set, and are counted. */
void *provider_h2_connection(void *arg);
struct connection {
    struct fake_provider *p;
    int fd;
    int number;
};

/* --- calls --- */

struct caller {
    struct event_base *base;
    struct upstream *u;
    struct upstream_provider provider;
    char url[64];
};

struct probe {
    struct caller *caller;
    struct upstream_call *call; /* NULL: over */
    int accepted;
    int ended;
    int texts;
    int others; /* reasoning, tools, citations, usage */
    struct buf text;
    struct upstream_end end;
    uint64_t cancelled_ns;
    int cancel_at; /* at which text; 0: never */
    int pause_at;
    void (*on_text)(struct probe *p);
    void (*on_end)(struct probe *p);
    void *arg;
};

void caller_open(struct caller *c, const struct fake_provider *p);
void caller_close(struct caller *c);
void probe_start(struct probe *p, struct caller *c, const char *script);
void probe_cancel(struct probe *p);
void probe_free(struct probe *p);
/* Runs the event loop for `ms`. */
void caller_run(struct caller *c, int ms);
/* Runs it until *value is at least `want`, at most 10 s; fails the test then. */
void caller_run_until(struct caller *c, const int *value, int want);
/* The same for requests that the provider has read. */
void caller_run_until_asked(struct caller *c, struct fake_provider *p, int requests);

#endif
