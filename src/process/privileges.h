/*
 * Giving up root: whom the children become.
 */
#ifndef DAC_PROCESS_PRIVILEGES_H
#define DAC_PROCESS_PRIVILEGES_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/err.h"

#define PRIVILEGES_GROUPS_MAX 64

struct privileges {
    bool drop; /* false: children stay who the master is */
    char user[64];
    char home[256]; /* that user's; empty: unknown */
    uid_t uid;
    gid_t gid;
    gid_t groups[PRIVILEGES_GROUPS_MAX];
    int group_count;
};

/* Looks `user` (empty or NULL: none) and its groups up. Without root nothing is dropped;
 * a `user` other than the present one is then warned of. On failure `why` (of `n` bytes)
 * says what to do. Master, at start. */
enum dac_err privileges_find(const char *user, struct privileges *out, char *why,
                             size_t n) DAC_CHECK;
/* Becomes that user for good, HOME included, which root's would be of no use to: it is
 * where libraries look for files of the user. DAC_E_SYS with errno; the process must then
 * end. Child, before its first thread. */
enum dac_err privileges_drop(const struct privileges *p) DAC_CHECK;

#endif
