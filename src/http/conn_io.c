/*
 * The socket side of a connection: receiving into the server's one buffer, sending at
 * once and keeping one remainder. See internal.h.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#include "http/internal.h"

/* Keeps what came behind the current request, up to a whole further request. */
static bool keep_pending(struct conn *c, const char *data, size_t n)
{
    const struct http_limits *limits = &c->server->opt.limits;

    if (n == 0)
        return true;
    if (c->pending_off > c->pending.len / 2) {
        buf_consume(&c->pending, c->pending_off);
        c->pending_off = 0;
    }
    size_t limit = limits->header_max + limits->body_max;
    if (c->pending.len - c->pending_off + n > limit)
        return false;
    c->pending.max = 2 * limit; /* at most half of it is parsed already */
    return buf_append(&c->pending, data, n) == DAC_OK;
}

static void on_input(struct conn *c, const char *data, size_t n)
{
    size_t used = 0;

    if (c->state == CONN_LINGER) {
        c->lingered += (uint32_t)n;
        if (c->lingered > HTTP_LINGER_BYTES)
            conn_close(c);
        return;
    }
    if (c->pending.len == 0)
        used = conn_process(c, data, n);
    if (c->state == CONN_CLOSED || c->state == CONN_LINGER || used == n)
        return;
    if (!keep_pending(c, data + used, n - used)) {
        conn_gone(c, EXCHANGE_CUT);
        return;
    }
    conn_update_reading(c);
}

/* Left for the next turn it stays readable, so the loop calls again. */
void conn_on_readable(int fd, short what, void *arg)
{
    struct conn *c = arg;

    (void)fd;
    (void)what;
    if (c->state != CONN_IDLE || server_may_begin(c->server))
        conn_read(c);
}

/* A client that shuts its side down while it waits counts as gone; so nobody asks a
 * provider for someone who cannot be told from a vanished client. */
void conn_read(struct conn *c)
{
    char *buf = c->server->read_buf;
    ssize_t n = recv(c->fd, buf, HTTP_READ_SIZE, MSG_DONTWAIT);
    if (n > 0)
        on_input(c, buf, (size_t)n);
    else if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
        conn_gone(c, EXCHANGE_LEFT);
}

/* Copies what send() left, from byte `skip` of iov on, behind the remainder. */
static enum dac_err keep_rest(struct conn *c, const struct iovec *iov, int count,
                              size_t skip, size_t total)
{
    c->out.max = c->out.len + total - skip;
    if (!buf_reserve(&c->out, total - skip))
        return DAC_E_NOMEM;
    for (int i = 0; i < count; i++) {
        if (skip >= iov[i].iov_len) {
            skip -= iov[i].iov_len;
            continue;
        }
        enum dac_err e =
            buf_append(&c->out, (char *)iov[i].iov_base + skip, iov[i].iov_len - skip);
        if (e != DAC_OK)
            return e;
        skip = 0;
    }
    return DAC_OK;
}

/* One slice goes by send(), which costs the kernel less than a message of one. */
static ssize_t send_slices(int fd, struct iovec *iov, int count)
{
    struct msghdr msg = {.msg_iov = iov, .msg_iovlen = (size_t)count};
    ssize_t sent;

    do
        sent = count == 1
                   ? send(fd, iov->iov_base, iov->iov_len, MSG_NOSIGNAL | MSG_DONTWAIT)
                   : sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    return sent;
}

enum dac_err conn_send(struct conn *c, struct iovec *iov, int count)
{
    size_t total = 0;
    ssize_t sent = 0;

    if (c->broken)
        return DAC_E_CLOSED;
    for (int i = 0; i < count; i++)
        total += iov[i].iov_len;
    if (total == 0)
        return conn_unsent(c) ? DAC_E_AGAIN : DAC_OK;
    bool was_empty = conn_unsent(c) == 0;
    if (was_empty) {
        sent = send_slices(c->fd, iov, count);
        if (sent < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
            conn_mark_broken(c);
            return DAC_E_CLOSED;
        }
        if (sent < 0)
            sent = 0;
        c->server->stats.bytes_out += (size_t)sent;
        if ((size_t)sent == total)
            return DAC_OK;
    }
    if (keep_rest(c, iov, count, (size_t)sent, total) != DAC_OK ||
        (was_empty && event_add(&c->ev_write, NULL) != 0)) {
        conn_mark_broken(c);
        return DAC_E_CLOSED;
    }
    if (was_empty && c->state >= CONN_EXCHANGE)
        conn_set_wait(c, WAIT_STALL);
    return DAC_E_AGAIN;
}

void conn_on_writable(int fd, short what, void *arg)
{
    struct conn *c = arg;

    (void)what;
    ssize_t n =
        send(fd, c->out.data + c->out_off, conn_unsent(c), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n < 0) {
        if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
            conn_gone(c, EXCHANGE_LEFT);
        return;
    }
    c->server->stats.bytes_out += (size_t)n;
    c->out_off += (size_t)n;
    if (conn_unsent(c) > 0) {
        if (c->wait == WAIT_STALL)
            conn_set_wait(c, WAIT_STALL);
        return;
    }
    buf_free(&c->out);
    c->out_off = 0;
    event_del(&c->ev_write);

    struct http_exchange *ex = c->ex;
    if (c->state == CONN_FLUSH) {
        conn_flushed(c);
    } else if (c->state == CONN_EXCHANGE) {
        conn_set_wait(c, WAIT_NONE);
        if (ex->streaming && ex->cb && ex->cb->on_writable)
            ex->cb->on_writable(ex, ex->user);
    }
}
