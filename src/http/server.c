/*
 * The server object: its making, draining and end, the turn event that releases parked
 * objects and continues connections, and the one sweep timer of all waits. See
 * internal.h.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "http/internal.h"

#define SWEEP_MAX_NS (100 * NS_PER_MS)
#define SWEEP_MIN_NS (5 * NS_PER_MS)

static uint64_t wait_limit_ns(const struct http_server *s, enum conn_wait wait)
{
    switch (wait) {
    case WAIT_KEEPALIVE:
        return s->opt.limits.keepalive_timeout_ns;
    case WAIT_HEAD:
        return s->opt.limits.header_timeout_ns;
    case WAIT_BODY:
        return s->opt.limits.body_timeout_ns;
    case WAIT_STALL:
        return s->opt.limits.client_stall_timeout_ns;
    case WAIT_LINGER:
        return HTTP_LINGER_NS;
    default:
        return UINT64_MAX;
    }
}

void server_turn(struct http_server *s)
{
    static const struct timeval now = {0, 0};

    if (!event_pending(&s->ev_turn, EV_TIMEOUT, NULL) &&
        event_add(&s->ev_turn, &now) != 0) /* no memory for the timer */
        event_active(&s->ev_turn, EV_TIMEOUT, 0);
}

/* Work that a callback here queues anew waits for the next turn, so the loop polls
 * between. */
static void on_turn(int fd, short what, void *arg)
{
    struct http_server *s = arg;
    struct conn *c;

    (void)fd;
    (void)what;
    for (size_t n = s->turn_count; n > 0 && (c = TAILQ_FIRST(&s->turns)); n--) {
        TAILQ_REMOVE(&s->turns, c, turn_link);
        s->turn_count--;
        c->queued = false;
        conn_turn(c);
    }
    conn_free_parked(s);
    if (s->turn_count > 0)
        server_turn(s);
}

bool server_may_begin(struct http_server *s)
{
    if (s->begun == 0)
        event_active(&s->ev_begun, EV_TIMEOUT, 0);
    return s->begun++ < HTTP_BEGINS_A_TURN;
}

/* Activated by the turn's first beginning, so it runs behind all events of that turn. */
static void on_begun(int fd, short what, void *arg)
{
    struct http_server *s = arg;

    (void)fd;
    (void)what;
    s->begun = 0;
}

/* A quarter of the shortest limit, inside bounds, so that no wait is much too long. */
static uint64_t sweep_interval_ns(const struct http_server *s)
{
    uint64_t ns = SWEEP_MAX_NS * 4;

    for (enum conn_wait w = WAIT_NONE; w < WAIT_COUNT; w++)
        if (wait_limit_ns(s, w) < ns)
            ns = wait_limit_ns(s, w);
    ns /= 4;
    return ns < SWEEP_MIN_NS ? SWEEP_MIN_NS : ns;
}

void server_sweep(struct http_server *s)
{
    if (event_pending(&s->ev_sweep, EV_TIMEOUT, NULL))
        return;
    uint64_t ns = sweep_interval_ns(s);
    struct timeval tv = {.tv_sec = (time_t)(ns / NS_PER_S),
                         .tv_usec = (suseconds_t)(ns % NS_PER_S / NS_PER_US)};
    event_add(&s->ev_sweep, &tv);
}

static void on_sweep(int fd, short what, void *arg)
{
    struct http_server *s = arg;
    uint64_t now = clock_now_ns();
    bool waiting = false;

    (void)fd;
    (void)what;
    for (enum conn_wait w = WAIT_NONE + 1; w < WAIT_COUNT; w++) {
        uint64_t limit = wait_limit_ns(s, w);
        struct conn *c;
        while ((c = TAILQ_FIRST(&s->waits[w])) && now - c->wait_start_ns >= limit &&
               now >= c->wait_start_ns)
            conn_expired(c);
        waiting = waiting || c;
    }
    if (waiting)
        server_sweep(s);
}

void http_server_tick(struct http_server *s)
{
    bool waiting = false;

    for (enum conn_wait w = WAIT_NONE + 1; w < WAIT_COUNT; w++)
        waiting = waiting || !TAILQ_EMPTY(&s->waits[w]);
    if (waiting)
        server_sweep(s);
    accept_tick(s);
}

enum dac_err http_server_new(struct event_base *base,
                             const struct http_server_options *opt,
                             struct http_server **out)
{
    struct http_server *s = calloc(1, sizeof(*s));

    if (!s)
        return DAC_E_NOMEM;
    s->base = base;
    s->opt = *opt;
    s->date_second = -1;
    report_init(s);
    for (int w = 0; w < WAIT_COUNT; w++)
        TAILQ_INIT(&s->waits[w]);
    TAILQ_INIT(&s->turns);
    TAILQ_INIT(&s->parked);
    SLIST_INIT(&s->parked_exchanges);
    SLIST_INIT(&s->listeners);
    evtimer_assign(&s->ev_turn, base, on_turn, s);
    evtimer_assign(&s->ev_sweep, base, on_sweep, s);
    evtimer_assign(&s->ev_accept, base, accept_resume, s);
    evtimer_assign(&s->ev_begun, base, on_begun, s);
    *out = s;
    return DAC_OK;
}

void http_server_free(struct http_server *s)
{
    if (!s)
        return;
    accept_stop_all(s);
    for (int w = 0; w < WAIT_COUNT; w++) {
        struct conn *c;
        while ((c = TAILQ_FIRST(&s->waits[w])))
            conn_gone(c, EXCHANGE_CUT);
    }
    conn_free_parked(s);
    event_del(&s->ev_turn);
    event_del(&s->ev_sweep);
    event_del(&s->ev_accept);
    event_del(&s->ev_begun);
    free(s);
}

void http_server_retire(struct http_server *s)
{
    s->draining = true;
    accept_stop_all(s);
}

void http_server_drain(struct http_server *s)
{
    struct conn *next;

    http_server_retire(s);
    for (struct conn *c = TAILQ_FIRST(&s->waits[WAIT_KEEPALIVE]); c; c = next) {
        next = TAILQ_NEXT(c, link);
        conn_drain(c);
    }
}

size_t http_server_connections(const struct http_server *s)
{
    return (size_t)s->stats.connections;
}

void http_server_set_limits(struct http_server *s, const struct http_limits *limits)
{
    s->opt.limits = *limits;
    event_del(&s->ev_sweep);
    server_sweep(s);
}

void http_server_set_log_requests(struct http_server *s, enum http_log_requests which)
{
    s->opt.log_requests = which;
}

const struct http_stats *http_server_stats(const struct http_server *s)
{
    return &s->stats;
}
