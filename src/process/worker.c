/*
 * Puts one worker together and keeps its beat: every 250 ms its heartbeat, gauges and
 * counters go to shared memory, its flights are looked at, and it decides which sockets
 * it accepts on.
 *
 *   STARTING -> READY (accepts) -> DRAINING (SIGTERM, or the master died) -> exit 0
 *
 * It accepts on its own ordinal's sockets and on those of ordinals whose worker is not
 * ready or has not beaten for a second, so a stopped or restarting worker strands no new
 * client. On a segment that another generation is to hand over yet (`hold`) it accepts
 * nobody. When draining, sockets are closed first; streams end by themselves within
 * drain_timeout, then they are cut. One whose ordinal is another worker's after a reload
 * drains as well, without an end: others serve on, and nobody waits for it.
 */
#include "process/worker.h"

#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "api/api.h"
#include "api/input.h"
#include "base/clock.h"
#include "base/log.h"
#include "flight/flights.h"
#include "http/http.h"
#include "shm/live.h"
#include "shm/slot.h"
#include "store/store.h"
#include "upstream/upstream.h"

#define TAKE_OVER_NS   NS_PER_S /* without a beat: others accept in its place */
#define DRAIN_CHECK_NS (20 * NS_PER_MS)
#define IDLE_WAIT_NS   NS_PER_S       /* for requests on their way, where others go on */
#define CUT_WAIT_NS    (2 * NS_PER_S) /* after flights_cut(), then the worker just ends */

struct worker {
    const struct child_context *ctx;
    struct shm *shm;
    struct event_base *base;
    struct http_server *server;
    struct upstream *upstream;
    struct store_reader *reader;
    struct flights *flights;
    struct api api;
    struct event *beat;
    struct event *kick;  /* the slot's eventfd, only to see the master's kicks at once */
    struct event *drain; /* repeated while draining */
    struct child_stop stop;
    uint32_t kicks;         /* as last seen in the header */
    uint64_t live_seen;     /* see child_live() */
    uint64_t cancel_seen;   /* see live_next_cancel() */
    bool served;            /* its ordinal was its own once */
    uint64_t draining_ns;   /* since when, 0: not draining */
    uint64_t ending_ns;     /* since when drain_timeout counts, 0: it does not */
    bool idle_closed;       /* connections without a request are closed */
    bool cut;               /* the drain's time is over */
    bool sockets_stay;      /* systemd keeps one, for who comes next */
    bool over;              /* nothing is left to do */
    struct http_stats told; /* what the counters already hold */
};

/* --- accepting ------------------------------------------------------------------------
 */

/* Whether this worker is to accept on another ordinal's sockets. */
static bool accepts_for(const struct worker *w, uint32_t ordinal, uint64_t now_ns)
{
    uint32_t slot = atomic_load(&w->shm->hdr->ordinal_slot[ordinal]);

    return ordinal == w->ctx->ordinal ||
           !slot_accepting(w->shm, slot, now_ns, TAKE_OVER_NS);
}

static void choose_sockets(struct worker *w, uint64_t now_ns)
{
    const struct listeners *l = w->ctx->listeners;
    uint32_t ordinals;

    if (w->draining_ns != 0 || atomic_load(&w->shm->hdr->hold) || !slot_serves(w->shm))
        return;
    w->served = true;
    for (size_t i = 0; i < l->count; i++) {
        ordinals = l->items[i].shared ? 1 : l->ordinals;
        for (uint32_t o = 0; o < ordinals; o++) {
            int fd = l->items[i].fds[o];

            if (fd < 0)
                continue;
            if (!l->items[i].shared && !accepts_for(w, o, now_ns))
                http_server_unlisten(w->server, fd);
            else if (http_server_listen(w->server, fd) != DAC_OK)
                log_warn(errno, "could not accept on %s", l->items[i].text);
        }
    }
}

/* The limit is for all workers together; each knows its own number exactly and the
 * others' as of their last beat or accept. */
static bool may_accept(void *arg)
{
    struct worker *w = (void *)((char *)arg - offsetof(struct worker, api));
    uint64_t sum = http_server_connections(w->server);

    atomic_store_explicit(&w->shm->slots[w->shm->self].connections, sum,
                          memory_order_relaxed);
    for (uint32_t i = 0; i < SHM_SLOTS; i++) {
        if (i != w->shm->self)
            sum +=
                atomic_load_explicit(&w->shm->slots[i].connections, memory_order_relaxed);
    }
    return sum < w->ctx->config->max_connections;
}

static void fill_limits(const struct config *cfg, struct http_limits *out)
{
    *out = (struct http_limits){.header_max = cfg->header_max_bytes,
                                .body_max = cfg->body_max_bytes,
                                .header_timeout_ns = cfg->header_timeout_ns,
                                .body_timeout_ns = cfg->body_timeout_ns,
                                .keepalive_timeout_ns = cfg->keepalive_timeout_ns,
                                .client_stall_timeout_ns = cfg->client_stall_timeout_ns};
}

/* --- the beat -------------------------------------------------------------------------
 */

static void publish_stats(struct worker *w)
{
    const struct http_stats *s = http_server_stats(w->server);
    struct shm_slot *slot = &w->shm->slots[w->shm->self];

    atomic_store_explicit(&slot->connections, s->connections, memory_order_relaxed);
    atomic_store_explicit(&slot->streams, s->streams, memory_order_relaxed);
    shm_count(w->shm, SHM_C_requests, s->requests - w->told.requests);
    shm_count(w->shm, SHM_C_sent_bytes, s->bytes_out - w->told.bytes_out);
    shm_count(w->shm, SHM_C_stalled_clients, s->stalled - w->told.stalled);
    shm_count(w->shm, SHM_C_accept_pauses, s->accept_pauses - w->told.accept_pauses);
    w->told = *s;
}

/* While others serve on, or will on sockets that systemd keeps, clients that just
 * connected, or ask at this moment, are answered first. Where the service ends there is
 * nothing to wait for. */
static void close_idle(struct worker *w, uint64_t now_ns)
{
    bool ends = !w->sockets_stay &&
                (atomic_load(&w->shm->hdr->draining) || child_orphaned(w->ctx));

    if (w->idle_closed || (!ends && now_ns - w->draining_ns < IDLE_WAIT_NS))
        return;
    w->idle_closed = true;
    http_server_drain(w->server);
}

/* Whether the drain has to end: the service stops, or the segment is to be left. After a
 * reload streams may take what time they need. */
static bool must_end(const struct worker *w)
{
    const struct shm_header *h = w->shm->hdr;

    return child_orphaned(w->ctx) || atomic_load(&h->draining) ||
           atomic_load(&h->superseded) || slot_serves(w->shm);
}

static void begin_drain(struct worker *w)
{
    const struct timeval check = {.tv_usec = (suseconds_t)(DRAIN_CHECK_NS / NS_PER_US)};
    const struct listeners *l = w->ctx->listeners;

    if (w->draining_ns != 0)
        return;
    w->draining_ns = clock_now_ns();
    slot_set_state(w->shm, SLOT_DRAINING);
    if (!atomic_load(&w->shm->hdr->draining))
        http_server_accept_waiting(w->server); /* an address may be about to go */
    log_info(0, "draining: %zu connections", http_server_connections(w->server));
    for (size_t i = 0; i < l->count; i++) {
        w->sockets_stay = w->sockets_stay || l->items[i].passed;
        for (uint32_t o = 0; o < l->ordinals; o++) {
            if (l->items[i].fds[o] >= 0)
                http_server_unlisten(w->server, l->items[i].fds[o]);
        }
    }
    http_server_retire(w->server);
    close_idle(w, w->draining_ns);
    /* The port must be free as soon as the master is gone, whatever still streams here.
     */
    listeners_close(w->ctx->listeners);
    event_add(w->drain, &check);
}

static void on_drain(evutil_socket_t fd, short what, void *arg)
{
    struct worker *w = arg;
    uint64_t now = clock_now_ns();
    uint64_t limit = w->ctx->config->drain_timeout_ns;
    uint64_t since;
    size_t connections;

    (void)fd, (void)what;
    if (w->ending_ns == 0 && must_end(w))
        w->ending_ns = now;
    since = w->ending_ns != 0 ? now - w->ending_ns : 0;
    close_idle(w, now);
    connections = http_server_connections(w->server);
    if (flights_active(w->flights) == 0 && connections == 0) {
        w->over = true;
    } else if (w->ending_ns != 0 && since >= limit && !w->cut) {
        w->cut = true;
        log_warn(0, "drain_timeout is over: ending what still runs (%zu connections)",
                 connections);
        flights_cut(w->flights);
    } else if (w->ending_ns != 0 && since >= limit + CUT_WAIT_NS) {
        w->over = true;
    }
    if (w->over)
        event_base_loopbreak(w->base);
}

/* What an operator asks for: turns to stop, values in place, a new set of workers. */
static void look_at_changes(struct worker *w)
{
    struct http_limits limits;
    struct id turn;

    while (live_next_cancel(w->shm, &w->cancel_seen, turn.b)) {
        if (flights_cancel(w->flights, &turn) == DAC_E_BUSY)
            break;
        w->cancel_seen++;
    }

    if (child_live(w->ctx, &w->live_seen)) {
        fill_limits(w->ctx->config, &limits);
        http_server_set_limits(w->server, &limits);
        http_server_set_log_requests(
            w->server, (enum http_log_requests)w->ctx->config->log_requests);
    }
    if (w->served && !slot_serves(w->shm))
        begin_drain(w);
}

static void on_beat(evutil_socket_t fd, short what, void *arg)
{
    struct worker *w = arg;
    uint64_t now = clock_now_ns();

    (void)fd, (void)what;
    slot_beat(w->shm, now);
    log_tick(now);
    publish_stats(w);
    flights_tick(w->flights, now);
    upstream_tick(w->upstream, now);
    http_server_tick(w->server);
    look_at_changes(w);
    choose_sockets(w, now);
    /* The signal says so as well; this is for one that was lost between fork and its
     * set-up. */
    if (child_orphaned(w->ctx) || atomic_load(&w->shm->hdr->draining))
        begin_drain(w);
    if (w->draining_ns != 0)
        on_drain(-1, EV_TIMEOUT, w); /* its timer may have found no memory */
}

/* The flights read this eventfd; here it only matters whether the master kicked. */
static void on_kick(evutil_socket_t fd, short what, void *arg)
{
    struct worker *w = arg;
    uint32_t kicks = atomic_load_explicit(&w->shm->hdr->kicks, memory_order_relaxed);

    (void)fd, (void)what;
    if (kicks == w->kicks)
        return;
    w->kicks = kicks;
    look_at_changes(w);
    choose_sockets(w, clock_now_ns());
}

static void on_stop(void *arg)
{
    begin_drain(arg);
}

/* --- life -----------------------------------------------------------------------------
 */

static enum dac_err make_server(struct worker *w)
{
    struct http_server_options opt = {
        .routes = api_routes,
        .route_count = api_route_count,
        .ctx = &w->api,
        .may_accept = may_accept,
        .server_name = "dac",
        .log_requests = (enum http_log_requests)w->ctx->config->log_requests,
        .describe = input_describe};

    fill_limits(w->ctx->config, &opt.limits);
    return http_server_new(w->base, &opt, &w->server);
}

static enum dac_err make_events(struct worker *w)
{
    const struct timeval beat = {.tv_usec = (suseconds_t)(BEAT_NS / NS_PER_US)};

    w->beat = event_new(w->base, -1, EV_PERSIST, on_beat, w);
    w->kick = event_new(w->base, w->shm->eventfd[w->shm->self], EV_READ | EV_PERSIST,
                        on_kick, w);
    w->drain = event_new(w->base, -1, EV_PERSIST, on_drain, w);
    if (!w->beat || !w->kick || !w->drain || event_add(w->beat, &beat) != 0 ||
        event_add(w->kick, NULL) != 0)
        return DAC_E_NOMEM;
    return child_stop_init(&w->stop, w->base, on_stop, w);
}

/* Everything up to accepting. Returns the step that failed, NULL if none did. */
static const char *make_parts(struct worker *w, char *why, size_t n)
{
    const struct config *cfg = w->ctx->config;
    char application[32];
    const struct store_options store = {.postgres = cfg->postgres,
                                        .application = application,
                                        .sqlite = cfg->sqlite,
                                        .spool = cfg->spool};
    struct flights_options opt = {.shm = w->shm, .config = w->ctx->config};

    snprintf(application, sizeof(application), "dac: worker %" PRIu32, w->ctx->ordinal);
    w->base = event_base_new();
    if (!w->base)
        return "event loop";
    if (upstream_new(w->base, &w->upstream) != DAC_OK)
        return "calls to providers";
    if (store_reader_open(w->base, &store, &w->reader, why, n) != DAC_OK)
        return "store";
    opt.base = w->base;
    opt.upstream = w->upstream;
    opt.reader = w->reader;
    if (flights_new(&opt, &w->flights) != DAC_OK)
        return "flights";
    w->api = (struct api){.shm = w->shm,
                          .config = w->ctx->config,
                          .flights = w->flights,
                          .reader = w->reader};
    if (make_server(w) != DAC_OK)
        return "HTTP server";
    return make_events(w) == DAC_OK ? NULL : "events";
}

/* Clients first: their going cancels what they wait for in the parts below. */
static void worker_free(struct worker *w)
{
    struct event *events[] = {w->beat, w->kick, w->drain};

    child_stop_free(&w->stop);
    for (size_t i = 0; i < DAC_ARRAY_LEN(events); i++) {
        if (events[i])
            event_free(events[i]);
    }
    if (w->server)
        http_server_free(w->server);
    if (w->flights)
        flights_free(w->flights);
    if (w->reader)
        store_reader_close(w->reader);
    if (w->upstream)
        upstream_free(w->upstream);
    if (w->base)
        event_base_free(w->base);
}

int worker_run(const struct child_context *ctx)
{
    struct worker w = {.ctx = ctx, .shm = ctx->shm, .stop = {.fd = -1}};
    char why[512] = "";
    const char *failed = make_parts(&w, why, sizeof(why));
    int rc = EXIT_OK;

    if (failed) {
        rc = child_fail(ctx, "could not set up %s: %s", failed,
                        why[0] ? why : strerror(errno));
        goto out;
    }
    w.cancel_seen = atomic_load(&w.shm->hdr->cancel_seq);
    slot_beat(ctx->shm, clock_now_ns());
    choose_sockets(&w, clock_now_ns());
    child_ready(ctx);
    if (event_base_dispatch(w.base) != 0 || !w.over)
        rc = child_fail(ctx, "the event loop failed: %s", strerror(errno));
    publish_stats(&w);
out:
    worker_free(&w);
    return rc;
}
