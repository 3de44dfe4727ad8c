/*
 * A generation: a segment, its recorder and its workers, and how they start and stop:
 *
 *   RECORDER  the recorder opens the store and migrates it
 *   WORKERS   workers start
 *   READY     all of them said so; children that die are started again
 *   DRAIN     workers accept no more, end their streams and go
 *   STORE     no worker is left: the recorder stores the rest and goes
 *   OVER      nobody is left
 *
 * Most of the time there is one. While the instance moves to a new segment there are two,
 * on the same sockets: one that serves, and one that comes or leaves.
 *
 * Master only; nothing here waits.
 */
#ifndef DAC_PROCESS_GENERATION_H
#define DAC_PROCESS_GENERATION_H

#include "process/supervise.h"

enum generation_phase {
    GENERATION_NONE, /* all zero bytes: not in use */
    GENERATION_RECORDER,
    GENERATION_WORKERS,
    GENERATION_READY,
    GENERATION_DRAIN,
    GENERATION_STORE,
    GENERATION_OVER
};

struct generation {
    struct shm shm; /* the master's view; owned */
    struct supervisor sup;
    enum generation_phase phase;
    uint64_t phase_since_ns;
    bool hurry; /* stopping at once */
    int store_tries;
    bool unstored; /* its last recorder did not end well: turns may be lost */
};

/* Those of an instance. */
struct generations {
    struct generation all[2];
    struct generation *serving; /* the one that newcomers reach */
    struct generation *other;   /* one that comes or leaves, NULL: none */
};

/* The first generation in use, or the one after `g`; NULL: no more. */
struct generation *generation_next(struct generations *gens, struct generation *g);
/* Each one that is in use, in turn. */
#define FOR_EACH_GENERATION(g, gens)                                                     \
    for (struct generation *g = generation_next((gens), NULL); g;                        \
         g = generation_next((gens), g))

/* What a segment of this instance is made of; pointers lead into it and to the borrowed
 * configuration. `before`: the segment that it is to follow, whose providers keep their
 * numbers; NULL: none. */
struct generation_memory {
    struct shm_options options;
    struct shm_provider_limits limits[SHM_PROVIDERS_MAX];
};
void generation_memory(const struct config *cfg, const struct privileges *privileges,
                       const struct shm *before, struct generation_memory *out);

/* What a generation is made of beside its segment; borrowed for its life. */
struct generation_parts {
    struct config *config;
    struct listeners *listeners;
    const struct privileges *privileges;
    const char *control;  /* path of the control socket, "" or NULL: none */
    child_hook *in_child; /* see struct supervisor */
    void *in_child_arg;
};

/* Begins to start its children. `g->shm` is there already. DAC_E_SYS: errno says why. */
enum dac_err generation_start(struct generation *g, const struct generation_parts *parts,
                              uint64_t now_ns) DAC_CHECK;
/* Moves on to the next phase if its time has come; after each event. */
void generation_step(struct generation *g, uint64_t now_ns);
/* Has it end, from whichever phase; twice is once. `stopping`: the service ends, nobody
 * serves on; also for one that drains already. */
void generation_drain(struct generation *g, bool stopping, uint64_t now_ns);
/* Kills its workers; the recorder has little time left. It drains already. */
void generation_hurry(struct generation *g, uint64_t now_ns);
/* Kills all its children, which nobody relies on yet. */
void generation_abort(struct generation *g, uint64_t now_ns);
/* How many of its children are there. */
uint32_t generation_alive(const struct generation *g);
/* Removes its segment and what it opened. It is OVER, or never started. */
void generation_free(struct generation *g);

#endif
