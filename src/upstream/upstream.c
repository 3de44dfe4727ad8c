/*
 * The calls: starting, cancelling, pausing them, and telling their callers the end.
 *
 *   start -> in curl -> ended (decided) -> on_end -> lingering or removed -> recycled
 *                    -> cancelled --------------------> removed -----------> recycled
 *
 * A complete answer is reported at its end mark; its transfer lingers a moment for the
 * end of the HTTP message, so that the connection can be used again. Worker process,
 * event loop thread only.
 */
#include "upstream/upstream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/log.h"
#include "upstream/internal.h"
#include "upstream/outcome.h"

#define CALL_MAGIC    0x55434c4cU
#define REQUEST_MAX   (UINT64_C(64) << 20)
#define SSE_EVENT_MAX (UINT64_C(1) << 20)
/* Of a paused stream: curl cannot make an HTTP/2 stream wait, and hands over some more of
 * others. */
#define HELD_MAX    (UINT64_C(16) << 20)
#define ERROR_MAX   (UINT64_C(64) << 10)
#define SCRATCH_MAX (UINT64_C(8) << 20)
#define KEEP_BYTES  (UINT64_C(16) << 10)
#define IDLE_MAX    512
#define LINGER_MS   500

static void check(const struct upstream_call *c)
{
    DAC_ASSERT(c && c->magic == CALL_MAGIC && !c->detached);
}

/* --- objects ------------------------------------------------------------------------ */

static void call_timer(evutil_socket_t fd, short what, void *arg);

static void call_free(struct upstream_call *c)
{
    if (c->easy)
        curl_easy_cleanup(c->easy);
    reader_reset(&c->reader);
    sse_decoder_free(&c->sse);
    buf_free(&c->body);
    buf_free(&c->error);
    buf_free(&c->held);
    buf_free(&c->auth);
    free(c);
}

static struct upstream_call *call_new(struct upstream *u)
{
    struct upstream_call *c = TAILQ_FIRST(&u->idle);

    if (c) {
        TAILQ_REMOVE(&u->idle, c, all);
        u->idle_count--;
        return c;
    }
    c = calloc(1, sizeof(*c));
    if (!c)
        return NULL;
    c->u = u;
    c->body = BUF_INIT(REQUEST_MAX);
    c->error = BUF_INIT(ERROR_MAX);
    c->held = BUF_INIT(HELD_MAX);
    c->auth = BUF_INIT(KEEP_BYTES);
    c->reader.scratch = &u->scratch;
    c->reader.unescaped = &u->unescaped;
    sse_decoder_init(&c->sse, SSE_EVENT_MAX);
    c->easy = curl_easy_init();
    if (!c->easy || evtimer_assign(&c->timer, u->base, call_timer, c) != 0) {
        call_free(c);
        return NULL;
    }
    return c;
}

static void empty(struct buf *b)
{
    if (b->cap > KEEP_BYTES)
        buf_free(b);
    buf_reset(b);
}

/* What curl or the caller no longer knows goes to the idle calls, without any content. */
static void call_recycle(struct upstream_call *c)
{
    struct upstream *u = c->u;

    DAC_ASSERT(!c->in_multi && c->detached);
    event_del(&c->timer);
    transfer_unlink(c);
    if (c->queued)
        TAILQ_REMOVE(&u->work, c, work);
    if (c->lagging)
        TAILQ_REMOVE(&u->lag, c, lag);
    TAILQ_REMOVE(&u->calls, c, all);
    c->magic = 0;
    if (u->idle_count >= IDLE_MAX) {
        call_free(c);
        return;
    }
    curl_easy_reset(c->easy);
    reader_reset(&c->reader);
    sse_decoder_reset(&c->sse, KEEP_BYTES);
    empty(&c->body);
    empty(&c->error);
    empty(&c->held);
    empty(&c->auth);
    TAILQ_INSERT_HEAD(&u->idle, c, all);
    u->idle_count++;
}

static void call_init(struct upstream_call *c, const struct upstream_provider *p,
                      const struct dialect *d, const struct upstream_ops *ops, void *arg)
{
    c->magic = CALL_MAGIC;
    c->provider = p;
    c->dialect = d;
    c->reader.ops = ops;
    c->reader.arg = arg;
    c->reader.max = p->answer_max_bytes;
    c->reader.key = p->api_key;
    c->curl_error[0] = '\0';
    c->status = 0;
    c->kind = BODY_NONE;
    c->event_stream = c->json = false;
    c->retry_after_ms = 0;
    c->started_ns = clock_now_ns();
    c->content_ns = c->started_ns;
    c->heard_ns = c->started_ns;
    c->pieces = 0;
    c->in_multi = c->want_add = c->want_resume = false;
    c->queued = c->lagging = false;
    c->paused = c->curl_paused = c->want_poke = c->broken = c->over = c->ended =
        c->detached = c->linked = false;
    c->result = CURLE_OK;
    c->attempts = 0;
}

enum dac_err upstream_new(struct event_base *base, struct upstream **out)
{
    struct upstream *u = calloc(1, sizeof(*u));
    enum dac_err e;

    *out = NULL;
    if (!u)
        return DAC_E_NOMEM;
    u->base = base;
    TAILQ_INIT(&u->calls);
    TAILQ_INIT(&u->work);
    TAILQ_INIT(&u->lag);
    TAILQ_INIT(&u->idle);
    for (size_t i = 0; i < UPSTREAM_LINK_BUCKETS; i++)
        TAILQ_INIT(&u->links[i]);
    u->scratch = BUF_INIT(SCRATCH_MAX);
    u->unescaped = BUF_INIT(SCRATCH_MAX);
    e = loop_open(u);
    if (e != DAC_OK) {
        upstream_free(u);
        return e;
    }
    *out = u;
    return DAC_OK;
}

void upstream_free(struct upstream *u)
{
    struct upstream_call *c;

    if (!u)
        return;
    DAC_ASSERT(u->depth == 0);
    while ((c = TAILQ_FIRST(&u->calls))) {
        c->detached = true;
        transfer_remove(c);
        call_recycle(c);
    }
    while ((c = TAILQ_FIRST(&u->idle))) {
        TAILQ_REMOVE(&u->idle, c, all);
        call_free(c);
    }
    u->closing = true;
    loop_close(u);
    buf_free(&u->scratch);
    buf_free(&u->unescaped);
    free(u);
}

size_t upstream_active(const struct upstream *u)
{
    return u->active;
}

/* --- what is put off ---------------------------------------------------------------- */

void call_queue(struct upstream_call *c)
{
    if (!c->queued) {
        c->queued = true;
        TAILQ_INSERT_TAIL(&c->u->work, c, work);
    }
    if (c->u->depth == 0)
        upstream_defer(c->u);
}

static bool add(struct upstream_call *c)
{
    c->want_add = false;
    c->in_multi =
        !c->u->damaged && curl_multi_add_handle(c->u->multi, c->easy) == CURLM_OK;
    return c->in_multi;
}

static void tell_end(struct upstream_call *c)
{
    struct upstream_end end = c->end;
    bool linger = end.outcome == UPSTREAM_COMPLETE && c->in_multi;

    event_del(&c->timer);
    c->detached = true;
    c->reader.muted = true;
    c->u->active--;
    if (linger) {
        struct timeval tv = {.tv_usec = LINGER_MS * 1000};
        event_add(&c->timer, &tv);
    } else {
        transfer_remove(c);
    }
    c->reader.ops->on_end(c->reader.arg, &end);
}

static void transfer_ended(struct upstream_call *c, CURLcode result)
{
    c->over = true;
    c->result = result;
    c->heard_ns = clock_now_ns();
    transfer_remove(c);
    if (c->held.len == 0)
        answer_over(c);
}

void call_lost(struct upstream_call *c)
{
    if (!c->in_multi)
        return;
    if (c->detached)
        transfer_remove(c);
    else
        transfer_ended(c, CURLE_OUT_OF_MEMORY);
    call_queue(c);
}

static void resume(struct upstream_call *c)
{
    c->want_resume = false;
    c->content_ns = clock_now_ns();
    answer_drain(c);
    if (c->paused || c->detached || c->ended)
        return;
    if (c->held.len > 0) {
        if (!c->lagging)
            TAILQ_INSERT_TAIL(&c->u->lag, c, lag);
        c->lagging = true;
        upstream_catch_up(c->u);
        return;
    }
    if (c->over) {
        answer_over(c);
    } else if (c->curl_paused) {
        c->curl_paused = false;
        if (!transfer_pause(c, CURLPAUSE_CONT) && !c->ended && !c->detached)
            transfer_ended(c, CURLE_RECV_ERROR);
    }
}

static void work_on(struct upstream_call *c)
{
    if (c->want_add && !c->detached && !add(c)) {
        struct upstream_end end;
        outcome_from_curl(&end, CURLE_OUT_OF_MEMORY);
        answer_end(c, &end);
    }
    if (c->broken && c->in_multi)
        transfer_ended(c, CURLE_RECV_ERROR);
    if (c->want_poke)
        transfer_poke(c);
    if (c->in_multi && !c->detached && !c->ended && answer_wants_pause(c)) {
        c->curl_paused = true;
        transfer_pause(c, CURLPAUSE_RECV);
    }
    if (!c->detached && !c->ended && !c->paused &&
        (c->want_resume || c->curl_paused || c->held.len > 0))
        resume(c);
    if (c->ended && !c->detached) {
        tell_end(c);
        if (c->in_multi)
            return;
    }
    if (c->detached && (!c->in_multi || !c->ended)) {
        transfer_remove(c);
        call_recycle(c);
    }
}

void upstream_work(struct upstream *u)
{
    struct upstream_call *c;

    while ((c = TAILQ_FIRST(&u->work))) {
        TAILQ_REMOVE(&u->work, c, work);
        c->queued = false;
        work_on(c);
    }
}

void call_transfer_over(struct upstream_call *c, CURLcode result)
{
    if (result != CURLE_OK || (!c->ended && !c->reader.finished))
        transfer_failed(c, result);
    transfer_ended(c, result);
    call_queue(c);
}

static void call_timer(evutil_socket_t fd, short what, void *arg)
{
    struct upstream_call *c = arg;
    struct upstream *u = c->u;

    (void)fd;
    (void)what;
    upstream_enter(u);
    if (c->detached) {
        transfer_remove(c);
        call_queue(c);
    } else {
        answer_time(c, clock_now_ns());
    }
    upstream_leave(u);
}

void upstream_tick(struct upstream *u, uint64_t now_ns)
{
    struct upstream_call *c;

    upstream_enter(u);
    TAILQ_FOREACH (c, &u->calls, all) {
        if (event_pending(&c->timer, EV_TIMEOUT, NULL) || c->queued)
            continue;
        if (!c->detached) {
            answer_time(c, now_ns);
        } else {
            transfer_remove(c);
            call_queue(c);
        }
    }
    upstream_leave(u);
    loop_tick(u, now_ns);
}

/* --- the caller's side -------------------------------------------------------------- */

enum dac_err upstream_start(struct upstream *u, const struct upstream_provider *p,
                            const struct upstream_request *req,
                            const struct upstream_ops *ops, void *arg,
                            struct upstream_call **out)
{
    const struct dialect *d = dialect_find(p->dialect);
    struct upstream_call *c;
    enum dac_err e;

    *out = NULL;
    if (!d)
        return DAC_E_INVALID;
    if (u->damaged && u->depth == 0)
        loop_renew(u); /* there was no memory for it before */
    c = call_new(u);
    if (!c)
        return DAC_E_NOMEM;
    call_init(c, p, d, ops, arg);
    c->about = req->about;
    TAILQ_INSERT_TAIL(&u->calls, c, all);
    c->trace[0] = '\0';
    if (req->traceparent)
        snprintf(c->trace, sizeof(c->trace), "traceparent: %s", req->traceparent);
    d->put_request(&c->body, req);
    e = c->body.failed ? DAC_E_NOMEM : transfer_prepare(c);
    if (e == DAC_OK && u->depth == 0 && !add(c))
        e = DAC_E_NOMEM;
    if (e != DAC_OK) {
        c->detached = true;
        call_recycle(c);
        return e;
    }
    if (!c->in_multi) {
        c->want_add = true;
        call_queue(c);
    }
    u->active++;
    answer_arm(c, c->started_ns);
    *out = c;
    return DAC_OK;
}

void upstream_cancel(struct upstream_call *c)
{
    check(c);
    c->detached = true;
    c->ended = false;
    c->reader.muted = true;
    c->u->active--;
    if (c->u->depth > 0) {
        event_del(&c->timer);
        call_queue(c);
        return;
    }
    transfer_remove(c);
    call_recycle(c);
}

void upstream_pause(struct upstream_call *c)
{
    check(c);
    c->paused = true;
    c->want_resume = false;
}

void upstream_resume(struct upstream_call *c)
{
    check(c);
    if (!c->paused)
        return;
    c->paused = false;
    c->want_resume = true;
    call_queue(c);
}
