/*
 * Giving slots out and sweeping them. A sweep runs in the master after waitpid() returned
 * the process, so nobody writes on its behalf any more; it takes no lock and goes over
 * every structure that names an owner.
 */
#include "shm/slot.h"

#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "shm/alias.h"
#include "shm/blocklog.h"
#include "shm/pacer.h"
#include "shm/wake.h"

static enum dac_err take(struct shm *shm, enum slot_kind kind, uint32_t ordinal,
                         uint32_t *out)
{
    for (uint32_t i = 0; i < SHM_SLOTS; i++) {
        struct shm_slot *s = &shm->slots[i];
        if (atomic_load(&s->state) != SLOT_FREE)
            continue;
        atomic_store(&s->pid, 0);
        atomic_store(&s->kind, (uint32_t)kind);
        atomic_store(&s->ordinal, ordinal);
        atomic_store(&s->generation, atomic_fetch_add(&shm->hdr->generation, 1) + 1);
        atomic_store(&s->heartbeat, 0);
        atomic_store(&s->beat_ns, 0);
        atomic_store(&s->state, SLOT_STARTING);
        *out = i;
        return DAC_OK;
    }
    return DAC_E_FULL;
}

enum dac_err slot_take(struct shm *shm, enum slot_kind kind, uint32_t ordinal,
                       uint32_t *out)
{
    enum dac_err e = take(shm, kind, ordinal, out);

    if (e == DAC_OK && kind == SLOT_RECORDER)
        atomic_store(&shm->hdr->recorder_slot, *out);
    else if (e == DAC_OK && ordinal < SHM_WORKERS_MAX)
        slot_serve(shm, ordinal, *out);
    return e;
}

enum dac_err slot_take_beside(struct shm *shm, uint32_t ordinal, uint32_t *out)
{
    return take(shm, SLOT_WORKER, ordinal, out);
}

void slot_serve(struct shm *shm, uint32_t ordinal, uint32_t slot)
{
    atomic_store(&shm->hdr->ordinal_slot[ordinal], slot);
}

bool slot_serves(const struct shm *shm)
{
    uint32_t ordinal = atomic_load(&shm->slots[shm->self].ordinal);

    return ordinal < SHM_WORKERS_MAX &&
           atomic_load(&shm->hdr->ordinal_slot[ordinal]) == shm->self;
}

void slot_enter(struct shm *shm, uint64_t now_ns)
{
    atomic_store(&shm->slots[shm->self].pid, (uint32_t)getpid());
    slot_beat(shm, now_ns);
}

void slot_beat(struct shm *shm, uint64_t now_ns)
{
    struct shm_slot *s = &shm->slots[shm->self];
    atomic_fetch_add_explicit(&s->heartbeat, 1, memory_order_relaxed);
    atomic_store_explicit(&s->beat_ns, now_ns, memory_order_release);
}

void slot_set_state(struct shm *shm, enum slot_state state)
{
    atomic_store_explicit(&shm->slots[shm->self].state, (uint32_t)state,
                          memory_order_release);
}

enum slot_state slot_state(const struct shm *shm, uint32_t slot)
{
    if (slot >= SHM_SLOTS)
        return SLOT_FREE;
    return (enum slot_state)atomic_load_explicit(&shm->slots[slot].state,
                                                 memory_order_acquire);
}

bool slot_accepting(const struct shm *shm, uint32_t slot, uint64_t now_ns,
                    uint64_t max_age_ns)
{
    if (slot_state(shm, slot) != SLOT_READY)
        return false;
    uint64_t beat = atomic_load_explicit(&shm->slots[slot].beat_ns, memory_order_acquire);
    return now_ns < beat + max_age_ns;
}

/* A claim that was never indexed is freed; everything else that it owned is orphaned. */
static void sweep_owned(struct shm *shm, uint32_t index, struct flight_word w,
                        struct slot_sweep *found)
{
    struct shm_flight *f = &shm->flights[index];
    struct flight_word orphan = w;

    if (w.state == FLIGHT_CLAIMED && atomic_load(&f->bucket) == 0) {
        atomic_store(&f->readers, 0);
        if (flight_release(shm, index, w) == DAC_OK)
            found->freed++;
        return;
    }
    orphan.state = FLIGHT_ORPHANED;
    orphan.owner = SHM_NO_SLOT;
    uint64_t expected = flight_pack(w);
    atomic_store(&f->lost_ns, clock_now_ns());
    atomic_store(&f->declined, 0); /* nobody owns it, nobody has seen it orphaned */
    if (atomic_compare_exchange_strong(&f->word, &expected, flight_pack(orphan))) {
        found->orphaned++;
        wake_recorder(shm, index);
        wake_readers(shm, index);
    }
}

static void forget_roles(struct shm *shm, uint32_t slot)
{
    if (atomic_load(&shm->hdr->recorder_slot) == slot)
        atomic_store(&shm->hdr->recorder_slot, SHM_NO_SLOT);
    for (size_t i = 0; i < SHM_WORKERS_MAX; i++)
        if (atomic_load(&shm->hdr->ordinal_slot[i]) == slot)
            atomic_store(&shm->hdr->ordinal_slot[i], SHM_NO_SLOT);
}

struct slot_sweep slot_sweep(struct shm *shm, uint32_t slot)
{
    struct slot_sweep found = {0};
    struct shm_slot *s = &shm->slots[slot];
    uint64_t bit = UINT64_C(1) << slot;

    atomic_store(&s->state, SLOT_DEAD);
    forget_roles(shm, slot);
    found.held_lock = atomic_exchange(&s->locking_bucket, 0) != 0;
    for (uint32_t i = 0; i < shm->hdr->flight_count; i++) {
        struct flight_word w = flight_load(shm, i);
        if (w.owner == slot && w.state >= FLIGHT_CLAIMED && w.state <= FLIGHT_STREAMING)
            sweep_owned(shm, i, w, &found);
        if (atomic_load(&shm->flights[i].declined) & bit)
            atomic_fetch_and(&shm->flights[i].declined, ~bit);
        if ((atomic_load(&shm->flights[i].readers) & bit) == 0)
            continue;
        found.reader_of++;
        atomic_store(&shm->flights[i].lost_ns, clock_now_ns());
        if (atomic_fetch_and(&shm->flights[i].readers, ~bit) == bit)
            wake_owner(shm, i);
    }
    found.permits = pacer_sweep(shm, slot);
    for (uint32_t i = 0; i < shm->hdr->dirty_words; i++)
        atomic_store(&shm->dirty[slot * shm->hdr->dirty_words + i], 0);
    atomic_store(&s->pacer_dirty, 0);
    atomic_store(&s->notified, 0);
    atomic_store(&s->connections, 0);
    atomic_store(&s->streams, 0);
    atomic_store(&s->pid, 0);
    shm_count(shm, SHM_C_flights_orphaned, found.orphaned);
    atomic_store(&s->state, SLOT_FREE);
    return found;
}

void slot_recount(struct shm *shm)
{
    uint32_t flights = 0;
    uint32_t blocks = 0;

    for (uint32_t i = 0; i < shm->hdr->flight_count; i++)
        flights += flight_load(shm, i).state != FLIGHT_FREE;
    for (uint32_t i = 0; i < shm->hdr->block_count; i++)
        blocks += !block_is_free(shm, i);
    atomic_store_explicit(&shm->hdr->flights_used, flights, memory_order_relaxed);
    atomic_store_explicit(&shm->hdr->blocks_used, blocks, memory_order_relaxed);
    atomic_store_explicit(&shm->hdr->aliases_used, alias_used(shm), memory_order_relaxed);
}

bool slot_valid(const struct shm *shm, uint32_t slot, char *why, size_t n)
{
    const struct shm_slot *s = &shm->slots[slot];
    uint32_t state = atomic_load(&s->state);
    uint32_t kind = atomic_load(&s->kind);

    if (state > SLOT_DEAD)
        snprintf(why, n, "its state %u does not exist", state);
    else if (state != SLOT_FREE && kind != SLOT_WORKER && kind != SLOT_RECORDER)
        snprintf(why, n, "it is in use by no kind of process (%u)", kind);
    else if (atomic_load(&s->locking_bucket) > shm->hdr->bucket_count)
        snprintf(why, n, "it locks a bucket that does not exist");
    else if (state == SLOT_FREE && atomic_load(&s->pid) != 0)
        snprintf(why, n, "it is free but names pid %u", atomic_load(&s->pid));
    else
        return true;
    return false;
}
