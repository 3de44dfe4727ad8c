/*
 * Connections: making and closing them, their waits, and the way from bytes to a handler.
 * The table of states is in internal.h.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "http/internal.h"

void conn_new(struct http_server *s, int fd, bool tcp)
{
    static const int on = 1;
    struct conn *c = calloc(1, sizeof(*c));

    if (!c) {
        close(fd);
        return;
    }
    if (tcp)
        (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    c->server = s;
    c->fd = fd;
    event_assign(&c->ev_read, s->base, fd, EV_READ | EV_PERSIST, conn_on_readable, c);
    event_assign(&c->ev_write, s->base, fd, EV_WRITE | EV_PERSIST, conn_on_writable, c);
    if (event_add(&c->ev_read, NULL) != 0) {
        close(fd);
        free(c);
        return;
    }
    s->stats.connections++;
    TAILQ_INSERT_TAIL(&s->waits[WAIT_NONE], c, link);
    conn_set_wait(c, WAIT_KEEPALIVE);
}

void conn_set_wait(struct conn *c, enum conn_wait wait)
{
    struct http_server *s = c->server;

    TAILQ_REMOVE(&s->waits[c->wait], c, link);
    TAILQ_INSERT_TAIL(&s->waits[wait], c, link);
    c->wait = wait;
    if (wait != WAIT_NONE) {
        c->wait_start_ns = clock_now_ns();
        server_sweep(s);
    }
}

void conn_queue(struct conn *c)
{
    struct http_server *s = c->server;

    if (c->queued)
        return;
    c->queued = true;
    TAILQ_INSERT_TAIL(&s->turns, c, turn_link);
    s->turn_count++;
    server_turn(s);
}

void conn_mark_broken(struct conn *c)
{
    c->broken = true;
    conn_queue(c);
}

void conn_close(struct conn *c)
{
    struct http_server *s = c->server;

    DAC_ASSERT(!c->ex);
    if (c->state == CONN_CLOSED)
        return;
    event_del(&c->ev_read);
    event_del(&c->ev_write);
    close(c->fd);
    c->fd = -1;
    c->state = CONN_CLOSED;
    TAILQ_REMOVE(&s->waits[c->wait], c, link);
    if (c->queued) {
        TAILQ_REMOVE(&s->turns, c, turn_link);
        s->turn_count--;
        c->queued = false;
    }
    TAILQ_INSERT_TAIL(&s->parked, c, link);
    s->stats.connections--;
    server_turn(s);
}

void conn_gone(struct conn *c, enum exchange_end how)
{
    struct http_exchange *ex = c->ex;
    bool tell = ex && c->state == CONN_EXCHANGE && ex->cb && ex->cb->on_gone;

    if (ex)
        exchange_over(ex, how);
    conn_close(c);
    if (tell)
        ex->cb->on_gone(ex, ex->user);
}

void conn_free_parked(struct http_server *s)
{
    struct http_exchange *ex;
    struct conn *c;

    while ((ex = SLIST_FIRST(&s->parked_exchanges))) {
        SLIST_REMOVE_HEAD(&s->parked_exchanges, parked);
        exchange_free(ex);
    }
    while ((c = TAILQ_FIRST(&s->parked))) {
        TAILQ_REMOVE(&s->parked, c, link);
        buf_free(&c->out);
        buf_free(&c->pending);
        free(c);
    }
}

/* A running exchange is always read behind, for that is how its client's end is seen. */
void conn_update_reading(struct conn *c)
{
    bool parsing = c->state <= CONN_BODY;
    bool rest = c->pending.len > c->pending_off;

    if (c->state == CONN_FLUSH || (parsing && rest))
        event_del(&c->ev_read);
    else if (event_add(&c->ev_read, NULL) != 0)
        conn_mark_broken(c);
    if (parsing && rest)
        conn_queue(c);
}

/* Shuts down for writing and lets the client read the answer in peace: a close with
 * unread input would send a reset that can overtake it. RFC 9112, section 9.6. */
static void linger(struct conn *c)
{
    if (shutdown(c->fd, SHUT_WR) != 0) {
        conn_close(c);
        return;
    }
    buf_free(&c->pending);
    c->pending_off = 0;
    c->state = CONN_LINGER;
    conn_set_wait(c, WAIT_LINGER);
    conn_update_reading(c);
}

void conn_flushed(struct conn *c)
{
    bool rest = c->pending.len > c->pending_off;

    if (!c->keep || c->server->draining) {
        if (c->client_closes && !rest)
            conn_close(c);
        else
            linger(c);
        return;
    }
    c->state = CONN_IDLE;
    conn_set_wait(c, WAIT_KEEPALIVE);
    if (!c->processing)
        conn_update_reading(c);
}

void conn_answered(struct conn *c)
{
    if (c->broken) {
        conn_close(c);
    } else if (conn_unsent(c) > 0) {
        /* Not reading now is the backpressure for clients that pipeline without taking.
         */
        c->state = CONN_FLUSH;
        conn_set_wait(c, WAIT_STALL);
        conn_update_reading(c);
    } else {
        conn_flushed(c);
    }
}

/* The request is whole: its handler runs. */
static void dispatch(struct conn *c)
{
    struct http_exchange *ex = c->ex;

    c->state = CONN_EXCHANGE;
    conn_set_wait(c, conn_unsent(c) > 0 ? WAIT_STALL : WAIT_NONE);
    ex->arrived_ns = clock_now_ns();
    if (ex->in->reject.status) {
        exchange_reject(ex);
        return;
    }
    ex->in_handler = true;
    ex->in->match.route->handler(ex, c->server->opt.ctx);
    ex->in_handler = false;
    if (ex->streaming || ex->over)
        exchange_forget(ex);
}

/* Answers while the request is not whole: the connection cannot be used again. */
static void answer_early(struct conn *c, const struct h1_fault *fault)
{
    c->state = CONN_EXCHANGE;
    conn_set_wait(c, WAIT_NONE);
    c->ex->must_close = true;
    report_identify(c->ex);
    if (fault)
        exchange_refuse(c->ex, fault);
    else
        exchange_reject(c->ex);
}

/* The head is whole. Returns whether to read on for the body. */
static bool on_head(struct conn *c, bool more_input)
{
    static const char go_on[] = "HTTP/1.1 100 Continue\r\n\r\n";
    struct http_exchange *ex = c->ex;
    struct h1_request *r = &ex->in->h1;

    c->server->stats.requests++;
    ex->minor = (uint8_t)r->minor;
    ex->method = r->method;
    ex->client_keeps = h1_keep_alive(r);
    (void)trace_parse(h1_header(r, "traceparent"), &ex->trace);
    report_identify(ex);
    if (exchange_route(ex) != DAC_OK) {
        exchange_over(ex, EXCHANGE_CUT);
        conn_close(c);
        return false;
    }
    if (ex->in->reject.status) {
        if (ex->must_close || (r->expect_continue && h1_has_body(r))) {
            answer_early(c, NULL);
            return false;
        }
        r->discard = true;
    } else if (r->expect_continue && h1_has_body(r) && !more_input) {
        struct iovec iov = {(void *)(uintptr_t)go_on, sizeof(go_on) - 1};
        if (conn_send(c, &iov, 1) == DAC_E_CLOSED) {
            exchange_over(ex, EXCHANGE_LEFT);
            conn_close(c);
            return false;
        }
    }
    c->state = CONN_BODY;
    conn_set_wait(c, WAIT_BODY);
    return true;
}

static bool begin_request(struct conn *c)
{
    struct http_exchange *ex = exchange_new(c);

    if (!ex) {
        conn_close(c);
        return false;
    }
    c->state = CONN_HEAD;
    conn_set_wait(c, WAIT_HEAD);
    return true;
}

static size_t process(struct conn *c, const char *data, size_t n)
{
    size_t used = 0;
    size_t took;
    int budget = HTTP_REQUESTS_A_TURN;

    while (c->state <= CONN_BODY) {
        if (c->state == CONN_IDLE) {
            if (used == n || budget-- == 0 || !begin_request(c))
                return used;
        }
        enum h1_result res = h1_feed(&c->ex->in->h1, data + used, n - used, &took);
        used += took;
        switch (res) {
        case H1_MORE:
            /* Known to fail: no use in waiting for the body. */
            if (c->ex->in->reject.status)
                answer_early(c, NULL);
            return used;
        case H1_HEAD:
            if (!on_head(c, used < n))
                return used;
            break;
        case H1_DONE:
            dispatch(c);
            break;
        case H1_ERROR:
            answer_early(c, &c->ex->in->h1.fault);
            return used;
        }
    }
    return used;
}

size_t conn_process(struct conn *c, const char *data, size_t n)
{
    c->processing = true;
    size_t used = process(c, data, n);
    c->processing = false;
    return used;
}

/* Goes on with bytes that came behind an earlier request. */
static void resume(struct conn *c)
{
    size_t used = conn_process(c, c->pending.data + c->pending_off,
                               c->pending.len - c->pending_off);

    if (c->state == CONN_CLOSED || c->state == CONN_LINGER)
        return;
    c->pending_off += used;
    if (c->pending_off == c->pending.len) {
        buf_free(&c->pending);
        c->pending_off = 0;
    }
    conn_update_reading(c);
}

void conn_turn(struct conn *c)
{
    if (c->broken) {
        conn_gone(c, EXCHANGE_LEFT);
        return;
    }
    if (c->ex && c->ex->streaming && !c->ex->head_sent)
        stream_flush_head(c->ex);
    else if (c->state <= CONN_BODY && c->pending.len > c->pending_off)
        resume(c);
}

void conn_expired(struct conn *c)
{
    struct h1_fault fault = {.status = 408, .code = "timeout"};
    enum exchange_end how = EXCHANGE_LEFT;

    switch (c->wait) {
    case WAIT_HEAD:
    case WAIT_BODY:
        if (!h1_started(&c->ex->in->h1))
            break;
        snprintf(fault.detail, sizeof(fault.detail), "the request's %s took too long",
                 c->wait == WAIT_HEAD ? "head" : "body");
        answer_early(c, &fault);
        return;
    case WAIT_STALL:
        c->server->stats.stalled++;
        how = EXCHANGE_STALLED;
        break;
    default:
        break;
    }
    conn_gone(c, how);
}

void conn_drain(struct conn *c)
{
    if (c->pending.len > c->pending_off)
        return; /* a request is being begun */
    conn_read(c);
    if (c->state == CONN_IDLE)
        conn_gone(c, EXCHANGE_CUT);
}
