/*
 * Members one by one: those that replay or lag, those that wait for a verdict, and how
 * each of them ends.
 *
 * A lagging member encodes for itself, from its own cursor, as much as one pass; text
 * that piled up is merged into few events. When it has caught up it becomes live again.
 */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "flight/internal.h"
#include "http/problem.h"
#include "shm/alias.h"

static void on_gone(struct http_exchange *ex, void *user)
{
    struct member *m = user;
    (void)ex;
    m->ex = NULL;
    member_leave(m);
}

static void on_writable(struct http_exchange *ex, void *user)
{
    struct member *m = user;
    struct local_flight *lf = m->flight;
    int budget = 8;

    (void)ex;
    lf->running = true;
    if (m->state == MEMBER_STALLED)
        member_set_state(m, MEMBER_LAGGING);
    lag_run(m, &budget);
    lf->running = false;
    local_schedule(lf);
}

static const char *role_name(const struct member *m)
{
    static const char *const names[] = {[JOIN_LEADER] = "leader",
                                        [JOIN_FOLLOWER] = "follower",
                                        [JOIN_HIT] = "hit",
                                        [JOIN_FAILURE] = "failure"};
    return m->bypassed ? "bypass" : names[m->role];
}

static void describe(struct http_exchange *ex, void *user, struct http_report *out)
{
    const struct member *m = user;
    const struct local_flight *lf = m->flight;

    (void)ex;
    out->org = lf->org;
    if (!lf->model[0])
        return; /* a change of a thread, which is no turn */
    out->turn = lf->view.turn_id;
    out->role = role_name(m);
    if (m->first_ns != 0)
        out->ttft_ms = (double)(m->first_ns - m->arrived_ns) / (double)NS_PER_MS;
}

const struct http_callbacks member_callbacks = {
    .on_gone = on_gone, .on_writable = on_writable, .describe = describe};

/* The exchange was ended; so is the member. */
static void member_over(struct member *m)
{
    m->ex = NULL;
    member_leave(m);
}

/* Fresh figures for what is written once per client. */
static const struct turn_view *view_now(struct local_flight *lf)
{
    const struct shm_flight *f = flight_at(lf->fl->shm, lf->ref.index);
    lf->view.timing = turn_timing(lf->fl->shm, lf->ref.index);
    lf->view.stored =
        (enum flight_stored)atomic_load_explicit(&f->stored, memory_order_acquire);
    return &lf->view;
}

static bool done_timed_out(const struct local_flight *lf)
{
    const struct shm_flight *f = flight_at(lf->fl->shm, lf->ref.index);
    uint64_t ended = atomic_load_explicit(&f->ended_ns, memory_order_relaxed);
    return clock_now_ns() > ended + lf->fl->config->done_timeout_ns;
}

/* What a key stands for is told when that is stored, too, or it would be another turn's
 * after a restart. It is stored with its turn, unless it came when that had ended. */
static bool is_key_open(const struct member *m)
{
    const struct local_flight *lf = m->flight;
    const struct shm_flight *f = flight_at(lf->fl->shm, lf->ref.index);
    uint64_t since = atomic_load_explicit(&f->ended_ns, memory_order_relaxed);

    if (m->alias == 0 || alias_is_stored(lf->fl->shm, m->alias - 1))
        return false;
    if (since < m->arrived_ns)
        since = m->arrived_ns;
    return clock_now_ns() <= since + lf->fl->config->done_timeout_ns;
}

static bool must_wait(const struct member *m, const struct turn_view *v)
{
    return (v->stored == STORED_NO && !done_timed_out(m->flight)) || is_key_open(m);
}

static const struct turn_result *whole_result(struct local_flight *lf)
{
    if (lf->result)
        return lf->result;
    lf->result = calloc(1, sizeof *lf->result);
    if (lf->result && turn_result_read(lf->fl->shm, lf->ref, lf->result) != DAC_OK) {
        turn_result_free(lf->result);
        free(lf->result);
        lf->result = NULL;
    }
    return lf->result;
}

/* A whole answer, or a refusal before anything was sent. */
static void finish_json(struct member *m)
{
    struct local_flight *lf = m->flight;
    const struct turn_view *v = view_now(lf);
    bool failed = v->end.status == TURN_FAILED;

    if (!failed && v->end.status != TURN_INCOMPLETE && must_wait(m, v))
        return;
    const struct turn_result *r = failed ? NULL : whole_result(lf);
    char text[96];
    member_cache_status(m, text, sizeof text);
    if (v->end.status == TURN_CANCELLED)
        http_set_ending(m->ex, "cancelled", false);
    if (lf->model[0]) {
        http_add_header(m->ex, "Cache-Status", text);
        http_add_header(m->ex, "x-dac-turn-id", v->turn_id);
    }
    if (failed) {
        m->dialect->reject(v, m);
    } else if (r) {
        m->dialect->answer(v, m, r);
    } else {
        http_respond_no_memory(m->ex);
    }
    member_over(m);
}

/* How the flight ended as far as a client can know that can't begin anew. */
static const struct turn_view *broken_view(const struct turn_view *v,
                                           struct turn_view *out)
{
    *out = *v;
    out->end = (struct record_end){
        .status = TURN_INCOMPLETE, .http_status = 502, .retryable = 1};
    snprintf(out->end.code, sizeof out->end.code, "fetcher_died");
    snprintf(out->end.message, sizeof out->end.message,
             "the process that fetched this answer died, and it was asked for again");
    return out;
}

/* For the log: how a stream ends that this view is the end of. */
static void set_ending(struct member *m, const struct turn_view *v, bool done)
{
    if (v->end.status == TURN_CANCELLED)
        http_set_ending(m->ex, "cancelled", false);
    else if (v->end.status != TURN_COMPLETE)
        http_set_ending(m->ex, v->end.code, true);
    else if (done && (v->stored == STORED_NO || v->stored == STORED_FAILED))
        http_set_ending(m->ex, "not_stored", true);
}

/* What END says, and what the commit says if that is known already, in one piece. */
static void finish_stream(struct member *m)
{
    struct local_flight *lf = m->flight;
    const struct turn_view *v = view_now(lf);
    struct buf *b = &lf->fl->piece;
    struct turn_view broken;
    struct http_piece piece;
    bool over = false;

    piece_begin(b);
    if (m->broken)
        v = broken_view(v, &broken);
    if (m->broken || !m->tail_sent)
        over = m->dialect->end(v, m, m->at, b);
    m->tail_sent = true;
    if (!over) {
        if (must_wait(m, v)) {
            member_send(m, b);
            return;
        }
        m->dialect->done(v, m, m->at, b);
    }
    shm_count(lf->fl->shm, SHM_C_deliveries, 1);
    set_ending(m, v, !over);
    if (http_piece_end(b, &piece) == DAC_OK)
        http_stream_finish(m->ex, &piece);
    else
        http_abort(m->ex); /* no memory: it must not look whole */
    member_over(m);
}

void lag_finish(struct member *m)
{
    if (!m->dialect->stream) {
        finish_json(m);
        return;
    }
    if (!http_stream_begun(m->ex)) {
        if (m->flight->view.end.status == TURN_FAILED) {
            finish_json(m);
            return;
        }
        member_begin(m);
    }
    member_set_state(m, MEMBER_ENDING);
    if (http_stream_ready(m->ex))
        finish_stream(m);
}

static void send_comment(struct member *m)
{
    struct buf *b = &m->flight->fl->piece;
    if (!m->dialect->comment)
        return;
    piece_begin(b);
    m->dialect->comment(b);
    member_send(m, b);
}

/* One piece from the member's own cursor. DAC_E_AGAIN: it has all there is. */
static enum dac_err lag_step(struct member *m, bool *ended)
{
    struct local_flight *lf = m->flight;
    struct buf *b = &lf->fl->piece;
    struct buf own = BUF_INIT(ENCODE_MAX);
    struct buf *bufs[] = {&own};
    const struct dialect *dialects[] = {m->dialect};
    unsigned content = 0;

    cursor_skip_old(lf, &m->cursor, &m->at, m->first_sent);
    struct position before = m->at;
    enum dac_err e = encode_records(lf, &m->cursor, &m->at, dialects, bufs, 1,
                                    &m->skip_bytes, &content, ended);
    if (e == DAC_OK && (content & CONTENT_RESET)) {
        m->skip_bytes = 0;
        m->broken = !m->dialect->can_reset && m->first_sent;
    }

    before.generation = m->at.generation;
    if (e == DAC_OK) {
        piece_begin(b);
        if (first_is_due(m, content)) {
            m->first_sent = true;
            m->first_ns = clock_now_ns();
            lf->view.timing = turn_timing(lf->fl->shm, lf->ref.index);
            if (m->dialect->first)
                m->dialect->first(&lf->view, m, before, b);
        }
        buf_append(b, own.data, own.len);
        if (own.failed)
            b->failed = true;
        member_send(m, b);
    }
    buf_free(&own);
    return e;
}

static bool lag_catch_up(struct member *m, int *budget)
{
    struct local_flight *lf = m->flight;
    bool ended = false;
    enum dac_err e = DAC_OK;

    while (m->ex && !ended && !m->broken && http_stream_ready(m->ex)) {
        if (*budget <= 0)
            return false;
        (*budget)--;
        e = lag_step(m, &ended);
        if (e == DAC_E_AGAIN)
            break;
        if (e != DAC_OK && m->ex) {
            http_abort(m->ex);
            m->ex = NULL;
        }
    }
    if (!m->ex) {
        member_leave(m);
        return true;
    }
    if (m->broken) {
        member_set_state(m, MEMBER_ENDING);
        if (http_stream_ready(m->ex))
            finish_stream(m);
        return true;
    }
    if (ended) {
        lag_finish(m);
        return true;
    }
    /* Live only at the same place as the others, and with room for the next piece. */
    if (e == DAC_E_AGAIN && m->cursor.offset == lf->cursor.offset && !lf->end_seen)
        member_set_state(m, MEMBER_LIVE);
    else if (e == DAC_OK && !http_stream_ready(m->ex))
        member_set_state(m, MEMBER_STALLED);
    else if (e == DAC_E_AGAIN && m->cursor.offset > lf->cursor.offset)
        local_schedule(lf); /* it overtook the shared cursor, which follows at once */
    return true;
}

bool lag_run(struct member *m, int *budget)
{
    struct local_flight *lf = m->flight;

    if (!m->ex) {
        member_leave(m);
        return true;
    }
    if (m->state == MEMBER_ENDING) {
        if (http_stream_ready(m->ex))
            finish_stream(m);
        return true;
    }
    if (m->state == MEMBER_WAITING) {
        if (!m->dialect->stream) {
            if (lf->end_seen)
                finish_json(m);
            return true;
        }
        if (lf->end_seen && !lf->content_seen && lf->view.end.status == TURN_FAILED) {
            finish_json(m);
            return true;
        }
        member_begin(m);
        struct buf *b = &lf->fl->piece;
        piece_begin(b);
        /* A resumed client has that much: its next Last-Event-ID must say so, too. */
        struct position at = {.generation = m->at.generation,
                              .text_bytes = m->at.text_bytes + m->skip_bytes};
        if (m->dialect->open)
            m->dialect->open(&lf->view, m, at, b);
        else if (!lf->content_seen && m->dialect->comment)
            m->dialect->comment(b);
        member_send(m, b);
        member_set_state(m, MEMBER_LAGGING);
    }
    return lag_catch_up(m, budget);
}

void audience_enter(struct member *m)
{
    struct local_flight *lf = m->flight;
    int budget = 2;

    cursor_begin(lf, &m->cursor, &m->at);
    if (m->resumed) {
        /* What it has belongs to this answer; if a newer one began meanwhile it is told
         * so. */
        blocklog_seek(&m->cursor, lf->ref, m->begin);
        m->at.generation = m->begin_generation;
    }
    if (m->dialect->stream && m->dialect->eager)
        lag_run(m, &budget);
}

/* A verdict that is late: a comment commits status 200, so that proxies keep waiting. */
static bool verdict_is_late(const struct member *m, uint64_t now_ns)
{
    const struct local_flight *lf = m->flight;
    const struct shm_flight *f = flight_at(lf->fl->shm, lf->ref.index);
    uint64_t fetch = atomic_load_explicit(&f->fetch_ns, memory_order_relaxed);

    return m->dialect->stream &&
           ((fetch != 0 && now_ns > fetch + VERDICT_AFTER_QUEUE_NS) ||
            now_ns > m->arrived_ns + VERDICT_IN_ALL_NS);
}

static void tick_list(struct member_list *list, uint64_t now_ns)
{
    struct member *m, *next;
    int budget = SENDS_PER_TURN;

    for (m = TAILQ_FIRST(list); m; m = next) {
        next = TAILQ_NEXT(m, link);
        if (!m->ex || !m->dialect->stream)
            continue;
        if (m->state == MEMBER_WAITING) {
            if (!verdict_is_late(m, now_ns))
                continue;
            lag_run(m, &budget);
            continue;
        }
        if (now_ns - m->last_sent_ns < COMMENT_NS || !http_stream_ready(m->ex))
            continue;
        if (m->state == MEMBER_LIVE) {
            struct local_flight *lf = m->flight;
            if (lf->pass_next)
                continue; /* it is about to get something */
            m->cursor = lf->cursor;
            m->at = lf->at;
            member_set_state(m, MEMBER_LAGGING); /* back to LIVE if it takes it whole */
        }
        send_comment(m);
    }
}

void lag_tick(struct local_flight *lf, uint64_t now_ns)
{
    lf->running = true;
    tick_list(&lf->waiting, now_ns);
    tick_list(&lf->lagging, now_ns);
    tick_list(&lf->live, now_ns);
    lf->running = false;
    local_schedule(lf);
}
