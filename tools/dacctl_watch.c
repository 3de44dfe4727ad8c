/*
 * `dacctl turns tail` and `dacctl top`: what goes on, until somebody has seen enough.
 * Both only look: turns are read from the ring of samples, rates are differences of
 * counters.
 */
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/ids.h"
#include "base/json.h"
#include "dacctl.h"
#include "dacctl_exit.h"
#include "shm/flight.h"
#include "shm/pacer.h"
#include "shm/sample.h"

#define TAIL_FIRST 20                /* turns that had ended before */
#define TAIL_NS    (100 * NS_PER_MS) /* between two looks */
#define TOP_NS     NS_PER_S
#define CLEAR      "\033[H\033[2J"

/* Waits, or until whoever reads has gone. */
static bool wait_a_while(uint64_t ns)
{
    struct pollfd p = {.fd = STDOUT_FILENO};
    int rc = poll(&p, 1, (int)(ns / NS_PER_MS));

    return rc >= 0 && (p.revents & (POLLERR | POLLHUP)) == 0;
}

static bool is_over(const struct shm *shm)
{
    return atomic_load(&shm->hdr->superseded) || !dacctl_master_alive(shm);
}

/* Prints what is in `out` and empties it. */
static bool flush(struct buf *out)
{
    bool ok = !out->failed &&
              (out->len == 0 || fwrite(out->data, 1, out->len, stdout) == out->len) &&
              fflush(stdout) == 0;

    out->len = 0;
    return ok;
}

/* --- turns
 * ------------------------------------------------------------------------------- */

static void put_ms(struct buf *out, const char *name, uint32_t us, bool json)
{
    if (us == UINT32_MAX)
        buf_printf(out, json ? ",\"%s_ms\":null" : "  %s -", name);
    else if (json)
        buf_printf(out, ",\"%s_ms\":%.1f", name, us / 1000.0);
    else
        buf_printf(out, "  %s %.0f ms", name, us / 1000.0);
}

static void put_turn(const struct shm *shm, const struct sample *s, bool json,
                     struct buf *out)
{
    const char *provider = s->provider < atomic_load(&shm->hdr->provider_count)
                               ? shm->hdr->provider_names[s->provider]
                               : "-";
    int64_t wall_us =
        clock_wall_us() - (int64_t)((clock_now_ns() - s->ended_ns) / NS_PER_US);
    time_t sec = (time_t)(wall_us / 1000000);
    char id[ID_TEXT_SIZE], at[32];
    struct tm tm;
    struct id turn;

    memcpy(turn.b, s->turn, sizeof(turn.b));
    id_format(&turn, id);
    gmtime_r(&sec, &tm);
    strftime(at, sizeof(at), "%Y-%m-%dT%H:%M:%S", &tm);
    if (json)
        buf_printf(out, "{\"turn_id\":\"%s\",\"ended_at\":\"%s.%03dZ\",\"status\":\"%s\"",
                   id, at, (int)(wall_us / 1000 % 1000), turn_status_name(s->status));
    else
        buf_printf(out, "%s.%03dZ %-10s %s", at, (int)(wall_us / 1000 % 1000),
                   turn_status_name(s->status), id);
    put_ms(out, "ttft", s->ttft_us, json);
    put_ms(out, "latency", s->latency_us, json);
    put_ms(out, "queue_wait", s->queue_us, json);
    if (json) {
        buf_printf(out, ",\"followers\":%" PRIu32 ",\"hits\":%" PRIu32 ",\"provider\":",
                   s->followers, s->hits);
        json_put_string(out, provider, strlen(provider));
        buf_puts(out, "}\n");
    } else {
        buf_printf(out, "  followers %" PRIu32 "  hits %" PRIu32 "  %.31s\n",
                   s->followers, s->hits, provider);
    }
}

int dacctl_turns(struct shm *shm, const char *word, bool json, struct buf *out)
{
    uint64_t end = atomic_load(&shm->hdr->sample_seq);
    uint64_t next = end > TAIL_FIRST ? end - TAIL_FIRST : 0;
    struct sample s;

    if (strcmp(word, "tail") != 0) {
        fprintf(stderr, "dacctl: turns takes the word tail\n");
        return EXIT_UNUSABLE;
    }
    for (;;) {
        end = atomic_load(&shm->hdr->sample_seq);
        if (end - next > SHM_SAMPLES / 2) /* nobody reads as fast as that */
            next = end - TAIL_FIRST;
        for (; next < end; next++)
            if (sample_read_one(shm, next, &s))
                put_turn(shm, &s, json, out);
        if (!flush(out))
            return EXIT_UNUSABLE;
        if (is_over(shm))
            return 0;
        if (!wait_a_while(TAIL_NS))
            return 0;
    }
}

/* --- top
 * --------------------------------------------------------------------------------- */

struct moment {
    uint64_t at_ns;
    uint64_t counters[SHM_C_COUNT];
};

static void take(const struct shm *shm, struct moment *m)
{
    m->at_ns = clock_now_ns();
    for (unsigned c = 0; c < SHM_C_COUNT; c++)
        m->counters[c] = shm_counter_sum(shm, (enum shm_counter)c);
}

static double rate(const struct moment *from, const struct moment *to, enum shm_counter c)
{
    double s = (double)(to->at_ns - from->at_ns) / (double)NS_PER_S;

    return s > 0 ? (double)(to->counters[c] - from->counters[c]) / s : 0;
}

static void put_rates(const struct moment *from, const struct moment *to, struct buf *out)
{
    static const struct {
        const char *name;
        enum shm_counter c;
    } rows[] = {{"requests", SHM_C_requests},
                {"leaders", SHM_C_leaders},
                {"followers", SHM_C_followers},
                {"hits", SHM_C_hits},
                {"refused", SHM_C_refused},
                {"upstream calls", SHM_C_upstream_calls},
                {"429 answers", SHM_C_upstream_rate_limited},
                {"stream pieces", SHM_C_deliveries},
                {"bytes out", SHM_C_sent_bytes},
                {"rows stored", SHM_C_store_rows},
                {"rows spooled", SHM_C_store_spooled}};

    buf_printf(out, "\n%-16s %12s %14s\n", "", "a second", "altogether");
    for (size_t i = 0; i < DAC_ARRAY_LEN(rows); i++)
        buf_printf(out, "%-16s %12.1f %14" PRIu64 "\n", rows[i].name,
                   rate(from, to, rows[i].c), to->counters[rows[i].c]);
}

int dacctl_top(struct shm *shm, const char *name, bool json, struct buf *out)
{
    bool terminal = isatty(STDOUT_FILENO);
    struct moment before, now;

    take(shm, &before);
    do {
        if (!wait_a_while(TOP_NS))
            return 0;
        take(shm, &now);
        if (terminal && !json)
            buf_puts(out, CLEAR);
        if (json) {
            dacctl_status(shm, name, true, out);
        } else {
            dacctl_text_overview(shm, out);
            put_rates(&before, &now, out);
            buf_puts(out, "\n");
        }
        before = now;
        if (!flush(out))
            return EXIT_UNUSABLE;
    } while (!is_over(shm));
    return 0;
}
