/*
 * The master's children: starting, reaping, starting again, watching over their
 * heartbeats.
 *
 * Workers are in sets, each of one configuration. One serves. A reload has another one
 * come beside it, which holds until it is whole; then the ordinals change hands in one
 * step, and what served leaves: its workers end what they have begun, and are not started
 * again.
 *
 *   SET_NONE -> SET_COMES -> SET_SERVES -> SET_LEAVES -> SET_NONE
 *                   \------ did not come up ---^
 *
 *   absent --start--> STARTING --report--> ready --death--> absent (wanted: start again)
 *
 * A child is started again at once, or from its third death in 10 s on after a growing
 * delay. After waitpid(), and only then, its slot is swept and everybody is kicked:
 * nobody takes over from the living.
 *
 * Master only. Nothing here waits, takes a shared lock, or runs in a signal handler.
 */
#ifndef DAC_PROCESS_SUPERVISE_H
#define DAC_PROCESS_SUPERVISE_H

#include "process/child.h"

#define DEATHS_KEPT 3

struct worker_set;

struct child {
    enum slot_kind kind;
    struct worker_set *set; /* of a worker; NULL: the recorder */
    uint32_t ordinal;       /* of a worker */
    bool wanted;            /* started when it is not there */
    bool ready;             /* said so */
    bool crashed;           /* its last one was ended by a signal */
    bool silenced;          /* the watchdog sent this one SIGKILL */
    int exit_code;          /* of its last one, where it was not */
    pid_t pid;              /* 0: not there */
    uint32_t slot;
    uint64_t start_at_ns;            /* not before */
    uint64_t deaths_ns[DEATHS_KEPT]; /* the last ones, newest first; 0: none */
    uint64_t backoff_ns;
    uint64_t heartbeat;    /* as seen at the last tick */
    uint32_t silent_ticks; /* master's ticks since it grew */
};

enum set_role { SET_NONE, SET_COMES, SET_SERVES, SET_LEAVES };

struct worker_set {
    enum set_role role;
    struct config *config;       /* borrowed */
    struct listeners *listeners; /* borrowed */
    uint32_t count;
    char failed[256]; /* of one that comes: why it does not; "" while it may */
    struct child workers[SHM_WORKERS_MAX];
};

struct supervisor;
/* Runs first in each child of `s`: gives up what the child has inherited of others. */
typedef void child_hook(void *arg, const struct supervisor *s,
                        const struct listeners *own);

struct supervisor {
    struct shm *shm;
    const struct privileges *privileges;
    child_hook *in_child; /* NULL: nothing */
    void *in_child_arg;
    int report_read, report_write; /* a pipe, both ends non-blocking */
    bool starting;                 /* the service was not ready yet */
    uint32_t silence_max;          /* ticks, 0: no watchdog */
    uint32_t ticks;
    char fatal[256]; /* why the service must end, "" while it need not */
    struct child recorder;
    struct worker_set sets[2];
    struct worker_set *serving; /* the one that newcomers reach */
    struct worker_set *other;   /* one that comes or leaves, NULL: none */
};

/* Fills in everything but the borrowed pointers, which the caller has set: one set, which
 * serves. DAC_E_SYS. */
enum dac_err supervise_init(struct supervisor *s, struct config *cfg,
                            struct listeners *listeners) DAC_CHECK;
void supervise_free(struct supervisor *s);

/* All children, whether they are there or not: number 0 is the recorder. NULL behind the
 * last one. */
struct child *supervise_child(struct supervisor *s, uint32_t n);

/* Has a second set come. There is no other one. */
void supervise_bring(struct supervisor *s, struct config *cfg,
                     struct listeners *listeners);
/* Whether all that come are ready. */
bool supervise_brought(const struct supervisor *s);
/* They serve from now on, all at once; those that did are to leave. */
void supervise_switch(struct supervisor *s);
/* Kills those that come. */
void supervise_dismiss(struct supervisor *s);
/* Whether there is no other set any more; forgets one whose last worker has gone. */
bool supervise_alone(struct supervisor *s);
/* What the watchdog and who looks on take from the configuration that is in effect. */
void supervise_configure(struct supervisor *s);

/* Whether children are to be there: those that are not are started by supervise_start().
 * Of workers: those that serve; none is wanted of any set. */
void supervise_want(struct supervisor *s, enum slot_kind kind, bool wanted);
/* Starts the wanted ones whose time has come. */
void supervise_start(struct supervisor *s, uint64_t now_ns);
/* When supervise_start() has something to do next, UINT64_MAX: never. */
uint64_t supervise_next_start(const struct supervisor *s);
/* Reads what children reported. */
void supervise_read_reports(struct supervisor *s);
/* After waitpid(): if that was a child of `s`, sweeps and plans its successor. */
bool supervise_reaped(struct supervisor *s, pid_t pid, int status, uint64_t now_ns);
/* Every BEAT_NS: the watchdog, and counting anew. */
void supervise_tick(struct supervisor *s);
/* Sends a signal to all children of a kind. */
void supervise_signal(const struct supervisor *s, enum slot_kind kind, int sig);
/* How many children of a kind are there; and how many of the recorder and of those that
 * serve said that they are ready. */
uint32_t supervise_alive(const struct supervisor *s, enum slot_kind kind);
uint32_t supervise_ready(const struct supervisor *s, enum slot_kind kind);

/* Why a child that ended so is started again. Pure, for tests. */
enum restart_reason supervise_restart_reason(const struct child *c, int status);
/* When to start again a child that died now; keeps its record of deaths. Pure, for tests.
 */
uint64_t supervise_plan_restart(struct child *c, uint64_t now_ns);

#endif
