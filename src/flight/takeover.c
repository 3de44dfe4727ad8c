/*
 * Taking over a flight whose fetcher died.
 *
 *   the master reaps and sweeps, the flight is ORPHANED, every reader is woken
 *   -> a worker with a client that can begin anew adopts it: one compare-and-swap,
 *      generation + 1, CLAIMED; the others say that they cannot
 *   -> no question in the log: it logs the one that its own client brought
 *      something of the answer in the log: RESET, and readers begin behind it
 *   -> asked again, with a permit and a token like any call
 *
 * Who can begin anew: a dialect that knows a reset, or a client that has got nothing of
 * the answer yet. If there is none, if END is in the log already, if the setting says
 * fail, or if it happened too often, nobody adopts it, and the recorder ends it as
 * incomplete, at once when all readers have said that they cannot.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "flight/internal.h"
#include "shm/crash.h"
#include "shm/wake.h"

static bool can_begin_anew(const struct member *m)
{
    return m->ex && !m->broken && (m->dialect->can_reset || !m->first_sent);
}

static bool anyone_can(const struct local_flight *lf)
{
    const struct member_list *lists[] = {&lf->live, &lf->waiting, &lf->lagging,
                                         &lf->stalled};

    for (size_t i = 0; i < DAC_ARRAY_LEN(lists); i++) {
        const struct member *m;
        TAILQ_FOREACH (m, lists[i], link) {
            if (can_begin_anew(m))
                return true;
        }
    }
    return false;
}

/* What the dead owner left in the log. */
struct remains {
    bool content; /* something of the answer, since the last RESET */
    bool has_request;
    uint64_t begin;              /* behind the last RESET, 0: there is none */
    struct turn_request request; /* owned */
};

static enum dac_err read_remains(struct local_flight *lf, struct remains *out)
{
    struct flights *fl = lf->fl;
    struct blocklog_cursor c;
    struct blocklog_record r;
    enum dac_err e;

    memset(out, 0, sizeof *out);
    turn_request_init(&out->request);
    blocklog_rewind(&c, lf->ref);
    while ((e = blocklog_peek(fl->shm, &c, &r)) == DAC_OK) {
        if (r.type == RECORD_REQUEST && !out->has_request) {
            void *scratch = flights_scratch(fl, r.len);
            if (!scratch)
                return DAC_E_NOMEM;
            e = turn_request_parse(blocklog_payload(fl->shm, &c, &r, scratch), r.len,
                                   &out->request);
            if (e != DAC_OK)
                return e;
            out->has_request = true;
        } else if (r.type == RECORD_RESET) {
            out->content = false;
        } else if (r.type != RECORD_USAGE) {
            out->content = true;
        }
        blocklog_next(fl->shm, &c, &r);
        if (r.type == RECORD_RESET)
            out->begin = c.offset;
    }
    return e == DAC_E_AGAIN ? DAC_OK : e;
}

/* Readers that begin from here on see the new generation only. */
static enum dac_err log_reset(struct local_flight *lf, struct blocklog_writer *w)
{
    struct record_reset reset = {.reason = "fetcher_died"};
    struct shm *shm = lf->fl->shm;
    enum dac_err e = blocklog_append(shm, w, RECORD_RESET, &reset, sizeof reset);

    if (e == DAC_OK) {
        CRASH_POINT("takeover_reset");
        atomic_store_explicit(&flight_at(shm, lf->ref.index)->start, w->offset,
                              memory_order_release);
    }
    return e;
}

static void ask_again(struct local_flight *lf, struct fetch *fetch, struct remains *left,
                      struct blocklog_writer *w)
{
    struct shm_flight *f = flight_at(lf->fl->shm, lf->ref.index);
    uint32_t provider = atomic_load(&f->provider);
    enum dac_err e = left->content ? log_reset(lf, w) : DAC_OK;

    /* Whoever wrote that RESET may have died before it said where readers begin. */
    if (!left->content && left->begin > atomic_load(&f->start))
        atomic_store_explicit(&f->start, left->begin, memory_order_release);

    atomic_store_explicit(&f->first_token_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&f->fetch_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&f->called_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&f->answered_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&f->queued_ns, clock_now_ns(), memory_order_relaxed);
    shm_count(lf->fl->shm, SHM_C_takeovers, 1);
    fetch_resume(lf, fetch, w, &left->request, provider);
    if (e != DAC_OK && lf->fetch)
        fetch_fail(lf->fetch, 503, "no_room", "no room to begin the answer anew");
    wake_readers(lf->fl->shm, lf->ref.index);
    local_schedule(lf);
}

/* Ended without a question, or behind a chain of blocks that is broken: then END cannot
 * be written, and its readers find that out themselves. */
static void end_failed(struct local_flight *lf, struct blocklog_writer *w)
{
    const struct log_about about = local_about(lf);
    struct shm *shm = lf->fl->shm;

    if (w) {
        fetch_end_unbegun(lf->fl, w, "fetcher_died",
                          "the process that fetched this answer died");
    } else {
        log_error_about(&about, 0, "flight %u: its log is damaged", lf->ref.index);
        atomic_store(&flight_at(shm, lf->ref.index)->ended_ns, clock_now_ns());
        DAC_ASSERT(flight_advance(shm, lf->ref, FLIGHT_FAILED) == DAC_OK);
        wake_recorder(shm, lf->ref.index);
        wake_readers(shm, lf->ref.index);
    }
    local_schedule(lf);
}

/* The flight is ours now, CLAIMED: whatever is wrong from here on ends it, or gives it
 * back. Returns whether `fetch` is in use. */
static bool take_over(struct local_flight *lf, struct fetch *fetch, struct remains *left,
                      enum dac_err readable)
{
    struct shm *shm = lf->fl->shm;
    uint32_t provider = atomic_load(&flight_at(shm, lf->ref.index)->provider);
    const struct log_about about = local_about(lf);
    struct blocklog_writer w;
    enum dac_err e = blocklog_open(shm, lf->ref, &w);

    if (e == DAC_E_FULL) { /* of blocks for END: nobody could be told */
        log_warn_about(&about, 0, "flight %u: could not be taken over: %s", lf->ref.index,
                       dac_err_text(e));
        flight_give_back(shm, lf->ref);
    } else if (e != DAC_OK) {
        end_failed(lf, NULL);
    } else if (readable != DAC_OK || !config_provider_at(lf->fl->config, provider)) {
        end_failed(lf, &w);
    } else if (left->has_request) {
        DAC_ASSERT(flight_advance(shm, lf->ref, FLIGHT_QUEUED) == DAC_OK);
        ask_again(lf, fetch, left, &w);
        return true;
    } else if (lf->question) {
        shm_count(shm, SHM_C_takeovers, 1);
        fetch_begin(lf, fetch, &w, lf->question, provider);
        takeover_drop_question(lf);
        return true;
    } else {
        end_failed(lf, &w);
    }
    return false;
}

void takeover_keep_question(struct local_flight *lf, struct turn_request *question)
{
    const shm_u64 *tail = &flight_at(lf->fl->shm, lf->ref.index)->tail;

    if (lf->question || atomic_load_explicit(tail, memory_order_acquire) > 0)
        return;
    lf->question = malloc(sizeof *lf->question);
    if (!lf->question)
        return;
    *lf->question = *question;
    turn_request_init(question);
}

void takeover_drop_question(struct local_flight *lf)
{
    if (!lf->question)
        return;
    turn_request_free(lf->question);
    free(lf->question);
    lf->question = NULL;
}

/* Whether this worker has read the log to its end, and END was not there. */
static bool is_unfinished(const struct local_flight *lf)
{
    const struct shm_flight *f = flight_at(lf->fl->shm, lf->ref.index);
    return !lf->end_seen && !lf->pass_next &&
           lf->cursor.offset == atomic_load_explicit(&f->tail, memory_order_acquire);
}

static bool can_ask(const struct local_flight *lf)
{
    return (lf->question || lf->cursor.offset > 0) && anyone_can(lf);
}

/* After a reload not every worker knows the same ones. */
static bool knows_provider(const struct local_flight *lf)
{
    const struct shm_flight *f = flight_at(lf->fl->shm, lf->ref.index);

    return config_provider_at(lf->fl->config, atomic_load(&f->provider)) != NULL;
}

/* Whether anybody at all may take it over; if not, the recorder ends it by itself. */
static bool may_be_taken(const struct local_flight *lf, struct flight_word w)
{
    const struct config *config = lf->fl->config;
    const struct shm_flight *f = flight_at(lf->fl->shm, lf->ref.index);

    return w.state == FLIGHT_ORPHANED && w.incarnation == lf->ref.incarnation &&
           config->on_fetcher_death == CONFIG_DEATH_RESTART &&
           w.generation < config->takeover_max && atomic_load(&f->kind) == FLIGHT_TURN &&
           (atomic_load(&f->requests) & FLIGHT_ASK_CANCEL) == 0;
}

void takeover_try(struct local_flight *lf)
{
    struct flights *fl = lf->fl;
    struct flight_word w = flight_load(fl->shm, lf->ref.index);

    if (lf->fetch || !may_be_taken(lf, w))
        return;
    bool able = can_ask(lf) && !fl->cutting && knows_provider(lf);
    if (flight_decline(fl->shm, lf->ref.index, !able))
        wake_recorder(fl->shm, lf->ref.index);
    if (!able || !is_unfinished(lf))
        return;
    /* All that takes memory comes first: without it another worker may do better. */
    struct fetch *fetch = fetch_alloc(fl);
    struct remains left;
    enum dac_err e = read_remains(lf, &left);
    if (fetch && e != DAC_E_NOMEM &&
        flight_adopt(fl->shm, lf->ref, FLIGHT_CLAIMED) == DAC_OK) {
        CRASH_POINT("takeover_adopted");
        const struct log_about about = local_about(lf);

        log_info_about(&about, 0, "flight %u: taken over, generation %u", lf->ref.index,
                       w.generation + 1u);
        if (take_over(lf, fetch, &left, e))
            fetch = NULL;
    }
    fetch_discard(fetch);
    turn_request_free(&left.request);
}
