/*
 * See systemd.h. A few datagrams need no library: libsystemd would bring half a dozen
 * others into the process that holds everything together.
 */
#include "process/systemd.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "process/notify.h"
#include "shm/slot.h"

#define STATUS_TICKS 8 /* 2 s between two lines, if they differ */
#define EXTEND_TICKS 4 /* 1 s */
#define EXTEND       "EXTEND_TIMEOUT_USEC=15000000"

void systemd_init(struct systemd *sd)
{
    const char *usec = getenv("WATCHDOG_USEC"), *pid = getenv("WATCHDOG_PID");
    uint64_t period = usec ? strtoull(usec, NULL, 10) * NS_PER_US : 0;

    memset(sd, 0, sizeof(*sd));
    if (period == 0 || (pid && strtol(pid, NULL, 10) != (long)getpid()))
        return;
    /* Three in a period, so that one that is late is no death. */
    sd->watchdog_ticks = (uint32_t)(period / 3 / BEAT_NS);
    if (sd->watchdog_ticks == 0)
        sd->watchdog_ticks = 1;
}

static bool somebody_serves(const struct supervisor *s)
{
    for (uint32_t i = 0; i < s->serving->count; i++) {
        const struct child *c = &s->serving->workers[i];

        if (c->pid != 0 && c->ready && c->silent_ticks <= s->silence_max)
            return true;
    }
    return false;
}

static void describe(const struct generation *g, bool stopping, char *out, size_t n)
{
    const struct shm *shm = &g->shm;
    uint64_t connections = 0, streams = 0, spooled;

    for (uint32_t i = 0; i < SHM_SLOTS; i++) {
        connections += atomic_load(&shm->slots[i].connections);
        streams += atomic_load(&shm->slots[i].streams);
    }
    spooled = atomic_load(&shm->hdr->store.spool_rows);
    int len =
        snprintf(out, n,
                 "%s%" PRIu32 " workers, %" PRIu64 " connections, %" PRIu64
                 " streams, %" PRIu64 " restarts",
                 stopping ? "Stopping: " : "", supervise_ready(&g->sup, SLOT_WORKER),
                 connections, streams, shm_restarts_sum(shm));

    if (len > 0 && (size_t)len < n && !atomic_load(&shm->hdr->store.up))
        snprintf(out + len, n - (size_t)len,
                 "; the database is away, %" PRIu64 " rows wait in the spool", spooled);
}

static void tell_status(struct systemd *sd, const struct generation *g, bool stopping)
{
    char line[sizeof(sd->status)], text[sizeof(sd->status) + sizeof("STATUS=")];

    describe(g, stopping, line, sizeof(line));
    if (strcmp(line, sd->status) == 0)
        return;
    memcpy(sd->status, line, sizeof(line));
    snprintf(text, sizeof(text), "STATUS=%s", line);
    notify_send(text);
}

void systemd_tick(struct systemd *sd, struct generation *serving, bool stopping)
{
    sd->ticks++;
    if (sd->watchdog_ticks > 0 && sd->ticks % sd->watchdog_ticks == 0 &&
        (stopping || serving->phase < GENERATION_READY || somebody_serves(&serving->sup)))
        notify_send("WATCHDOG=1");
    if (stopping && sd->ticks % EXTEND_TICKS == 0)
        notify_send(EXTEND);
    if (sd->ticks % STATUS_TICKS == 0)
        tell_status(sd, serving, stopping);
}
