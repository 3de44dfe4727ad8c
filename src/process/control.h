/*
 * The master's unix socket for dacctl: what changes something goes over it, what only
 * looks reads the segment. Who may write to the socket may use it: mode 0660, the group
 * of the user whom the service becomes.
 *
 * One request on a line, one answer, a JSON object on a line; then the master closes.
 *
 *   reload         reads the configuration again; answered when it has come to something
 *   drain          as SIGTERM
 *   cancel TURN    stops a turn, whosever it is
 *   config         what is in effect, without secrets
 *
 * Answers: {"ok":true,…} or {"ok":false,"error":"…"}; of a reload also "outcome" (done,
 * waits, refused) and "report", an array of lines for people; of config "file",
 * "settings" as config_facts_json() tells them, and "text" as config_print() does.
 *
 * Master only. Nothing here waits: who does not read his answer loses it.
 */
#ifndef DAC_PROCESS_CONTROL_H
#define DAC_PROCESS_CONTROL_H

#include <poll.h>

#include "config/config.h"
#include "process/privileges.h"
#include "process/reload.h"

#define CONTROL_CLIENTS 8
#define CONTROL_LINE    128

struct control_client {
    int fd; /* -1: nobody */
    char line[CONTROL_LINE];
    size_t len;
    uint32_t reload; /* waits for the end of this one; 0: no */
    uint64_t since_ns;
};

struct control {
    int fd;         /* listens; -1: there is none */
    char path[108]; /* "": none */
    dev_t dev;      /* what the path was when it was made */
    ino_t ino;
    struct control_client clients[CONTROL_CLIENTS];
    struct reload *reload; /* borrowed */
    struct generations *gens;
    bool drain_asked;
    uint64_t accept_at_ns; /* not before, after a failure */
};

/* Opens the socket that the configuration names, or by default /run/dac/NAME.sock, which
 * may fail with a line in the log: the service runs without. DAC_E_SYS: one that is
 * configured could not be made; `why` says more. */
enum dac_err control_open(struct control *c, const struct config *cfg,
                          const struct privileges *p, char *why, size_t n) DAC_CHECK;
/* What to poll for; at most 1 + CONTROL_CLIENTS. Returns how many. */
nfds_t control_fds(const struct control *c, struct pollfd *fds);
/* Accepts, reads, answers what can be answered. After each event. */
void control_step(struct control *c, uint64_t now_ns);
/* Closes this process's descriptors; in a child. */
void control_forget(struct control *c);
/* Removes the socket and closes. */
void control_close(struct control *c);

#endif
