/*
 * The client's life, driven by one libevent event per connection:
 * IDLE -> CONNECTING -> SENDING -> HEAD -> BODY -> OVER -> (client_ask) SENDING ...
 */
#include "tools/bench/client.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"

#define READ_SIZE 65536

static void on_event(evutil_socket_t fd, short what, void *arg);

bool target_parse(const char *url, struct target *out, const char **why)
{
    static const char scheme[] = "http://";
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
    char host[96], *colon;

    *why = "not of the form http://HOST:PORT";
    if (strncmp(url, scheme, sizeof(scheme) - 1) != 0)
        return false;
    url += sizeof(scheme) - 1;
    snprintf(host, sizeof(host), "%.*s", (int)strcspn(url, "/"), url);
    snprintf(out->host, sizeof(out->host), "%s", host);
    if ((colon = strchr(host, ':')))
        *colon = '\0';
    if (getaddrinfo(host, colon ? colon + 1 : "80", &hints, &found) != 0) {
        *why = "host or port not known";
        return false;
    }
    memcpy(&out->addr, found->ai_addr, sizeof(out->addr));
    freeaddrinfo(found);
    return true;
}

void client_init(struct client *c, struct event_base *base, const struct target *target,
                 const struct client_ops *ops, void *user, size_t index)
{
    memset(c, 0, sizeof(*c));
    c->base = base;
    c->target = target;
    c->ops = ops;
    c->user = user;
    c->index = index;
    c->fd = -1;
}

void client_set_request(struct client *c, const char *path, const char *headers,
                        const char *body)
{
    free(c->request);
    int n = asprintf(&c->request,
                     "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\n"
                     "Content-Length: %zu\r\n%s\r\n%s",
                     path, c->target->host, strlen(body), headers, body);

    if (n < 0) {
        fprintf(stderr, "dac-bench: out of memory\n");
        exit(1);
    }
    c->request_len = (size_t)n;
}

static void drop_connection(struct client *c)
{
    if (c->fd < 0)
        return;
    if (c->ev.ev_events)
        event_del(&c->ev);
    close(c->fd);
    c->fd = -1;
}

void client_close(struct client *c)
{
    drop_connection(c);
    free(c->request);
    c->request = NULL;
    c->state = CLIENT_IDLE;
}

static void finish(struct client *c, bool whole)
{
    c->end_ns = clock_now_ns();
    c->state = CLIENT_OVER;
    c->refused = !whole && c->status == 0;
    c->ok = whole && c->status == 200 && (!c->stream || c->done);
    if (!whole || c->closing)
        drop_connection(c);
    c->ops->on_end(c);
}

static void watch(struct client *c, short what)
{
    if (c->ev.ev_events)
        event_del(&c->ev);
    event_assign(&c->ev, c->base, c->fd, (short)(what | EV_PERSIST), on_event, c);
    event_add(&c->ev, NULL);
}

/* Sends what is left of the request; true while the connection lives. */
static bool send_request(struct client *c)
{
    while (c->request_sent < c->request_len) {
        ssize_t n = send(c->fd, c->request + c->request_sent,
                         c->request_len - c->request_sent, MSG_NOSIGNAL);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN) {
            watch(c, EV_WRITE);
            return true;
        }
        if (n < 0)
            return false;
        c->request_sent += (size_t)n;
    }
    c->state = CLIENT_HEAD;
    watch(c, EV_READ);
    return true;
}

static bool start_connecting(struct client *c)
{
    int one = 1;

    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        return false;
    (void)setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    c->state = CLIENT_CONNECTING;
    if (connect(c->fd, (const struct sockaddr *)&c->target->addr,
                sizeof(c->target->addr)) != 0 &&
        errno != EINPROGRESS)
        return false;
    watch(c, EV_WRITE);
    return true;
}

void client_ask(struct client *c)
{
    c->status = 0;
    c->ok = c->stream = c->done = c->refused = c->delta_event = c->bad_event = false;
    c->done_event = false;
    c->stored[0] = '\0';
    c->head_ns = c->first_ns = c->done_ns = c->end_ns = 0;
    c->bytes = c->text_count = c->mark = c->seen = c->id = 0;
    c->line_len = 0;
    c->request_sent = 0;
    c->asked_ns = clock_now_ns();
    c->state = CLIENT_SENDING;
    if (c->fd >= 0 ? !send_request(c) : !start_connecting(c)) {
        drop_connection(c);
        finish(c, false);
    }
}

/* --- the answer ----------------------------------------------------------------------
 */

static const char *header_value(const char *head, const char *name)
{
    size_t n = strlen(name);

    for (const char *p = strstr(head, "\r\n"); p; p = strstr(p, "\r\n")) {
        p += 2;
        if (strncasecmp(p, name, n) == 0 && p[n] == ':')
            return p + n + 1 + strspn(p + n + 1, " ");
    }
    return NULL;
}

static bool starts(const char *value, const char *with)
{
    return value && strncasecmp(value, with, strlen(with)) == 0;
}

/* Takes a head that ends at `head`'s NUL. */
static bool take_head(struct client *c, const char *head)
{
    const char *length = header_value(head, "content-length");

    if (sscanf(head, "HTTP/1.%*1d %3d", &c->status) != 1)
        return false;
    c->head_ns = clock_now_ns();
    c->stream = starts(header_value(head, "content-type"), "text/event-stream");
    c->closing = starts(header_value(head, "connection"), "close");
    c->mode = BODY_TO_END;
    if (starts(header_value(head, "transfer-encoding"), "chunked")) {
        c->mode = BODY_CHUNKED;
        c->chunk = CHUNK_SIZE;
    } else if (length) {
        c->mode = BODY_LENGTH;
        c->left = strtoull(length, NULL, 10);
    }
    c->line_len = 0;
    c->state = CLIENT_BODY;
    if (c->ops->on_head)
        c->ops->on_head(c);
    return true;
}

static void text_came(struct client *c, uint64_t mark, uint64_t now_ns)
{
    if (!c->first_ns)
        c->first_ns = now_ns;
    c->text_count++;
    c->mark = mark;
    if (c->ops->on_text)
        c->ops->on_text(c, mark, now_ns);
}

static void note_done(struct client *c, uint64_t now_ns)
{
    c->done = true;
    c->done_ns = now_ns;
}

/* Of the data of `done`: the member "stored", a word or null. */
static void note_stored(struct client *c, const char *data)
{
    static const char key[] = "\"stored\":\"";
    const char *word = strstr(data, key);

    if (!word)
        return;
    word += sizeof(key) - 1;
    snprintf(c->stored, sizeof(c->stored), "%.*s", (int)strcspn(word, "\""), word);
}

/* A line of the event stream is whole; `line` holds its first `n` bytes and a NUL. */
static void take_line(struct client *c, const char *line, size_t n, uint64_t now_ns)
{
    if (n == 0) {
        c->delta_event = c->bad_event = c->done_event = false;
    } else if (strncmp(line, "event: ", 7) == 0) {
        c->delta_event = strcmp(line + 7, "delta") == 0;
        c->bad_event = strcmp(line + 7, "error") == 0;
        c->done_event = strcmp(line + 7, "done") == 0;
        if (c->done_event)
            note_done(c, now_ns);
    } else if (strncmp(line, "id: ", 4) == 0) {
        const char *dash = strchr(line, '-');

        c->id = dash ? strtoull(dash + 1, NULL, 10) : 0;
    } else if (strncmp(line, "data: ", 6) == 0) {
        const char *content;

        if (c->delta_event) {
            text_came(c, c->id, now_ns);
        } else if (c->done_event) {
            note_stored(c, line);
        } else if (strcmp(line + 6, "[DONE]") == 0) {
            note_done(c, now_ns);
        } else if ((content = strstr(line, "\"content\":")) != NULL) {
            content += 10 + strspn(content + 10, " ");
            if (content[0] == '"' && content[1] != '"')
                text_came(c, c->text_count + 1, now_ns);
        }
    }
}

/* Feeds body bytes, frames removed, to the line reader. */
static void take_body(struct client *c, const char *p, size_t n, uint64_t now_ns)
{
    char line[CLIENT_LINE_KEEP + 1];

    while (c->stream && n > 0) {
        const char *end = memchr(p, '\n', n);
        size_t piece = end ? (size_t)(end - p) : n;
        size_t have = c->line_len < CLIENT_LINE_KEEP ? c->line_len : CLIENT_LINE_KEEP;
        size_t keep = piece < CLIENT_LINE_KEEP - have ? piece : CLIENT_LINE_KEEP - have;

        memcpy(c->line + have, p, keep);
        c->line_len += piece;
        if (!end)
            return;
        memcpy(line, c->line, have + keep);
        line[have + keep] = '\0';
        c->line_len = 0;
        take_line(c, line, have + keep, now_ns);
        p = end + 1;
        n -= piece + 1;
    }
}

enum body_result { BODY_MORE, BODY_WHOLE, BODY_BAD };

static enum body_result take_chunked(struct client *c, const char *p, size_t n,
                                     uint64_t now_ns)
{
    while (n > 0) {
        if (c->chunk == CHUNK_DATA) {
            size_t piece = c->left < n ? (size_t)c->left : n;

            take_body(c, p, piece, now_ns);
            p += piece;
            n -= piece;
            c->left -= piece;
            if (c->left == 0)
                c->chunk = CHUNK_DATA_END;
            continue;
        }
        char ch = *p++;

        n--;
        if (ch == '\r')
            continue;
        if (c->chunk == CHUNK_SIZE && ch != '\n') {
            int digit = ch >= '0' && ch <= '9'   ? ch - '0'
                        : ch >= 'a' && ch <= 'f' ? ch - 'a' + 10
                        : ch >= 'A' && ch <= 'F' ? ch - 'A' + 10
                                                 : -1;

            if (digit < 0)
                return BODY_BAD;
            c->left = c->left * 16 + (uint64_t)digit;
        } else if (ch != '\n') {
            return BODY_BAD;
        } else if (c->chunk == CHUNK_TRAILER) {
            return BODY_WHOLE;
        } else if (c->chunk == CHUNK_DATA_END) {
            c->chunk = CHUNK_SIZE;
            c->left = 0;
        } else {
            c->chunk = c->left ? CHUNK_DATA : CHUNK_TRAILER;
        }
    }
    return BODY_MORE;
}

static enum body_result take_bytes(struct client *c, const char *p, size_t n,
                                   uint64_t now_ns)
{
    if (c->mode == BODY_CHUNKED)
        return take_chunked(c, p, n, now_ns);
    if (c->mode == BODY_LENGTH) {
        size_t piece = c->left < n ? (size_t)c->left : n;

        take_body(c, p, piece, now_ns);
        c->left -= piece;
        return c->left ? BODY_MORE : BODY_WHOLE;
    }
    take_body(c, p, n, now_ns);
    return BODY_MORE;
}

static void on_readable(struct client *c)
{
    static char buffer[READ_SIZE + 1];
    ssize_t got = recv(c->fd, buffer, READ_SIZE, 0);
    enum body_result result = BODY_MORE;
    char *body = buffer;

    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        finish(c, got == 0 && c->state == CLIENT_BODY && c->mode == BODY_TO_END);
        return;
    }
    c->bytes += (uint64_t)got;
    buffer[got] = '\0';
    if (c->state == CLIENT_HEAD) {
        /* Servers measured here send a head with one write; one that comes in pieces is
         * reported as a broken answer rather than guessed at. */
        char *end = strstr(buffer, "\r\n\r\n");

        if (!end) {
            finish(c, false);
            return;
        }
        end[2] = '\0';
        body = end + 4;
        c->left = 0;
        if (!take_head(c, buffer)) {
            finish(c, false);
            return;
        }
        if (c->mode == BODY_LENGTH && c->left == 0)
            result = BODY_WHOLE;
    }
    if (result == BODY_MORE && body < buffer + got)
        result = take_bytes(c, body, (size_t)(buffer + got - body), clock_now_ns());
    if (result != BODY_MORE)
        finish(c, result == BODY_WHOLE);
}

static void on_event(evutil_socket_t fd, short what, void *arg)
{
    struct client *c = arg;
    int err = 0;
    socklen_t len = sizeof(err);

    (void)what;
    if (c->state == CLIENT_CONNECTING) {
        if (getsockopt((int)fd, SOL_SOCKET, SO_ERROR, &err, &len) != 0 || err != 0) {
            finish(c, false);
            return;
        }
        c->state = CLIENT_SENDING;
    }
    if (c->state == CLIENT_SENDING) {
        if (!send_request(c))
            finish(c, false);
    } else if (c->state == CLIENT_HEAD || c->state == CLIENT_BODY) {
        on_readable(c);
    } else {
        drop_connection(c); /* closed by the server between two questions */
    }
}

/* --- setting up ----------------------------------------------------------------------
 */

int http_once(const struct target *t, const char *path, const char *headers,
              const char *body, char *out, size_t size)
{
    struct buf all = BUF_INIT((size_t)64 << 20);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), status = 0;
    struct timeval patience = {.tv_sec = 10};
    char *split = NULL;
    ssize_t n = -1;

    out[0] = '\0';
    if (fd < 0)
        return 0;
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    buf_printf(&all, "%s %s HTTP/1.0\r\nHost: %s\r\nContent-Type: application/json\r\n",
               body ? "POST" : "GET", path, t->host);
    buf_printf(&all, "%sContent-Length: %zu\r\n\r\n%s", headers, body ? strlen(body) : 0,
               body ? body : "");
    if (!all.failed &&
        connect(fd, (const struct sockaddr *)&t->addr, sizeof(t->addr)) == 0 &&
        send(fd, all.data, all.len, MSG_NOSIGNAL) == (ssize_t)all.len) {
        buf_reset(&all);
        while (buf_reserve(&all, READ_SIZE) &&
               (n = recv(fd, all.data + all.len, READ_SIZE, 0)) > 0)
            all.len += (size_t)n;
    }
    if (n == 0 && buf_cstr(&all) && (split = strstr(all.data, "\r\n\r\n")) != NULL &&
        sscanf(all.data, "HTTP/1.%*1d %3d", &status) == 1)
        snprintf(out, size, "%s", split + 4);
    buf_free(&all);
    close(fd);
    return status;
}
