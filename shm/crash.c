/*
 * Crash points, compiled in by --enable-crashpoints only: how tests end a process between
 * any two steps on shared memory. Any child process.
 */
#include "shm/crash.h"

#ifdef DAC_CRASHPOINTS

#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

/* Whether this is the first process of all that creates the file; true without one. */
static bool first_of_all(const char *file)
{
    if (!file)
        return true;
    int fd = open(file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    close(fd);
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
    if (++passes == pass && first_of_all(getenv("DAC_CRASH_ONCE")))
        raise(how && strcmp(how, "STOP") == 0 ? SIGSTOP : SIGKILL);
}

#else
typedef int crash_points_are_off;
#endif
