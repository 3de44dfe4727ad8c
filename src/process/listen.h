/*
 * The listening sockets: opened by the master before the first fork, inherited by every
 * worker, closed by nobody while the service runs and the address is configured.
 *
 * A TCP address has one SO_REUSEPORT socket per worker ordinal, so that the kernel
 * spreads clients; each worker accepts on its own, and on those of workers that do not. A
 * unix socket is one, shared by all; so is whatever a socket unit of systemd passes
 * (sd_listen_fds(3)), which outlives the service.
 *
 * A reload keeps the sockets of addresses that stay, and binds those that are new before
 * anything else is changed; they listen only when their workers are there.
 */
#ifndef DAC_PROCESS_LISTEN_H
#define DAC_PROCESS_LISTEN_H

#include <stdbool.h>
#include <sys/types.h>
#include <sys/un.h>

#include "config/config.h"
#include "shm/layout.h"

struct listener {
    char text[128]; /* as configured: "127.0.0.1:8000" */
    struct sockaddr_storage addr;
    socklen_t len;
    bool shared;              /* one socket for all ordinals: fds[0] */
    bool passed;              /* by systemd, whose it is */
    int fds[SHM_WORKERS_MAX]; /* by ordinal; -1: closed */
    char path[108];           /* of a unix socket, to be removed at the end; else "" */
    dev_t dev;                /* what the path was when it was made */
    ino_t ino;
};

struct listeners {
    struct listener items[CONFIG_LISTEN_MAX];
    size_t count;
    uint32_t ordinals;
};

/* Opens all addresses for `cfg->workers` ordinals; those that systemd passes are used as
 * they are, also if the configuration does not name them. With `wait_ns` an address in
 * use is tried again for so long (a killed master's workers are about to close theirs).
 * On failure nothing is open and `why` (of `n` bytes) names the address and what to do.
 * Master. */
enum dac_err listeners_open(const struct config *cfg, uint64_t wait_ns,
                            struct listeners *out, char *why, size_t n) DAC_CHECK;
/* For another configuration: sockets of `old` where the address stays, others bound, but
 * not listening yet; ordinals never get fewer. On failure nothing is open that was not,
 * and `why` says what to do. Master. */
enum dac_err listeners_prepare(const struct listeners *old, const struct config *cfg,
                               struct listeners *out, char *why, size_t n) DAC_CHECK;
/* Those that were prepared listen. DAC_E_SYS: errno says why; some may. Master. */
enum dac_err listeners_activate(const struct listeners *l) DAC_CHECK;
/* Closes those of `l` that are not in `kept`. Any process; the master also removes the
 * names of unix sockets (`names`). */
void listeners_drop(struct listeners *l, const struct listeners *kept, bool names);
/* Whether somebody answers at a unix socket, or it cannot be known: one that nobody has
 * is left of a killed process and may be replaced. Never waits. */
bool listen_unix_answers(const struct sockaddr_un *addr);
/* The first of the addresses that somebody listens on, or NULL. Master. */
const char *listeners_in_use(const struct config *cfg);
/* Closes this process's descriptors. Idempotent; any process. */
void listeners_close(struct listeners *l);
/* Removes the unix sockets' names, if they are still these, and closes. Master. */
void listeners_remove(struct listeners *l);

#endif
