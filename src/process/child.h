/*
 * What workers and the recorder have in common: entering the child after fork, learning
 * that the service stops or that the master died, and telling the master that one is
 * ready.
 */
#ifndef DAC_PROCESS_CHILD_H
#define DAC_PROCESS_CHILD_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "config/config.h"
#include "process/listen.h"
#include "process/privileges.h"
#include "shm/segment.h"

struct event_base;
struct event;

/* Exit codes of the program and of its children. */
enum {
    EXIT_OK = 0,
    EXIT_START = 1, /* of a child: it could not go on, another one may */
    EXIT_FATAL = 2  /* of a child: the service cannot go on */
};

#define BEAT_NS UINT64_C(250000000)

/* What a child is told at its birth; all pointers are borrowed for its life. */
struct child_context {
    struct shm *shm;
    struct config *config; /* this process's own copy since the fork: see child_live() */
    struct listeners *listeners;
    const struct privileges *privileges;
    pid_t master_pid;
    int report_fd; /* written by children, read by the master */
    enum slot_kind kind;
    uint32_t slot;
    uint32_t ordinal;
    bool starting; /* the service is not ready yet: what fails now fails the start */
};

/* A child's words to its master; one write(2), so never in pieces. */
struct child_report {
    pid_t pid;
    uint32_t fatal; /* 0: ready */
    char text[240]; /* why, if fatal */
};

/* Right after fork: signals, slot, privileges, parent-death signal, name. Returns
 * EXIT_OK, or what to exit with. */
int child_enter(const struct child_context *ctx) DAC_CHECK;
/* Whether the master is gone. */
bool child_orphaned(const struct child_context *ctx);
/* Takes over what has changed in place since `*seen` (0: since the fork), the log's level
 * included. Whether anything did; at each beat and kick. */
bool child_live(const struct child_context *ctx, uint64_t *seen);
/* Marks the slot READY and tells the master. */
void child_ready(const struct child_context *ctx);
/* Logs the reason, tells the master if the service cannot go on, and returns what to exit
 * with: EXIT_FATAL while the service starts, else EXIT_START, so that another is tried.
 */
int child_fail(const struct child_context *ctx, const char *fmt, ...) DAC_PRINTF(2, 3);
/* An event on `base` that calls `fn` when the service is to stop (SIGTERM, also sent by
 * the kernel when the master dies). Freed by child_stop_free(). DAC_E_SYS, DAC_E_NOMEM.
 */
struct child_stop {
    int fd;
    struct event *event;
    void (*fn)(void *arg);
    void *arg;
};
enum dac_err child_stop_init(struct child_stop *stop, struct event_base *base,
                             void (*fn)(void *arg), void *arg) DAC_CHECK;
void child_stop_free(struct child_stop *stop);

#endif
