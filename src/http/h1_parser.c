/*
 * The frame of the request parser: collects the head line by line, hands lines to
 * h1_line.c, decides at the head's end how the body is framed, and hands the rest to
 * h1_body.c. See h1_parser.h for what it promises.
 */
#include "http/h1_parser.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

void h1_request_init(struct h1_request *r, size_t header_max, size_t body_max)
{
    memset(r, 0, offsetof(struct h1_request, headers));
    if (header_max > UINT32_MAX / 2)
        header_max = UINT32_MAX / 2; /* offsets are 32 bits wide */
    r->header_max = header_max;
    r->body_max = body_max;
    r->head = BUF_INIT(header_max);
    r->body = BUF_INIT(body_max);
    r->minor = 1;
}

void h1_request_free(struct h1_request *r)
{
    for (unsigned i = 0; i < r->header_count; i++)
        free(r->headers[i].joined);
    r->header_count = 0;
    buf_free(&r->head);
    buf_free(&r->body);
}

enum h1_result h1_fail(struct h1_request *r, int status, const char *code,
                       const char *field, const char *fmt, ...)
{
    va_list ap;

    r->state = H1_ST_FAILED;
    r->fault.status = status;
    r->fault.code = code;
    snprintf(r->fault.field, sizeof(r->fault.field), "%s", field ? field : "");
    va_start(ap, fmt);
    vsnprintf(r->fault.detail, sizeof(r->fault.detail), fmt, ap);
    va_end(ap);
    return H1_ERROR;
}

bool h1_is_token_char(unsigned char c)
{
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9'))
        return true;
    return c != 0 && strchr("!#$%&'*+-.^_`|~", c) != NULL;
}

bool h1_is_value_char(unsigned char c)
{
    return (c >= 0x20 && c != 0x7f) || c == '\t';
}

bool h1_started(const struct h1_request *r)
{
    return r->state != H1_ST_START;
}

bool h1_keep_alive(const struct h1_request *r)
{
    if (r->connection_close)
        return false;
    return r->minor >= 1 || r->connection_keep_alive;
}

bool h1_has_body(const struct h1_request *r)
{
    return r->chunked || r->content_length > 0;
}

/* The blank line was read: what only the whole head can tell. */
static enum h1_result head_end(struct h1_request *r)
{
    if (r->minor >= 1 && r->host_count == 0)
        return h1_fail(r, 400, "missing_host", "Host",
                       "an HTTP/1.1 request needs a Host header");
    if (r->chunked && r->has_length)
        return h1_fail(r, 400, "bad_framing", "Content-Length",
                       "Content-Length and Transfer-Encoding exclude each other");
    if (r->minor == 0)
        r->expect_continue = false; /* RFC 9110, section 10.1.1 */

    if (r->chunked) {
        r->state = H1_ST_CHUNK_SIZE;
    } else if (r->content_length > 0) {
        r->left = r->content_length;
        r->state = H1_ST_BODY;
    } else {
        r->state = H1_ST_DONE;
    }
    return H1_HEAD;
}

/* A line of the head is whole in the buffer, its LF included. */
static enum h1_result head_line(struct h1_request *r)
{
    char *line = r->head.data + r->line;
    size_t len = r->head.len - r->line;

    if (len < 2 || line[len - 2] != '\r')
        return h1_fail(r, 400, "bad_line_end", NULL,
                       "the line ending at byte %zu of the head ends with LF, not CRLF",
                       r->head.len - 1);
    len -= 2;
    const char *cr = memchr(line, '\r', len);
    if (cr)
        return h1_fail(r, 400, "bad_line_end", NULL, "a lone CR at byte %zu of the head",
                       (size_t)(cr - r->head.data));

    if (r->state == H1_ST_START) { /* only "\r\n" gets here in this state */
        if (++r->empty_lines > H1_EMPTY_LINES_MAX)
            return h1_fail(r, 400, "bad_request_line", NULL,
                           "too many empty lines ahead of the request");
        buf_reset(&r->head);
        return H1_MORE;
    }

    enum h1_result res;
    if (r->state == H1_ST_REQUEST_LINE) {
        res = h1_request_line(r, line, len);
        r->state = res == H1_ERROR ? H1_ST_FAILED : H1_ST_HEADERS;
    } else if (len == 0) {
        res = head_end(r);
    } else {
        res = h1_header_line(r, line, len);
    }
    r->line = (uint32_t)r->head.len;
    return res;
}

/* Ahead of a request line: either CRLF, or the first byte of a method. */
static enum h1_result head_start(struct h1_request *r, const char *data, size_t n)
{
    if (r->head.len == 0) {
        if (h1_is_token_char((unsigned char)data[0])) {
            r->state = H1_ST_REQUEST_LINE;
            return H1_MORE;
        }
        if (data[0] == '\n')
            return h1_fail(r, 400, "bad_line_end", NULL,
                           "an empty line ends with LF, not CRLF");
        if (data[0] != '\r')
            return h1_fail(r, 400, "bad_request_line", NULL,
                           "the request does not start with a method");
        if (n == 1)
            return H1_MORE;
        data++;
    }
    if (data[0] != '\n')
        return h1_fail(r, 400, "bad_line_end", NULL, "a lone CR ahead of the request");
    return H1_MORE;
}

/* Copies up to the end of a line into the head, inside the limits. */
static enum h1_result head_append(struct h1_request *r, const char *data, size_t n)
{
    size_t len = r->head.len + n;

    if (r->state == H1_ST_START && head_start(r, data, n) == H1_ERROR)
        return H1_ERROR;
    if (r->state == H1_ST_REQUEST_LINE &&
        (len > H1_REQUEST_LINE_MAX || len > r->header_max))
        return h1_fail(r, 414, "uri_too_long", NULL,
                       "the request line is longer than %zu bytes",
                       r->header_max < H1_REQUEST_LINE_MAX ? r->header_max
                                                           : (size_t)H1_REQUEST_LINE_MAX);
    if (len > r->header_max)
        return h1_fail(r, 431, "headers_too_large", NULL,
                       "the request's head is longer than %zu bytes", r->header_max);
    if (buf_append(&r->head, data, n) != DAC_OK)
        return h1_fail(r, 503, "no_memory", NULL, "out of memory");
    return H1_MORE;
}

static enum h1_result feed_head(struct h1_request *r, const char *data, size_t n,
                                size_t *used)
{
    while (*used < n) {
        const char *from = data + *used;
        const char *lf = memchr(from, '\n', n - *used);
        size_t take = lf ? (size_t)(lf - from) + 1 : n - *used;

        enum h1_result res = head_append(r, from, take);
        if (res != H1_MORE)
            return res;
        *used += take;
        if (lf) {
            res = head_line(r);
            if (res != H1_MORE)
                return res;
        }
    }
    return H1_MORE;
}

enum h1_result h1_feed(struct h1_request *r, const char *data, size_t n, size_t *used)
{
    *used = 0;
    switch (r->state) {
    case H1_ST_START:
    case H1_ST_REQUEST_LINE:
    case H1_ST_HEADERS:
        return feed_head(r, data, n, used);
    case H1_ST_DONE:
        return H1_DONE;
    case H1_ST_FAILED:
        return H1_ERROR;
    default:
        return h1_feed_body(r, data, n, used);
    }
}

const char *h1_name(const struct h1_request *r, unsigned i)
{
    return r->head.data + r->headers[i].name;
}

const char *h1_value(const struct h1_request *r, unsigned i)
{
    return r->head.data + r->headers[i].value;
}

const char *h1_header(struct h1_request *r, const char *name)
{
    struct h1_header *first = NULL;
    size_t count = 0;
    size_t size = 0;

    for (unsigned i = 0; i < r->header_count; i++) {
        if (strcasecmp(h1_name(r, i), name) != 0)
            continue;
        if (!first)
            first = &r->headers[i];
        count++;
        size += strlen(h1_value(r, i)) + 2;
    }
    if (!first)
        return NULL;
    if (first->joined)
        return first->joined;
    if (count == 1 || !(first->joined = malloc(size + 1)))
        return r->head.data + first->value;

    char *to = first->joined;
    for (unsigned i = (unsigned)(first - r->headers); i < r->header_count; i++) {
        if (strcasecmp(h1_name(r, i), name) != 0)
            continue;
        if (to != first->joined)
            to = stpcpy(to, ", ");
        to = stpcpy(to, h1_value(r, i));
    }
    return first->joined;
}

size_t h1_header_count(const struct h1_request *r, const char *name)
{
    size_t count = 0;

    for (unsigned i = 0; i < r->header_count; i++)
        count += strcasecmp(h1_name(r, i), name) == 0;
    return count;
}
