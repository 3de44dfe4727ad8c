/*
 * libcurl's multi interface on libevent: one event per socket, kept per descriptor and
 * used again, and one timer. After each step finished transfers are collected and what
 * was put off is done, outside of curl. Worker process, event loop thread only.
 */
#include <openssl/ssl.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "upstream/h2_reset.h"
#include "upstream/internal.h"

/* Idle connections kept for reuse; above, the oldest is closed. */
#define CONNECTIONS_KEPT 1024L
/* Read in one go: some milliseconds, since streams are small pieces of JSON. */
#define TURN_BYTES (UINT64_C(128) << 10)

struct sock {
    struct upstream *u;
    struct event ev;
    bool added;
};

void upstream_enter(struct upstream *u)
{
    if (u->depth++ == 0)
        u->turn_bytes = TURN_BYTES;
}

static void collect_finished(struct upstream *u)
{
    CURLMsg *m;
    int left;

    while ((m = curl_multi_info_read(u->multi, &left))) {
        char *call;
        CURLcode result = m->data.result;
        if (m->msg != CURLMSG_DONE)
            continue;
        DAC_ASSERT(curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &call) ==
                   CURLE_OK);
        call_transfer_over((struct upstream_call *)(void *)call, result);
    }
}

void upstream_leave(struct upstream *u)
{
    DAC_ASSERT(u->depth > 0);
    if (u->depth == 1) {
        collect_finished(u);
        if (u->damaged)
            loop_renew(u);
        upstream_work(u);
    }
    u->depth--;
}

static void socket_action(struct upstream *u, curl_socket_t fd, int what)
{
    int running;
    CURLMcode m;

    upstream_enter(u);
    m = curl_multi_socket_action(u->multi, fd, what, &running);
    if (m != CURLM_OK) {
        log_warn(0, "upstream: %s; its calls end", curl_multi_strerror(m));
        u->damaged = true;
    }
    upstream_leave(u);
}

static void socket_ready(evutil_socket_t fd, short what, void *arg)
{
    struct sock *s = arg;

    socket_action(s->u, fd,
                  ((what & EV_READ) ? CURL_CSELECT_IN : 0) |
                      ((what & EV_WRITE) ? CURL_CSELECT_OUT : 0));
}

static void timer_fired(evutil_socket_t fd, short what, void *arg)
{
    struct upstream *u = arg;

    (void)fd;
    (void)what;
    u->timer_due_ns = 0;
    socket_action(u, CURL_SOCKET_TIMEOUT, 0);
}

void loop_tick(struct upstream *u, uint64_t now_ns)
{
    if (u->timer_due_ns != 0 && now_ns >= u->timer_due_ns &&
        !event_pending(u->timer, EV_TIMEOUT, NULL))
        timer_fired(-1, EV_TIMEOUT, u);
}

static void deferred_run(evutil_socket_t fd, short what, void *arg)
{
    struct upstream *u = arg;

    (void)fd;
    (void)what;
    upstream_enter(u);
    upstream_leave(u);
}

static void catch_up_run(evutil_socket_t fd, short what, void *arg)
{
    struct upstream *u = arg;
    struct upstream_call *c;

    (void)fd;
    (void)what;
    upstream_enter(u);
    while ((c = TAILQ_FIRST(&u->lag))) {
        TAILQ_REMOVE(&u->lag, c, lag);
        c->lagging = false;
        call_queue(c);
    }
    upstream_leave(u);
}

void upstream_catch_up(struct upstream *u)
{
    static const struct timeval at_once = {0, 0};

    if (event_add(u->catch_up, &at_once) != 0) /* no memory for the timer */
        event_active(u->catch_up, EV_TIMEOUT, 0);
}

void upstream_defer(struct upstream *u)
{
    event_active(u->deferred, EV_TIMEOUT, 0);
}

static int on_timer(CURLM *multi, long ms, void *arg)
{
    struct upstream *u = arg;
    struct timeval tv = {.tv_sec = ms / 1000, .tv_usec = (ms % 1000) * 1000};

    (void)multi;
    if (u->closing)
        return 0;
    u->timer_due_ns = ms < 0 ? 0 : clock_now_ns() + (uint64_t)ms * NS_PER_MS;
    if (ms < 0)
        event_del(u->timer);
    else if (ms == 0)
        event_active(u->timer, EV_TIMEOUT, 0);
    else
        event_add(u->timer, &tv); /* without memory for it loop_tick() sees to it */
    return 0;
}

/* The sock of a descriptor, made at first use. */
static struct sock *sock_of(struct upstream *u, curl_socket_t fd)
{
    size_t i = (size_t)fd;

    if (i >= u->sock_count) {
        size_t n = u->sock_count ? u->sock_count : 64;
        struct sock **p;
        while (n <= i)
            n *= 2;
        p = realloc(u->socks, n * sizeof(*p));
        if (!p)
            return NULL;
        for (size_t k = u->sock_count; k < n; k++)
            p[k] = NULL;
        u->socks = p;
        u->sock_count = n;
    }
    if (!u->socks[i]) {
        u->socks[i] = calloc(1, sizeof(*u->socks[i]));
        if (u->socks[i])
            u->socks[i]->u = u;
    }
    return u->socks[i];
}

/* No memory to watch a socket. An error told to curl would end all calls of the worker;
 * so only those on this connection end. */
static void drop_connection(CURL *easy)
{
    char *call = NULL;

    if (curl_easy_getinfo(easy, CURLINFO_PRIVATE, &call) != CURLE_OK || !call)
        return;
    struct upstream_call *c = (struct upstream_call *)(void *)call;
    c->broken = true;
    call_queue(c);
    transfer_failed(c, CURLE_RECV_ERROR);
}

static int on_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *sockp)
{
    struct upstream *u = arg;
    bool gone = what == CURL_POLL_REMOVE || u->closing;
    struct sock *s = sock_of(u, fd);
    short ev = EV_PERSIST;

    (void)sockp;
    if (!s) {
        if (!gone)
            drop_connection(easy);
        return 0;
    }
    if (s->added)
        event_del(&s->ev);
    s->added = false;
    if (gone)
        return 0;
    if (what & CURL_POLL_IN)
        ev |= EV_READ;
    if (what & CURL_POLL_OUT)
        ev |= EV_WRITE;
    if (event_assign(&s->ev, u->base, fd, ev, socket_ready, s) == 0 &&
        event_add(&s->ev, NULL) == 0)
        s->added = true;
    else
        drop_connection(easy);
    return 0;
}

static CURLM *multi_new(struct upstream *u)
{
    CURLM *m = curl_multi_init();

    if (!m)
        return NULL;
    curl_multi_setopt(m, CURLMOPT_SOCKETFUNCTION, on_socket);
    curl_multi_setopt(m, CURLMOPT_SOCKETDATA, u);
    curl_multi_setopt(m, CURLMOPT_TIMERFUNCTION, on_timer);
    curl_multi_setopt(m, CURLMOPT_TIMERDATA, u);
    curl_multi_setopt(m, CURLMOPT_PIPELINING, (long)CURLPIPE_MULTIPLEX);
    curl_multi_setopt(m, CURLMOPT_MAXCONNECTS, CONNECTIONS_KEPT);
    return m;
}

void loop_renew(struct upstream *u)
{
    struct upstream_call *c;
    CURLM *m;

    TAILQ_FOREACH (c, &u->calls, all)
        call_lost(c);
    m = multi_new(u);
    if (!m)
        return; /* tried again before the next call, at the next beat at the latest */
    curl_multi_cleanup(u->multi);
    u->multi = m;
    u->damaged = false;
}

enum dac_err loop_open(struct upstream *u)
{
    h2_reset_bind();
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK ||
        OPENSSL_init_ssl(0, NULL) != 1) /* which curl does not look at */
        return DAC_E_NOMEM;
    u->multi = multi_new(u);
    u->timer = evtimer_new(u->base, timer_fired, u);
    u->deferred = evtimer_new(u->base, deferred_run, u);
    u->catch_up = evtimer_new(u->base, catch_up_run, u);
    if (!u->multi || !u->timer || !u->deferred || !u->catch_up)
        return DAC_E_NOMEM;
    return DAC_OK;
}

void loop_close(struct upstream *u)
{
    if (u->multi)
        curl_multi_cleanup(u->multi);
    for (size_t i = 0; i < u->sock_count; i++) {
        if (u->socks[i] && u->socks[i]->added)
            event_del(&u->socks[i]->ev);
        free(u->socks[i]);
    }
    free(u->socks);
    if (u->timer)
        event_free(u->timer);
    if (u->deferred)
        event_free(u->deferred);
    if (u->catch_up)
        event_free(u->catch_up);
    curl_global_cleanup();
}
