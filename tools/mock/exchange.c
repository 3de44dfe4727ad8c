/*
 * Exchanges of the mock provider: what h1.c and h2.c have in common. Keeps the promise
 * that the one who answers hears of exactly one end.
 */
#include "tools/mock/wire.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "tools/mock/mock.h"

struct exchange *exchange_new(struct conn *c)
{
    struct exchange *x = calloc(1, sizeof(*x));

    if (!x)
        return NULL;
    x->conn = c;
    x->head = BUF_INIT(WIRE_HEAD_MAX + 1024);
    x->body = BUF_INIT(WIRE_BODY_MAX);
    x->out = BUF_INIT(WIRE_OUT_MAX);
    x->method = x->path = x->query = "";
    return x;
}

void exchange_free(struct exchange *x)
{
    if (!x)
        return;
    buf_free(&x->head);
    buf_free(&x->body);
    buf_free(&x->out);
    free(x);
}

void exchange_tell_done(struct exchange *x)
{
    if (x->over)
        return;
    x->over = true;
    if (x->ops && x->ops->on_done)
        x->ops->on_done(x, x->user);
}

void exchange_tell_gone(struct exchange *x, enum gone_how how)
{
    if (x->over)
        return;
    x->over = true;
    if (x->ops && x->ops->on_gone)
        x->ops->on_gone(x, x->user, how);
}

bool exchange_add_header(struct exchange *x, const char *name, const char *value)
{
    if (x->header_count == WIRE_HEADERS_MAX)
        return false;
    x->headers[x->header_count++] = (struct header){name, value};
    return true;
}

const char *exchange_header(const struct exchange *x, const char *name)
{
    for (size_t i = 0; i < x->header_count; i++) {
        if (strcmp(x->headers[i].name, name) == 0)
            return x->headers[i].value;
    }
    return NULL;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool exchange_query(const struct exchange *x, const char *name, char *out, size_t size)
{
    size_t name_len = strlen(name);

    for (const char *p = x->query; *p;) {
        size_t len = strcspn(p, "&");
        size_t n = 0;

        if (len > name_len && p[name_len] == '=' && memcmp(p, name, name_len) == 0) {
            for (size_t i = name_len + 1; i < len && n + 1 < size; i++) {
                char c = p[i] == '+' ? ' ' : p[i];

                if (c == '%' && i + 2 < len && hex_digit(p[i + 1]) >= 0 &&
                    hex_digit(p[i + 2]) >= 0) {
                    c = (char)(hex_digit(p[i + 1]) * 16 + hex_digit(p[i + 2]));
                    i += 2;
                }
                out[n++] = c;
            }
            out[n] = '\0';
            return true;
        }
        p += len;
        if (*p)
            p++;
    }
    return false;
}

void exchange_begin(struct exchange *x, int status, const struct header *h, size_t n)
{
    x->begun = true;
    if (x->conn->proto == PROTO_H2)
        h2_begin(x, status, h, n);
    else
        h1_begin(x, status, h, n, false, 0);
}

void exchange_write(struct exchange *x, const void *data, size_t n)
{
    if (n == 0)
        return;
    if (x->conn->proto == PROTO_H2)
        h2_write(x, data, n);
    else
        h1_write(x, data, n);
}

void exchange_write_raw(struct exchange *x, const void *data, size_t n)
{
    if (x->conn->proto == PROTO_H2)
        h2_collect(x->conn);
    buf_append(&x->conn->out, data, n);
}

void exchange_flush(struct exchange *x)
{
    struct conn *c = x->conn;

    if (c->proto == PROTO_H2)
        h2_flush(c);
    else
        conn_flush(c);
}

void exchange_end(struct exchange *x)
{
    struct conn *c = x->conn;

    x->ended = true;
    if (c->proto == PROTO_H2) {
        h2_end(x);
        h2_flush(c);
    } else {
        h1_end(x);
        conn_flush(c);
        h1_after_flush(c);
    }
}

void exchange_respond(struct exchange *x, int status, const struct header *h, size_t n,
                      const void *body, size_t len)
{
    x->begun = true;
    if (x->conn->proto == PROTO_H2) {
        h2_begin(x, status, h, n);
        if (len > 0)
            h2_write(x, body, len);
    } else {
        h1_begin(x, status, h, n, true, len);
        if (len > 0 && strcmp(x->method, "HEAD") != 0)
            buf_append(&x->conn->out, body, len);
    }
    exchange_end(x);
}

void exchange_abort(struct exchange *x, bool tcp_reset)
{
    struct conn *c = x->conn;

    x->over = true;
    if (c->proto == PROTO_H2 && !tcp_reset) {
        h2_abort(x);
        return;
    }
    if (tcp_reset) {
        struct exchange *other;

        /* Streams beside it die with the connection. */
        TAILQ_FOREACH (other, &c->streams, link)
            exchange_tell_gone(other, GONE_CLOSED);
    }
    conn_kill(c, tcp_reset);
}

size_t exchange_unsent(const struct exchange *x)
{
    return x->conn->out.len - x->conn->out_off + x->out.len - x->out_off;
}

const char *exchange_version(const struct exchange *x)
{
    if (x->conn->proto == PROTO_H2)
        return "2";
    return x->conn->http10 ? "1.0" : "1.1";
}
