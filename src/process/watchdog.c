/*
 * Silence is counted in the master's own ticks, never in differences of clocks: if the
 * whole machine was suspended, or the master itself was stopped, nobody seems to have
 * been silent. A recorder that starts is left alone, since a migration may take as long
 * as it needs, but not one that was stopped.
 *
 * Master only.
 */
#include "process/watchdog.h"

#include <inttypes.h>
#include <signal.h>
#include <sys/wait.h>

#include "base/log.h"
#include "shm/slot.h"

/* Whether a signal stopped it and none has continued it yet. */
static bool is_stopped(pid_t pid)
{
    siginfo_t info = {0};

    return waitid(P_PID, (id_t)pid, &info, WSTOPPED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == pid;
}

/* Counts one tick; whether the child has been silent too long. */
static bool is_silent(const struct supervisor *s, struct child *c)
{
    const struct shm_slot *slot = &s->shm->slots[c->slot];
    uint64_t beat = atomic_load_explicit(&slot->heartbeat, memory_order_relaxed);

    if (beat != c->heartbeat) {
        c->heartbeat = beat;
        c->silent_ticks = 0;
        return false;
    }
    if (c->kind == SLOT_RECORDER && slot_state(s->shm, c->slot) == SLOT_STARTING &&
        !is_stopped(c->pid))
        return false;
    c->silent_ticks++;
    return c->silent_ticks > s->silence_max;
}

static bool at_a_lock(const struct supervisor *s, const struct child *c)
{
    return atomic_load(&s->shm->slots[c->slot].locking_bucket) != 0;
}

void watchdog_tick(struct supervisor *s)
{
    struct child *victim = NULL;
    struct child *c;

    for (uint32_t i = 0; (c = supervise_child(s, i)); i++) {
        if (c->pid == 0 || !is_silent(s, c))
            continue;
        if (!victim || (at_a_lock(s, c) && !at_a_lock(s, victim)))
            victim = c;
    }
    if (!victim)
        return;
    log_error(
        0, "pid %d (slot %" PRIu32 ") has not beaten for %" PRIu32 " ticks%s; killing it",
        (int)victim->pid, victim->slot, victim->silent_ticks,
        at_a_lock(s, victim) ? " and is at a bucket's lock" : "");
    kill(victim->pid, SIGKILL);
    victim->silenced = true;
    for (uint32_t i = 0; (c = supervise_child(s, i)); i++)
        c->silent_ticks = 0;
}
