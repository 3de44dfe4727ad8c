/*
 * Responses: heads, whole answers, and streams. A stream's head waits for its first
 * piece, so that both leave in one packet; if none follows, the turn event sends it
 * alone.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "http/internal.h"
#include "http/problem.h"

#define HEAD_ROOM 512 /* the server's own lines */

static struct http_exchange *live(struct http_exchange *ex)
{
    DAC_ASSERT(ex && ex->magic == EXCHANGE_MAGIC && !ex->over);
    return ex;
}

/* IMF-fixdate of the current second, RFC 9110 section 5.6.7; locale-free. */
static const char *date(struct http_server *s)
{
    static const char days[] = "SunMonTueWedThuFriSat";
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    int64_t now = clock_wall_us() / 1000000;

    if (now != s->date_second) {
        time_t t = (time_t)now;
        struct tm tm;
        gmtime_r(&t, &tm);
        snprintf(s->date, sizeof(s->date), "%.3s, %02d %.3s %04d %02d:%02d:%02d GMT",
                 days + 3 * tm.tm_wday, tm.tm_mday % 100, months + 3 * tm.tm_mon,
                 (tm.tm_year + 1900) % 10000, tm.tm_hour, tm.tm_min, tm.tm_sec);
        s->date_second = now;
    }
    return s->date;
}

void http_add_header(struct http_exchange *ex, const char *name, const char *value)
{
    DAC_ASSERT(!live(ex)->streaming);
    for (const char *p = name; *p; p++)
        DAC_ASSERT(h1_is_token_char((unsigned char)*p));
    DAC_ASSERT(!strpbrk(value, "\r\n"));
    buf_printf(&ex->headers, "%s: %s\r\n", name, value);
}

void http_set_ending(struct http_exchange *ex, const char *word, bool error)
{
    live(ex)->ending = word;
    ex->failed = error;
}

enum framing { FRAMING_LENGTH, FRAMING_CHUNKED, FRAMING_CLOSE, FRAMING_NONE };

/* Puts the whole head in front of the added headers; ex->headers holds it then. */
static enum dac_err build_head(struct http_exchange *ex, int status, const char *type,
                               enum framing framing, size_t len)
{
    struct conn *c = ex->conn;
    struct http_server *s = c->server;
    struct buf head = BUF_INIT(HTTP_HEADERS_OUT_MAX + HEAD_ROOM);
    char id[HTTP_REQUEST_ID_SIZE];

    c->client_closes = !ex->client_keeps && !ex->must_close;
    c->keep =
        ex->client_keeps && !ex->must_close && !s->draining && framing != FRAMING_CLOSE;
    buf_reserve(&head, ex->headers.len + HEAD_ROOM / 2);
    buf_printf(&head, "HTTP/1.1 %d %s\r\nDate: %s\r\n", status, http_reason(status),
               date(s));
    if (s->opt.server_name)
        buf_printf(&head, "Server: %s\r\n", s->opt.server_name);
    buf_printf(&head, "X-Request-Id: %s\r\n", http_request_id(ex, id));
    if (type)
        buf_printf(&head, "Content-Type: %s\r\n", type);
    if (framing == FRAMING_LENGTH)
        buf_printf(&head, "Content-Length: %zu\r\n", len);
    else if (framing == FRAMING_CHUNKED)
        buf_puts(&head, "Transfer-Encoding: chunked\r\n");
    if (!c->keep)
        buf_puts(&head, "Connection: close\r\n");
    else if (ex->minor == 0)
        buf_puts(&head, "Connection: keep-alive\r\n");
    buf_append(&head, ex->headers.data, ex->headers.len);
    buf_puts(&head, "\r\n");

    ex->status = (int16_t)status;
    enum dac_err e = head.failed || ex->headers.failed ? DAC_E_NOMEM : DAC_OK;
    buf_free(&ex->headers);
    ex->headers = head;
    if (status >= 100 && status < 600)
        s->stats.responses[status / 100]++;
    return e;
}

/* Ends the exchange; what it had to say is with conn_send(). */
static void finish(struct http_exchange *ex, enum dac_err e)
{
    struct conn *c = ex->conn;

    exchange_over(ex, e == DAC_E_NOMEM ? EXCHANGE_CUT
                      : c->broken      ? EXCHANGE_LEFT
                                       : EXCHANGE_ANSWERED);
    if (e == DAC_E_NOMEM) /* a half answer must not look whole */
        conn_close(c);
    else
        conn_answered(c);
}

void http_respond(struct http_exchange *ex, int status, const char *type,
                  const void *body, size_t len)
{
    bool bare = status == 204 || status == 304 || status < 200;

    DAC_ASSERT(!live(ex)->streaming);
    DAC_ASSERT(ex->conn->state == CONN_EXCHANGE);
    enum dac_err e = build_head(ex, status, type, bare ? FRAMING_NONE : FRAMING_LENGTH,
                                type ? len : 0);
    if (e == DAC_OK) {
        bool with_body = type && !bare && ex->method != HTTP_HEAD;
        struct iovec iov[2] = {
            {ex->headers.data, ex->headers.len},
            {(void *)(uintptr_t)body, with_body ? len : 0},
        };
        ex->bytes += iov[0].iov_len + iov[1].iov_len;
        e = conn_send(ex->conn, iov, with_body && len ? 2 : 1);
    }
    finish(ex, e);
}

/* --- streams --------------------------------------------------------------------------
 */

void http_stream_begin(struct http_exchange *ex, int status, const char *type)
{
    DAC_ASSERT(!live(ex)->streaming);
    DAC_ASSERT(ex->conn->state == CONN_EXCHANGE);
    enum dac_err e =
        build_head(ex, status, type, ex->minor == 0 ? FRAMING_CLOSE : FRAMING_CHUNKED, 0);
    ex->streaming = true;
    ex->conn->server->stats.streams++;
    if (e != DAC_OK)
        ex->conn->broken = true;
    if (!ex->in_handler)
        exchange_forget(ex);
    conn_queue(ex->conn);
}

bool http_stream_begun(const struct http_exchange *ex)
{
    DAC_ASSERT(ex && ex->magic == EXCHANGE_MAGIC);
    return ex->streaming;
}

/* Sends up to two slices, behind the head if that is still here. */
static enum dac_err stream_send(struct http_exchange *ex, const struct iovec *more,
                                int count)
{
    struct iovec iov[3];
    int n = 0;

    if (!ex->head_sent)
        iov[n++] = (struct iovec){ex->headers.data, ex->headers.len};
    for (int i = 0; i < count; i++)
        if (more[i].iov_len > 0)
            iov[n++] = more[i];
    if (n == 0)
        return ex->conn->broken ? DAC_E_CLOSED : DAC_OK;
    for (int i = 0; i < n; i++)
        ex->bytes += iov[i].iov_len;
    enum dac_err e = conn_send(ex->conn, iov, n);
    if (!ex->head_sent) {
        ex->head_sent = true;
        buf_free(&ex->headers);
    }
    return e;
}

void stream_flush_head(struct http_exchange *ex)
{
    (void)stream_send(ex, NULL, 0);
}

bool http_stream_ready(const struct http_exchange *ex)
{
    DAC_ASSERT(ex && ex->magic == EXCHANGE_MAGIC && !ex->over);
    return ex->streaming && (!ex->head_sent || conn_unsent(ex->conn) == 0);
}

void http_stream_expect(const struct http_exchange *ex)
{
    __builtin_prefetch(ex);
}

void http_stream_expect_next(const struct http_exchange *ex)
{
    const char *c = (const char *)ex->conn;

    __builtin_prefetch(c);
    __builtin_prefetch(c + 64);
}

/* The slice of a piece that this client gets. */
static struct iovec piece_bytes(const struct http_exchange *ex,
                                const struct http_piece *piece)
{
    if (!piece || ex->method == HTTP_HEAD)
        return (struct iovec){0};
    if (ex->minor == 0)
        return (struct iovec){(void *)(uintptr_t)piece->payload, piece->payload_len};
    return (struct iovec){(void *)(uintptr_t)piece->framed, piece->framed_len};
}

enum dac_err http_stream_send(struct http_exchange *ex, const struct http_piece *piece)
{
    if (!http_stream_ready(live(ex)) && !ex->conn->broken)
        return DAC_E_STATE;
    struct iovec iov = piece_bytes(ex, piece);
    return stream_send(ex, &iov, 1);
}

void http_stream_finish(struct http_exchange *ex, const struct http_piece *piece)
{
    static const char last_chunk[] = "0\r\n\r\n";
    struct iovec iov[2];
    int n = 0;

    DAC_ASSERT(live(ex)->streaming);
    iov[n++] = piece_bytes(ex, piece);
    if (ex->minor >= 1 && ex->method != HTTP_HEAD)
        iov[n++] = (struct iovec){(void *)(uintptr_t)last_chunk, sizeof(last_chunk) - 1};
    (void)stream_send(ex, iov, n);
    finish(ex, DAC_OK);
}

void http_stream_end(struct http_exchange *ex)
{
    http_stream_finish(ex, NULL);
}

void http_abort(struct http_exchange *ex)
{
    struct conn *c = live(ex)->conn;

    exchange_over(ex, EXCHANGE_CUT);
    conn_close(c);
}

size_t http_stream_unsent(const struct http_exchange *ex)
{
    DAC_ASSERT(ex && ex->magic == EXCHANGE_MAGIC);
    return conn_unsent(ex->conn);
}
