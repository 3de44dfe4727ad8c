/*
 * What an operator is to see first: each line says what is wrong, and where to look or
 * what to do. Every number is one load.
 */
#include <stdarg.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "dacctl.h"
#include "shm/blocklog.h"
#include "shm/flight.h"
#include "shm/pacer.h"
#include "shm/slot.h"

#define STALE_NS       NS_PER_S /* without a beat: others accept in its place */
#define NEARLY_PCT     90
#define LINE_MAX_BYTES 256

/* Lines for people, or members of an array. */
struct problems {
    struct buf *out;
    bool json;
    size_t n;
};

static void DAC_PRINTF(2, 3) problem(struct problems *p, const char *fmt, ...)
{
    char line[LINE_MAX_BYTES];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    if (p->json) {
        if (p->n > 0)
            buf_puts(p->out, ",");
        json_put_string(p->out, line, strlen(line));
    } else {
        buf_printf(p->out, "PROBLEM    %s\n", line);
    }
    p->n++;
}

/* By a signal or a debugger. False also where /proc does not show it. */
static bool is_stopped(int pid)
{
    char path[32], line[512] = "";
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    f = fopen(path, "re");
    if (!f)
        return false;
    if (!fgets(line, sizeof(line), f))
        line[0] = '\0';
    fclose(f);
    const char *state = strrchr(line, ')'); /* its name is in parentheses */

    return state && (strncmp(state, ") T", 3) == 0 || strncmp(state, ") t", 3) == 0);
}

static void look_at_master(struct problems *p, const struct shm *shm)
{
    int pid = (int)atomic_load(&shm->hdr->master_pid);

    if (!dacctl_master_alive(shm))
        problem(p, "the master (pid %d) is dead: start the service again", pid);
    else if (is_stopped(pid))
        problem(p,
                "the master (pid %d) is stopped: nothing is restarted or reloaded; "
                "kill -CONT %d, or restart the service",
                pid, pid);
    if (atomic_load(&shm->hdr->lock_lost))
        problem(
            p, "a lock of shared memory is lost: the master is renewing it, see its log");
}

static void look_at_processes(struct problems *p, const struct shm *shm)
{
    uint64_t now = clock_now_ns();
    uint32_t serving = 0;

    for (uint32_t i = 0; i < SHM_WORKERS_MAX; i++)
        serving +=
            slot_accepting(shm, atomic_load(&shm->hdr->ordinal_slot[i]), now, STALE_NS);
    if (serving < atomic_load(&shm->hdr->worker_count) &&
        !atomic_load(&shm->hdr->draining))
        problem(
            p,
            "%" PRIu32 " of %" PRIu32
            " workers serve: the others start, stand still or keep dying, see the log",
            serving, atomic_load(&shm->hdr->worker_count));
    if (slot_state(shm, atomic_load(&shm->hdr->recorder_slot)) != SLOT_READY)
        problem(p, "the recorder is not ready: nothing is stored, answers do not end");
}

static void look_at_store(struct problems *p, const struct shm *shm)
{
    const struct shm_store *s = &shm->hdr->store;
    uint64_t oldest = atomic_load(&s->spool_oldest_us);
    int64_t now_us = clock_wall_us();

    if (!atomic_load(&s->up))
        problem(p,
                "the database takes nothing; turns go to the spool: %" PRIu64
                " rows wait, the oldest for %.0f s",
                atomic_load(&s->spool_rows),
                oldest > 0 ? (double)(now_us - (int64_t)oldest) / 1e6 : 0);
    if (atomic_load(&s->spool_full))
        problem(
            p, "the spool is full: new questions are refused until the database is back, "
               "or raise spool_max");
}

static void look_at_memory(struct problems *p, const struct shm *shm)
{
    uint32_t used = 0, blocks = 0;

    for (uint32_t i = 0; i < shm->hdr->flight_count; i++)
        used += flight_load(shm, i).state != FLIGHT_FREE;
    for (uint32_t i = 0; i < shm->hdr->block_count; i++)
        blocks += !block_is_free(shm, i);
    if ((uint64_t)used * 100 >= (uint64_t)shm->hdr->flight_count * NEARLY_PCT)
        problem(p, "%" PRIu32 " of %" PRIu32 " flights are used: raise max_flights", used,
                shm->hdr->flight_count);
    if ((uint64_t)blocks * 100 >= (uint64_t)shm->hdr->block_count * NEARLY_PCT)
        problem(p, "%" PRIu32 " of %" PRIu32 " blocks are used: raise shm_size", blocks,
                shm->hdr->block_count);
}

static void look_at_providers(struct problems *p, const struct shm *shm)
{
    uint64_t now = clock_now_ns();

    for (uint32_t i = 0; i < atomic_load(&shm->hdr->provider_count); i++) {
        uint64_t until = atomic_load(&shm->pacers[i].paused_until_ns);

        if (until > now)
            problem(p, "provider %.31s is not called for %.1f s: %s",
                    shm->hdr->provider_names[i], (double)(until - now) / (double)NS_PER_S,
                    dacctl_pause_reason(&shm->pacers[i]));
    }
}

static void look(struct problems *p, const struct shm *shm)
{
    look_at_master(p, shm);
    look_at_processes(p, shm);
    look_at_store(p, shm);
    look_at_memory(p, shm);
    look_at_providers(p, shm);
}

size_t dacctl_text_problems(const struct shm *shm, struct buf *out)
{
    struct problems p = {.out = out};

    look(&p, shm);
    return p.n;
}

void dacctl_json_problems(const struct shm *shm, struct buf *out)
{
    struct problems p = {.out = out, .json = true};

    buf_puts(out, "[");
    look(&p, shm);
    buf_puts(out, "]");
}
