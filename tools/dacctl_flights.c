/*
 * `dacctl flights`: one line per flight in memory. An outsider has no reader bit, so a
 * flight may be recycled while it looks: every line is copied first, then the word is
 * compared, and a copy that spans two uses of a flight is thrown away.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/ids.h"
#include "base/json.h"
#include "dacctl.h"
#include "shm/flight.h"

#define COPY_TRIES 4

struct flight_copy {
    uint32_t index;
    struct flight_word word;
    struct id turn;
    struct trace trace;
    uint32_t kind, provider, stored, blocks, requests;
    uint64_t readers, bytes, claim_seq, arrived_ns, ended_ns, followers, hits;
};

/* Whether the flight is in use and `c` is a copy of one use of it. */
static bool copy_flight(const struct shm *shm, uint32_t index, struct flight_copy *c)
{
    const struct shm_flight *f = &shm->flights[index];

    for (int i = 0; i < COPY_TRIES; i++) {
        struct flight_word after;

        c->index = index;
        c->word = flight_load(shm, index);
        if (c->word.state == FLIGHT_FREE)
            return false;
        memcpy(c->turn.b, f->turn_id, sizeof(c->turn.b));
        c->trace = flight_trace(shm, index);
        c->kind = atomic_load(&f->kind);
        c->provider = atomic_load(&f->provider);
        c->stored = atomic_load(&f->stored);
        c->blocks = atomic_load(&f->block_count);
        c->requests = atomic_load(&f->requests);
        c->readers = atomic_load(&f->readers);
        c->bytes = atomic_load(&f->tail);
        c->claim_seq = atomic_load(&f->claim_seq);
        c->arrived_ns = atomic_load(&f->arrived_ns);
        c->ended_ns = atomic_load(&f->ended_ns);
        c->followers = atomic_load(&f->followers);
        c->hits = atomic_load(&f->hits);
        atomic_thread_fence(memory_order_acquire);
        after = flight_load(shm, index);
        if (flight_pack(after) == flight_pack(c->word))
            return true;
    }
    return false; /* it changes faster than one can look; the next call may show it */
}

static uint64_t age_ms(const struct flight_copy *c)
{
    uint64_t now = clock_now_ns();

    return c->arrived_ns != 0 && now > c->arrived_ns ? (now - c->arrived_ns) / NS_PER_MS
                                                     : 0;
}

static const char *kind_of(const struct flight_copy *c)
{
    return c->kind == FLIGHT_THREAD ? "thread" : "turn";
}

/* The provider's name into `buf`; "-" for what has none. */
static const char *provider_of(const struct shm *shm, const struct flight_copy *c,
                               char buf[33])
{
    if (c->kind == FLIGHT_THREAD || c->provider >= atomic_load(&shm->hdr->provider_count))
        return "-";
    snprintf(buf, 33, "%.32s", shm->hdr->provider_names[c->provider]);
    return buf;
}

static void owner_of(const struct flight_copy *c, char buf[16])
{
    if (c->word.owner >= SHM_SLOTS)
        snprintf(buf, 16, "-");
    else
        snprintf(buf, 16, "%" PRIu32, c->word.owner);
}

static void text_line(const struct shm *shm, const struct flight_copy *c, struct buf *out)
{
    char turn[ID_TEXT_SIZE], provider[33], owner[16];

    id_format(&c->turn, turn);
    owner_of(c, owner);
    buf_printf(out,
               "%6" PRIu32 " %-6s %-9s %3u %5s %7d %9" PRIu64 " %6.1f s %9" PRIu64
               " %5" PRIu64 " %-8s %-16s %s\n",
               c->index, kind_of(c), flight_state_name(c->word.state), c->word.generation,
               owner, __builtin_popcountll(c->readers), c->bytes,
               (double)age_ms(c) / 1000, c->followers, c->hits,
               flight_stored_name((enum flight_stored)c->stored),
               provider_of(shm, c, provider), turn);
}

static void json_line(const struct shm *shm, const struct flight_copy *c, bool first,
                      struct buf *out)
{
    char turn[ID_TEXT_SIZE], provider[33], owner[16], trace[TRACE_ID_TEXT_SIZE];
    const char *name = provider_of(shm, c, provider);

    id_format(&c->turn, turn);
    trace_format_id(&c->trace, trace);
    owner_of(c, owner);
    buf_printf(
        out,
        "%s{\"flight\":%" PRIu32 ",\"kind\":\"%s\",\"state\":\"%s\",\"generation\":%u"
        ",\"incarnation\":%" PRIu32 ",\"owner\":%s,\"readers\":%d,\"bytes\":%" PRIu64
        ",\"blocks\":%" PRIu32 ",\"age_ms\":%" PRIu64 ",\"followers\":%" PRIu64
        ",\"hits\":%" PRIu64 ",\"stored\":\"%s\",\"cancel_asked\":%s,\"closed\":%s"
        ",\"turn_id\":\"%s\",\"trace_id\":\"%s\",\"provider\":",
        first ? "" : ",", c->index, kind_of(c), flight_state_name(c->word.state),
        c->word.generation, c->word.incarnation, owner[0] == '-' ? "null" : owner,
        __builtin_popcountll(c->readers), c->bytes, c->blocks, age_ms(c), c->followers,
        c->hits, flight_stored_name((enum flight_stored)c->stored),
        c->requests & FLIGHT_ASK_CANCEL ? "true" : "false",
        c->requests & FLIGHT_CLOSED ? "true" : "false", turn, trace);
    if (name[0] == '-' && !name[1])
        buf_puts(out, "null}");
    else {
        json_put_string(out, name, strlen(name));
        buf_puts(out, "}");
    }
}

int dacctl_flights(struct shm *shm, const char *name, bool json, struct buf *out)
{
    struct flight_copy c;
    bool first = true;

    (void)name;

    if (json)
        buf_puts(out, "{\"flights\":[");
    else
        buf_printf(out, "%6s %-6s %-9s %3s %5s %7s %9s %8s %9s %5s %-8s %-16s %s\n",
                   "flight", "kind", "state", "gen", "owner", "readers", "bytes", "age",
                   "followers", "hits", "stored", "provider", "turn");
    for (uint32_t i = 0; i < shm->hdr->flight_count; i++) {
        if (!copy_flight(shm, i, &c))
            continue;
        if (json)
            json_line(shm, &c, first, out);
        else
            text_line(shm, &c, out);
        first = false;
    }
    if (json)
        buf_puts(out, "]}\n");
    else if (first)
        buf_puts(out, "(none)\n");
    return 0;
}
