/*
 * The table of the flights that this worker reads or fetches, what wakes it, and the
 * queue of those that have something to do. A flight with much to do takes turns with the
 * others: fan-out yields after SENDS_PER_TURN sends.
 */
#include "flight/flights.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "flight/internal.h"
#include "flight/key.h"
#include "shm/pacer.h"
#include "shm/wake.h"

void *flights_scratch(struct flights *fl, size_t n)
{
    if (!fl->scratch || n > fl->scratch_size) {
        size_t size = n < 4096 ? 4096 : n;
        char *p = realloc(fl->scratch, size);
        if (!p)
            return NULL;
        fl->scratch = p;
        fl->scratch_size = size;
    }
    return fl->scratch;
}

/* Nobody here listens to it nor fetches it: it only waits in the queue to be freed. No
 * bit keeps its flight, which may be in another use by now. */
static bool is_idle(const struct local_flight *lf)
{
    return lf->member_count == 0 && !lf->fetch && !lf->reader && !lf->running;
}

struct local_flight *local_get(struct flights *fl, struct flight_ref ref)
{
    struct local_flight *lf = fl->table[ref.index];

    if (lf && lf->ref.incarnation != ref.incarnation) {
        DAC_ASSERT(is_idle(lf) && lf->queued);
        fl->table[ref.index] = NULL;
        lf = NULL;
    }
    return lf;
}

struct log_about local_about(const struct local_flight *lf)
{
    return (struct log_about){.request = lf->leader,
                              .turn = lf->view.turn_id,
                              .org = lf->org,
                              .trace = lf->trace};
}

struct local_flight *local_new(struct flights *fl, struct flight_ref ref)
{
    const struct shm_flight *f = flight_at(fl->shm, ref.index);
    struct local_flight *lf = calloc(1, sizeof *lf);
    struct id turn;

    if (!lf)
        return NULL;
    lf->fl = fl;
    lf->ref = ref;
    TAILQ_INIT(&lf->live);
    TAILQ_INIT(&lf->waiting);
    TAILQ_INIT(&lf->lagging);
    TAILQ_INIT(&lf->stalled);
    cursor_begin(lf, &lf->cursor, &lf->at);
    memcpy(turn.b, f->turn_id, sizeof turn.b);
    id_format(&turn, lf->view.turn_id);
    const struct trace trace = flight_trace(fl->shm, ref.index);
    trace_format_id(&trace, lf->trace);
    lf->view.created_us = f->created_us;
    lf->view.provider = lf->provider;
    lf->view.model = lf->model;
    lf->view.thread_id = lf->thread_id;
    lf->view.usage = (struct record_usage){-1, -1, -1};
    for (size_t i = 0; i < DIALECTS_MAX; i++)
        lf->encoders[i].buf.max = ENCODE_MAX;
    fl->table[ref.index] = lf;
    TAILQ_INSERT_TAIL(&fl->all, lf, all_link);
    return lf;
}

static void local_free(struct local_flight *lf)
{
    struct flights *fl = lf->fl;

    DAC_ASSERT(lf->member_count == 0 && !lf->fetch && !lf->running);
    if (lf->queued)
        TAILQ_REMOVE(&fl->run, lf, run_link);
    TAILQ_REMOVE(&fl->all, lf, all_link);
    if (fl->table[lf->ref.index] == lf)
        fl->table[lf->ref.index] = NULL;
    for (size_t i = 0; i < DIALECTS_MAX; i++)
        buf_free(&lf->encoders[i].buf);
    if (lf->result) {
        turn_result_free(lf->result);
        free(lf->result);
    }
    takeover_drop_question(lf);
    free(lf->leader);
    free(lf);
}

void local_settle(struct local_flight *lf)
{
    struct flights *fl = lf->fl;

    if (lf->running || lf->member_count > 0)
        return;
    if (lf->reader) {
        lf->reader = false;
        if (flight_drop_reader(fl->shm, lf->ref.index)) {
            if (lf->fetch) {
                fetch_check(lf->fetch);
                return; /* it may be gone */
            }
            wake_owner(fl->shm, lf->ref.index);
        }
    }
    if (!lf->fetch)
        local_free(lf);
}

void local_schedule(struct local_flight *lf)
{
    if (lf->queued)
        return;
    lf->queued = true;
    TAILQ_INSERT_TAIL(&lf->fl->run, lf, run_link);
    if (!lf->fl->in_run)
        event_active(lf->fl->run_event, EV_TIMEOUT, 0);
}

static void on_run(evutil_socket_t fd, short what, void *arg)
{
    struct flights *fl = arg;
    int budget = SENDS_PER_TURN;
    struct local_flight *lf;

    (void)fd;
    (void)what;
    fl->in_run = true;
    while (budget > 0 && (lf = TAILQ_FIRST(&fl->run)) != NULL) {
        TAILQ_REMOVE(&fl->run, lf, run_link);
        lf->queued = false;
        if (is_idle(lf)) {
            local_free(lf);
            continue;
        }
        if (!audience_run(lf, &budget)) {
            local_schedule(lf);
            continue;
        }
        local_settle(lf);
    }
    fl->in_run = false;
    if (!TAILQ_EMPTY(&fl->run)) {
        /* A timeout of zero, so that sockets are looked at before the next turn. */
        static const struct timeval now = {0, 0};
        if (event_add(fl->run_event, &now) != 0) /* no memory for the timer */
            event_active(fl->run_event, EV_TIMEOUT, 0);
    }
}

static void on_dirty(void *arg, uint32_t flight)
{
    struct flights *fl = arg;
    struct local_flight *lf =
        flight < fl->shm->hdr->flight_count ? fl->table[flight] : NULL;

    if (!lf)
        return;
    local_schedule(lf);
    if (lf->fetch)
        fetch_check(lf->fetch);
}

/* `pacers`: a bit for each, by number. */
static void all_providers_ready(struct flights *fl, uint32_t pacers)
{
    for (size_t i = 0; i < fl->config->provider_count; i++) {
        uint32_t slot = fl->config->providers[i].slot;

        if (pacers & (1u << slot))
            fetch_provider_ready(fl, slot);
    }
}

/* Everything this worker reads or fetches, dirty or not; and reader bits without a
 * client. */
static void look_at_all(struct flights *fl)
{
    uint64_t bit = UINT64_C(1) << fl->shm->self;
    struct local_flight *lf, *next;

    for (uint32_t i = 0; i < fl->shm->hdr->flight_count; i++) {
        const shm_u64 *readers = &fl->shm->flights[i].readers;
        if ((atomic_load_explicit(readers, memory_order_relaxed) & bit) == 0)
            continue;
        lf = fl->table[i];
        if ((!lf || !lf->reader) && flight_drop_reader(fl->shm, i))
            wake_owner(fl->shm, i);
    }
    for (lf = TAILQ_FIRST(&fl->all); lf; lf = next) {
        next = TAILQ_NEXT(lf, all_link);
        local_schedule(lf);
        if (lf->fetch)
            fetch_check(lf->fetch);
    }
    all_providers_ready(fl, UINT32_MAX);
}

static void on_wake(evutil_socket_t fd, short what, void *arg)
{
    struct flights *fl = arg;
    uint32_t kicks;

    (void)fd;
    (void)what;
    wake_begin(fl->shm);
    wake_take(fl->shm, on_dirty, fl);
    uint32_t pacers = wake_take_pacers(fl->shm);
    all_providers_ready(fl, pacers);
    kicks = atomic_load(&fl->shm->hdr->kicks);
    if (kicks != fl->kicks_seen) {
        fl->kicks_seen = kicks;
        look_at_all(fl);
    }
}

void flights_tick(struct flights *fl, uint64_t now_ns)
{
    struct local_flight *lf, *next;

    look_at_all(fl);
    for (lf = TAILQ_FIRST(&fl->all); lf; lf = next) {
        next = TAILQ_NEXT(lf, all_link);
        if (lf->fetch)
            fetch_tick(lf->fetch, now_ns);
        lag_tick(lf, now_ns);
    }
    if (!(TAILQ_EMPTY(&fl->room) && TAILQ_EMPTY(&fl->keyed)) &&
        !evtimer_pending(fl->room_timer, NULL))
        join_room_timer(-1, EV_TIMEOUT, fl);
}

size_t flights_active(const struct flights *fl)
{
    return fl->members + fl->fetches;
}

void flights_cut(struct flights *fl)
{
    struct local_flight *lf, *next;

    fl->cutting = true;
    for (lf = TAILQ_FIRST(&fl->all); lf; lf = next) {
        next = TAILQ_NEXT(lf, all_link);
        if (lf->fetch)
            fetch_fail(lf->fetch, 503, "shutting_down", "the gateway is shutting down");
    }
}

static void on_provider_timer(evutil_socket_t fd, short what, void *arg)
{
    struct flights *fl = arg;
    (void)fd;
    (void)what;
    all_providers_ready(fl, UINT32_MAX);
}

static enum dac_err init_providers(struct flights *fl)
{
    static const char *const dialects[] = {"openai"};

    for (size_t i = 0; i < fl->config->provider_count; i++) {
        const struct config_provider *p = &fl->config->providers[i];
        struct provider_queue *q = &fl->providers[p->slot];
        TAILQ_INIT(&q->waiting);
        q->upstream = (struct upstream_provider){
            .name = p->name,
            .dialect = dialects[(size_t)p->dialect % DAC_ARRAY_LEN(dialects)],
            .base_url = p->base_url,
            .api_key = p->api_key,
            .ca_file = p->ca_file,
            .http2 = p->http2 == CONFIG_HTTP2_AUTO,
            .connect_timeout_ns = p->connect_timeout_ns,
            .first_token_timeout_ns = p->first_token_timeout_ns,
            .stall_timeout_ns = p->stall_timeout_ns,
            .answer_max_bytes = fl->config->flight_max_bytes,
        };
        q->timer = evtimer_new(fl->base, on_provider_timer, fl);
        if (!q->timer)
            return DAC_E_NOMEM;
    }
    return DAC_OK;
}

enum dac_err flights_new(const struct flights_options *opt, struct flights **out)
{
    struct flights *fl = calloc(1, sizeof *fl);
    enum dac_err e = DAC_E_NOMEM;

    if (!fl || key_init() != DAC_OK) {
        free(fl);
        return e;
    }
    fl->base = opt->base;
    fl->shm = opt->shm;
    fl->config = opt->config;
    fl->upstream = opt->upstream;
    fl->reader = opt->reader;
    fl->text.max = ENCODE_MAX;
    fl->piece.max = ENCODE_MAX;
    TAILQ_INIT(&fl->all);
    TAILQ_INIT(&fl->run);
    TAILQ_INIT(&fl->room);
    TAILQ_INIT(&fl->keyed);
    fl->table = calloc(fl->shm->hdr->flight_count, sizeof(struct local_flight *));
    fl->run_event = evtimer_new(fl->base, on_run, fl);
    fl->room_timer = evtimer_new(fl->base, join_room_timer, fl);
    fl->wake_event = event_new(fl->base, fl->shm->eventfd[fl->shm->self],
                               EV_READ | EV_PERSIST, on_wake, fl);
    if (fl->table && fl->run_event && fl->room_timer && fl->wake_event)
        e = init_providers(fl);
    if (e == DAC_OK && event_add(fl->wake_event, NULL) != 0)
        e = DAC_E_SYS;
    if (e != DAC_OK) {
        flights_free(fl);
        return e;
    }
    *out = fl;
    return DAC_OK;
}

static void event_drop(struct event *ev)
{
    if (ev)
        event_free(ev);
}

void flights_free(struct flights *fl)
{
    struct local_flight *lf;

    if (!fl)
        return;
    flights_cut(fl);
    while ((lf = TAILQ_FIRST(&fl->all)) != NULL) {
        lf->running = false;
        struct member *m;
        while ((m = TAILQ_FIRST(&lf->live)) || (m = TAILQ_FIRST(&lf->waiting)) ||
               (m = TAILQ_FIRST(&lf->lagging)) || (m = TAILQ_FIRST(&lf->stalled))) {
            m->ex = NULL;
            member_free(m);
        }
        lf->reader = false;
        local_free(lf);
    }
    for (size_t i = 0; i < CONFIG_PROVIDERS_MAX; i++)
        event_drop(fl->providers[i].timer);
    event_drop(fl->run_event);
    event_drop(fl->room_timer);
    event_drop(fl->wake_event);
    buf_free(&fl->text);
    buf_free(&fl->piece);
    free(fl->scratch);
    free(fl->table);
    free(fl);
}
