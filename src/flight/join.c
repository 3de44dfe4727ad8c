/*
 * Asking: from a request to a member of some flight's audience.
 *
 *   flights_ask() -> index_join(): LEADER   -> a fetch, and a member
 *                                  FOLLOWER, HIT, FAILURE -> a member
 *                                  FULL     -> waits for room, at most ROOM_WAIT_NS, then
 * 503 BUSY     -> 503 (a lock was not had in 20 ms) A member leaves when its exchange is
 * over, or its client is gone.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "flight/internal.h"
#include "flight/key.h"
#include "http/problem.h"
#include "shm/alias.h"
#include "shm/sample.h"
#include "shm/wake.h"

/* --- members ------------------------------------------------------------------------ */

static struct encoder *encoder_of(struct local_flight *lf, const struct dialect *d)
{
    struct encoder *unused = NULL;
    for (size_t i = 0; i < DIALECTS_MAX; i++) {
        if (lf->encoders[i].live > 0 && lf->encoders[i].dialect == d)
            return &lf->encoders[i];
        if (lf->encoders[i].live == 0 && !unused)
            unused = &lf->encoders[i];
    }
    DAC_ASSERT(unused); /* there are fewer dialects than DIALECTS_MAX */
    return unused;
}

static struct member_list *list_of(struct local_flight *lf, enum member_state state)
{
    if (state == MEMBER_LIVE)
        return &lf->live;
    if (state == MEMBER_STALLED)
        return &lf->stalled;
    return state == MEMBER_WAITING ? &lf->waiting : &lf->lagging;
}

static void list_remove(struct member *m)
{
    struct local_flight *lf = m->flight;

    if (lf->pass_next == m)
        lf->pass_next = TAILQ_NEXT(m, link);
    if (m->state == MEMBER_LIVE)
        encoder_of(lf, m->dialect)->live--;
    TAILQ_REMOVE(list_of(lf, m->state), m, link);
}

static void list_insert(struct member *m, enum member_state state)
{
    struct local_flight *lf = m->flight;

    m->state = state;
    if (state == MEMBER_LIVE) {
        struct encoder *enc = encoder_of(lf, m->dialect);
        enc->dialect = m->dialect;
        enc->live++;
        TAILQ_INSERT_HEAD(&lf->live, m, link);
    } else if (state == MEMBER_WAITING && m->dialect->stream) {
        TAILQ_INSERT_HEAD(&lf->waiting, m, link);
    } else {
        TAILQ_INSERT_TAIL(list_of(lf, state), m, link);
    }
}

void member_set_state(struct member *m, enum member_state state)
{
    if (m->state == state)
        return;
    list_remove(m);
    list_insert(m, state);
}

void member_free(struct member *m)
{
    if (m->flight) {
        list_remove(m);
        m->flight->member_count--;
        m->flight->fl->members--;
    }
    free(m);
}

void member_leave(struct member *m)
{
    struct local_flight *lf = m->flight;
    member_free(m);
    if (lf)
        local_settle(lf);
}

struct member *member_new(struct http_exchange *ex, const struct dialect *dialect)
{
    struct member *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    m->ex = ex;
    m->dialect = dialect;
    m->arrived_ns = http_arrived_ns(ex);
    return m;
}

void member_join(struct member *m, struct local_flight *lf, enum join_role role)
{
    const struct shm_flight *f = flight_at(lf->fl->shm, lf->ref.index);

    m->flight = lf;
    m->role = role;
    if (role == JOIN_HIT || role == JOIN_FAILURE) {
        uint64_t ttl = role == JOIN_HIT ? atomic_load(&f->result_ttl_ns)
                                        : lf->fl->config->error_ttl_ns;
        uint64_t over = atomic_load(&f->ended_ns) + ttl;
        uint64_t now = clock_now_ns();
        m->hit_ttl_ns = over > now ? over - now : 0;
    }
    lf->member_count++;
    lf->fl->members++;
    list_insert(m, MEMBER_WAITING);
    http_set_callbacks(m->ex, &member_callbacks, m);
    http_forget_request(m->ex); /* it may wait long, and has said all */
    audience_enter(m);
}

void member_cache_status(const struct member *m, char *out, size_t n)
{
    unsigned long long ttl = m->hit_ttl_ns / NS_PER_S;

    if (m->bypassed)
        snprintf(out, n, "dac; fwd=bypass");
    else if (m->role == JOIN_LEADER)
        snprintf(out, n, "dac; fwd=miss");
    else if (m->role == JOIN_FOLLOWER)
        snprintf(out, n, "dac; fwd=miss; collapsed");
    else if (m->role == JOIN_FAILURE)
        snprintf(out, n, "dac; hit; ttl=%llu; detail=shared_failure", ttl);
    else if (m->by_key)
        snprintf(out, n, MEMBER_HIT_BY_KEY);
    else
        snprintf(out, n, "dac; hit; ttl=%llu", ttl);
}

static void refuse(struct http_exchange *ex, int status, const char *code,
                   const char *text)
{
    struct http_problem p = {.status = status,
                             .code = code,
                             .offset = -1,
                             .retry_after_ms = status == 503 ? 1000 : 0,
                             .retryable = status == 503};
    http_respond_problem(ex, &p, "%s", text);
}

void member_refuse(struct member *m, int status, const char *code, const char *text)
{
    struct http_exchange *ex = m->ex;
    member_leave(m);
    refuse(ex, status, code, text);
}

/* --- joining ------------------------------------------------------------------------ */

void local_set_names(struct local_flight *lf, const struct turn_request *r)
{
    memcpy(lf->provider, r->provider, sizeof lf->provider);
    memcpy(lf->model, r->model, sizeof lf->model);
    memcpy(lf->org, r->org, sizeof lf->org);
    if (!id_is_zero(&r->thread_id))
        id_format(&r->thread_id, lf->thread_id);
}

static enum dac_err make_join(const struct flights *fl, const struct ask *ask,
                              const struct id *turn, struct join_request *jr)
{
    bool private = ask->bypass || ask->kind == FLIGHT_THREAD;
    enum dac_err e;

    memset(jr, 0, sizeof *jr);
    e = private ? key_private(turn, jr->key)
                : key_of_request(&ask->request, ask->parent, jr->key);
    memcpy(jr->turn_id, turn->b, sizeof jr->turn_id);
    if (e == DAC_OK)
        e = key_org(ask->kind == FLIGHT_THREAD ? ask->thread.org : ask->request.org,
                    jr->org);
    jr->trace = *http_trace(ask->ex);
    jr->kind = ask->kind;
    jr->provider = ask->provider;
    jr->now_ns = clock_now_ns();
    jr->arrived_ns = http_arrived_ns(ask->ex);
    jr->created_us = clock_wall_us();
    jr->result_ttl_ns = private ? 0 : ask->result_ttl_ns;
    jr->error_ttl_ns = fl->config->error_ttl_ns;
    jr->abandon_grace_ns = ask->abandon_grace_ns;
    jr->no_finished = ask->no_finished;
    jr->no_lead =
        ask->kind == FLIGHT_TURN &&
        atomic_load_explicit(&fl->shm->hdr->store.spool_full, memory_order_relaxed) != 0;
    return e;
}

static void count_role(struct flights *fl, const struct ask *ask, enum join_role role)
{
    static const enum shm_counter counter[] = {
        [JOIN_LEADER] = SHM_C_leaders,
        [JOIN_FOLLOWER] = SHM_C_followers,
        [JOIN_HIT] = SHM_C_hits,
        [JOIN_FAILURE] = SHM_C_shared_failures,
    };
    if (ask->kind != FLIGHT_TURN)
        return;
    shm_count(fl->shm, counter[role], 1);
    if (ask->bypass)
        shm_count(fl->shm, SHM_C_bypassed, 1);
}

/* A thread to create is a short log, ended as soon as it is written. */
static void hand_over_thread(struct local_flight *lf, struct blocklog_writer *w,
                             const struct thread_request *t)
{
    struct shm *shm = lf->fl->shm;
    struct record_end end = {.status = TURN_COMPLETE};
    struct buf b = BUF_INIT(1u << 20);
    enum dac_err e = thread_request_write(t, &b);

    if (e == DAC_OK)
        e = blocklog_append(shm, w, RECORD_THREAD, b.data, (uint32_t)b.len);
    buf_free(&b);
    if (e != DAC_OK) {
        end = (struct record_end){.status = TURN_FAILED,
                                  .http_status = 503,
                                  .retry_after_ms = 1000,
                                  .retryable = 1};
        snprintf(end.code, sizeof end.code, "no_room");
        snprintf(end.message, sizeof end.message, "no room for the thread: %s",
                 dac_err_text(e));
    }
    atomic_store(&flight_at(shm, lf->ref.index)->ended_ns, clock_now_ns());
    DAC_ASSERT(blocklog_append(shm, w, RECORD_END, &end, sizeof end) == DAC_OK);
    DAC_ASSERT(flight_advance(shm, lf->ref, e == DAC_OK ? FLIGHT_DONE : FLIGHT_FAILED) ==
               DAC_OK);
    wake_recorder(shm, lf->ref.index);
}

/* For the turn's sample. Without memory it is counted as one that nobody else asked. */
static void note_question(struct local_flight *lf, const struct ask *ask)
{
    struct shm_flight *f = flight_at(lf->fl->shm, lf->ref.index);
    uint64_t since = atomic_load_explicit(&f->arrived_ns, memory_order_relaxed);
    uint64_t question = 0;

    if (!ask->unshared && key_of_question(&ask->request, &question) == DAC_OK)
        atomic_store_explicit(&f->question, question, memory_order_relaxed);
    fetch_spent(f, since + ask->store_ns, clock_now_ns());
}

/* This process owns the flight and everybody may have joined it: whatever fails from here
 * on ends the flight. */
static void lead(struct local_flight *lf, struct join_result *jr, struct ask *ask)
{
    char request[HTTP_REQUEST_ID_SIZE];

    free(lf->leader);
    lf->leader = strdup(http_request_id(ask->ex, request));
    if (ask->kind == FLIGHT_THREAD) {
        memcpy(lf->org, ask->thread.org, sizeof lf->org);
        hand_over_thread(lf, &jr->writer, &ask->thread);
        return;
    }
    note_question(lf, ask);
    fetch_new(lf, &jr->writer, &ask->request, ask->provider);
}

/* Joined, but there is no memory for it here: an owner must still end what it owns. */
static void drop_join(struct flights *fl, struct join_result *jr)
{
    if (jr->role == JOIN_LEADER)
        fetch_end_unbegun(fl, &jr->writer, "no_memory",
                          "the gateway is out of memory; try again");
    if (flight_drop_reader(fl->shm, jr->ref.index))
        wake_owner(fl->shm, jr->ref.index);
}

/* Before anything is logged: the key must find the turn before that can cost a call. A
 * failure that is shared is no answer of the key's own. */
static void settle_key(struct flights *fl, const uint32_t *alias, enum dac_err e,
                       const struct join_result *jr)
{
    if (!alias)
        return;
    if (e == DAC_OK && jr->role != JOIN_FAILURE)
        alias_bind(fl->shm, *alias, jr->ref);
    else
        alias_drop(fl->shm, *alias);
}

enum dac_err join_try(struct flights *fl, struct member *m, struct ask *ask,
                      const uint32_t *alias)
{
    struct id turn = id_new();
    struct join_request req;
    struct join_result jr;
    enum dac_err e = make_join(fl, ask, &turn, &req);

    if (e == DAC_OK)
        e = index_join(fl->shm, &req, &jr);
    settle_key(fl, alias, e, &jr);
    if (e == DAC_E_FULL)
        return e;
    if (e == DAC_E_DENIED) {
        shm_count(fl->shm, SHM_C_refused, 1);
        member_refuse(m, 503, "spool_full",
                      "the database is away and the spool is full; try again later");
        return e;
    }
    if (e != DAC_OK) {
        shm_count(fl->shm, SHM_C_refused, 1);
        member_refuse(m, 503, e == DAC_E_BUSY ? "busy" : "no_memory",
                      "the gateway is busy; try again");
        return e;
    }
    struct local_flight *lf = local_get(fl, jr.ref);
    if (!lf)
        lf = local_new(fl, jr.ref);
    if (!lf) {
        drop_join(fl, &jr);
        member_refuse(m, 503, "no_memory", "the gateway is out of memory; try again");
        return DAC_E_NOMEM;
    }
    lf->reader = true;
    lf->running = true;
    if (ask->kind == FLIGHT_TURN)
        local_set_names(lf, &ask->request);
    count_role(fl, ask, jr.role);
    m->bypassed = ask->bypass;
    m->alias = alias && jr.role != JOIN_FAILURE ? *alias + 1 : 0;
    m->include_usage = ask->include_usage;
    /* The question is in the log before its client hears of the turn: what has a name can
     * be gone on with. */
    if (jr.role == JOIN_LEADER)
        lead(lf, &jr, ask);
    else if (jr.role == JOIN_FOLLOWER && ask->kind == FLIGHT_TURN)
        takeover_keep_question(lf, &ask->request);
    member_join(m, lf, jr.role);
    lf->running = false;
    local_schedule(lf);
    return DAC_OK;
}

/* --- waiting for room --------------------------------------------------------------- */

static void waiter_free(struct flights *fl, struct room_waiter *w)
{
    TAILQ_REMOVE(&fl->room, w, link);
    fl->room_count--;
    turn_request_free(&w->ask.request);
    thread_request_free(&w->ask.thread);
    free(w);
}

static void waiter_gone(struct http_exchange *ex, void *user)
{
    struct room_waiter *w = user;
    struct flights *fl = w->fl;
    (void)ex;
    member_free(w->member);
    fl->members--;
    waiter_free(fl, w);
}

static const struct http_callbacks waiter_callbacks = {.on_gone = waiter_gone};

void join_arm_timer(struct flights *fl)
{
    const struct timeval tv = {0, ROOM_RETRY_MS * 1000};
    if (!evtimer_pending(fl->room_timer, NULL))
        evtimer_add(fl->room_timer, &tv);
}

void join_room_timer(evutil_socket_t fd, short what, void *arg)
{
    struct flights *fl = arg;
    uint64_t now = clock_now_ns();
    struct room_waiter *w;

    (void)fd;
    (void)what;
    keyed_retry(fl);
    while ((w = TAILQ_FIRST(&fl->room)) != NULL) {
        bool over = fl->cutting || now - w->since_ns > ROOM_WAIT_NS;
        fl->members--; /* counted again by member_join() */
        if (join_try(fl, w->member, &w->ask, NULL) == DAC_E_FULL) {
            fl->members++;
            if (!over) {
                join_arm_timer(fl);
                return;
            }
            fl->members--;
            shm_count(fl->shm, SHM_C_refused, 1);
            member_refuse(w->member, 503, "no_room",
                          "too many questions are being answered; try again");
        }
        waiter_free(fl, w);
    }
}

static void wait_for_room(struct flights *fl, struct member *m, struct ask *ask)
{
    struct room_waiter *w =
        fl->room_count < ROOM_WAITERS_MAX ? calloc(1, sizeof *w) : NULL;

    if (!w) {
        shm_count(fl->shm, SHM_C_refused, 1);
        member_refuse(m, 503, "no_room",
                      "too many questions are being answered; try again");
        return;
    }
    w->fl = fl;
    w->member = m;
    w->ask = *ask;
    w->since_ns = clock_now_ns();
    turn_request_init(&ask->request);
    memset(&ask->thread, 0, sizeof ask->thread);
    TAILQ_INSERT_TAIL(&fl->room, w, link);
    fl->room_count++;
    fl->members++;
    http_set_callbacks(m->ex, &waiter_callbacks, w);
    join_arm_timer(fl);
}

void ask_free(struct ask *ask)
{
    if (!ask)
        return;
    turn_request_free(&ask->request);
    thread_request_free(&ask->thread);
    free(ask);
}

void flights_ask(struct flights *fl, struct ask *ask)
{
    struct member *m = member_new(ask->ex, ask->dialect);

    if (!m)
        refuse(ask->ex, 503, "no_memory", "the gateway is out of memory; try again");
    else if (fl->cutting)
        member_refuse(m, 503, "shutting_down", "the gateway is shutting down");
    else if (ask->key.given)
        keyed_ask(fl, m, ask);
    else if (!TAILQ_EMPTY(&fl->room) || join_try(fl, m, ask, NULL) == DAC_E_FULL)
        wait_for_room(fl, m, ask);
    turn_request_free(&ask->request);
    thread_request_free(&ask->thread);
    turn_request_init(&ask->request);
    memset(&ask->thread, 0, sizeof ask->thread);
}
