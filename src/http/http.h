/*
 * The HTTP server of one worker: connections, requests and responses, on libevent's plain
 * events. Knows nothing of flights or of what is asked; an HTTP/1.1 connection and an
 * HTTP/2 stream look the same from here, so that TLS and HTTP/2 fit underneath.
 *
 * An exchange is one request and its response. Its life:
 *
 *   READING    head, then body, arrive         (the connection's, not seen outside)
 *   HANDLING   the route's handler was called  (the handler owns the answer)
 *   STREAMING  http_stream_begin() was called  (the handler sends pieces)
 *   over       answered, ended or aborted by the handler, or on_gone() ran
 *
 * A handler may answer at once or keep the pointer and answer later. It ends each
 * exchange exactly once; if the client goes away or stalls too long first, on_gone() is
 * called exactly once instead, and after either the pointer must not be used again.
 * Ending an exchange from inside any callback is allowed: objects freed there are parked
 * until the loop turns.
 *
 * All functions: worker process, event loop thread only.
 */
#ifndef DAC_HTTP_HTTP_H
#define DAC_HTTP_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/err.h"
#include "base/trace.h"

struct event_base;
struct http_server;
struct http_exchange;

enum http_method {
    HTTP_GET = 1 << 0,
    HTTP_HEAD = 1 << 1,
    HTTP_POST = 1 << 2,
    HTTP_PUT = 1 << 3,
    HTTP_PATCH = 1 << 4,
    HTTP_DELETE = 1 << 5,
    HTTP_OPTIONS = 1 << 6,
};

/* --- server ------------------------------------------------------------------------- */

struct http_limits {
    size_t header_max;                /* bytes of request line and headers: 414, 431 */
    size_t body_max;                  /* bytes of a body: 413 */
    uint64_t header_timeout_ns;       /* first byte to end of head: 408 */
    uint64_t body_timeout_ns;         /* end of head to end of body: 408 */
    uint64_t keepalive_timeout_ns;    /* idle between requests: closed silently */
    uint64_t client_stall_timeout_ns; /* unsent bytes and no progress: cut off */
};

/* Counters of this process, plain numbers that only the server writes. */
struct http_stats {
    uint64_t connections;   /* open now */
    uint64_t accepted;      /* ever */
    uint64_t requests;      /* heads parsed whole */
    uint64_t responses[6];  /* by status class; [0] unused */
    uint64_t streams;       /* open now */
    uint64_t bytes_out;     /* given to the kernel */
    uint64_t stalled;       /* cut off by client_stall_timeout */
    uint64_t accept_pauses; /* times accepting paused (no descriptors, or at the limit) */
};

/* Which requests get a line in the log when they are over. */
enum http_log_requests {
    HTTP_LOG_OFF,
    HTTP_LOG_ERRORS, /* status 500 and above, an error in a stream, cut off */
    HTTP_LOG_ALL,
};

/* What a line about a request says that only others than the server know; see
 * http_describer. Strings are borrowed until it is written. */
struct http_report {
    const char *turn;
    const char *org;
    const char *role; /* leader, follower, hit, … */
    double ttft_ms;   /* to the first content that this client was sent; < 0: none */
};

/* Called when an exchange is over whose line will be written: fills in what is known. It
 * must not touch the exchange but to ask. */
typedef void (*http_describer)(struct http_exchange *ex, void *user,
                               struct http_report *out);

typedef void (*http_handler)(struct http_exchange *ex, void *ctx);

/* One row of the routing table. Pattern segments in braces match one non-empty segment:
 * "/api/threads/{id}/messages". A trailing slash in a request is ignored. */
struct http_route {
    unsigned methods; /* enum http_method or'ed; GET serves HEAD too */
    const char *pattern;
    http_handler handler;
    bool json_body; /* body must be application/json (or no type given): else 415 */
};

struct http_server_options {
    struct http_limits limits;
    const struct http_route *routes; /* borrowed for the server's life */
    size_t route_count;
    void *ctx;                     /* handed to handlers */
    bool (*may_accept)(void *ctx); /* false: accepting pauses for 100 ms; NULL: always */
    const char *server_name;       /* of the Server header, e.g. "dac"; NULL: none */
    enum http_log_requests log_requests;
    http_describer describe; /* of any exchange, before its handler's; gets `ctx`; or NULL
                              */
};

/* A server without listeners. The caller frees it after the last exchange is over, or
 * earlier: then on_gone() runs for each. */
enum dac_err http_server_new(struct event_base *base,
                             const struct http_server_options *opt,
                             struct http_server **out) DAC_CHECK;
void http_server_free(struct http_server *s);

/* Starts or stops accepting on `fd` (non-blocking, listening; borrowed, never closed
 * here). Each is a no-op if that is so already. At EMFILE or ENFILE accepting pauses for
 * 100 ms. */
enum dac_err http_server_listen(struct http_server *s, int fd) DAC_CHECK;
void http_server_unlisten(struct http_server *s, int fd);
/* Accepts who waits in the kernel's queues now, before sockets are closed: closing would
 * reset them. */
void http_server_accept_waiting(struct http_server *s);

/* Draining: stops all accepting, closes idle connections at once, lets running exchanges
 * end and closes each connection behind its current one ("Connection: close" where the
 * head is still to be sent). A connection in the middle of a request head or body is
 * served. */
void http_server_drain(struct http_server *s);
/* The same, but idle connections stay for now and may ask once more: for a server that
 * others replace, so that who just connected, or asks at this moment, is answered.
 * http_server_drain() closes them later. */
void http_server_retire(struct http_server *s);
/* To be called now and then by its owner: makes up for timers and events that found no
 * memory. */
void http_server_tick(struct http_server *s);
/* Open connections, for "is the drain over". */
size_t http_server_connections(const struct http_server *s);
/* Changes limits in place. Sizes hold from the next request on, times at once. */
void http_server_set_limits(struct http_server *s, const struct http_limits *limits);
void http_server_set_log_requests(struct http_server *s, enum http_log_requests which);
const struct http_stats *http_server_stats(const struct http_server *s);

/* --- request ------------------------------------------------------------------------ */

enum http_method http_method(const struct http_exchange *ex);
/* Decoded path without query, NUL-terminated. */
const char *http_path(const struct http_exchange *ex);
/* What the i-th {…} of the route's pattern matched, decoded; NULL if there is none. */
const char *http_path_arg(const struct http_exchange *ex, size_t i);
/* Decoded query parameter or NULL. First one wins. */
const char *http_query(const struct http_exchange *ex, const char *name);
/* Header value by case-insensitive name, or NULL; several are joined by ", ". */
const char *http_header(const struct http_exchange *ex, const char *name);
/* How many lines of the head have this name: 0, or more than 1 where http_header() joins.
 */
size_t http_header_count(const struct http_exchange *ex, const char *name);
/* Whether a comma-separated header holds `token` (parameters behind ';' ignored). */
bool http_header_has_token(const struct http_exchange *ex, const char *name,
                           const char *token);
const char *http_body(const struct http_exchange *ex, size_t *len);
/* The request's id, which its answer's X-Request-Id says: the client's own, if it is 1 to
 * HTTP_REQUEST_ID_MAX of [A-Za-z0-9._:-], or one made here. Returns `out`. */
#define HTTP_REQUEST_ID_MAX  128
#define HTTP_REQUEST_ID_SIZE (HTTP_REQUEST_ID_MAX + 1)
const char *http_request_id(const struct http_exchange *ex,
                            char out[HTTP_REQUEST_ID_SIZE]);
/* CLOCK_MONOTONIC ns at which the request was read whole. */
uint64_t http_arrived_ns(const struct http_exchange *ex);
/* The trace that it belongs to: what its traceparent header says, or a new one if there
 * is none that is valid. Stays when the request is forgotten. */
const struct trace *http_trace(struct http_exchange *ex);
void *http_ctx(const struct http_exchange *ex);
/* Releases the request's head and body, for an exchange that waits long for its answer.
 * All strings above become invalid and the accessors say NULL or nothing; the method,
 * the time and the trace stay. http_stream_begin() does the same, but if it is called
 * inside the handler the strings live until that returns. */
void http_forget_request(struct http_exchange *ex);

/* --- response ----------------------------------------------------------------------- */

struct http_callbacks {
    /* The client is gone, or was cut off: the exchange is over. Not called after the
     * handler ended it. */
    void (*on_gone)(struct http_exchange *ex, void *user);
    /* Streaming only: all that was unsent has gone out; the next piece may be sent. */
    void (*on_writable)(struct http_exchange *ex, void *user);
    /* For the request's line in the log, from inside whatever ends the exchange. */
    http_describer describe;
};

/* Sets what is told to the handler from here on; `cb` is borrowed (static). */
void http_set_callbacks(struct http_exchange *ex, const struct http_callbacks *cb,
                        void *user);
void *http_user(const struct http_exchange *ex);

/* Adds a response header; before http_respond() or http_stream_begin(). Name and value
 * are copied; CR, LF or NUL in either is a bug (DAC_ASSERT). Content-Length,
 * Transfer-Encoding, Connection and Date are the server's. */
void http_add_header(struct http_exchange *ex, const char *name, const char *value);

/* For the log: what became of the answer, "complete" where nobody says another word, and
 * whether that is an error though its status may be 200. `word` is borrowed until the
 * exchange is over. */
void http_set_ending(struct http_exchange *ex, const char *word, bool error);

/* Answers whole and ends the exchange. `type` NULL: no body (204). HEAD sends the head
 * only. */
void http_respond(struct http_exchange *ex, int status, const char *type,
                  const void *body, size_t len);

/* Starts a streamed response with status 200 or other; chunked in HTTP/1.1, to the
 * connection's end in HTTP/1.0. For HEAD it sends the head, later pieces are dropped. The
 * head leaves with the first piece, or alone when the loop turns. Releases the request,
 * see http_forget_request(). */
void http_stream_begin(struct http_exchange *ex, int status, const char *type);
bool http_stream_begun(const struct http_exchange *ex);

/* A piece of a stream, encoded once and sent to many: `framed` is the payload with
 * HTTP/1.1 chunk framing around it, `payload` points into it. Made with
 * http_piece_begin/_end. */
struct http_piece {
    const char *framed;
    size_t framed_len;
    const char *payload;
    size_t payload_len;
};

/* Leaves room for the chunk head in the empty buffer `b`; then append the payload. */
enum dac_err http_piece_begin(struct buf *b);
/* Closes the frame. The piece borrows from `b` until b is changed. An empty payload gives
 * a piece of no bytes. DAC_E_TOO_LARGE or DAC_E_NOMEM if any append to `b` had failed. */
enum dac_err http_piece_end(struct buf *b, struct http_piece *out) DAC_CHECK;

/* Whether nothing is unsent, so that http_stream_send() is allowed. */
bool http_stream_ready(const struct http_exchange *ex);

/* For one who sends to many: fetches into the cache what http_stream_send() to `ex` will
 * look at. First the exchange alone, a little later what hangs on it. No other effect. */
void http_stream_expect(const struct http_exchange *ex);
void http_stream_expect_next(const struct http_exchange *ex);

/* Sends a piece with one send() at once. DAC_OK: all is with the kernel. DAC_E_AGAIN: the
 * rest was copied as the connection's one unsent remainder; on_writable() follows when it
 * is gone, until then nothing may be sent (DAC_E_STATE). DAC_E_CLOSED: the peer is gone;
 * on_gone() follows from the loop, never from inside this call. */
enum dac_err http_stream_send(struct http_exchange *ex, const struct http_piece *piece);

/* Ends the stream well (last chunk); the connection is kept if it can be. */
void http_stream_end(struct http_exchange *ex);
/* The same with a last piece in front, in one send(); http_stream_ready() must hold. */
void http_stream_finish(struct http_exchange *ex, const struct http_piece *piece);
/* Ends the exchange by closing the connection: what was begun will not look whole. */
void http_abort(struct http_exchange *ex);

/* Bytes that wait in user space for this client (the unsent remainder). */
size_t http_stream_unsent(const struct http_exchange *ex);

#endif
