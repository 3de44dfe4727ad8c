/*
 * Accepting: listening sockets of others, in batches, pausing for 100 ms where there is
 * no descriptor, no memory, or no leave to accept. The kernel's backlog holds who comes
 * meanwhile.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/log.h"
#include "http/internal.h"

#define WARN_EVERY_NS (10 * NS_PER_S)
#define LAST_BATCHES  16 /* of one socket, before it is closed */

static void pause_accepting(struct http_server *s, int err)
{
    static const struct timeval tv = {
        .tv_usec = (suseconds_t)(HTTP_ACCEPT_PAUSE_NS / NS_PER_US)};
    struct listener *l;
    uint64_t now = clock_now_ns();

    if (s->accept_warned_ns == 0 || now - s->accept_warned_ns >= WARN_EVERY_NS) {
        s->accept_warned_ns = now;
        log_warn(err, err ? "could not accept a connection; pausing"
                          : "at the limit of connections; accepting pauses");
    }
    s->stats.accept_pauses++;
    s->accept_paused = true;
    SLIST_FOREACH(l, &s->listeners, link)
    event_del(&l->ev);
    event_add(&s->ev_accept, &tv);
}

void accept_resume(int fd, short what, void *arg)
{
    struct http_server *s = arg;
    struct listener *l;

    (void)fd;
    (void)what;
    s->accept_paused = false;
    SLIST_FOREACH(l, &s->listeners, link)
    event_add(&l->ev, NULL);
}

void accept_tick(struct http_server *s)
{
    struct listener *l;

    if (s->accept_paused) {
        if (!event_pending(&s->ev_accept, EV_TIMEOUT, NULL))
            accept_resume(-1, EV_TIMEOUT, s);
        return;
    }
    SLIST_FOREACH(l, &s->listeners, link)
    if (!event_pending(&l->ev, EV_READ, NULL))
        event_add(&l->ev, NULL);
}

/* Whether more may wait. */
static bool accept_batch(struct listener *l)
{
    struct http_server *s = l->server;

    for (int i = 0; i < HTTP_ACCEPT_BATCH; i++) {
        if (s->opt.may_accept && !s->opt.may_accept(s->opt.ctx)) {
            pause_accepting(s, 0);
            return false;
        }
        int client = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (client >= 0) {
            s->stats.accepted++;
            conn_new(s, client, l->tcp);
            continue;
        }
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            return false;
        /* Errors of the one connection, which is gone already; accept(2). */
        if (errno == EINTR || errno == ECONNABORTED || errno == EPROTO ||
            errno == EPERM || errno == ENETDOWN || errno == ENOPROTOOPT ||
            errno == EHOSTDOWN || errno == ENONET || errno == EHOSTUNREACH ||
            errno == EOPNOTSUPP || errno == ENETUNREACH || errno == ETIMEDOUT)
            continue;
        pause_accepting(s, errno);
        return false;
    }
    return true;
}

static void on_acceptable(int fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    (void)accept_batch(arg);
}

void http_server_accept_waiting(struct http_server *s)
{
    struct listener *l;

    SLIST_FOREACH(l, &s->listeners, link)
    for (int i = 0; i < LAST_BATCHES && !s->accept_paused && accept_batch(l); i++)
        ;
}

static struct listener *find(struct http_server *s, int fd)
{
    struct listener *l;

    SLIST_FOREACH(l, &s->listeners, link)
    if (l->fd == fd)
        return l;
    return NULL;
}

enum dac_err http_server_listen(struct http_server *s, int fd)
{
    struct sockaddr_storage addr;
    socklen_t len = sizeof(addr);

    if (find(s, fd))
        return DAC_OK;
    if (getsockname(fd, (struct sockaddr *)&addr, &len) != 0)
        return DAC_E_SYS;
    struct listener *l = calloc(1, sizeof(*l));
    if (!l)
        return DAC_E_NOMEM;
    l->server = s;
    l->fd = fd;
    l->tcp = addr.ss_family == AF_INET || addr.ss_family == AF_INET6;
    if (event_assign(&l->ev, s->base, fd, EV_READ | EV_PERSIST, on_acceptable, l) != 0 ||
        (!s->accept_paused && event_add(&l->ev, NULL) != 0)) {
        free(l);
        return DAC_E_SYS;
    }
    SLIST_INSERT_HEAD(&s->listeners, l, link);
    return DAC_OK;
}

void http_server_unlisten(struct http_server *s, int fd)
{
    struct listener *l = find(s, fd);

    if (!l)
        return;
    event_del(&l->ev);
    SLIST_REMOVE(&s->listeners, l, listener, link);
    free(l);
}

void accept_stop_all(struct http_server *s)
{
    struct listener *l;

    while ((l = SLIST_FIRST(&s->listeners)))
        http_server_unlisten(s, l->fd);
    event_del(&s->ev_accept);
    s->accept_paused = false;
}
