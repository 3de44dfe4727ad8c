/*
 * A flight that this worker owns, from its queue to its end.
 *
 *   ROOM     no block is free for its request; asked for again, at most ROOM_WAIT_NS
 *   QUEUED   the thread's history is read while the pacer's queue is waited in
 *   CALLING  the provider was asked; what comes goes into the log (fetch_log.c)
 *   BACKOFF  failed before the first content: asked once more, inside retry_deadline
 *   (freed)  END is in the log
 *
 * Requests from others reach it by wake-up: "cancel" ends it at once, "nobody reads"
 * starts the grace timer, after which it is abandoned if the bitmap is still empty under
 * the lock.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "flight/internal.h"
#include "shm/crash.h"
#include "shm/pacer.h"
#include "shm/wake.h"

#define HISTORY_MESSAGES_MAX 40
#define HISTORY_BYTES_MAX    (256u << 10)
#define RETRY_BACKOFF_NS     (100 * NS_PER_MS)
#define GRACE_RETRY_NS       (5 * NS_PER_MS)
#define REFUSED_RETRY_MS     1000

static struct timeval tv_of(uint64_t ns)
{
    /* Rounded up, so that a timer never comes early and finds nothing to do. */
    uint64_t us = (ns + NS_PER_US - 1) / NS_PER_US;
    return (struct timeval){.tv_sec = (time_t)(us / 1000000),
                            .tv_usec = (suseconds_t)(us % 1000000)};
}

static struct shm_flight *shared(const struct fetch *f)
{
    return flight_at(f->lf->fl->shm, f->lf->ref.index);
}

void fetch_spent(struct shm_flight *flight, uint64_t from_ns, uint64_t to_ns)
{
    uint64_t own = atomic_load_explicit(&flight->own_ns, memory_order_relaxed);

    if (to_ns > from_ns)
        atomic_store_explicit(&flight->own_ns, own + (to_ns - from_ns),
                              memory_order_relaxed);
}

void fetch_answered(struct fetch *f, uint64_t heard_ns)
{
    uint64_t called = atomic_load_explicit(&shared(f)->called_ns, memory_order_relaxed);

    atomic_store_explicit(&shared(f)->answered_ns, heard_ns > called ? heard_ns : called,
                          memory_order_relaxed);
}

static void queue_remove(struct fetch *f)
{
    if (!f->in_queue)
        return;
    TAILQ_REMOVE(&f->lf->fl->providers[f->provider].waiting, f, link);
    f->in_queue = false;
}

void fetch_free(struct fetch *f)
{
    struct local_flight *lf = f->lf;
    struct flights *fl = lf->fl;

    queue_remove(f);
    if (f->query)
        store_query_cancel(f->query);
    if (f->call)
        upstream_cancel(f->call);
    pacer_give(fl->shm, f->provider, f->permit, lf->ref);
    turn_request_free(&f->request);
    json_object_put(f->history);
    buf_free(&f->held);
    fetch_discard(f);
    lf->fetch = NULL;
    fl->fetches--;
    local_schedule(lf); /* which settles it */
}

static void fetch_finish(struct fetch *f, enum turn_status status, int http_status,
                         const char *code, const char *message, const char *finish)
{
    struct record_end end = {.status = status, .http_status = (uint32_t)http_status};

    end.retryable = status == TURN_FAILED && http_status >= 500;
    if (status == TURN_FAILED && http_status == 503)
        end.retry_after_ms = REFUSED_RETRY_MS;
    snprintf(end.code, sizeof end.code, "%s", code);
    snprintf(end.message, sizeof end.message, "%s", message);
    snprintf(end.finish_reason, sizeof end.finish_reason, "%s", finish);
    if (f->call) {
        upstream_cancel(f->call);
        f->call = NULL;
        fetch_answered(f, clock_now_ns());
        shm_count(f->lf->fl->shm, SHM_C_upstream_cancelled, 1);
    }
    fetch_end(f, &end);
}

void fetch_cancel(struct fetch *f, const char *code, const char *why)
{
    fetch_finish(f, TURN_CANCELLED, 0, code, why, "cancelled");
}

void fetch_fail(struct fetch *f, int http_status, const char *code, const char *message)
{
    fetch_finish(f, f->content ? TURN_INCOMPLETE : TURN_FAILED, http_status, code,
                 message, "");
}

/* --- who listens -------------------------------------------------------------------- */

/* Where there is no memory for a timer, fetch_tick() finds what it was for. */
static void arm_timer(struct fetch *f, uint64_t ns)
{
    const struct timeval tv = tv_of(ns);

    f->timer_due_ns = clock_now_ns() + ns;
    evtimer_add(f->timer, &tv);
}

static void arm_grace(struct fetch *f, uint64_t ns)
{
    const struct timeval tv = tv_of(ns);
    evtimer_add(f->grace, &tv);
}

static void grace_over(struct fetch *f)
{
    struct flights *fl = f->lf->fl;
    enum dac_err e = index_abandon(fl->shm, f->lf->ref);

    if (e == DAC_OK) {
        fetch_cancel(f, "abandoned", "nobody listened any more");
    } else if (e == DAC_E_BUSY) {
        arm_grace(f, GRACE_RETRY_NS);
    } else {
        f->unread_since_ns = 0; /* somebody came back */
    }
}

static void on_grace(evutil_socket_t fd, short what, void *arg)
{
    struct fetch *f = arg;
    (void)fd;
    (void)what;
    if (flight_readers(f->lf->fl->shm, f->lf->ref.index) == 0)
        grace_over(f);
    else
        f->unread_since_ns = 0;
}

/* A client whose worker died did not leave: it may come back through another one. */
static uint64_t grace_of(const struct fetch *f)
{
    uint64_t grace =
        atomic_load_explicit(&shared(f)->abandon_grace_ns, memory_order_relaxed);
    uint64_t lost = atomic_load_explicit(&shared(f)->lost_ns, memory_order_acquire);
    uint64_t until = lost + f->lf->fl->config->reconnect_grace_ns;
    uint64_t now = f->unread_since_ns;

    if (lost != 0 && until > now && until - now > grace)
        grace = until - now;
    return grace;
}

void fetch_check(struct fetch *f)
{
    struct flights *fl = f->lf->fl;
    uint32_t asked = atomic_load_explicit(&shared(f)->requests, memory_order_acquire);

    if (f->end_held || f->phase == FETCH_ROOM)
        return;
    if (asked & FLIGHT_ASK_CANCEL) {
        fetch_cancel(f, "cancelled", "the turn was cancelled");
        return;
    }
    if (flight_readers(fl->shm, f->lf->ref.index) != 0) {
        f->unread_since_ns = 0;
        evtimer_del(f->grace);
        return;
    }
    if (f->unread_since_ns != 0)
        return;
    f->unread_since_ns = clock_now_ns();
    arm_grace(f, grace_of(f));
}

/* --- asking the provider ------------------------------------------------------------ */

static bool add_string(struct json_object *to, const char *name, const char *s, size_t n)
{
    struct json_object *v = json_object_new_string_len(s, (int)n);

    if (v && json_object_object_add(to, name, v) == 0)
        return true;
    json_object_put(v);
    return false;
}

static bool add_message(struct json_object *to, const char *role, const char *s, size_t n)
{
    struct json_object *o = json_object_new_object();

    if (!o || !add_string(o, "role", role, strlen(role)) ||
        !add_string(o, "content", s, n) || json_object_array_add(to, o) != 0) {
        json_object_put(o);
        return false;
    }
    return true;
}

/* Stateless chat sends its own messages; a thread its system prompt, history and
 * question. */
static struct json_object *make_messages(const struct fetch *f)
{
    const struct turn_request *r = &f->request;
    if (r->messages)
        return json_object_get(r->messages);
    struct json_object *all = json_object_new_array();
    bool ok = all != NULL;

    if (ok && r->system.len > 0)
        ok = add_message(all, "system", r->system.data, r->system.len);
    for (size_t i = 0; ok && f->history && i < json_object_array_length(f->history);
         i++) {
        struct json_object *m = json_object_array_get_idx(f->history, i);
        ok = json_object_array_add(all, json_object_get(m)) == 0;
        if (!ok)
            json_object_put(m);
    }
    if (ok)
        ok = add_message(all, "user", r->content.data ? r->content.data : "",
                         r->content.len);
    if (!ok) {
        json_object_put(all);
        return NULL;
    }
    return all;
}

static void call_provider(struct fetch *f)
{
    struct flights *fl = f->lf->fl;
    struct json_object *messages = make_messages(f);
    char traceparent[TRACE_PARENT_SIZE];
    struct upstream_request req = {.model = f->request.model,
                                   .messages = messages,
                                   .params = f->request.params,
                                   .about = local_about(f->lf)};
    enum dac_err e = DAC_E_NOMEM;
    uint64_t now = clock_now_ns();

    f->phase = FETCH_CALLING;
    if (f->started_ns == 0)
        f->started_ns = now;
    atomic_store_explicit(&shared(f)->fetch_ns, now, memory_order_relaxed);
    atomic_store_explicit(&shared(f)->fetcher,
                          atomic_load(&fl->shm->slots[fl->shm->self].ordinal) + 1,
                          memory_order_relaxed);
    DAC_ASSERT(flight_advance(fl->shm, f->lf->ref, FLIGHT_FETCHING) == DAC_OK);
    if (config_provider_at(fl->config, f->provider)->trace) {
        const struct trace trace = flight_trace(fl->shm, f->lf->ref.index);

        trace_format_parent(&trace, traceparent);
        req.traceparent = traceparent;
    }
    if (messages)
        e = upstream_start(fl->upstream, &fl->providers[f->provider].upstream, &req,
                           &fetch_upstream_ops, f, &f->call);
    json_object_put(messages);
    if (e != DAC_OK) {
        f->call = NULL;
        fetch_fail(f, 503, "no_memory", "the call to the provider could not be made");
        return;
    }
    shm_count(fl->shm, SHM_C_upstream_calls, 1);
    uint64_t called = clock_now_ns();
    fetch_spent(shared(f), now, called);
    atomic_store_explicit(&shared(f)->answered_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&shared(f)->called_ns, called, memory_order_relaxed);
}

void fetch_provider_ready(struct flights *fl, uint32_t provider)
{
    struct provider_queue *q = &fl->providers[provider];
    struct fetch *f, *next;

    for (f = TAILQ_FIRST(&q->waiting); f; f = next) {
        uint64_t wait_ns;
        next = TAILQ_NEXT(f, link);
        if (!f->history_ready)
            continue;
        enum dac_err e = pacer_take(fl->shm, provider, f->lf->ref, clock_now_ns(),
                                    &f->permit, &wait_ns);
        if (e == DAC_OK) {
            queue_remove(f);
            call_provider(f);
            continue;
        }
        if (wait_ns != UINT64_MAX) {
            const struct timeval tv = tv_of(wait_ns);
            evtimer_add(q->timer, &tv);
        }
        return;
    }
}

static void enqueue(struct fetch *f)
{
    struct flights *fl = f->lf->fl;

    f->phase = FETCH_QUEUED;
    f->in_queue = true;
    TAILQ_INSERT_TAIL(&fl->providers[f->provider].waiting, f, link);
    fetch_provider_ready(fl, f->provider);
}

static void on_history(void *arg, enum dac_err e, const struct store_message *m, size_t n,
                       bool more)
{
    struct fetch *f = arg;

    (void)more;
    f->query = NULL;
    f->history = json_object_new_array();
    if (e == DAC_OK && f->history)
        for (size_t i = 0; i < n; i++)
            if (!add_message(f->history, m[i].role, m[i].content.s ? m[i].content.s : "",
                             m[i].content.n))
                e = DAC_E_NOMEM;
    if (e != DAC_OK || !f->history) {
        fetch_fail(f, 503, "history_unavailable",
                   "the thread's earlier messages could not be read; try again");
        return;
    }
    f->history_ready = true;
    fetch_provider_ready(f->lf->fl, f->provider);
}

static void read_history(struct fetch *f)
{
    const struct turn_request *r = &f->request;

    if (id_is_zero(&r->thread_id) || id_is_zero(&r->last_turn_id)) {
        f->history_ready = true;
        return;
    }
    f->query =
        store_read_history(f->lf->fl->reader, r->org, &r->thread_id, &r->last_turn_id,
                           HISTORY_MESSAGES_MAX, HISTORY_BYTES_MAX, on_history, f);
}

/* --- beginning ---------------------------------------------------------------------- */

static enum dac_err log_request(struct fetch *f)
{
    struct buf b = BUF_INIT(32u << 20);
    enum dac_err e = turn_request_write(&f->request, &b);

    CRASH_POINT("question_before");
    if (e == DAC_OK)
        e = blocklog_append(f->lf->fl->shm, &f->writer, RECORD_REQUEST, b.data,
                            (uint32_t)b.len);
    buf_free(&b);
    return e;
}

/* QUEUED, its REQUEST in the log: reads the history, takes its place in the queue. */
static void queue_up(struct fetch *f)
{
    struct local_flight *lf = f->lf;
    shm_u64 *tickets = &lf->fl->shm->hdr->tickets[f->provider];

    atomic_store_explicit(&shared(f)->ticket, atomic_fetch_add(tickets, 1) + 1,
                          memory_order_relaxed);
    read_history(f);
    if (!f->history_ready && !f->query) {
        fetch_fail(f, 503, "history_unavailable",
                   "the thread's earlier messages could not be read; try again");
        return;
    }
    enqueue(f);
    if (lf->fetch)
        fetch_check(lf->fetch);
}

/* Logs the request and queues; where blocks are short, what is finished goes first. */
static void begin(struct fetch *f)
{
    struct local_flight *lf = f->lf;
    struct flights *fl = lf->fl;
    enum dac_err e = log_request(f);

    if (e == DAC_E_FULL && !fl->cutting &&
        clock_now_ns() - f->created_ns < ROOM_WAIT_NS) {
        fetch_ask_for_room(f);
        arm_timer(f, ROOM_RETRY_MS * NS_PER_MS);
        return;
    }
    if (e != DAC_OK) {
        bool large = e == DAC_E_TOO_LARGE;
        fetch_fail(f, large ? 413 : 503, large ? "question_too_large" : "no_room",
                   large ? "the question is longer than flight_max_bytes"
                         : "no room for the question; try again");
        return;
    }
    uint64_t queued = clock_now_ns();
    fetch_spent(shared(f), f->created_ns, queued);
    atomic_store_explicit(&shared(f)->queued_ns, queued, memory_order_relaxed);
    DAC_ASSERT(flight_advance(fl->shm, lf->ref, FLIGHT_QUEUED) == DAC_OK);
    queue_up(f);
}

/* --- second try --------------------------------------------------------------------- */

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct fetch *f = arg;
    (void)fd;
    (void)what;
    f->timer_due_ns = 0;
    if (f->phase == FETCH_ROOM)
        begin(f);
    else if (f->phase == FETCH_BACKOFF)
        enqueue(f);
    else
        fetch_room(f);
}

bool fetch_retry(struct fetch *f, const struct upstream_end *end)
{
    struct flights *fl = f->lf->fl;
    uint64_t now = clock_now_ns();
    uint64_t deadline =
        f->started_ns + config_provider_at(fl->config, f->provider)->retry_deadline_ns;
    uint64_t wait = RETRY_BACKOFF_NS;

    if (end->outcome == UPSTREAM_RATE_LIMITED) {
        wait = end->retry_after_ms ? end->retry_after_ms * NS_PER_MS : NS_PER_S;
        pacer_pause(fl->shm, f->provider, now + wait, PACER_RATE_LIMITED);
        shm_count(fl->shm, SHM_C_upstream_rate_limited, 1);
    }
    if (f->retried || f->content || !end->retryable || fl->cutting ||
        now + wait > deadline)
        return false;
    f->retried = true;
    shm_count(fl->shm, SHM_C_upstream_retries, 1);
    pacer_give(fl->shm, f->provider, f->permit, f->lf->ref);
    f->permit = PACER_NO_PERMIT;
    DAC_ASSERT(flight_advance(fl->shm, f->lf->ref, FLIGHT_QUEUED) == DAC_OK);
    f->phase = FETCH_BACKOFF;
    arm_timer(f, wait);
    return true;
}

void fetch_wait_for_room(struct fetch *f)
{
    if (f->phase == FETCH_CALLING && !evtimer_pending(f->timer, NULL))
        arm_timer(f, ROOM_RETRY_MS * NS_PER_MS);
}

void fetch_tick(struct fetch *f, uint64_t now_ns)
{
    if (f->unread_since_ns != 0 && !evtimer_pending(f->grace, NULL) &&
        now_ns - f->unread_since_ns >= grace_of(f)) {
        on_grace(-1, EV_TIMEOUT, f); /* it may be gone */
        return;
    }
    if (f->timer_due_ns != 0 && now_ns >= f->timer_due_ns &&
        !evtimer_pending(f->timer, NULL))
        on_timer(-1, EV_TIMEOUT, f);
}

/* --- life --------------------------------------------------------------------------- */

struct fetch *fetch_alloc(struct flights *fl)
{
    struct fetch *f = calloc(1, sizeof *f);

    if (!f)
        return NULL;
    f->timer = evtimer_new(fl->base, on_timer, f);
    f->grace = evtimer_new(fl->base, on_grace, f);
    if (!f->timer || !f->grace) {
        fetch_discard(f);
        return NULL;
    }
    return f;
}

void fetch_discard(struct fetch *f)
{
    if (!f)
        return;
    if (f->timer)
        event_free(f->timer);
    if (f->grace)
        event_free(f->grace);
    free(f);
}

static void attach(struct fetch *f, struct local_flight *lf,
                   const struct blocklog_writer *writer, struct turn_request *request,
                   uint32_t provider)
{
    f->lf = lf;
    f->provider = provider;
    f->permit = PACER_NO_PERMIT;
    f->writer = *writer;
    f->request = *request;
    f->held.max = 8u << 20;
    f->created_ns = clock_now_ns();
    turn_request_init(request);
    lf->fetch = f;
    lf->fl->fetches++;
}

void fetch_begin(struct local_flight *lf, struct fetch *f,
                 const struct blocklog_writer *writer, struct turn_request *request,
                 uint32_t provider)
{
    attach(f, lf, writer, request, provider);
    begin(f);
}

void fetch_new(struct local_flight *lf, struct blocklog_writer *writer,
               struct turn_request *request, uint32_t provider)
{
    struct fetch *f = fetch_alloc(lf->fl);

    if (f)
        fetch_begin(lf, f, writer, request, provider);
    else
        fetch_end_unbegun(lf->fl, writer, "no_memory",
                          "the gateway is out of memory; try again");
}

void fetch_resume(struct local_flight *lf, struct fetch *f,
                  const struct blocklog_writer *writer, struct turn_request *request,
                  uint32_t provider)
{
    attach(f, lf, writer, request, provider);
    queue_up(f);
}
