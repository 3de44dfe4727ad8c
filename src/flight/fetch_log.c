/*
 * What an upstream call produces, into the flight's log, and from its end to END.
 *
 * When the block pool has no room the call is paused and what came already is held, in
 * order; tried again every 10 ms, and after HELD_NS the flight ends incomplete. Nothing
 * waits for a reader.
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "flight/internal.h"
#include "shm/pacer.h"
#include "shm/wake.h"

#define HELD_NS    (5 * NS_PER_S)
#define TEXT_PIECE (16u << 10)

struct held_header {
    uint32_t type;
    uint32_t len;
};

static void announce(struct fetch *f)
{
    wake_readers(f->lf->fl->shm, f->lf->ref.index);
    local_schedule(f->lf);
}

void fetch_ask_for_room(struct fetch *f)
{
    struct shm *shm = f->lf->fl->shm;

    if (atomic_exchange(&shm->hdr->pressure, 1) == 0)
        wake_recorder(shm, f->lf->ref.index);
}

static void hold(struct fetch *f, enum record_type type, const void *p, size_t n)
{
    struct held_header h = {.type = type, .len = (uint32_t)n};

    if (f->held.len == 0) {
        f->held_since_ns = clock_now_ns();
        if (f->call)
            upstream_pause(f->call);
    }
    buf_append(&f->held, &h, sizeof h);
    buf_append(&f->held, p, n);
    fetch_ask_for_room(f);
    fetch_wait_for_room(f);
}

static void too_much(struct fetch *f, const char *code, const char *message)
{
    buf_reset(&f->held);
    f->end_held = false;
    fetch_fail(f, 502, code, message);
}

/* False: the flight was ended, f is gone. */
static bool put(struct fetch *f, enum record_type type, const void *p, size_t n)
{
    if (f->held.len == 0) {
        enum dac_err e =
            blocklog_append(f->lf->fl->shm, &f->writer, type, p, (uint32_t)n);
        if (e == DAC_OK) {
            announce(f);
            return true;
        }
        if (e == DAC_E_TOO_LARGE) {
            too_much(f, "answer_too_large", "the answer is longer than flight_max_bytes");
            return false;
        }
    }
    hold(f, type, p, n);
    if (f->held.failed) {
        too_much(f, "no_room", "shared memory was full while the answer came in");
        return false;
    }
    return true;
}

/* Logs what was held. False: f is gone. */
static bool fetch_flush(struct fetch *f)
{
    struct held_header h;

    while (f->held.len > 0) {
        memcpy(&h, f->held.data, sizeof h);
        enum dac_err e =
            blocklog_append(f->lf->fl->shm, &f->writer, (enum record_type)h.type,
                            f->held.data + sizeof h, h.len);
        if (e == DAC_E_FULL && clock_now_ns() - f->held_since_ns < HELD_NS) {
            fetch_ask_for_room(f);
            fetch_wait_for_room(f);
            return true;
        }
        if (e != DAC_OK) {
            too_much(f, e == DAC_E_FULL ? "no_room" : "answer_too_large",
                     e == DAC_E_FULL ? "shared memory was full while the answer came in"
                                     : "the answer is longer than flight_max_bytes");
            return false;
        }
        buf_consume(&f->held, sizeof h + h.len);
        announce(f);
    }
    return true;
}

void fetch_room(struct fetch *f)
{
    if (!fetch_flush(f) || f->held.len > 0)
        return;
    if (f->end_held) {
        struct record_end end = f->end;
        f->end_held = false;
        fetch_end(f, &end);
    } else if (f->call) {
        upstream_resume(f->call);
    }
}

void fetch_end(struct fetch *f, const struct record_end *end)
{
    struct local_flight *lf = f->lf;
    struct shm *shm = lf->fl->shm;

    if (f->held.len > 0 && end->status == TURN_COMPLETE) {
        f->end = *end;
        f->end_held = true;
        fetch_wait_for_room(f);
        return;
    }
    struct shm_flight *flight = flight_at(shm, lf->ref.index);
    uint64_t answered = atomic_load_explicit(&flight->answered_ns, memory_order_relaxed);
    uint64_t now = clock_now_ns();

    if (f->phase == FETCH_CALLING && answered != 0)
        fetch_spent(flight, answered, now);
    atomic_store_explicit(&flight->ended_ns, now, memory_order_release);
    DAC_ASSERT(blocklog_append(shm, &f->writer, RECORD_END, end, sizeof *end) == DAC_OK);
    DAC_ASSERT(flight_advance(shm, lf->ref,
                              flight_state_for((enum turn_status)end->status)) == DAC_OK);
    wake_recorder(shm, lf->ref.index);
    announce(f);
    fetch_free(f);
}

void fetch_end_unbegun(struct flights *fl, struct blocklog_writer *w, const char *code,
                       const char *message)
{
    struct record_end end = {.status = TURN_FAILED,
                             .http_status = 503,
                             .retry_after_ms = 1000,
                             .retryable = 1};
    struct shm *shm = fl->shm;
    struct flight_ref ref = w->ref;

    snprintf(end.code, sizeof end.code, "%s", code);
    snprintf(end.message, sizeof end.message, "%s", message);
    atomic_store(&flight_at(shm, ref.index)->ended_ns, clock_now_ns());
    DAC_ASSERT(blocklog_append(shm, w, RECORD_END, &end, sizeof end) == DAC_OK);
    DAC_ASSERT(flight_advance(shm, ref, FLIGHT_FAILED) == DAC_OK);
    wake_recorder(shm, ref.index);
    wake_readers(shm, ref.index);
}

/* --- what the call says ------------------------------------------------------------- */

/* The first of anything makes it STREAMING; time to first token counts to the first
 * content, which reasoning is not. */
static void first_content(struct fetch *f, bool answer)
{
    struct shm *shm = f->lf->fl->shm;
    shm_u64 *first = &flight_at(shm, f->lf->ref.index)->first_token_ns;

    if (answer && atomic_load_explicit(first, memory_order_relaxed) == 0)
        atomic_store_explicit(first, clock_now_ns(), memory_order_relaxed);
    if (f->content)
        return;
    f->content = true;
    DAC_ASSERT(flight_advance(shm, f->lf->ref, FLIGHT_STREAMING) == DAC_OK);
}

/* Long text in pieces that fit a scratch buffer, cut between characters. */
static void put_text(struct fetch *f, enum record_type type, const char *s, size_t n)
{
    first_content(f, type == RECORD_DELTA);
    while (n > 0) {
        size_t take = n;
        if (take > TEXT_PIECE)
            take = utf8_complete_prefix(s, TEXT_PIECE);
        if (!put(f, type, s, take))
            return;
        s += take;
        n -= take;
    }
}

static void on_text(void *arg, const char *s, size_t n)
{
    put_text(arg, RECORD_DELTA, s, n);
}

static void on_reasoning(void *arg, const char *s, size_t n)
{
    put_text(arg, RECORD_REASONING, s, n);
}

static void on_tool(void *arg, const char *json, size_t n)
{
    first_content(arg, true);
    put(arg, RECORD_TOOL, json, n);
}

static void on_citations(void *arg, const char *json, size_t n)
{
    put(arg, RECORD_CITATIONS, json, n);
}

static void on_usage(void *arg, const struct upstream_usage *u)
{
    struct record_usage r = {.prompt_tokens = u->prompt_tokens,
                             .completion_tokens = u->completion_tokens,
                             .total_tokens = u->total_tokens};
    put(arg, RECORD_USAGE, &r, sizeof r);
}

/* The status that a client is answered which got nothing yet. */
static int status_for(const struct upstream_end *end)
{
    switch (end->outcome) {
    case UPSTREAM_COMPLETE:
        return 200;
    case UPSTREAM_REFUSED:
    case UPSTREAM_AUTH:
        return end->http_status;
    case UPSTREAM_RATE_LIMITED:
        return 429;
    case UPSTREAM_OVERLOADED:
        return 503;
    case UPSTREAM_TIMEOUT:
        return 504;
    case UPSTREAM_BAD:
    case UPSTREAM_BROKEN:
    case UPSTREAM_TOO_LARGE:
        break;
    }
    return 502;
}

/* The provider's own words may quote the question, so they are not told. A request that
 * it refuses is its client's mistake. */
static void tell_failure(const struct fetch *f, const struct upstream_end *u, bool again)
{
    const struct log_about about = local_about(f->lf);
    const char *next = again ? "; it is asked again" : "";
    char said[32] = "no answer";

    if (u->http_status != 0)
        snprintf(said, sizeof said, "status %d", u->http_status);
    if (u->outcome == UPSTREAM_REFUSED)
        log_info_about(&about, 0, "provider \"%s\": %s, %s%s", f->lf->provider, u->code,
                       said, next);
    else
        log_warn_about(&about, 0, "provider \"%s\": %s, %s%s", f->lf->provider, u->code,
                       said, next);
}

static void on_end(void *arg, const struct upstream_end *u)
{
    struct fetch *f = arg;
    struct record_end end = {.http_status = (uint32_t)status_for(u),
                             .retry_after_ms = u->retry_after_ms,
                             .retryable = u->retryable};

    f->call = NULL;
    fetch_answered(f, u->heard_ns);
    if (u->outcome != UPSTREAM_COMPLETE) {
        bool again = fetch_retry(f, u);

        tell_failure(f, u, again);
        if (again)
            return;
    }
    if (u->outcome == UPSTREAM_COMPLETE)
        end.status = TURN_COMPLETE;
    else
        end.status = f->content ? TURN_INCOMPLETE : TURN_FAILED;
    snprintf(end.finish_reason, sizeof end.finish_reason, "%s", u->finish_reason);
    snprintf(end.code, sizeof end.code, "%s", u->code);
    snprintf(end.message, sizeof end.message, "%s", u->message);
    fetch_end(f, &end);
}

const struct upstream_ops fetch_upstream_ops = {
    .on_text = on_text,
    .on_reasoning = on_reasoning,
    .on_tool = on_tool,
    .on_citations = on_citations,
    .on_usage = on_usage,
    .on_end = on_end,
};
