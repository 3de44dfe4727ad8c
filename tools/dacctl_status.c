/*
 * `dacctl status`: what is wrong, the processes, what the flights are doing, how full
 * memory is, the store and the providers' limits, on one screen; `dacctl counters` the
 * rest. Every number is one load; they need not fit each other to the last one, since the
 * service goes on meanwhile.
 */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "config.h"
#include "dacctl.h"
#include "shm/blocklog.h"
#include "shm/flight.h"
#include "shm/pacer.h"
#include "shm/slot.h"

struct tally {
    uint32_t states[FLIGHT_STATE_COUNT];
    uint32_t unstored; /* ended, and not in the store yet */
    uint32_t blocks_used;
};

static struct tally count_all(const struct shm *shm)
{
    struct tally t = {0};

    for (uint32_t i = 0; i < shm->hdr->flight_count; i++) {
        struct flight_word w = flight_load(shm, i);

        if ((unsigned)w.state < FLIGHT_STATE_COUNT)
            t.states[w.state]++;
        if (flight_state_ended(w.state) &&
            atomic_load(&shm->flights[i].stored) == STORED_NO)
            t.unstored++;
    }
    for (uint32_t i = 0; i < shm->hdr->block_count; i++)
        t.blocks_used += !block_is_free(shm, i);
    return t;
}

static const char *slot_state_name(enum slot_state s)
{
    static const char *const names[] = {[SLOT_FREE] = "free",
                                        [SLOT_STARTING] = "starting",
                                        [SLOT_READY] = "ready",
                                        [SLOT_DRAINING] = "draining",
                                        [SLOT_DEAD] = "dead"};

    return (unsigned)s < DAC_ARRAY_LEN(names) ? names[s] : "invalid";
}

static const char *kind_name(uint32_t kind)
{
    return kind == SLOT_WORKER ? "worker" : kind == SLOT_RECORDER ? "recorder" : "?";
}

bool dacctl_master_alive(const struct shm *shm)
{
    pid_t pid = (pid_t)atomic_load(&shm->hdr->master_pid);

    return pid > 0 && (kill(pid, 0) == 0 || errno == EPERM);
}

static double seconds_since(uint64_t then_ns)
{
    uint64_t now = clock_now_ns();

    return now > then_ns ? (double)(now - then_ns) / (double)NS_PER_S : 0;
}

double dacctl_rps(const struct shm_pacer *p)
{
    uint64_t interval = atomic_load(&p->interval_ns);

    return interval > 0 ? (double)NS_PER_S / (double)interval : 0;
}

double dacctl_paused_s(const struct shm_pacer *p)
{
    uint64_t until = atomic_load(&p->paused_until_ns);
    uint64_t now = clock_now_ns();

    return until > now ? (double)(until - now) / (double)NS_PER_S : 0;
}

/* --- for people
 * ------------------------------------------------------------------------- */

static void text_slots(const struct shm *shm, struct buf *out)
{
    buf_printf(out, "\n%-5s %-12s %8s %-9s %9s %12s %8s\n", "slot", "process", "pid",
               "state", "beat", "connections", "streams");
    for (uint32_t i = 0; i < SHM_SLOTS; i++) {
        const struct shm_slot *s = &shm->slots[i];
        enum slot_state state = slot_state(shm, i);
        char name[32];

        if (state == SLOT_FREE)
            continue;
        snprintf(name, sizeof(name), "%s", kind_name(atomic_load(&s->kind)));
        if (atomic_load(&s->kind) == SLOT_WORKER)
            snprintf(name, sizeof(name), "worker %" PRIu32, atomic_load(&s->ordinal));
        buf_printf(out,
                   "%-5" PRIu32 " %-12s %8" PRIu32 " %-9s %7.2f s %12" PRIu64 " %8" PRIu64
                   "\n",
                   i, name, atomic_load(&s->pid), slot_state_name(state),
                   seconds_since(atomic_load(&s->beat_ns)), atomic_load(&s->connections),
                   atomic_load(&s->streams));
    }
}

static void text_providers(const struct shm *shm, struct buf *out)
{
    if (atomic_load(&shm->hdr->provider_count) > 0)
        buf_printf(out, "\n%-31s %11s %11s %8s %9s\n", "provider", "calls now",
                   "concurrency", "rps", "paused");
    for (uint32_t i = 0; i < atomic_load(&shm->hdr->provider_count); i++) {
        const struct shm_pacer *p = &shm->pacers[i];

        buf_printf(out, "%-31.31s %11" PRIu32 " %11" PRIu32 " %8.3g %7.1f s\n",
                   shm->hdr->provider_names[i], pacer_in_flight(shm, i),
                   atomic_load(&p->concurrency), dacctl_rps(p), dacctl_paused_s(p));
    }
}

/* What died, and what became of that. */
static void text_deaths(const struct shm *shm, struct buf *out)
{
    const char *comma = " (";

    buf_printf(out, "deaths     %" PRIu64 " restarts", shm_restarts_sum(shm));
    for (unsigned kind = SLOT_WORKER; kind < SHM_KINDS; kind++) {
        for (unsigned i = 0; i < RESTART_REASON_COUNT; i++) {
            uint64_t n = atomic_load(&shm->hdr->restarts[kind][i]);

            if (n == 0)
                continue;
            buf_printf(out, "%s%s %s %" PRIu64, comma, kind_name(kind),
                       shm_restart_reason_name((enum restart_reason)i), n);
            comma = ", ";
        }
    }
    buf_printf(out,
               "%s; %" PRIu64 " flights orphaned, %" PRIu64 " taken over, %" PRIu64
               " locks recovered\n",
               comma[0] == ',' ? ")" : "", shm_counter_sum(shm, SHM_C_flights_orphaned),
               shm_counter_sum(shm, SHM_C_takeovers),
               shm_counter_sum(shm, SHM_C_lock_recoveries));
}

/* How many buckets are lost. */
static uint32_t count_lost(const struct shm *shm)
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < shm->hdr->bucket_count; i++)
        n += atomic_load(&shm->buckets[i].lost) != 0;
    return n;
}

/* Nothing, most of the time. */
static void text_renewals(const struct shm *shm, struct buf *out)
{
    uint32_t renewals = atomic_load(&shm->hdr->renewals);

    if (atomic_load(&shm->hdr->lock_lost))
        buf_printf(
            out,
            "locks      %" PRIu32 " of %" PRIu32
            " can never be had again; their questions are refused until the master "
            "has renewed this memory\n",
            count_lost(shm), shm->hdr->bucket_count);
    if (renewals > 0)
        buf_printf(out,
                   "renewals   this memory was renewed %" PRIu32
                   " times because a lock was lost\n",
                   renewals);
}

static void text_store(const struct shm *shm, struct buf *out)
{
    const struct shm_store *s = &shm->hdr->store;
    uint64_t rows = atomic_load(&s->spool_rows);

    buf_printf(out, "store      %s", atomic_load(&s->up) ? "takes turns" : "away");
    if (rows > 0)
        buf_printf(out, ", %" PRIu64 " rows in the spool, %.1f MiB", rows,
                   (double)atomic_load(&s->spool_bytes) / 1048576.0);
    buf_printf(out, "; %" PRIu64 " rows committed in %" PRIu64 " commits\n",
               shm_counter_sum(shm, SHM_C_store_rows),
               shm_counter_sum(shm, SHM_C_store_commits));
}

static void text_uptime(double s, struct buf *out)
{
    uint64_t n = (uint64_t)s;

    if (n >= 86400)
        buf_printf(out, "up %" PRIu64 " d %" PRIu64 " h", n / 86400, n % 86400 / 3600);
    else if (n >= 3600)
        buf_printf(out, "up %" PRIu64 " h %" PRIu64 " min", n / 3600, n % 3600 / 60);
    else if (n >= 60)
        buf_printf(out, "up %" PRIu64 " min %" PRIu64 " s", n / 60, n % 60);
    else
        buf_printf(out, "up %" PRIu64 " s", n);
}

void dacctl_text_overview(const struct shm *shm, struct buf *out)
{
    const struct shm_header *hdr = shm->hdr;
    struct tally t = count_all(shm);

    if (dacctl_text_problems(shm, out) > 0)
        buf_puts(out, "\n");
    buf_printf(out, "instance   %.63s, DAC %s%s\n", hdr->name, DAC_VERSION,
               atomic_load(&hdr->draining) ? ", stopping" : "");
    buf_printf(out, "master     pid %" PRIu32 "%s, ", atomic_load(&hdr->master_pid),
               dacctl_master_alive(shm) ? "" : " (dead)");
    text_uptime(seconds_since(hdr->created_ns), out);
    buf_puts(out, "\n");
    text_deaths(shm, out);
    text_renewals(shm, out);
    buf_printf(out, "memory     %.1f MiB, blocks %" PRIu32 " of %" PRIu32 " used\n",
               (double)hdr->total_size / 1048576.0, t.blocks_used, hdr->block_count);
    buf_printf(out, "flights    %" PRIu32 " of %" PRIu32 " used",
               hdr->flight_count - t.states[FLIGHT_FREE], hdr->flight_count);
    for (unsigned s = FLIGHT_CLAIMED; s < FLIGHT_STATE_COUNT; s++) {
        if (t.states[s] > 0)
            buf_printf(out, ", %" PRIu32 " %s", t.states[s],
                       flight_state_name((enum flight_state)s));
    }
    buf_printf(out, "; %" PRIu32 " to be stored\n", t.unstored);
    text_store(shm, out);
    text_slots(shm, out);
    text_providers(shm, out);
}

/* --- for programs
 * ----------------------------------------------------------------------- */

static void json_slots(const struct shm *shm, struct buf *out)
{
    const char *comma = "";

    buf_puts(out, ",\"processes\":[");
    for (uint32_t i = 0; i < SHM_SLOTS; i++) {
        const struct shm_slot *s = &shm->slots[i];
        enum slot_state state = slot_state(shm, i);

        if (state == SLOT_FREE)
            continue;
        buf_printf(
            out,
            "%s{\"slot\":%" PRIu32 ",\"kind\":\"%s\",\"ordinal\":%" PRIu32
            ",\"pid\":%" PRIu32 ",\"state\":\"%s\",\"generation\":%" PRIu32
            ",\"beat_age_ms\":%.0f,\"connections\":%" PRIu64 ",\"streams\":%" PRIu64 "}",
            comma, i, kind_name(atomic_load(&s->kind)), atomic_load(&s->ordinal),
            atomic_load(&s->pid), slot_state_name(state), atomic_load(&s->generation),
            seconds_since(atomic_load(&s->beat_ns)) * 1000, atomic_load(&s->connections),
            atomic_load(&s->streams));
        comma = ",";
    }
    buf_puts(out, "]");
}

static void json_providers(const struct shm *shm, struct buf *out)
{
    buf_puts(out, ",\"providers\":[");
    for (uint32_t i = 0; i < atomic_load(&shm->hdr->provider_count); i++) {
        const struct shm_pacer *p = &shm->pacers[i];
        const char *name = shm->hdr->provider_names[i];

        buf_puts(out, i > 0 ? ",{\"name\":" : "{\"name\":");
        json_put_string(out, name, strnlen(name, sizeof(shm->hdr->provider_names[i])));
        buf_printf(out,
                   ",\"in_flight\":%" PRIu32 ",\"concurrency\":%" PRIu32
                   ",\"rps\":%.6g,\"paused_ms\":%.0f}",
                   pacer_in_flight(shm, i), atomic_load(&p->concurrency), dacctl_rps(p),
                   dacctl_paused_s(p) * 1000);
    }
    buf_puts(out, "]");
}

static void json_restarts(const struct shm *shm, struct buf *out)
{
    for (unsigned kind = SLOT_WORKER; kind < SHM_KINDS; kind++) {
        buf_printf(out, "%s\"%s\":{", kind > SLOT_WORKER ? "," : "{", kind_name(kind));
        for (unsigned i = 0; i < RESTART_REASON_COUNT; i++)
            buf_printf(out, "%s\"%s\":%" PRIu64, i > 0 ? "," : "",
                       shm_restart_reason_name((enum restart_reason)i),
                       atomic_load(&shm->hdr->restarts[kind][i]));
        buf_puts(out, "}");
    }
    buf_puts(out, "}");
}

static void json_counters(const struct shm *shm, struct buf *out)
{
    for (unsigned c = 0; c < SHM_C_COUNT; c++)
        buf_printf(out, "%s\"%s\":%" PRIu64, c > 0 ? "," : "{",
                   shm_counter_name((enum shm_counter)c),
                   shm_counter_sum(shm, (enum shm_counter)c));
    buf_puts(out, "}");
}

static void json_status(const struct shm *shm, struct buf *out)
{
    const struct shm_header *hdr = shm->hdr;
    struct tally t = count_all(shm);

    buf_puts(out, "{\"instance\":");
    json_put_string(out, hdr->name, strnlen(hdr->name, sizeof(hdr->name)));
    buf_puts(out, ",\"version\":\"" DAC_VERSION "\",\"problems\":");
    dacctl_json_problems(shm, out);
    buf_printf(out,
               ",\"master_pid\":%" PRIu32 ",\"master_alive\":%s,\"draining\":%s"
               ",\"uptime_s\":%.3f,\"restarts\":%" PRIu64 ",\"restarts_by\":",
               atomic_load(&hdr->master_pid), dacctl_master_alive(shm) ? "true" : "false",
               atomic_load(&hdr->draining) ? "true" : "false",
               seconds_since(hdr->created_ns), shm_restarts_sum(shm));
    json_restarts(shm, out);
    buf_printf(out, ",\"renewals\":%" PRIu32 ",\"locks_lost\":%" PRIu32,
               atomic_load(&hdr->renewals), count_lost(shm));
    buf_printf(out,
               ",\"shm_bytes\":%" PRIu64 ",\"blocks\":{\"total\":%" PRIu32
               ",\"used\":%" PRIu32 "}",
               hdr->total_size, hdr->block_count, t.blocks_used);
    buf_printf(out, ",\"flights\":{\"total\":%" PRIu32 ",\"unstored\":%" PRIu32,
               hdr->flight_count, t.unstored);
    for (unsigned s = FLIGHT_FREE; s < FLIGHT_STATE_COUNT; s++)
        buf_printf(out, ",\"%s\":%" PRIu32, flight_state_name((enum flight_state)s),
                   t.states[s]);
    buf_puts(out, "}");
    json_slots(shm, out);
    json_providers(shm, out);
    buf_puts(out, ",\"store\":{\"up\":");
    buf_puts(out, atomic_load(&hdr->store.up) ? "true" : "false");
    buf_printf(
        out, ",\"spool_full\":%s,\"spool_rows\":%" PRIu64 ",\"spool_bytes\":%" PRIu64 "}",
        atomic_load(&hdr->store.spool_full) ? "true" : "false",
        atomic_load(&hdr->store.spool_rows), atomic_load(&hdr->store.spool_bytes));
    buf_puts(out, ",\"counters\":");
    json_counters(shm, out);
    buf_puts(out, "}\n");
}

int dacctl_counters(struct shm *shm, const char *name, bool json, struct buf *out)
{
    (void)name;
    for (unsigned c = 0; !json && c < SHM_C_COUNT; c++)
        buf_printf(out, "%-22s %12" PRIu64 "  %s\n",
                   shm_counter_name((enum shm_counter)c),
                   shm_counter_sum(shm, (enum shm_counter)c),
                   shm_counter_help((enum shm_counter)c));
    if (json) {
        json_counters(shm, out);
        buf_puts(out, "\n");
    }
    return 0;
}

int dacctl_status(struct shm *shm, const char *name, bool json, struct buf *out)
{
    (void)name;
    if (json)
        json_status(shm, out);
    else
        dacctl_text_overview(shm, out);
    return 0;
}
