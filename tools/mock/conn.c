/*
 * Connections of the mock provider: accept, read, send, close, in clear text or over TLS.
 * Knows bytes only; h1.c and h2.c give them meaning.
 *
 *   SNIFF --"PRI * HTTP/2.0…" or ALPN h2--> H2
 *     \----anything else or ALPN http/1.1--> H1
 *
 * A killed connection is closed at once and its memory parked until the loop turns, so
 * that callers further up the stack may still look at `dead`.
 */
#include "tools/mock/wire.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tools/mock/mock.h"

#define H2_PREFACE     "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#define H2_PREFACE_LEN 24

enum { IO_AGAIN = -1, IO_BROKEN = -2 };

static ssize_t tls_result(struct conn *c, int n)
{
    int saved = errno;

    switch (SSL_get_error(c->ssl, n)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        return IO_AGAIN;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    case SSL_ERROR_SSL:
        /* OpenSSL 3 says this of an end without close_notify, which is a plain close. */
        if (ERR_GET_REASON(ERR_peek_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING)
            return 0;
        return IO_BROKEN;
    default:
        return saved ? IO_BROKEN : 0;
    }
}

/* Bytes, 0 at the peer's end, or one of enum IO. */
static ssize_t conn_recv(struct conn *c, void *p, size_t n)
{
    ssize_t got;

    if (c->ssl) {
        int r;

        ERR_clear_error();
        errno = 0;
        r = SSL_read(c->ssl, p, (int)n);
        return r > 0 ? r : tls_result(c, r);
    }
    got = recv(c->fd, p, n, 0);
    if (got >= 0)
        return got;
    return errno == EAGAIN || errno == EINTR ? IO_AGAIN : IO_BROKEN;
}

static ssize_t conn_send(struct conn *c, const void *p, size_t n)
{
    ssize_t sent;

    if (c->ssl) {
        int r;

        ERR_clear_error();
        errno = 0;
        r = SSL_write(c->ssl, p, n > (1 << 30) ? 1 << 30 : (int)n);
        if (r > 0)
            return r;
        return tls_result(c, r) == IO_AGAIN ? IO_AGAIN : IO_BROKEN;
    }
    sent = send(c->fd, p, n, MSG_NOSIGNAL);
    if (sent >= 0)
        return sent;
    return errno == EAGAIN || errno == EINTR ? IO_AGAIN : IO_BROKEN;
}

void conn_flush(struct conn *c)
{
    while (!c->dead && !c->write_error && c->out_off < c->out.len) {
        ssize_t n = conn_send(c, c->out.data + c->out_off, c->out.len - c->out_off);

        if (n == IO_AGAIN) {
            event_add(&c->wr, NULL);
            break;
        }
        if (n < 0) {
            /* The read side says how the peer left; it is asked from the loop. */
            c->write_error = errno ? errno : EPIPE;
            event_active(&c->rd, EV_READ, 0);
            break;
        }
        c->out_off += (size_t)n;
        c->mock->stats.bytes_sent += (uint64_t)n;
    }
    if (c->out_off == c->out.len) {
        buf_reset(&c->out);
        c->out_off = 0;
        if (c->out.cap > (1 << 20))
            buf_free(&c->out);
    } else if (c->out_off > (1 << 16) && c->out_off > c->out.len / 2) {
        buf_consume(&c->out, c->out_off);
        c->out_off = 0;
    }
}

void conn_kill(struct conn *c, bool tcp_reset)
{
    struct mock *m = c->mock;
    struct linger now = {.l_onoff = 1, .l_linger = 0};

    if (c->dead)
        return;
    c->dead = true;
    event_del(&c->rd);
    event_del(&c->wr);
    if (tcp_reset)
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    close(c->fd);
    m->stats.open--;
    if (c->counted)
        m->stats.connections--;
    TAILQ_REMOVE(&m->conns, c, link);
    TAILQ_INSERT_TAIL(&m->graveyard, c, link);
    event_active(&m->reap, EV_TIMEOUT, 0);
    mock_changed(m);
}

void conn_gone(struct conn *c, enum gone_how how)
{
    struct exchange *x;

    if (c->dead)
        return;
    if (c->x)
        exchange_tell_gone(c->x, how);
    TAILQ_FOREACH (x, &c->streams, link)
        exchange_tell_gone(x, how);
    conn_kill(c, false);
}

static void conn_free(struct conn *c)
{
    struct exchange *x;

    h2_free(c);
    while ((x = TAILQ_FIRST(&c->streams))) {
        TAILQ_REMOVE(&c->streams, x, link);
        exchange_free(x);
    }
    exchange_free(c->x);
    SSL_free(c->ssl);
    buf_free(&c->in);
    buf_free(&c->out);
    free(c);
}

void conn_reap(struct mock *m)
{
    struct conn *c;

    while ((c = TAILQ_FIRST(&m->graveyard))) {
        TAILQ_REMOVE(&m->graveyard, c, link);
        conn_free(c);
    }
}

/* Chooses the protocol; false while there are too few bytes to say. */
static bool conn_sniff(struct conn *c)
{
    const unsigned char *alpn = NULL;
    unsigned len = 0;
    size_t n = c->in.len < H2_PREFACE_LEN ? c->in.len : H2_PREFACE_LEN;

    if (c->ssl)
        SSL_get0_alpn_selected(c->ssl, &alpn, &len);
    if (len == 2 && memcmp(alpn, "h2", 2) == 0) {
        c->proto = PROTO_H2;
    } else if (len > 0 || memcmp(c->in.data, H2_PREFACE, n) != 0) {
        c->proto = PROTO_H1;
    } else {
        if (n < H2_PREFACE_LEN)
            return false;
        c->proto = PROTO_H2;
    }
    if (c->proto == PROTO_H2) {
        c->mock->stats.h2_connections++;
        if (!h2_start(c))
            conn_kill(c, false);
    }
    return !c->dead;
}

static void conn_input(struct conn *c)
{
    if (c->dead || (c->proto == PROTO_SNIFF && (c->in.len == 0 || !conn_sniff(c))))
        return;
    if (c->proto == PROTO_H1)
        h1_input(c);
    else
        h2_input(c);
}

static bool conn_handshake(struct conn *c)
{
    int r;

    if (!c->ssl || c->tls_ready)
        return true;
    ERR_clear_error();
    errno = 0;
    r = SSL_accept(c->ssl);
    if (r == 1) {
        c->tls_ready = true;
        c->mock->stats.tls_connections++;
        return true;
    }
    if (tls_result(c, r) == IO_AGAIN) {
        if (SSL_want_write(c->ssl))
            event_add(&c->wr, NULL);
        return false;
    }
    conn_gone(c, GONE_CLOSED);
    return false;
}

static void conn_on_read(evutil_socket_t fd, short what, void *arg)
{
    static char piece[65536];
    struct conn *c = arg;
    ssize_t n;

    (void)fd;
    (void)what;
    if (!conn_handshake(c))
        return;
    do {
        n = conn_recv(c, piece, sizeof(piece));
        if (n > 0 && buf_append(&c->in, piece, (size_t)n) != DAC_OK) {
            /* More behind a running request than anybody has to keep. */
            conn_gone(c, GONE_CLOSED);
            return;
        }
        if (n > 0)
            conn_input(c);
    } while (n > 0 && !c->dead && c->ssl && SSL_has_pending(c->ssl));
    if (c->dead)
        return;
    if (n == 0 || n == IO_BROKEN || c->write_error) {
        conn_gone(c, n == 0 ? GONE_CLOSED : GONE_RESET);
        return;
    }
    if (n == IO_AGAIN)
        conn_input(c);
    /* TLS may have waited for the peer's bytes before it could write. */
    if (!c->dead && c->ssl && c->out_off < c->out.len)
        event_active(&c->wr, EV_WRITE, 0);
}

static void conn_on_write(evutil_socket_t fd, short what, void *arg)
{
    struct conn *c = arg;
    struct exchange *x;

    (void)fd;
    (void)what;
    if (c->ssl && !c->tls_ready) {
        event_active(&c->rd, EV_READ, 0);
        return;
    }
    if (c->proto == PROTO_H2) {
        conn_flush(c);
        h2_input(c);
        return;
    }
    conn_flush(c);
    h1_after_flush(c);
    x = c->x;
    if (!c->dead && x && x->want_writable && exchange_unsent(x) < WIRE_UNSENT_HIGH / 2) {
        x->want_writable = false;
        x->ops->on_writable(x, x->user);
    }
}

void conn_accept(struct mock *m, int fd, bool tls)
{
    struct conn *c = calloc(1, sizeof(*c));
    int on = 1;

    if (c && tls)
        c->ssl = SSL_new(m->tls);
    if (!c || (tls && !c->ssl)) {
        free(c);
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    c->mock = m;
    c->id = m->next_conn++;
    c->fd = fd;
    c->in = BUF_INIT(WIRE_BODY_MAX + 2 * WIRE_HEAD_MAX);
    c->out = BUF_INIT(WIRE_OUT_MAX);
    TAILQ_INIT(&c->streams);
    if (c->ssl) {
        SSL_set_fd(c->ssl, fd);
        SSL_set_accept_state(c->ssl);
    }
    event_assign(&c->rd, m->base, fd, EV_READ | EV_PERSIST, conn_on_read, c);
    event_assign(&c->wr, m->base, fd, EV_WRITE, conn_on_write, c);
    event_add(&c->rd, NULL);
    TAILQ_INSERT_TAIL(&m->conns, c, link);
    m->stats.open++;
}
