/*
 * The order of the handover, and why:
 *
 *   1. segment and children are complete before anything of the old is touched, so a
 *      failure costs nothing
 *   2. rename: whoever looks the name up finds the new segment, locked
 *   3. the old workers stop accepting, then
 *   4. figures and limits are taken over, and only then
 *   5. the new workers accept: no client sees a counter go back, no provider gets two
 *      limits' worth of calls
 *
 * Master only.
 */
#include "process/renew.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "shm/slot.h"
#include "shm/wake.h"

#define START_MAX_NS     (30 * NS_PER_S) /* for a generation to come up */
#define HANDOVER_MAX_NS  NS_PER_S        /* for the old workers to stop accepting */
#define HANDOVER_LOOK_NS (2 * NS_PER_MS)
#define PACER_HOLD_NS    (BEAT_NS + 100 * NS_PER_MS) /* to the next tick */
#define BACKOFF_MIN_NS   NS_PER_S
#define BACKOFF_MAX_NS   (60 * NS_PER_S)

static void enter(struct renewal *r, enum renewal_phase phase, uint64_t now_ns)
{
    r->phase = phase;
    r->phase_since_ns = now_ns;
}

static void try_later(struct renewal *r, const char *why, uint64_t now_ns)
{
    r->backoff_ns = r->backoff_ns == 0 ? BACKOFF_MIN_NS : r->backoff_ns * 2;
    if (r->backoff_ns > BACKOFF_MAX_NS)
        r->backoff_ns = BACKOFF_MAX_NS;
    r->retry_at_ns = now_ns + r->backoff_ns;
    log_error(0, "could not renew shared memory: %s; trying again in %.0f s", why,
              (double)r->backoff_ns / (double)NS_PER_S);
}

/* --- coming ---------------------------------------------------------------------------
 */

/* Where /dev/shm has no room for two whole ones, the new one takes what is left. */
static enum dac_err make_segment(const struct renewal *r, struct shm *out, char *why,
                                 size_t n)
{
    struct generation_memory memory;
    char still[512] = "";
    enum dac_err e;

    generation_memory(r->parts->config, r->parts->privileges, &r->gens->serving->shm,
                      &memory);
    e = segment_create_next(&memory.options, out, why, n);
    if (e != DAC_E_FULL)
        return e;
    memory.options.size = segment_room();
    if (segment_create_next(&memory.options, out, still, sizeof(still)) != DAC_OK)
        return e; /* `why` says what would be needed */
    log_warn(
        0,
        "/dev/shm has no room for a second segment of shm_size; until the next start "
        "this instance has %.1f MiB",
        (double)out->size / 1048576.0);
    return DAC_OK;
}

static void begin(struct renewal *r, uint64_t now_ns)
{
    struct generations *gens = r->gens;
    struct generation *next =
        gens->serving == &gens->all[0] ? &gens->all[1] : &gens->all[0];
    char why[512] = "";

    log_error(0, "a lock of shared memory can never be had again; renewing it");
    if (make_segment(r, &next->shm, why, sizeof(why)) != DAC_OK) {
        try_later(r, why, now_ns);
        return;
    }
    inherit_identity(&next->shm, &gens->serving->shm);
    atomic_store(&next->shm.hdr->hold, 1);
    if (generation_start(next, r->parts, now_ns) != DAC_OK) {
        try_later(r, strerror(errno), now_ns);
        generation_free(next);
        return;
    }
    gens->other = next;
    enter(r, RENEWAL_STARTING, now_ns);
}

static void fail(struct renewal *r, const char *why, uint64_t now_ns)
{
    try_later(r, why, now_ns);
    generation_abort(r->gens->other, now_ns);
    enter(r, RENEWAL_FAILING, now_ns);
}

/* --- handover -------------------------------------------------------------------------
 */

static void hand_over(struct renewal *r, uint64_t now_ns)
{
    struct generations *gens = r->gens;
    struct generation *old = gens->serving;

    if (segment_take_name(&gens->other->shm) != DAC_OK) {
        fail(r, strerror(errno), now_ns);
        return;
    }
    gens->serving = gens->other;
    gens->other = old;
    generation_drain(old, false, now_ns);
    enter(r, RENEWAL_HANDOVER, now_ns);
}

static bool anybody_accepts(const struct shm *shm)
{
    for (uint32_t i = 0; i < SHM_SLOTS; i++) {
        enum slot_state state = slot_state(shm, i);

        if (atomic_load(&shm->slots[i].kind) == SLOT_WORKER &&
            (state == SLOT_STARTING || state == SLOT_READY))
            return true;
    }
    return false;
}

static void take_over(struct renewal *r, uint64_t now_ns)
{
    inherit_counters(&r->gens->serving->shm, &r->gens->other->shm, &r->taken);
    inherit_pacers(&r->gens->serving->shm, &r->gens->other->shm, now_ns, PACER_HOLD_NS);
}

static void open_doors(struct renewal *r, uint64_t now_ns)
{
    struct shm *next = &r->gens->serving->shm;

    memset(&r->taken, 0, sizeof(r->taken));
    /* First, so that nobody shows a sum from there that is not in the new one. */
    atomic_store(&r->gens->other->shm.hdr->superseded, 1);
    take_over(r, now_ns);
    inherit_samples(next, &r->gens->other->shm);
    atomic_store(&next->hdr->hold, 0);
    wake_kick(next);
    log_info(0,
             "shared memory is renewed; %" PRIu32
             " workers on the old one have %.0f s to end their streams",
             supervise_alive(&r->gens->other->sup, SLOT_WORKER),
             (double)r->parts->config->drain_timeout_ns / (double)NS_PER_S);
    enter(r, RENEWAL_LEAVING, now_ns);
}

/* --- leaving --------------------------------------------------------------------------
 */

static void drop_other(struct renewal *r, uint64_t now_ns)
{
    generation_free(r->gens->other);
    r->gens->other = NULL;
    enter(r, RENEWAL_IDLE, now_ns);
}

static void finish(struct renewal *r, uint64_t now_ns)
{
    struct generation *old = r->gens->other;

    take_over(r, now_ns);
    inherit_pacers_whole(&r->gens->serving->shm, &old->shm);
    if (old->unstored)
        log_error(0, "the recorder of the old shared memory did not store all");
    r->unstored = r->unstored || old->unstored;
    r->backoff_ns = 0;
    r->retry_at_ns = 0;
    log_info(0, "the old shared memory is left");
    drop_other(r, now_ns);
}

/* --- steps ----------------------------------------------------------------------------
 */

static void step_starting(struct renewal *r, uint64_t now_ns)
{
    struct generation *next = r->gens->other;

    if (next->sup.fatal[0])
        fail(r, next->sup.fatal, now_ns);
    else if (next->phase == GENERATION_READY)
        hand_over(r, now_ns);
    else if (now_ns - r->phase_since_ns > START_MAX_NS)
        fail(r, "its processes did not come up in time", now_ns);
}

void renew_step(struct renewal *r, uint64_t now_ns)
{
    const struct generation *serving = r->gens->serving;

    switch (r->phase) {
    case RENEWAL_IDLE:
        if (serving->phase == GENERATION_READY && now_ns >= r->retry_at_ns &&
            atomic_load(&serving->shm.hdr->lock_lost))
            begin(r, now_ns);
        break;
    case RENEWAL_STARTING:
        step_starting(r, now_ns);
        break;
    case RENEWAL_HANDOVER:
        if (!anybody_accepts(&r->gens->other->shm) ||
            now_ns - r->phase_since_ns > HANDOVER_MAX_NS)
            open_doors(r, now_ns);
        break;
    case RENEWAL_LEAVING:
        if (r->gens->other->phase == GENERATION_OVER)
            finish(r, now_ns);
        break;
    case RENEWAL_FAILING:
        if (r->gens->other->phase == GENERATION_OVER)
            drop_other(r, now_ns);
        break;
    }
}

void renew_tick(struct renewal *r, uint64_t now_ns)
{
    if (r->phase == RENEWAL_LEAVING)
        take_over(r, now_ns);
}

void renew_share_limits(const struct renewal *r, uint64_t now_ns)
{
    if (r->phase == RENEWAL_LEAVING)
        inherit_pacers(&r->gens->serving->shm, &r->gens->other->shm, now_ns,
                       PACER_HOLD_NS);
}

uint64_t renew_next(const struct renewal *r, uint64_t now_ns)
{
    return r->phase == RENEWAL_HANDOVER ? now_ns + HANDOVER_LOOK_NS : UINT64_MAX;
}
