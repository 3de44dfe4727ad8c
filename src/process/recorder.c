/*
 * The recorder's loop. It wakes when a flight ended or was orphaned, on the master's
 * kick, and every 250 ms, when it looks at all flights, dirty or not; a new recorder
 * begins with that.
 *
 *   wake or beat -> look at flights -> end orphans, list what is to be stored
 *                -> begin a batch -> the loop turns until it is stored
 *                -> begin one of what came meanwhile ...
 *
 * Ends last. On SIGTERM it goes on until no other process uses the segment; then it
 * stores what is left and the final numbers, for at most done_timeout. If the master
 * died, nobody sweeps any more: once all others are gone it does that itself, alone as it
 * is.
 */
#include "process/recorder.h"

#include <errno.h>
#include <event2/event.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "process/recorder_state.h"
#include "shm/alias.h"
#include "shm/blocklog.h"
#include "shm/sample.h"
#include "shm/slot.h"
#include "shm/wake.h"

#define HEIR_WAIT_NS        (15 * NS_PER_S) /* beyond drain_timeout, for dying workers */
#define RECYCLE_INTERVAL_NS (10 * NS_PER_MS)
#define WRITING_RECYCLE_NS  (50 * NS_PER_MS)
#define STORE_WAIT_NS       (5 * NS_PER_S) /* for a lock of the store, at the start */
#define TIDY_AFTER_NS       (1 * NS_PER_MS)

/* --- looking --------------------------------------------------------------------------
 */

void recorder_look(struct recorder *r, uint32_t flight)
{
    const struct shm_flight *f = flight_at(r->shm, flight);
    struct flight_word w = flight_load(r->shm, flight);
    bool mine = flight_state_running(w.state) && w.owner == r->shm->self;

    if (w.state == FLIGHT_ORPHANED || mine) {
        if (!mine && recorder_leaves_orphan(r, flight, w))
            return;
        if (!recorder_end_orphan(r, flight, w))
            return;
        w = flight_load(r->shm, flight);
    }
    if (!flight_state_ended(w.state) || r->notes[flight].pending)
        return;
    if (atomic_load_explicit(&f->stored, memory_order_acquire) != STORED_NO) {
        recorder_keys_look(r, flight);
        return;
    }
    r->notes[flight].pending = true;
    r->pending[r->pending_count++] = flight;
}

static void look_at_dirty(void *arg, uint32_t flight)
{
    struct recorder *r = arg;

    if (flight < r->shm->hdr->flight_count)
        recorder_look(r, flight);
}

void recorder_take_dirty(struct recorder *r)
{
    wake_take(r->shm, look_at_dirty, r);
}

static void look_at_all(struct recorder *r)
{
    r->kicks = atomic_load(&r->shm->hdr->kicks);
    for (uint32_t i = 0; i < r->shm->hdr->flight_count; i++)
        recorder_look(r, i);
}

/* --- the end --------------------------------------------------------------------------
 */

/* Whether another process still uses the segment. */
static bool others_live(const struct recorder *r)
{
    bool orphaned = child_orphaned(r->ctx);

    for (uint32_t i = 0; i < SHM_SLOTS; i++) {
        const struct shm_slot *slot = &r->shm->slots[i];
        pid_t pid = (pid_t)atomic_load(&slot->pid);

        if (i == r->shm->self || slot_state(r->shm, i) == SLOT_FREE)
            continue;
        /* Without a master nobody frees slots, so the processes themselves are asked. */
        if (!orphaned || (pid > 0 && (kill(pid, 0) == 0 || errno == EPERM)))
            return true;
    }
    return false;
}

/* The master is dead and so are all workers: does the master's sweep in its place. */
static void sweep_as_heir(struct recorder *r)
{
    for (uint32_t i = 0; i < SHM_SLOTS; i++) {
        if (i != r->shm->self && slot_state(r->shm, i) != SLOT_FREE)
            slot_sweep(r->shm, i);
    }
}

static void step_to_end(struct recorder *r, uint64_t now_ns)
{
    const struct config *cfg = r->ctx->config;
    uint64_t patience = cfg->drain_timeout_ns + cfg->done_timeout_ns + HEIR_WAIT_NS;
    bool orphaned = child_orphaned(r->ctx);

    if (r->stopping_ns == 0 && orphaned)
        r->stopping_ns = now_ns;
    if (r->stopping_ns == 0)
        return;
    if (r->finishing_ns == 0) {
        if (others_live(r) && !(orphaned && now_ns - r->stopping_ns > patience))
            return;
        r->finishing_ns = now_ns;
        if (orphaned && !others_live(r))
            sweep_as_heir(r);
        look_at_all(r);
        recorder_collect_counts(r);
    }
    if (!recorder_has_work(r) && !store_busy(r->store)) {
        r->over = true;
    } else if (now_ns - r->finishing_ns > cfg->done_timeout_ns) {
        log_error(0, "%zu flights could not be stored before the end: %s",
                  r->pending_count + r->late_count, store_error(r->store));
        r->over = true;
    }
    if (r->over)
        event_base_loopbreak(r->base);
}

const struct log_about *recorder_about(const struct recorder *r, uint32_t flight,
                                       const char *org, struct flight_about *out)
{
    const struct trace trace = flight_trace(r->shm, flight);
    struct id turn;

    memcpy(turn.b, flight_at(r->shm, flight)->turn_id, sizeof(turn.b));
    id_format(&turn, out->turn);
    trace_format_id(&trace, out->trace);
    out->about = (struct log_about){.turn = out->turn, .org = org, .trace = out->trace};
    return &out->about;
}

/* --- events ---------------------------------------------------------------------------
 */

static void arm_again(struct recorder *r, uint64_t delay_ns)
{
    struct timeval tv = {.tv_sec = (time_t)(delay_ns / NS_PER_S),
                         .tv_usec = (suseconds_t)(delay_ns % NS_PER_S / NS_PER_US)};

    event_add(r->again, &tv);
}

/* Frees flights where they run short. While a batch is being written less often: those
 * that it holds can go once it is stored. */
static void make_room(struct recorder *r, uint64_t now_ns)
{
    const struct shm_header *hdr = r->shm->hdr;
    bool half_full = atomic_load(&hdr->flights_used) > hdr->flight_count / 2 ||
                     blocks_free_hint(r->shm) < hdr->block_count / 2 ||
                     alias_used_hint(r->shm) > hdr->alias_count / 2;
    bool writing = store_busy(r->store);

    if (writing && now_ns - r->recycled_ns < WRITING_RECYCLE_NS)
        return;
    if (atomic_load(&hdr->pressure) ||
        (half_full && now_ns - r->recycled_ns > RECYCLE_INTERVAL_NS))
        recorder_recycle(r, now_ns);
}

/* Comes back to what waits, unless the end of a batch, or of an outage, will do that. */
static void come_again(struct recorder *r, uint64_t now_ns)
{
    if (store_busy(r->store) || !store_up(r->store) || !recorder_has_work(r))
        return;
    arm_again(r, r->retry_at_ns > now_ns ? r->retry_at_ns - now_ns : 0);
}

void recorder_continue(struct recorder *r)
{
    uint64_t now = clock_now_ns();

    make_room(r, now);
    come_again(r, now);
    step_to_end(r, now);
}

static void work(struct recorder *r)
{
    recorder_store(r, clock_now_ns());
    recorder_continue(r);
}

static void on_wake(evutil_socket_t fd, short what, void *arg)
{
    struct recorder *r = arg;

    (void)fd, (void)what;
    wake_begin(r->shm);
    recorder_take_dirty(r);
    wake_take_pacers(r->shm);
    if (atomic_load(&r->shm->hdr->kicks) != r->kicks)
        look_at_all(r);
    work(r);
}

void recorder_note_store(struct recorder *r)
{
    struct shm_store *to = &r->shm->hdr->store;
    struct store_stats s;

    store_stats(r->store, &s);
    atomic_store_explicit(&to->up, s.up, memory_order_relaxed);
    atomic_store_explicit(&to->spool_full, s.spool_full, memory_order_relaxed);
    atomic_store_explicit(&to->spool_rows, s.spool_rows, memory_order_relaxed);
    atomic_store_explicit(&to->spool_bytes, s.spool_bytes, memory_order_relaxed);
    atomic_store_explicit(&to->spool_oldest_us, (uint64_t)s.spool_oldest_us,
                          memory_order_relaxed);
    if (s.reconnects > r->reconnects)
        shm_count(r->shm, SHM_C_store_reconnects, s.reconnects - r->reconnects);
    r->reconnects = s.reconnects;
}

static void on_beat(evutil_socket_t fd, short what, void *arg)
{
    struct recorder *r = arg;
    uint64_t now = clock_now_ns();

    (void)fd, (void)what;
    slot_beat(r->shm, now);
    log_tick(now);
    (void)child_live(r->ctx, &r->live_seen);
    recorder_note_store(r);
    look_at_all(r);
    recorder_recycle(r, now);
    work(r);
}

static void on_again(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    work(arg);
}

static void on_tidy(evutil_socket_t fd, short what, void *arg)
{
    struct recorder *r = arg;

    (void)fd, (void)what;
    store_tidy(r->store);
}

void recorder_tidy_soon(struct recorder *r)
{
    const struct timeval tv = {.tv_usec = (suseconds_t)(TIDY_AFTER_NS / NS_PER_US)};

    if (!event_pending(r->tidy, EV_TIMEOUT, NULL))
        event_add(r->tidy, &tv);
}

static void on_stop(void *arg)
{
    struct recorder *r = arg;
    uint64_t now = clock_now_ns();

    if (r->stopping_ns == 0)
        r->stopping_ns = now;
    step_to_end(r, now);
}

/* --- life -----------------------------------------------------------------------------
 */

static bool make_events(struct recorder *r)
{
    const struct timeval beat = {.tv_usec = (suseconds_t)(BEAT_NS / NS_PER_US)};

    r->wake = event_new(r->base, r->shm->eventfd[r->shm->self], EV_READ | EV_PERSIST,
                        on_wake, r);
    r->beat = event_new(r->base, -1, EV_PERSIST, on_beat, r);
    r->again = event_new(r->base, -1, 0, on_again, r);
    r->tidy = event_new(r->base, -1, 0, on_tidy, r);
    return r->wake && r->beat && r->again && r->tidy && event_add(r->wake, NULL) == 0 &&
           event_add(r->beat, &beat) == 0 &&
           child_stop_init(&r->stop, r->base, on_stop, r) == DAC_OK;
}

static bool make_tables(struct recorder *r)
{
    uint32_t n = r->shm->hdr->flight_count;

    r->notes = calloc(n, sizeof(*r->notes));
    r->pending = calloc(n, sizeof(*r->pending));
    r->late = calloc(n, sizeof(*r->late));
    r->counts = calloc(COUNTS_MAX, sizeof(*r->counts));
    r->candidates = recorder_recycle_table(n);
    r->batch = recorder_batch_new();
    r->keys = recorder_keys_new();
    return r->notes && r->pending && r->late && r->counts && r->candidates && r->batch &&
           r->keys;
}

static void store_lives(void *arg)
{
    struct recorder *r = arg;

    slot_beat(r->shm, clock_now_ns());
}

static void begin_work(struct recorder *r)
{
    r->ready = true;
    recorder_count_deaths(r);
    sample_recover(r->shm);
    look_at_all(r);
    recorder_note_store(r);
    child_ready(r->ctx);
    arm_again(r, 0);
}

/* PostgreSQL is there, or is not. A service that starts does so also without it, but not
 * on a database that is newer than the program. */
static void on_store_changed(void *arg)
{
    struct recorder *r = arg;

    if (r->store)
        recorder_note_store(r);
    if (!r->ready && r->ctx->starting && store_refused(r->store)) {
        r->failed = child_fail(r->ctx, "%s", store_error(r->store));
        event_base_loopbreak(r->base);
    } else if (!r->ready) {
        begin_work(r);
    } else if (store_up(r->store)) {
        r->retry_at_ns = 0;
        arm_again(r, 0);
    }
}

/* Opens the store and brings it up to date; until then workers have no store to read.
 * The recorder of a master that was killed may have stopped in the middle of a commit:
 * its lock is waited for, since a start must not depend on that. PostgreSQL is connected
 * and migrated from the loop. */
static int open_store(struct recorder *r)
{
    const struct config *cfg = r->ctx->config;
    const struct store_options opt = {.postgres = cfg->postgres,
                                      .application = "dac: recorder",
                                      .sqlite = cfg->sqlite,
                                      .spool = cfg->spool,
                                      .spool_max_bytes = cfg->spool_max_bytes,
                                      .thread_cache = cfg->thread_cache,
                                      .alive = store_lives,
                                      .changed = on_store_changed,
                                      .arg = r};
    uint64_t until = clock_now_ns() + STORE_WAIT_NS;
    char why[512] = "";
    bool told = false;
    enum dac_err e;

    do {
        slot_beat(r->shm, clock_now_ns());
        e = r->store ? DAC_OK : store_open(r->base, &opt, &r->store, why, sizeof(why));
        if (e == DAC_OK)
            e = store_migrate(r->store, why, sizeof(why));
        if (e == DAC_E_BUSY && !told)
            log_warn(0, "%s; waiting for it", why);
        told = told || e == DAC_E_BUSY;
    } while (e == DAC_E_BUSY && clock_now_ns() < until && !child_orphaned(r->ctx));
    return e == DAC_OK ? EXIT_OK : child_fail(r->ctx, "%s", why);
}

static void recorder_free(struct recorder *r)
{
    child_stop_free(&r->stop);
    if (r->wake)
        event_free(r->wake);
    if (r->beat)
        event_free(r->beat);
    if (r->again)
        event_free(r->again);
    if (r->tidy)
        event_free(r->tidy);
    if (r->ready)
        store_tidy(r->store);
    store_close(r->store);
    if (r->batch)
        recorder_put_down(r);
    recorder_batch_free(r->batch);
    if (r->base)
        event_base_free(r->base);
    free(r->notes);
    free(r->pending);
    free(r->late);
    free(r->keys);
    free(r->counts);
    free(r->candidates);
}

int recorder_run(const struct child_context *ctx)
{
    struct recorder r = {.ctx = ctx, .shm = ctx->shm, .stop = {.fd = -1}};
    int rc;

    listeners_close(ctx->listeners); /* it accepts nobody, and must not hold a port */
    r.base = event_base_new();
    if (!r.base) {
        rc = child_fail(ctx, "could not make the recorder's event loop");
        goto out;
    }
    rc = open_store(&r);
    if (rc != EXIT_OK)
        goto out;
    if (!make_tables(&r) || !make_events(&r)) {
        rc = child_fail(ctx, "could not set up the recorder: %s", strerror(errno));
        goto out;
    }
    if (store_up(r.store))
        begin_work(&r);
    if (event_base_dispatch(r.base) != 0 || (!r.over && r.failed == EXIT_OK))
        rc = child_fail(ctx, "the recorder's event loop failed: %s", strerror(errno));
    else if (r.failed != EXIT_OK)
        rc = r.failed;
    else if (r.pending_count > 0 || r.late_count > 0)
        rc = EXIT_START;
out:
    recorder_free(&r);
    return rc;
}
