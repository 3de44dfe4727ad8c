/*
 * HTTP/1.1 of the mock provider: a strict reader of requests (RFC 9112) and the framing
 * of answers. One request at a time; what comes behind it waits in the connection's
 * buffer. A request that breaks the rules is answered with 400 and the connection closed.
 */
#include "tools/mock/wire.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "tools/mock/mock.h"

static const char *reason(int status)
{
    static const struct {
        int status;
        const char *text;
    } table[] = {{200, "OK"},
                 {204, "No Content"},
                 {307, "Temporary Redirect"},
                 {400, "Bad Request"},
                 {401, "Unauthorized"},
                 {404, "Not Found"},
                 {405, "Method Not Allowed"},
                 {408, "Request Timeout"},
                 {413, "Content Too Large"},
                 {422, "Unprocessable Content"},
                 {429, "Too Many Requests"},
                 {431, "Request Header Fields Too Large"},
                 {500, "Internal Server Error"},
                 {502, "Bad Gateway"},
                 {503, "Service Unavailable"},
                 {504, "Gateway Timeout"}};

    for (size_t i = 0; i < DAC_ARRAY_LEN(table); i++) {
        if (table[i].status == status)
            return table[i].text;
    }
    return "Scripted";
}

static bool is_tchar(char c)
{
    return isalnum((unsigned char)c) || (c && strchr("!#$%&'*+-.^_`|~", c));
}

/* Answers 400 (or other) to what cannot be a request, and closes behind it. */
static void refuse(struct conn *c, int status, const char *why)
{
    c->keep_alive = false;
    c->mock->stats.bad_requests++;
    if (!c->x)
        c->x = exchange_new(c);
    if (!c->x) {
        conn_kill(c, false);
        return;
    }
    mock_error(c->x, status, "invalid_request_error", "mock_bad_http", why);
}

/* Splits "METHOD target HTTP/1.x" in place. */
static const char *parse_request_line(struct conn *c, struct exchange *x, char *line)
{
    char *target = strchr(line, ' ');
    char *version = target ? strchr(target + 1, ' ') : NULL;
    char *query;

    if (!version)
        return "bad request line";
    *target++ = '\0';
    *version++ = '\0';
    for (const char *p = line; *p; p++) {
        if (!is_tchar(*p))
            return "bad method";
    }
    if (strcmp(version, "HTTP/1.1") != 0 && strcmp(version, "HTTP/1.0") != 0)
        return "bad HTTP version";
    if (*line == '\0' || target[0] != '/')
        return "bad request target";
    c->http10 = version[7] == '0';
    query = strchr(target, '?');
    if (query)
        *query++ = '\0';
    x->method = line;
    x->path = target;
    x->query = query ? query : "";
    return NULL;
}

static const char *parse_header_line(struct exchange *x, char *line)
{
    char *colon = strchr(line, ':');
    char *value, *end;

    if (!colon || colon == line)
        return "header line without a name";
    *colon = '\0';
    for (char *p = line; *p; p++) {
        if (!is_tchar(*p))
            return "bad character in a header name";
        *p = (char)tolower((unsigned char)*p);
    }
    value = colon + 1 + strspn(colon + 1, " \t");
    for (end = value + strlen(value); end > value && strchr(" \t", end[-1]); end--)
        ;
    *end = '\0';
    for (const char *p = value; *p; p++) {
        if ((unsigned char)*p < 0x20 && *p != '\t')
            return "control character in a header value";
    }
    return exchange_add_header(x, line, value) ? NULL : "too many headers";
}

/* Reads how the body is framed; sets the next state. */
static const char *parse_framing(struct conn *c, struct exchange *x)
{
    const char *te = exchange_header(x, "transfer-encoding");
    const char *cl = exchange_header(x, "content-length");
    const char *connection = exchange_header(x, "connection");

    if (te && cl)
        return "Content-Length beside Transfer-Encoding";
    if (te && (c->http10 || !bytes_ieq(te, strlen(te), "chunked")))
        return "unknown transfer encoding";
    c->h1_left = 0;
    for (size_t i = 0; cl && i < x->header_count; i++) {
        if (strcmp(x->headers[i].name, "content-length") == 0 &&
            strcmp(x->headers[i].value, cl) != 0)
            return "two different Content-Lengths";
    }
    if (cl && !bytes_parse_u64(cl, strlen(cl), UINT64_MAX / 2, &c->h1_left))
        return "bad Content-Length";
    if (!c->http10 && !exchange_header(x, "host"))
        return "no Host";
    c->keep_alive = !c->http10;
    if (connection && strcasestr(connection, "close"))
        c->keep_alive = false;
    else if (connection && c->http10 && strcasestr(connection, "keep-alive"))
        c->keep_alive = true;
    c->h1_state = te ? H1_CHUNK_SIZE : H1_BODY;
    return NULL;
}

/* The head is whole: `n` bytes with its empty line. */
static void parse_head(struct conn *c, size_t n)
{
    struct exchange *x = c->x = exchange_new(c);
    const char *wrong = NULL, *expect;
    char *line, *end;

    if (!x) {
        conn_kill(c, false);
        return;
    }
    buf_append(&x->head, c->in.data, n);
    buf_consume(&c->in, n);
    if (!buf_cstr(&x->head)) {
        conn_kill(c, false);
        return;
    }
    if (memchr(x->head.data, '\0', n))
        wrong = "NUL in the head";
    line = x->head.data;
    for (bool first = true; !wrong; first = false) {
        end = strstr(line, "\r\n");
        if (end == line)
            break;
        *end = '\0';
        if (strchr(line, '\n') || strchr(line, '\r'))
            wrong = "bare CR or LF";
        else
            wrong = first ? parse_request_line(c, x, line) : parse_header_line(x, line);
        line = end + 2;
    }
    if (!wrong)
        wrong = parse_framing(c, x);
    if (wrong) {
        refuse(c, 400, wrong);
        return;
    }
    expect = exchange_header(x, "expect");
    if (expect && bytes_ieq(expect, strlen(expect), "100-continue") && c->in.len == 0) {
        buf_puts(&c->out, "HTTP/1.1 100 Continue\r\n\r\n");
        conn_flush(c);
    }
}

static bool take_head(struct conn *c)
{
    size_t from = c->h1_scan > 3 ? c->h1_scan - 3 : 0;
    const char *end;

    while (c->in.len >= 2 && memcmp(c->in.data, "\r\n", 2) == 0) {
        buf_consume(&c->in, 2);
        from = 0;
    }
    if (c->in.len == 0)
        return false;
    end = memmem(c->in.data + from, c->in.len - from, "\r\n\r\n", 4);
    c->h1_scan = c->in.len;
    if (!end && c->in.len <= WIRE_HEAD_MAX)
        return false;
    c->h1_scan = 0;
    if (!end || end - c->in.data > WIRE_HEAD_MAX)
        refuse(c, 431, "the head is too large");
    else
        parse_head(c, (size_t)(end - c->in.data) + 4);
    return true;
}

/* Reads a chunk's size line, or a trailer line; false while it is not whole. */
static bool take_chunk_line(struct conn *c)
{
    const char *end = memmem(c->in.data, c->in.len, "\r\n", 2);
    size_t n, digits = 0;
    uint64_t size = 0;

    if (!end) {
        if (c->in.len > 4096)
            refuse(c, 400, "chunk line too long");
        return c->in.len > 4096;
    }
    n = (size_t)(end - c->in.data);
    if (c->h1_state == H1_TRAILER) {
        c->h1_state = n == 0 ? H1_BODY : H1_TRAILER;
        c->h1_left = 0;
    } else {
        for (; digits < n && digits < 9 && isxdigit((unsigned char)c->in.data[digits]);
             digits++) {
            char d = (char)tolower((unsigned char)c->in.data[digits]);

            size = size * 16 +
                   (uint64_t)(isdigit((unsigned char)d) ? d - '0' : d - 'a' + 10);
        }
        if (digits == 0 || (digits < n && c->in.data[digits] != ';')) {
            refuse(c, 400, "bad chunk size");
            return true;
        }
        c->h1_left = size;
        c->h1_state = size ? H1_CHUNK_DATA : H1_TRAILER;
    }
    buf_consume(&c->in, n + 2);
    return true;
}

/* Moves what there is of a body; false while more is needed. */
static bool take_body(struct conn *c)
{
    size_t n = c->in.len < c->h1_left ? c->in.len : (size_t)c->h1_left;

    if (c->x->body.len + c->h1_left > WIRE_BODY_MAX) {
        refuse(c, 413, "the body is too large");
        return true;
    }
    buf_append(&c->x->body, c->in.data, n);
    buf_consume(&c->in, n);
    c->h1_left -= n;
    return c->h1_left == 0;
}

static bool take_chunk(struct conn *c)
{
    switch (c->h1_state) {
    case H1_CHUNK_DATA:
        if (!take_body(c))
            return false;
        if (c->x && !c->x->begun)
            c->h1_state = H1_CHUNK_END;
        return true;
    case H1_CHUNK_END:
        if (c->in.len < 2)
            return false;
        if (memcmp(c->in.data, "\r\n", 2) != 0)
            refuse(c, 400, "no line end behind a chunk");
        else {
            buf_consume(&c->in, 2);
            c->h1_state = H1_CHUNK_SIZE;
        }
        return true;
    default:
        return take_chunk_line(c);
    }
}

/* One step of reading; false when more bytes or the current answer must come first. */
static bool h1_step(struct conn *c)
{
    if (c->close_after || (c->x && (c->x->begun || c->x->ops)))
        return false;
    if (!c->x) {
        c->h1_state = H1_HEAD;
        return take_head(c);
    }
    if (c->h1_state != H1_BODY)
        return take_chunk(c);
    if (!take_body(c))
        return false;
    if (c->x && !c->x->begun) {
        buf_cstr(&c->x->body);
        mock_dispatch(c->x);
    }
    return true;
}

void h1_input(struct conn *c)
{
    if (c->processing)
        return;
    c->processing = true;
    while (!c->dead && h1_step(c))
        ;
    c->processing = false;
    if (!c->dead && c->close_after)
        buf_reset(&c->in);
    /* What is pipelined behind a running answer is kept, but not without end. */
    if (!c->dead && c->x && c->x->begun && c->in.len > (4 << 20))
        conn_gone(c, GONE_CLOSED);
}

void h1_begin(struct exchange *x, int status, const struct header *h, size_t n,
              bool whole, size_t len)
{
    struct conn *c = x->conn;
    struct buf *out = &c->out;

    buf_printf(out, "HTTP/1.1 %d %s\r\nserver: dac-mock\r\n", status, reason(status));
    for (size_t i = 0; i < n; i++) {
        if (h[i].value)
            buf_printf(out, "%s: %s\r\n", h[i].name, h[i].value);
    }
    x->chunked = !whole && !c->http10;
    if (whole)
        buf_printf(out, "content-length: %zu\r\n", len);
    else if (x->chunked)
        buf_puts(out, "transfer-encoding: chunked\r\n");
    else
        c->keep_alive = false;
    if (!c->keep_alive)
        buf_puts(out, "connection: close\r\n");
    else if (c->http10)
        buf_puts(out, "connection: keep-alive\r\n");
    buf_puts(out, "\r\n");
}

void h1_write(struct exchange *x, const void *data, size_t n)
{
    static const char hex[] = "0123456789abcdef";
    struct buf *out = &x->conn->out;
    char size[20];
    char *p = size + sizeof(size);

    if (!x->chunked) {
        buf_append(out, data, n);
        return;
    }
    *--p = '\n';
    *--p = '\r';
    for (size_t left = n; left; left >>= 4)
        *--p = hex[left & 15];
    buf_append(out, p, (size_t)(size + sizeof(size) - p));
    buf_append(out, data, n);
    buf_append(out, "\r\n", 2);
}

void h1_end(struct exchange *x)
{
    if (x->chunked)
        buf_puts(&x->conn->out, "0\r\n\r\n");
}

void h1_after_flush(struct conn *c)
{
    struct exchange *x = c->x;

    if (c->dead || !x || !x->ended || c->out_off < c->out.len || c->write_error)
        return;
    exchange_tell_done(x);
    exchange_free(x);
    c->x = NULL;
    if (!c->keep_alive) {
        /* Half-closed first: closing with unread input would reset what was just sent. */
        if (c->ssl)
            SSL_shutdown(c->ssl);
        shutdown(c->fd, SHUT_WR);
        c->close_after = true;
        return;
    }
    if (!c->processing && c->in.len > 0)
        event_active(&c->rd, EV_READ, 0);
}
