/*
 * A load-generating HTTP/1.1 client: one connection, one request at a time, whose answer
 * is an event stream or a body. It parses no more than it must, so that the generator
 * stays cheaper than what it measures: chunk heads, line starts, and of an event its
 * name, its id and whether it carries text.
 *
 * Both dialects are understood: `event: delta` with `id: <generation>-<bytes>`, and the
 * OpenAI chunks, where bytes of text are not known and chunks are counted instead. Time
 * stamps are taken once per read(). Nothing is freed or restarted inside a callback but
 * by client_ask().
 */
#ifndef DAC_BENCH_CLIENT_H
#define DAC_BENCH_CLIENT_H

#include <event2/event.h>
#include <event2/event_struct.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CLIENT_LINE_KEEP 400 /* bytes of a line that are looked at */

/* Where a server is: from "http://HOST:PORT". */
struct target {
    struct sockaddr_in addr;
    char host[128]; /* for the Host header, with the port */
};

enum client_state {
    CLIENT_IDLE,
    CLIENT_CONNECTING,
    CLIENT_SENDING,
    CLIENT_HEAD,
    CLIENT_BODY,
    CLIENT_OVER /* answered, or failed: see `ok` */
};

enum body_mode { BODY_CHUNKED, BODY_LENGTH, BODY_TO_END };
enum chunk_state { CHUNK_SIZE, CHUNK_DATA, CHUNK_DATA_END, CHUNK_TRAILER };

struct client;

struct client_ops {
    void (*on_head)(struct client *c);
    /* A piece of text; `mark` is the count of its last byte (native) or its number
     * (OpenAI). */
    void (*on_text)(struct client *c, uint64_t mark, uint64_t now_ns);
    /* The answer is over, well or not; the connection is kept only if `ok`. */
    void (*on_end)(struct client *c);
};

struct client {
    const struct target *target;  /* borrowed */
    const struct client_ops *ops; /* static */
    void *user;
    size_t index;
    struct event_base *base;
    int fd; /* -1: not connected */
    struct event ev;
    enum client_state state;
    char *request; /* owned */
    size_t request_len, request_sent;
    /* The answer. */
    int status;
    bool ok;         /* a whole answer with status 200, and for streams done or [DONE] */
    bool stream;     /* Content-Type is text/event-stream */
    bool done;       /* the stream said that it ended well */
    char stored[16]; /* where, as it said then; empty: nowhere */
    bool refused;    /* no connection, or it broke off */
    uint64_t asked_ns, head_ns, first_ns, done_ns, end_ns;
    uint64_t bytes;      /* received, heads and frames too */
    uint64_t text_count; /* on_text() calls */
    uint64_t mark;       /* of the last on_text() */
    uint64_t seen;       /* for the caller */
    /* The parser. */
    enum body_mode mode;
    enum chunk_state chunk;
    uint64_t left;
    size_t line_len; /* of the present line, above CLIENT_LINE_KEEP too */
    char line[CLIENT_LINE_KEEP];
    bool delta_event, bad_event, done_event, closing;
    uint64_t id;
};

/* Reads "http://HOST[:PORT][/]"; names are resolved to IPv4. False: `why` says what is
 * wrong. */
bool target_parse(const char *url, struct target *out, const char **why);

/* Prepares a client; it connects at its first question. */
void client_init(struct client *c, struct event_base *base, const struct target *target,
                 const struct client_ops *ops, void *user, size_t index);
/* Takes a POST with a JSON body; more headers as "Name: value\r\n" lines. */
void client_set_request(struct client *c, const char *path, const char *headers,
                        const char *body);
/* Sends the request, over the kept connection if there is one. In on_end() too. */
void client_ask(struct client *c);
void client_close(struct client *c);

/* A request of its own, answered whole: status and body (NUL-terminated, cut at `size`);
 * blocking, for setting up. `headers` as above; `body` NULL: GET. Returns 0 if nothing
 * came. */
int http_once(const struct target *t, const char *path, const char *headers,
              const char *body, char *out, size_t size);

#endif
