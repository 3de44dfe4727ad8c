/*
 * Crash points, compiled in by --enable-crashpoints only: how tests end a process between
 * any two steps on shared memory. Any child process.
 */
#include "shm/crash.h"

#ifdef DAC_CRASHPOINTS

#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static const char *role; /* what this process is; NULL: none yet, nothing fires */

void crash_set_role(const char *name)
{
    role = name;
}

static bool wanted(const char *at, const char *name, unsigned long *pass)
{
    size_t n = strlen(name);
    if (strncmp(at, name, n) != 0 || (at[n] != '\0' && at[n] != ':'))
        return false;
    *pass = at[n] == ':' ? strtoul(at + n + 1, NULL, 10) : 1;
    return true;
}

void crash_point(const char *name)
{
    static unsigned long passes;
    const char *at = getenv("DAC_CRASH_AT");
    const char *only = getenv("DAC_CRASH_ROLE");
    const char *how = getenv("DAC_CRASH_SIGNAL");
    unsigned long pass;

    if (!at || !role || (only && strcmp(only, role) != 0) || !wanted(at, name, &pass))
        return;
    if (++passes == pass)
        raise(how && strcmp(how, "STOP") == 0 ? SIGSTOP : SIGKILL);
}

#else
typedef int crash_points_are_off;
#endif
