/*
 * Reloading: the configuration is read again, checked whole, and what has changed takes
 * effect, or nothing does and the reasons are told.
 *
 *   in place      running processes take the values over (config/live.h); limits of
 *                 providers go to their pacers
 *   new workers   a second set comes beside the one that serves; once all of it is ready
 *                 the ordinals change hands in one step. If it does not come up, the old
 *                 one serves on as if nothing had been
 *   restart       named, and left as it is
 *
 *   IDLE -> COMING -> IDLE    while the set that left is still there, new workers have to
 *                             wait; reloads that are asked for meanwhile become one
 *
 * Master only; nothing here waits.
 */
#ifndef DAC_PROCESS_RELOAD_H
#define DAC_PROCESS_RELOAD_H

#include "base/bytes.h"
#include "process/generation.h"
#include "process/renew.h"

/* A configuration in effect with its sockets. */
struct running {
    struct config *config; /* owned */
    struct listeners listeners;
};

enum reload_outcome {
    RELOAD_UNDER_WAY,
    RELOAD_DONE,    /* all of it is in effect, but for what takes a restart */
    RELOAD_WAITS,   /* what takes new workers waits for old ones to end */
    RELOAD_REFUSED, /* nothing has changed */
};

struct reload {
    const char *path; /* of the configuration; borrowed */
    struct generations *gens;
    struct generation_parts *parts;
    const struct renewal *renewal;
    struct running *now;     /* owned: what is in effect */
    struct running *coming;  /* owned: of the set that comes, else NULL */
    struct running *leaving; /* owned: of the set that leaves, else NULL */
    uint64_t coming_ns;      /* since when */
    bool again;              /* to be done once nobody leaves any more */
    bool asked;              /* to be begun at the next step */
    bool dismissed;          /* `leaving` never came up and is being killed */
    bool stopped;            /* the service stops */
    /* The last one. */
    uint32_t number; /* of reloads begun so far */
    enum reload_outcome outcome;
    struct buf report; /* lines for people */
};

/* Asks for a reload; the next reload_step() begins it. One that is under way is followed
 * by another. */
void reload_ask(struct reload *r);
/* Does what is due; after each event, until the service stops. `calm`: no renewal of
 * shared memory is under way, so new workers may come. */
void reload_step(struct reload *r, bool calm, uint64_t now_ns);
/* Whether new workers come this moment: a renewal has to wait. */
bool reload_comes(const struct reload *r);
/* The service stops: nothing more is begun. */
void reload_stop(struct reload *r);
/* Releases what it owns. */
void reload_free(struct reload *r);

/* Logs what config_load() had to say. */
void reload_log_problems(const struct config_problems *p);

#endif
