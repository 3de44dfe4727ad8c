/*
 * Frees flights that ended, are stored, and have no reader: those whose time to live is
 * over, and, when flights, blocks or aliases run short, the oldest of the others, too.
 *
 * The two numbers that still grew after the commit (followers, hits) are noted for the
 * next batch when a flight leaves. The list of them is bounded; what does not fit is
 * dropped, since a store that is away so long must not stop the service. Recorder only.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "process/recorder_state.h"
#include "shm/alias.h"
#include "shm/blocklog.h"
#include "shm/index.h"

struct recycle_candidate {
    uint32_t flight;
    uint32_t incarnation;
    uint64_t ended_ns;
};

struct recycle_candidate *recorder_recycle_table(uint32_t n)
{
    return calloc(n, sizeof(struct recycle_candidate));
}

static void note_counts(struct recorder *r, const struct id *turn, uint64_t followers,
                        uint64_t hits)
{
    if (r->count_count == COUNTS_MAX) {
        log_debug(0, "final numbers of a turn are not stored: %d are waiting",
                  COUNTS_MAX);
        return;
    }
    r->counts[r->count_count++] =
        (struct count_update){.turn = *turn, .followers = followers, .hits = hits};
}

/* Whether the store already has these numbers for the flight's present use. */
static bool are_known(const struct recorder *r, uint32_t flight, uint32_t incarnation,
                      uint64_t followers, uint64_t hits)
{
    const struct flight_note *note = &r->notes[flight];

    return note->counted && note->incarnation == incarnation &&
           note->followers == followers && note->hits == hits;
}

/* Whether this flight is a turn that is in the store. */
static bool is_stored_turn(const struct shm_flight *f)
{
    return atomic_load(&f->kind) == FLIGHT_TURN && atomic_load(&f->stored) != STORED_NO &&
           atomic_load(&f->stored) != STORED_FAILED;
}

static bool recycle(struct recorder *r, const struct recycle_candidate *c,
                    enum recycle_rule rule, uint64_t now_ns)
{
    const struct shm_flight *f = flight_at(r->shm, c->flight);
    struct flight_ref ref = {.index = c->flight, .incarnation = c->incarnation};
    bool counts = is_stored_turn(f);
    uint64_t followers, hits;
    struct id turn;

    memcpy(turn.b, f->turn_id, sizeof(turn.b)); /* gone with the flight */
    if (index_recycle(r->shm, ref, rule, now_ns, r->ctx->config->error_ttl_ns, &followers,
                      &hits) != DAC_OK)
        return false;
    if (counts && !are_known(r, c->flight, c->incarnation, followers, hits))
        note_counts(r, &turn, followers, hits);
    return true;
}

static int by_end(const void *a, const void *b)
{
    const struct recycle_candidate *x = a;
    const struct recycle_candidate *y = b;

    return (x->ended_ns > y->ended_ns) - (x->ended_ns < y->ended_ns);
}

/* One pass: frees what is over and lists what could go as well; returns flights in use.
 */
static uint32_t recycle_expired(struct recorder *r, uint64_t now_ns, size_t *candidates)
{
    uint32_t used = 0;

    *candidates = 0;
    for (uint32_t i = 0; i < r->shm->hdr->flight_count; i++) {
        const struct shm_flight *f = flight_at(r->shm, i);
        struct flight_word w = flight_load(r->shm, i);
        struct recycle_candidate c = {.flight = i,
                                      .incarnation = w.incarnation,
                                      .ended_ns = atomic_load(&f->ended_ns)};

        used += w.state != FLIGHT_FREE;
        if (!flight_state_ended(w.state) || atomic_load(&f->stored) == STORED_NO ||
            flight_readers(r->shm, i) != 0)
            continue;
        if (recycle(r, &c, RECYCLE_EXPIRED, now_ns))
            used--;
        else
            r->candidates[(*candidates)++] = c;
    }
    return used;
}

static bool is_short(const struct shm *shm, uint32_t used, uint32_t eighths)
{
    uint64_t blocks_used = shm->hdr->block_count - blocks_free_hint(shm);

    return used > (uint64_t)shm->hdr->flight_count * eighths / 8 ||
           blocks_used > (uint64_t)shm->hdr->block_count * eighths / 8 ||
           alias_used_hint(shm) > (uint64_t)shm->hdr->alias_count * eighths / 8;
}

void recorder_recycle(struct recorder *r, uint64_t now_ns)
{
    /* Who finds no room from here on says so again. One who needs much at once may find
     * none while the figures still look well. */
    bool asked = atomic_exchange(&r->shm->hdr->pressure, 0) != 0;
    uint32_t eighths = asked ? 4 : 6;
    size_t candidates;
    uint32_t used;

    r->recycled_ns = now_ns;
    used = recycle_expired(r, now_ns, &candidates);
    if (!asked && !is_short(r->shm, used, 7))
        return;
    qsort(r->candidates, candidates, sizeof(*r->candidates), by_end);
    for (size_t i = 0; i < candidates && is_short(r->shm, used, eighths); i++)
        used -= recycle(r, &r->candidates[i], RECYCLE_PRESSURE, now_ns);
}

void recorder_collect_counts(struct recorder *r)
{
    for (uint32_t i = 0; i < r->shm->hdr->flight_count; i++) {
        const struct shm_flight *f = flight_at(r->shm, i);
        struct flight_word w = flight_load(r->shm, i);
        uint64_t followers = atomic_load(&f->followers);
        uint64_t hits = atomic_load(&f->hits);
        struct id turn;

        if (!flight_state_ended(w.state) || !is_stored_turn(f) ||
            are_known(r, i, w.incarnation, followers, hits))
            continue;
        memcpy(turn.b, f->turn_id, sizeof(turn.b));
        note_counts(r, &turn, followers, hits);
    }
}
