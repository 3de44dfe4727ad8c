/*
 * Ends flights whose fetcher died:
 *
 *   END is in the log         only the state is moved on: what was ended well stays so
 *   a question, no END        END {incomplete, fetcher_died}: stored with what came
 *   no question, or a thread  END {failed, fetcher_died}: nothing to store, and closed,
 *                             so that newcomers lead anew
 *
 * Adopting comes first, by one compare-and-swap; if this recorder dies between two steps,
 * the flight is orphaned again and the next recorder begins anew. Recorder only.
 */
#include <stdio.h>

#include "base/clock.h"
#include "base/log.h"
#include "process/recorder_state.h"
#include "shm/blocklog.h"
#include "shm/crash.h"
#include "shm/index.h"
#include "shm/wake.h"

#define TAKEOVER_WAIT_NS                                                                 \
    (750 * NS_PER_MS) /* for a worker that reads it to take it over */

struct log_view {
    bool has_request;
    bool has_end;
    struct record_end end;
};

/* Reads which records there are. A log that breaks a rule counts up to there. */
static struct log_view view_log(const struct recorder *r, struct flight_ref ref)
{
    struct log_view view = {0};
    struct blocklog_cursor c;
    struct blocklog_record rec;

    blocklog_rewind(&c, ref);
    while (blocklog_peek(r->shm, &c, &rec) == DAC_OK) {
        if (rec.type == RECORD_REQUEST)
            view.has_request = true;
        if (rec.type == RECORD_END && rec.len == sizeof(view.end)) {
            blocklog_copy(r->shm, &c, &rec, &view.end, sizeof(view.end));
            view.has_end = true;
        }
        blocklog_next(r->shm, &c, &rec);
    }
    return view;
}

static enum dac_err append_end(struct recorder *r, struct flight_ref ref,
                               const struct log_view *view, struct record_end *end)
{
    struct blocklog_writer w;
    enum dac_err e = blocklog_open(r->shm, ref, &w);

    if (e != DAC_OK)
        return e;
    *end =
        (struct record_end){.status = view->has_request ? TURN_INCOMPLETE : TURN_FAILED,
                            .http_status = view->has_request ? 502 : 503,
                            .retryable = 1};
    snprintf(end->code, sizeof(end->code), "fetcher_died");
    snprintf(end->message, sizeof(end->message),
             "the process that fetched this answer died");
    return blocklog_append(r->shm, &w, RECORD_END, end, sizeof(*end));
}

/* An orphan without a question that nobody reads ends, but a newcomer may be about to
 * join it and to bring the question: so it is closed under its bucket's lock, or not at
 * all. */
static bool may_still_be_led(struct recorder *r, struct flight_ref ref)
{
    enum dac_err e = index_abandon(r->shm, ref);

    return e == DAC_E_STATE || e == DAC_E_BUSY;
}

/* Whether one of its readers that did not decline has not beaten lately: stopped, it can
 * say nothing. It goes on, or the watchdog ends it and its clients come back. */
static bool a_reader_stands_still(const struct recorder *r, uint32_t flight,
                                  uint64_t now_ns)
{
    uint64_t open = flight_readers(r->shm, flight) &
                    ~atomic_load(&flight_at(r->shm, flight)->declined);

    for (uint32_t slot = 0; slot < SHM_SLOTS; slot++) {
        if ((open >> slot & 1) != 0 &&
            now_ns > atomic_load(&r->shm->slots[slot].beat_ns) + 2 * BEAT_NS)
            return true;
    }
    return false;
}

/* A flight may yet be taken over: by a worker that reads it, which says so if it cannot,
 * or by a client that comes back or comes new within reconnect_grace. Its question is in
 * the log, or its readers have it. */
bool recorder_leaves_orphan(struct recorder *r, uint32_t flight, struct flight_word w)
{
    const struct config *cfg = r->ctx->config;
    const struct shm_flight *f = flight_at(r->shm, flight);
    struct flight_ref ref = {.index = flight, .incarnation = w.incarnation};
    struct flight_note *note = &r->notes[flight];
    uint64_t now = clock_now_ns();
    bool unread = flight_readers(r->shm, flight) == 0;
    bool over;

    if (unread) {
        note->orphan_read_ns = 0;
        over = now > atomic_load(&f->lost_ns) + cfg->reconnect_grace_ns;
    } else {
        if (note->orphan_read_ns == 0 || note->orphan_word != flight_pack(w) ||
            a_reader_stands_still(r, flight, now)) {
            note->orphan_read_ns = now;
            note->orphan_word = flight_pack(w);
        }
        over = now > note->orphan_read_ns + TAKEOVER_WAIT_NS ||
               flight_all_declined(r->shm, flight);
    }
    if (over || cfg->on_fetcher_death != CONFIG_DEATH_RESTART ||
        w.generation >= cfg->takeover_max || atomic_load(&f->requests) != 0 ||
        r->stopping_ns != 0)
        return false;
    struct log_view view = view_log(r, ref);
    if (!view.has_end && !view.has_request && unread)
        return may_still_be_led(r, ref);
    return !view.has_end;
}

bool recorder_end_orphan(struct recorder *r, uint32_t flight, struct flight_word w)
{
    struct flight_ref ref = {.index = flight, .incarnation = w.incarnation};
    struct shm_flight *f = flight_at(r->shm, flight);
    struct flight_about about;
    struct log_view view;
    struct record_end end;
    bool declined =
        flight_readers(r->shm, flight) != 0 && flight_all_declined(r->shm, flight);

    if (w.state == FLIGHT_ORPHANED &&
        flight_adopt(r->shm, ref, FLIGHT_FETCHING) != DAC_OK)
        return false;
    CRASH_POINT("recorder_adopted");
    view = view_log(r, ref);
    end = view.end; /* without END all zero, and that is FAILED */
    if (!view.has_end) {
        enum dac_err e = append_end(r, ref, &view, &end);

        /* Nothing can be written behind a broken chain; its readers find that out
         * themselves, and storing it will fail. */
        if (e == DAC_E_CORRUPT)
            log_error_about(recorder_about(r, flight, NULL, &about), 0,
                            "flight %u: its log is damaged", flight);
        else if (e != DAC_OK)
            return false; /* no block is free: the next tick tries again */
    }
    if (!view.has_request)
        atomic_fetch_or(&f->requests, FLIGHT_CLOSED);
    CRASH_POINT("recorder_end_written");
    if (atomic_load(&f->ended_ns) == 0)
        atomic_store(&f->ended_ns, clock_now_ns());
    if (flight_advance(r->shm, ref, flight_state_for((enum turn_status)end.status)) !=
        DAC_OK)
        return false;
    wake_readers(r->shm, flight);
    log_info_about(recorder_about(r, flight, NULL, &about), 0,
                   "flight %u lost its fetcher and was ended as %s%s", flight,
                   turn_status_name(end.status <= TURN_FAILED
                                        ? (enum turn_status)end.status
                                        : TURN_FAILED),
                   declined ? ": none of its readers can begin anew" : "");
    return true;
}
