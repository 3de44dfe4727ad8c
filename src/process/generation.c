/*
 * The phases of a generation. Who asks for the next one is the caller's business; here is
 * only what it takes to get there, and how long that may take.
 */
#include "process/generation.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "config/live.h"
#include "shm/live.h"

#define DRAIN_EXTRA_NS (5 * NS_PER_S) /* beyond drain_timeout, then SIGKILL */
#define STORE_EXTRA_NS (5 * NS_PER_S) /* beyond done_timeout, then SIGKILL */
#define STORE_HURRY_NS (2 * NS_PER_S)
#define STORE_TRIES    3 /* recorders started to store the rest, if one dies doing so */

struct generation *generation_next(struct generations *gens, struct generation *g)
{
    for (g = g ? g + 1 : gens->all; g < gens->all + DAC_ARRAY_LEN(gens->all); g++) {
        if (g->phase != GENERATION_NONE)
            return g;
    }
    return NULL;
}

void generation_memory(const struct config *cfg, const struct privileges *privileges,
                       const struct shm *before, struct generation_memory *out)
{
    uint32_t n = before ? atomic_load(&before->hdr->provider_count)
                        : (uint32_t)cfg->provider_count;

    memset(out->limits, 0, sizeof(out->limits));
    out->options = (struct shm_options){.name = cfg->name,
                                        .size = cfg->shm_size_bytes,
                                        .max_flights = cfg->max_flights,
                                        .flight_max_bytes = cfg->flight_max_bytes,
                                        .providers = out->limits,
                                        .provider_count = n,
                                        .owner_uid = privileges->uid,
                                        .owner_gid = privileges->gid};
    for (uint32_t i = 0; i < n; i++) {
        const struct config_provider *p = config_provider_at(cfg, i);

        if (p)
            out->limits[i] = (struct shm_provider_limits){.name = p->name,
                                                          .rps = p->rps,
                                                          .burst = p->burst,
                                                          .concurrency = p->concurrency};
        else if (before) /* one that a reload took away; it keeps its number */
            out->limits[i].name = before->hdr->provider_names[i];
    }
}

static void enter(struct generation *g, enum generation_phase phase, uint64_t now_ns)
{
    g->phase = phase;
    g->phase_since_ns = now_ns;
}

enum dac_err generation_start(struct generation *g, const struct generation_parts *parts,
                              uint64_t now_ns)
{
    uint64_t words[CONFIG_LIVE_MAX];
    enum dac_err e;

    memset(&g->sup, 0, sizeof(g->sup));
    g->sup.shm = &g->shm;
    g->sup.privileges = parts->privileges;
    g->sup.in_child = parts->in_child;
    g->sup.in_child_arg = parts->in_child_arg;
    e = supervise_init(&g->sup, parts->config, parts->listeners);
    if (e != DAC_OK)
        return e;
    if (parts->control)
        snprintf(g->shm.hdr->control, sizeof(g->shm.hdr->control), "%s", parts->control);
    live_publish(&g->shm, words, config_live_words(parts->config, words));
    supervise_want(&g->sup, SLOT_RECORDER, true);
    enter(g, GENERATION_RECORDER, now_ns);
    return DAC_OK;
}

void generation_drain(struct generation *g, bool stopping, uint64_t now_ns)
{
    if (stopping)
        atomic_store(&g->shm.hdr->draining, 1);
    if (g->phase >= GENERATION_DRAIN)
        return;
    supervise_want(&g->sup, SLOT_WORKER, false);
    supervise_signal(&g->sup, SLOT_WORKER, SIGTERM);
    enter(g, GENERATION_DRAIN, now_ns);
}

static void begin_store(struct generation *g, uint64_t now_ns)
{
    supervise_want(&g->sup, SLOT_RECORDER, false);
    supervise_signal(&g->sup, SLOT_RECORDER, SIGTERM);
    enter(g, GENERATION_STORE, now_ns);
}

void generation_hurry(struct generation *g, uint64_t now_ns)
{
    g->hurry = true;
    if (g->phase == GENERATION_STORE)
        g->phase_since_ns = now_ns;
    supervise_signal(&g->sup, SLOT_WORKER, SIGKILL);
}

void generation_abort(struct generation *g, uint64_t now_ns)
{
    generation_drain(g, true, now_ns);
    g->hurry = true;
    g->store_tries = STORE_TRIES;
    supervise_want(&g->sup, SLOT_RECORDER, false);
    supervise_signal(&g->sup, SLOT_WORKER, SIGKILL);
    supervise_signal(&g->sup, SLOT_RECORDER, SIGKILL);
}

static void step_drain(struct generation *g, uint64_t now_ns)
{
    uint64_t limit = g->sup.serving->config->drain_timeout_ns + DRAIN_EXTRA_NS;

    if (supervise_alive(&g->sup, SLOT_WORKER) == 0) {
        begin_store(g, now_ns);
    } else if (now_ns - g->phase_since_ns > limit) {
        log_error(0, "workers did not end in time; killing them");
        supervise_signal(&g->sup, SLOT_WORKER, SIGKILL);
        g->phase_since_ns = now_ns;
    }
}

/* The recorder stores the rest. One that dies over it is followed by another, since a
 * death must not cost what is in shared memory. */
static void step_store(struct generation *g, uint64_t now_ns)
{
    uint64_t limit = g->hurry ? STORE_HURRY_NS
                              : g->sup.serving->config->done_timeout_ns + STORE_EXTRA_NS;

    if (supervise_alive(&g->sup, SLOT_RECORDER) > 0) {
        if (now_ns - g->phase_since_ns > limit) {
            log_error(0, "the recorder did not end in time; turns may be lost");
            supervise_signal(&g->sup, SLOT_RECORDER, SIGKILL);
            g->store_tries = STORE_TRIES;
            g->phase_since_ns = now_ns;
        }
        return;
    }
    if (g->sup.recorder.crashed && !g->hurry && ++g->store_tries < STORE_TRIES) {
        g->sup.recorder.start_at_ns = now_ns;
        supervise_want(&g->sup, SLOT_RECORDER, true);
        supervise_start(&g->sup, now_ns);
        begin_store(g, now_ns);
        return;
    }
    g->unstored = g->sup.recorder.exit_code != EXIT_OK;
    enter(g, GENERATION_OVER, now_ns);
}

void generation_step(struct generation *g, uint64_t now_ns)
{
    switch (g->phase) {
    case GENERATION_RECORDER:
        if (supervise_ready(&g->sup, SLOT_RECORDER) == 0)
            break;
        supervise_want(&g->sup, SLOT_WORKER, true);
        enter(g, GENERATION_WORKERS, now_ns);
        break;
    case GENERATION_WORKERS:
        if (supervise_ready(&g->sup, SLOT_WORKER) < g->sup.serving->count)
            break;
        g->sup.starting = false;
        enter(g, GENERATION_READY, now_ns);
        break;
    case GENERATION_DRAIN:
        step_drain(g, now_ns);
        break;
    case GENERATION_STORE:
        step_store(g, now_ns);
        break;
    case GENERATION_NONE:
    case GENERATION_READY:
    case GENERATION_OVER:
        break;
    }
}

uint32_t generation_alive(const struct generation *g)
{
    return supervise_alive(&g->sup, SLOT_WORKER) +
           supervise_alive(&g->sup, SLOT_RECORDER);
}

void generation_free(struct generation *g)
{
    if (g->phase != GENERATION_NONE)
        supervise_free(&g->sup);
    segment_destroy(&g->shm);
    memset(g, 0, sizeof(*g));
}
