/*
 * `dacctl pacer`: each provider's limits, what is left of them this moment, whose calls
 * are under way, who waits, and why nobody is called if so.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "dacctl.h"
#include "shm/flight.h"
#include "shm/pacer.h"

struct usage {
    uint32_t by_slot[SHM_SLOTS];
    uint32_t calls;
    uint32_t waiting; /* flights in the queue */
};

const char *dacctl_pause_reason(const struct shm_pacer *p)
{
    static const char *const reasons[] = {
        [PACER_UNPAUSED] = "no reason is known",
        [PACER_RATE_LIMITED] = "it said 429",
        [PACER_HANDED_OVER] = "calls of the memory before this one use its limits up"};
    uint32_t reason = atomic_load(&p->pause_reason);

    return reasons[reason < PACER_REASON_COUNT ? reason : PACER_UNPAUSED];
}

static struct usage count(const struct shm *shm, uint32_t provider)
{
    struct usage u = {0};

    for (uint32_t i = 0; i < SHM_PERMITS_MAX; i++) {
        uint64_t word = atomic_load(&shm->pacers[provider].permits[i]);
        uint32_t slot = (uint32_t)(word >> 56);

        if (word == 0 || slot == 0 || slot > SHM_SLOTS)
            continue;
        u.by_slot[slot - 1]++;
        u.calls++;
    }
    for (uint32_t i = 0; i < shm->hdr->flight_count; i++)
        u.waiting += flight_load(shm, i).state == FLIGHT_QUEUED &&
                     atomic_load(&shm->flights[i].provider) == provider;
    return u;
}

static uint64_t burst_of(const struct shm_pacer *p)
{
    uint64_t interval = atomic_load(&p->interval_ns);

    return interval > 0 ? atomic_load(&p->tolerance_ns) / interval + 1 : 0;
}

static void text_pacer(const struct shm *shm, uint32_t i, struct buf *out)
{
    const struct shm_pacer *p = &shm->pacers[i];
    struct usage u = count(shm, i);
    uint32_t tokens = pacer_tokens(shm, i, clock_now_ns());

    buf_printf(out, "%.31s\n", shm->hdr->provider_names[i]);
    if (tokens == UINT32_MAX)
        buf_puts(out, "  rate       no limit\n");
    else
        buf_printf(out,
                   "  rate       %.6g calls a second, bursts of %" PRIu64 "; %" PRIu32
                   " may start now\n",
                   dacctl_rps(p), burst_of(p), tokens);
    buf_printf(out, "  calls      %" PRIu32 " of %" PRIu32, u.calls,
               atomic_load(&p->concurrency));
    for (uint32_t s = 0; s < SHM_SLOTS; s++)
        if (u.by_slot[s] > 0)
            buf_printf(out, ", %" PRIu32 " by worker %" PRIu32 " (pid %" PRIu32 ")",
                       u.by_slot[s], atomic_load(&shm->slots[s].ordinal),
                       atomic_load(&shm->slots[s].pid));
    buf_printf(out, "\n  waiting    %" PRIu32 " questions\n", u.waiting);
    if (dacctl_paused_s(p) > 0)
        buf_printf(out, "  paused     for %.1f s: %s\n", dacctl_paused_s(p),
                   dacctl_pause_reason(p));
}

static void json_pacer(const struct shm *shm, uint32_t i, struct buf *out)
{
    const struct shm_pacer *p = &shm->pacers[i];
    const char *name = shm->hdr->provider_names[i], *comma = "";
    struct usage u = count(shm, i);
    uint32_t tokens = pacer_tokens(shm, i, clock_now_ns());

    buf_puts(out, "{\"name\":");
    json_put_string(out, name, strnlen(name, sizeof(shm->hdr->provider_names[i])));
    buf_printf(out, ",\"rps\":%.6g,\"burst\":%" PRIu64 ",\"tokens\":", dacctl_rps(p),
               burst_of(p));
    if (tokens == UINT32_MAX)
        buf_puts(out, "null");
    else
        buf_printf(out, "%" PRIu32, tokens);
    buf_printf(out,
               ",\"concurrency\":%" PRIu32 ",\"calls\":%" PRIu32 ",\"waiting\":%" PRIu32
               ",\"paused_ms\":%.0f,\"pause_reason\":",
               atomic_load(&p->concurrency), u.calls, u.waiting,
               dacctl_paused_s(p) * 1000);
    if (dacctl_paused_s(p) > 0)
        json_put_string(out, dacctl_pause_reason(p), strlen(dacctl_pause_reason(p)));
    else
        buf_puts(out, "null");
    buf_puts(out, ",\"calls_by\":[");
    for (uint32_t s = 0; s < SHM_SLOTS; s++) {
        if (u.by_slot[s] == 0)
            continue;
        buf_printf(out,
                   "%s{\"slot\":%" PRIu32 ",\"worker\":%" PRIu32 ",\"pid\":%" PRIu32
                   ",\"calls\":%" PRIu32 "}",
                   comma, s, atomic_load(&shm->slots[s].ordinal),
                   atomic_load(&shm->slots[s].pid), u.by_slot[s]);
        comma = ",";
    }
    buf_puts(out, "]}");
}

int dacctl_pacer(struct shm *shm, const char *name, bool json, struct buf *out)
{
    uint32_t n = atomic_load(&shm->hdr->provider_count);

    (void)name;
    if (json)
        buf_puts(out, "{\"pacers\":[");
    else if (n == 0)
        buf_puts(out, "no provider is configured\n");
    for (uint32_t i = 0; i < n; i++) {
        if (json && i > 0)
            buf_puts(out, ",");
        (json ? json_pacer : text_pacer)(shm, i, out);
    }
    if (json)
        buf_puts(out, "]}\n");
    return 0;
}
