/*
 * The inside of the HTTP server: what server.c, accept.c, conn.c, conn_io.c, exchange.c,
 * response.c and report.c share. One server has many connections; a connection has at
 * most one current exchange; bytes behind it wait, bounded, until it is over.
 *
 *   state     meaning                                     wait list
 *   IDLE      no byte of a request yet                    KEEPALIVE
 *   HEAD      inside a request's head                     HEAD
 *   BODY      head accepted, body arriving                BODY
 *   EXCHANGE  a handler owns the answer                   NONE; unsent bytes: STALL
 *   FLUSH     answered, but the kernel has not all of it  STALL
 *   LINGER    shut for writing; input is discarded        LINGER
 *   CLOSED    parked until the loop turns                 none
 *
 *   IDLE -> HEAD -> BODY -> EXCHANGE -> [FLUSH] -> IDLE | LINGER -> CLOSED; any -> CLOSED
 *
 * Each wait list is ordered by the time its members joined it, and all members wait
 * equally long, so one sweep timer looks at the lists' first members only.
 *
 * Freed objects are parked and released by the turn event, which runs with no other frame
 * of this module on the stack. Worker process, event loop thread only.
 */
#ifndef DAC_HTTP_INTERNAL_H
#define DAC_HTTP_INTERNAL_H

#include <event2/event.h>
#include <event2/event_struct.h>
#include <sys/queue.h>
#include <sys/uio.h>

#include "http/h1_parser.h"
#include "http/http.h"
#include "http/router.h"

#define HTTP_READ_SIZE       65536 /* bytes per recv() */
#define HTTP_REQUESTS_A_TURN 64 /* pipelined requests of one connection before others */
#define HTTP_BEGINS_A_TURN   64 /* connections whose next request is read in one turn */
#define HTTP_LINGER_NS       (2 * NS_PER_S)
#define HTTP_LINGER_BYTES    (4u << 20)
#define HTTP_ACCEPT_BATCH    32
#define HTTP_ACCEPT_PAUSE_NS (100 * NS_PER_MS)
#define HTTP_HEADERS_OUT_MAX 65536 /* bytes of headers that a handler may add */

enum conn_state {
    CONN_IDLE,
    CONN_HEAD,
    CONN_BODY,
    CONN_EXCHANGE,
    CONN_FLUSH,
    CONN_LINGER,
    CONN_CLOSED,
};

enum conn_wait {
    WAIT_NONE,
    WAIT_KEEPALIVE,
    WAIT_HEAD,
    WAIT_BODY,
    WAIT_STALL,
    WAIT_LINGER,
    WAIT_COUNT,
};

TAILQ_HEAD(conn_list, conn);
SLIST_HEAD(exchange_list, http_exchange);
SLIST_HEAD(listener_list, listener);

/* Owner: its server. What sending a piece looks at comes first, in one cache line: a
 * fan-out touches thousands of these, and each of them cold. */
struct conn {
    struct http_server *server;
    int fd; /* owned */
    enum conn_state state : 8;
    enum conn_wait wait : 8;
    bool broken;        /* a send failed */
    bool queued;        /* has work for the turn event */
    bool processing;    /* conn_process() is on the stack, and goes on by itself */
    bool keep;          /* the current answer lets the connection live */
    bool client_closes; /* the client asked for the close, so it needs no lingering */
    uint32_t lingered;  /* bytes discarded */
    size_t out_off;     /* of `out`, already sent */
    struct buf out;     /* the one unsent remainder */
    struct http_exchange *ex;    /* owned while current, else NULL */
    TAILQ_ENTRY(conn) link;      /* in server->waits[wait], or in server->parked */
    TAILQ_ENTRY(conn) turn_link; /* in server->turns while `queued` */
    uint64_t wait_start_ns;
    struct buf pending; /* bytes behind the current request */
    size_t pending_off; /* of it, already parsed */
    struct event ev_read;
    struct event ev_write;
};

/* What the routing found wrong with a whole head. */
struct rejection {
    int status; /* 0: nothing */
    const char *code;
    const char *field;
    const char *detail;
};

/* What the client sent, and what was made of it. Owner: its exchange, until forgotten. */
struct inbound {
    char *strings; /* owned: decoded path, segments, query */
    const char *path;
    const char *query; /* pairs of NUL-terminated strings */
    size_t query_len;
    struct route_match match;
    struct rejection reject;
    struct h1_request h1;
};

/* Owner: its connection until it is over, then the server's park. */
struct http_exchange {
    uint32_t magic;
    bool over;
    bool streaming;
    bool head_sent; /* the response's head is with the kernel, or in the remainder */
    bool in_handler;
    bool must_close;
    bool failed;       /* see http_set_ending() */
    bool client_keeps; /* the connection, as far as the client is concerned */
    uint8_t minor;
    enum http_method method;
    struct conn *conn;
    uint64_t bytes; /* of the answer, given to conn_send() */
    SLIST_ENTRY(http_exchange) parked;
    const struct http_callbacks *cb;
    void *user;
    struct inbound *in; /* owned; NULL once forgotten */
    uint64_t arrived_ns;
    struct trace trace; /* none: not given, and not asked for yet */
    bool has_client_id; /* which of `id` it is */
    int16_t status;     /* of the answer; 0: none was begun */
    uint16_t route; /* number in the table + 1; 0: none fits, or the head was not whole */
    union {
        uint64_t serial; /* of a request without an id of its own; see report.c */
        char *client;    /* owned: the id that the client gave */
    } id;
    const char *ending; /* borrowed: see http_set_ending(); or NULL */
    struct buf headers; /* the handler's; later the whole head, until it is sent */
};

struct listener {
    SLIST_ENTRY(listener) link;
    struct http_server *server;
    struct event ev;
    int fd; /* borrowed */
    bool tcp;
};

struct http_server {
    struct event_base *base; /* borrowed */
    struct http_server_options opt;
    struct http_stats stats;
    struct conn_list waits[WAIT_COUNT];
    struct conn_list turns; /* by turn_link */
    size_t turn_count;
    struct conn_list parked;
    struct exchange_list parked_exchanges;
    struct event ev_turn;
    struct event ev_sweep;
    struct event ev_accept;
    struct event ev_begun; /* at the end of a turn in which `begun` grew */
    unsigned begun;        /* connections whose request was begun in this turn */
    struct listener_list listeners;
    bool draining;
    bool accept_paused;
    uint64_t accept_warned_ns;
    uint64_t id_head; /* random: of all ids made here */
    uint64_t id_key;  /* random: hides how many there were */
    uint64_t id_next;
    int64_t date_second;
    char date[32];
    char read_buf[HTTP_READ_SIZE];
};

/* --- accept.c ---------------------------------------------------------------------- */

/* Timer callback that ends a pause. */
void accept_resume(int fd, short what, void *server);
void accept_stop_all(struct http_server *s);
void accept_tick(struct http_server *s);

/* --- server.c ---------------------------------------------------------------------- */

/* Makes the turn event run when the loop turns. */
void server_turn(struct http_server *s);
/* Whether one more request may be begun in this turn, and counts it. A burst of thousands
 * is read in portions: what handlers hold until the loop turns (the request itself, a
 * query for its thread) is then bounded, and the heap keeps no holes from it. */
bool server_may_begin(struct http_server *s);
/* Makes the sweep timer run while anybody waits. */
void server_sweep(struct http_server *s);

/* --- conn.c ------------------------------------------------------------------------ */

/* Takes `fd` over. Closes it without memory. */
void conn_new(struct http_server *s, int fd, bool tcp);
/* Moves to a wait list, at its end: the wait starts now. */
void conn_set_wait(struct conn *c, enum conn_wait wait);
/* Hands the connection to the turn event. */
void conn_queue(struct conn *c);
/* A system call failed: the turn event closes it, not the caller. */
void conn_mark_broken(struct conn *c);
/* What the turn event does for it. */
void conn_turn(struct conn *c);
/* Its wait took too long. */
void conn_expired(struct conn *c);
/* How an exchange came to its end. */
enum exchange_end {
    EXCHANGE_ANSWERED,
    EXCHANGE_LEFT,    /* its client is gone */
    EXCHANGE_STALLED, /* its client took nothing for too long */
    EXCHANGE_CUT,     /* by us */
};

/* Closes at once; a running exchange ends with on_gone(). */
void conn_gone(struct conn *c, enum exchange_end how);
/* Closes; the exchange, if any, must be over. */
void conn_close(struct conn *c);
/* Nothing is unsent any more: what comes behind an answer. */
void conn_flushed(struct conn *c);
/* Parses and serves as many bytes as may be now; returns how many it took. */
size_t conn_process(struct conn *c, const char *data, size_t n);
/* Reads or not, as the state and the pending bytes want it. */
void conn_update_reading(struct conn *c);
/* The current exchange is over and its answer handed to conn_send(). */
void conn_answered(struct conn *c);
/* Draining: an idle connection reads what is there, and else closes. */
void conn_drain(struct conn *c);
void conn_free_parked(struct http_server *s);

/* --- conn_io.c --------------------------------------------------------------------- */

void conn_on_readable(int fd, short what, void *conn);
/* Receives once and does what is due. */
void conn_read(struct conn *c);
void conn_on_writable(int fd, short what, void *conn);
/* Sends at once; the rest is copied as the remainder (DAC_E_AGAIN). DAC_E_CLOSED: the
 * peer is gone or memory ran out; the turn event closes. `iov` is changed. */
enum dac_err conn_send(struct conn *c, struct iovec *iov, int count);
static inline size_t conn_unsent(const struct conn *c)
{
    return c->out.len - c->out_off;
}

/* --- exchange.c -------------------------------------------------------------------- */

struct http_exchange *exchange_new(struct conn *c);
/* The head is whole: decodes the target, finds the route, fills `reject`. */
enum dac_err exchange_route(struct http_exchange *ex) DAC_CHECK;
/* Answers what `reject` says. */
void exchange_reject(struct http_exchange *ex);
/* Answers a parser's fault and closes behind it. */
void exchange_refuse(struct http_exchange *ex, const struct h1_fault *fault);
/* Releases request head and body. */
void exchange_forget(struct http_exchange *ex);
/* Detaches from the connection and parks. */
void exchange_over(struct http_exchange *ex, enum exchange_end how);
void exchange_free(struct http_exchange *ex);
#define EXCHANGE_MAGIC 0x45584348u

/* --- report.c ---------------------------------------------------------------------- */

void report_init(struct http_server *s);
/* Gives the exchange its id, of what its head says as far as that is known. */
void report_identify(struct http_exchange *ex);
/* The exchange is about to be over: writes its line, if it is to have one. */
void report_over(struct http_exchange *ex, enum exchange_end how);

/* --- response.c -------------------------------------------------------------------- */

/* Sends the head of a stream that no piece has taken along yet. */
void stream_flush_head(struct http_exchange *ex);

#endif
