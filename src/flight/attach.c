/*
 * Turns in memory by their id, or by the use of a flight: attaching to one, going on with
 * one from a place, reading one.
 *
 * Whoever attaches becomes a reader of exactly that use, whatever newcomers with the same
 * question would find; what has left memory meanwhile is DAC_E_NOT_FOUND.
 */
#include <string.h>

#include "flight/internal.h"
#include "flight/key.h"
#include "shm/wake.h"

/* Takes the names from the log, where the question is the first record. DAC_E_NOT_FOUND:
 * it is not there, or is damaged. */
static enum dac_err read_names(struct local_flight *lf)
{
    struct shm *shm = lf->fl->shm;
    struct blocklog_cursor c;
    struct blocklog_record rec;
    struct turn_request r;

    blocklog_rewind(&c, lf->ref);
    if (blocklog_peek(shm, &c, &rec) != DAC_OK || rec.type != RECORD_REQUEST)
        return DAC_E_NOT_FOUND;
    void *scratch = flights_scratch(lf->fl, rec.len);
    if (!scratch)
        return DAC_E_NOMEM;
    enum dac_err e =
        turn_request_parse(blocklog_payload(shm, &c, &rec, scratch), rec.len, &r);
    if (e == DAC_OK)
        local_set_names(lf, &r);
    turn_request_free(&r);
    return e == DAC_E_CORRUPT ? DAC_E_NOT_FOUND : e;
}

struct local_flight *attach_local(struct flights *fl, struct flight_ref ref,
                                  const struct turn_request *r)
{
    struct local_flight *lf = local_get(fl, ref);

    if (lf) {
        lf->reader = true;
        return lf;
    }
    lf = local_new(fl, ref);
    if (!lf) {
        if (flight_drop_reader(fl->shm, ref.index))
            wake_owner(fl->shm, ref.index);
        return NULL;
    }
    lf->reader = true;
    enum dac_err e = read_names(lf);
    if (e == DAC_E_NOMEM) {
        local_settle(lf);
        return NULL;
    }
    if (e != DAC_OK && r)
        local_set_names(lf, r);
    return lf;
}

/* Finds the turn and makes this worker a reader of it. `org` NULL: whosever it is. */
static enum dac_err attach(struct flights *fl, const struct id *turn, const char *org,
                           struct local_flight **out)
{
    uint8_t org_digest[16];
    struct flight_ref ref;
    enum dac_err e = org ? key_org(org, org_digest) : DAC_OK;

    if (e != DAC_OK)
        return e;
    if (!index_find_turn(fl->shm, turn->b, &ref))
        return DAC_E_NOT_FOUND;
    const struct shm_flight *f = flight_at(fl->shm, ref.index);
    if ((org && memcmp(f->org, org_digest, sizeof org_digest) != 0) ||
        atomic_load(&f->kind) != FLIGHT_TURN)
        return DAC_E_NOT_FOUND;
    e = index_attach(fl->shm, ref, turn->b);
    if (e != DAC_OK)
        return e;
    *out = attach_local(fl, ref, NULL);
    return *out ? DAC_OK : DAC_E_NOMEM;
}

/* The present answer: what stands behind the last RESET. The flight's word does not say
 * which that is: it is a generation ahead until RESET is published, and for good when the
 * recorder ended an orphan. */
struct present {
    uint64_t begin;
    uint64_t text_bytes;
    uint16_t generation; /* of that RESET, 0 without one */
    uint16_t newest;     /* of the records behind it: a takeover before the first content
                          * needs no RESET, and its ids go on. While there is no record,
                          * that of the flight's word, with which ids began */
};

static struct present find_present(struct local_flight *lf)
{
    struct present p = {0};
    struct blocklog_cursor c;
    struct blocklog_record r;
    bool empty = true; /* nothing behind the last RESET */

    blocklog_rewind(&c, lf->ref);
    while (blocklog_peek(lf->fl->shm, &c, &r) == DAC_OK) {
        blocklog_next(lf->fl->shm, &c, &r);
        empty = r.type == RECORD_RESET;
        if (r.type == RECORD_RESET)
            p = (struct present){
                .begin = c.offset, .generation = r.generation, .newest = r.generation};
        else if (r.type == RECORD_DELTA)
            p.text_bytes += r.len;
        if (r.generation > p.newest)
            p.newest = r.generation;
    }
    uint16_t word = flight_load(lf->fl->shm, lf->ref.index).generation;
    if (empty && word > p.newest)
        p.newest = word;
    return p;
}

/* Whether what the client has is of the present answer. */
static bool is_of(const struct resume_from *from, const struct present *p)
{
    return !from->has_generation ||
           (from->generation >= p->generation && from->generation <= p->newest);
}

/* Adds a member that asked nothing itself. */
static enum dac_err add_attached(struct local_flight *lf, const struct dialect *dialect,
                                 const struct resume_from *from,
                                 const struct present *present, struct http_exchange *ex)
{
    struct flight_word w = flight_load(lf->fl->shm, lf->ref.index);
    struct member *m = member_new(ex, dialect);

    if (!m) {
        local_settle(lf);
        return DAC_E_NOMEM;
    }
    if (from && !is_of(from, present)) {
        m->reset_first = true;
        m->has = (struct position){from->generation, from->text_bytes};
    } else if (from)
        m->skip_bytes = from->text_bytes;
    if (from) {
        m->resumed = true;
        m->begin = present->begin;
        m->begin_generation = from->has_generation && !m->reset_first
                                  ? from->generation
                                  : present->generation;
    }
    m->first_sent = m->skip_bytes > 0;
    member_join(m, lf, flight_state_ended(w.state) ? JOIN_HIT : JOIN_FOLLOWER);
    return DAC_OK;
}

static void ask_to_stop(struct local_flight *lf)
{
    struct shm *shm = lf->fl->shm;

    flight_ask_cancel(shm, lf->ref.index);
    wake_owner(shm, lf->ref.index);
    wake_recorder(shm, lf->ref.index); /* an orphan has no owner */
    if (lf->fetch)
        fetch_check(lf->fetch);
}

enum dac_err flights_cancel(struct flights *fl, const struct id *turn)
{
    struct local_flight *lf;
    enum dac_err e = attach(fl, turn, NULL, &lf);

    if (e != DAC_OK)
        return e;
    lf->running = true;
    ask_to_stop(lf);
    lf->running = false;
    local_schedule(lf); /* it settles: nobody may listen here */
    return DAC_OK;
}

enum dac_err flights_attach(struct flights *fl, const struct id *turn, const char *org,
                            const struct dialect *dialect, bool cancel,
                            struct http_exchange *ex)
{
    struct local_flight *lf;
    enum dac_err e = attach(fl, turn, org, &lf);

    if (e != DAC_OK)
        return e;
    lf->running = true;
    e = add_attached(lf, dialect, NULL, NULL, ex);
    if (e == DAC_OK && cancel)
        ask_to_stop(lf);
    lf->running = false;
    local_schedule(lf);
    return e;
}

enum dac_err flights_resume(struct flights *fl, const struct id *turn, const char *org,
                            const struct dialect *dialect, const struct resume_from *from,
                            struct http_exchange *ex)
{
    struct local_flight *lf;
    enum dac_err e = attach(fl, turn, org, &lf);

    if (e != DAC_OK)
        return e;
    struct present present = find_present(lf);
    if (is_of(from, &present) && from->text_bytes > present.text_bytes) {
        local_settle(lf);
        return DAC_E_TOO_LARGE;
    }
    lf->running = true;
    e = add_attached(lf, dialect, from, &present, ex);
    lf->running = false;
    local_schedule(lf);
    return e;
}

enum dac_err flights_peek(struct flights *fl, const struct id *turn, const char *org,
                          struct turn_result *out, struct turn_view *view)
{
    struct local_flight *lf;
    enum dac_err e = attach(fl, turn, org, &lf);

    if (e != DAC_OK)
        return e;
    e = turn_result_read(fl->shm, lf->ref, out);
    if (e == DAC_OK) {
        *view = lf->view;
        view->provider = out->request.provider;
        view->model = out->request.model;
        view->thread_id = "";
        view->timing = turn_timing(fl->shm, lf->ref.index);
        view->usage = out->usage;
        view->end = out->end;
        view->stored =
            (enum flight_stored)atomic_load(&flight_at(fl->shm, lf->ref.index)->stored);
    } else {
        turn_result_free(out);
    }
    local_settle(lf);
    return e;
}
