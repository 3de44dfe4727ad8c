/*
 * Raises RLIMIT_NOFILE from the soft to the hard limit and says so when even that is too
 * low for max_connections. A worker that meets the limit pauses accepting; it does not
 * fail. And forbids core dumps. The master runs this once, before it forks.
 */
#include "process/limits.h"

#include <errno.h>
#include <inttypes.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include "base/log.h"

void limits_raise_files(uint64_t max_connections, uint64_t own)
{
    struct rlimit lim;
    rlim_t soft;

    if (getrlimit(RLIMIT_NOFILE, &lim) != 0) {
        log_warn(errno, "could not read the limit of open files");
        return;
    }
    soft = lim.rlim_cur;
    if (lim.rlim_cur != lim.rlim_max) {
        lim.rlim_cur = lim.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &lim) != 0) {
            log_warn(errno, "could not raise the limit of open files from %ju to %ju",
                     (uintmax_t)soft, (uintmax_t)lim.rlim_max);
            lim.rlim_cur = soft;
        }
    }
    /* One worker may get all clients, and each may need a call to a provider. */
    if (lim.rlim_cur != RLIM_INFINITY && lim.rlim_cur < max_connections + own)
        log_warn(
            0,
            "max_connections = %" PRIu64 " does not fit into %ju open files per process; "
            "accepting will pause at that limit (raise LimitNOFILE= or ulimit -Hn, or "
            "lower max_connections)",
            max_connections, (uintmax_t)lim.rlim_cur);
}

/* One byte is too little for a file, and of all limits the one with which the kernel does
 * not run a program for core dumps either (core(5)). */
void limits_core_dumps(bool allowed)
{
    const struct rlimit one = {.rlim_cur = 1, .rlim_max = 1};

    if (!allowed && setrlimit(RLIMIT_CORE, &one) != 0)
        log_warn(errno, "could not forbid core dumps");
}

void limits_core_dumps_of_child(bool allowed)
{
    if (allowed && prctl(PR_SET_DUMPABLE, 1) != 0)
        log_warn(errno, "could not allow core dumps");
}
