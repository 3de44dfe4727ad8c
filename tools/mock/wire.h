/*
 * Connections and exchanges of the mock provider. An exchange is one request and its
 * response; what answers it does not see whether HTTP/1.1 or an HTTP/2 stream lies
 * underneath, nor whether TLS does.
 *
 * Life of an exchange: the protocol reads the request whole, then calls mock_dispatch().
 * The one who answers calls exactly one of exchange_respond(), or exchange_begin() +
 * exchange_write()… + exchange_end(), or exchange_abort(); after respond, end and abort
 * the pointer is dead for the caller (unless `on_done` was set: then it lives until
 * on_done or on_gone has run). If the client goes away first, on_gone() runs once and the
 * pointer is dead.
 *
 * The read event is always armed, so a client that leaves is noticed at once, whatever
 * the exchange waits for. Sending tries the socket at once; what does not fit is kept in
 * a bounded buffer. Single process, single thread, all from the event loop.
 */
#ifndef DAC_MOCK_WIRE_H
#define DAC_MOCK_WIRE_H

#include <event2/event.h>
#include <event2/event_struct.h>
#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "base/bytes.h"

#define WIRE_HEAD_MAX    65536
#define WIRE_BODY_MAX    ((size_t)64 << 20)
#define WIRE_OUT_MAX     ((size_t)192 << 20)
#define WIRE_HEADERS_MAX 100
/* More than this unsent: a streaming exchange waits for on_writable. */
#define WIRE_UNSENT_HIGH ((size_t)256 << 10)

struct mock;
struct conn;
struct exchange;
struct nghttp2_session;

struct header {
    const char *name; /* lower case in requests */
    const char *value;
};

enum gone_how { GONE_CLOSED, GONE_RESET };

struct exchange_ops {
    void (*on_gone)(struct exchange *x, void *user, enum gone_how how);
    void (*on_writable)(struct exchange *x, void *user);
    void (*on_done)(struct exchange *x,
                    void *user); /* the last byte is with the kernel */
};

struct exchange {
    struct conn *conn;
    int32_t stream_id; /* 0 in HTTP/1.1 */
    /* The request; strings point into `head`. */
    struct buf head;
    struct buf body;
    const char *method, *path, *query; /* query "" if there is none */
    struct header headers[WIRE_HEADERS_MAX];
    size_t header_count;
    /* The response. */
    const struct exchange_ops *ops; /* static; NULL: nothing is told */
    void *user;
    bool begun, ended, over;
    bool chunked;       /* HTTP/1.1 only */
    bool want_writable; /* on_writable is due when enough has gone out */
    struct buf out;     /* HTTP/2 only: DATA not yet framed */
    size_t out_off;
    bool deferred; /* HTTP/2 only: nghttp2 waits for data */
    bool aborting; /* HTTP/2 only: RST_STREAM is due behind what can be sent */
    TAILQ_ENTRY(exchange) link; /* HTTP/2 only: conn.streams */
};

enum conn_proto { PROTO_SNIFF, PROTO_H1, PROTO_H2 };
enum h1_state {
    H1_HEAD,
    H1_BODY,
    H1_CHUNK_SIZE,
    H1_CHUNK_DATA,
    H1_CHUNK_END,
    H1_TRAILER
};

struct conn {
    struct mock *mock;
    uint64_t id;
    int fd;
    SSL *ssl; /* owned; NULL in clear text */
    bool tls_ready;
    struct event rd, wr;
    enum conn_proto proto;
    struct buf in, out;
    size_t out_off; /* bytes of out already sent */
    int write_error;
    bool dead;       /* on the graveyard: events removed, descriptor closed */
    bool processing; /* input is being handled: do not recurse */
    bool counted;    /* it has carried a provider's request */
    bool http10, keep_alive, close_after;
    enum h1_state h1_state;
    size_t h1_scan; /* bytes of `in` known not to hold the head's end */
    uint64_t h1_left;
    struct exchange *x;              /* HTTP/1.1: the current one */
    struct nghttp2_session *session; /* HTTP/2 */
    TAILQ_HEAD(exchange_list, exchange) streams;
    TAILQ_ENTRY(conn) link; /* mock.conns or mock.graveyard */
};

/* --- for whoever answers -------------------------------------------------------------
 */

const char *exchange_header(const struct exchange *x, const char *name);
/* Copies the decoded query parameter into out; false if it is absent or too long. */
bool exchange_query(const struct exchange *x, const char *name, char *out, size_t size);
/* Answers whole. */
void exchange_respond(struct exchange *x, int status, const struct header *h, size_t n,
                      const void *body, size_t len);
void exchange_begin(struct exchange *x, int status, const struct header *h, size_t n);
/* Queues bytes of the body; exchange_flush() sends them. */
void exchange_write(struct exchange *x, const void *data, size_t n);
/* Queues bytes that belong to no protocol at all. */
void exchange_write_raw(struct exchange *x, const void *data, size_t n);
void exchange_flush(struct exchange *x);
/* Ends the body well and flushes. */
void exchange_end(struct exchange *x);
/* Breaks off without an end: a close (HTTP/2: RST_STREAM), or a TCP reset. */
void exchange_abort(struct exchange *x, bool tcp_reset);
/* Bytes that are not yet with the kernel. */
size_t exchange_unsent(const struct exchange *x);
/* "1.0", "1.1" or "2". */
const char *exchange_version(const struct exchange *x);

/* --- between conn.c, h1.c and h2.c ----------------------------------------------------
 */

void conn_accept(struct mock *m, int fd, bool tls);
/* Sends what is in out; arms the write event for the rest. */
void conn_flush(struct conn *c);
/* Closes now and parks the memory until the loop turns. Tells no exchange. */
void conn_kill(struct conn *c, bool tcp_reset);
/* The peer went away: tells the exchanges, then kills. */
void conn_gone(struct conn *c, enum gone_how how);
/* Frees connections killed before. */
void conn_reap(struct mock *m);

struct exchange *exchange_new(struct conn *c);
void exchange_free(struct exchange *x);
/* Marks it over and tells on_done or on_gone, once. */
void exchange_tell_done(struct exchange *x);
void exchange_tell_gone(struct exchange *x, enum gone_how how);
/* Adds a request header; `name` and `value` are copied into head by the caller. */
bool exchange_add_header(struct exchange *x, const char *name, const char *value);

void h1_input(struct conn *c);
void h1_begin(struct exchange *x, int status, const struct header *h, size_t n,
              bool whole, size_t len);
void h1_write(struct exchange *x, const void *data, size_t n);
void h1_end(struct exchange *x);
/* After a flush: finishes the current exchange if its last byte has gone. */
void h1_after_flush(struct conn *c);

bool h2_start(struct conn *c);
void h2_free(struct conn *c);
void h2_input(struct conn *c);
void h2_begin(struct exchange *x, int status, const struct header *h, size_t n);
void h2_write(struct exchange *x, const void *data, size_t n);
void h2_end(struct exchange *x);
void h2_abort(struct exchange *x);
/* Frames what the streams have, into out. */
void h2_collect(struct conn *c);
/* Frames and sends until nothing is left or the socket is full. */
void h2_flush(struct conn *c);

#endif
