/*
 * Crash points, compiled in by --enable-crashpoints only: how tests end a process between
 * any two steps on shared memory. Any child process.
 */
#include "shm/crash.h"

#ifdef DAC_CRASHPOINTS

#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ENTRIES_MAX 64

static const char *role; /* what this process is; NULL: none yet, nothing fires */

void crash_set_role(const char *name)
{
    role = name;
}

/* Takes `word` and the character behind it off the front of an entry. */
static bool take(const char **at, const char *word, char behind)
{
    size_t n = strlen(word);

    if (strncmp(*at, word, n) != 0 || (*at)[n] != behind)
        return false;
    *at += n + 1;
    return true;
}

/* Whether an entry, `n` characters long, means this point and this process. */
static bool wanted(const char *entry, size_t n, const char *name, unsigned long *pass,
                   int *sig)
{
    const char *only = getenv("DAC_CRASH_ROLE");
    const char *how = getenv("DAC_CRASH_SIGNAL");
    const char *slash = memchr(entry, '/', n);
    const char *equal = memchr(entry, '=', n);
    const char *end = entry + n;
    size_t len = strlen(name);

    if (slash ? !take(&entry, role, '/') : only && strcmp(only, role) != 0)
        return false;
    if ((size_t)(end - entry) < len || strncmp(entry, name, len) != 0)
        return false;
    entry += len;
    if (entry != end && *entry != ':' && *entry != '=')
        return false;
    *pass = entry != end && *entry == ':' ? strtoul(entry + 1, NULL, 10) : 1;
    *sig = (equal ? strncmp(equal + 1, "STOP", 4)
            : how ? strcmp(how, "STOP")
                  : 1) == 0
               ? SIGSTOP
               : SIGKILL;
    return true;
}

/* Whether no other process was here before. */
static bool first_of_all(const char *name)
{
    const char *prefix = getenv("DAC_CRASH_ONCE");
    char path[512];
    int fd;

    if (!prefix)
        return true;
    snprintf(path, sizeof(path), "%s.%s", prefix, name);
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return false;
    dprintf(fd, "%d\n", (int)getpid());
    close(fd);
    return true;
}

void crash_point(const char *name)
{
    static unsigned long passes[ENTRIES_MAX];
    const char *at = getenv("DAC_CRASH_AT");
    unsigned long pass;
    int sig;

    if (!at || !role)
        return;
    for (size_t i = 0; i < ENTRIES_MAX && *at; i++) {
        size_t n = strcspn(at, ",");
        if (wanted(at, n, name, &pass, &sig) && ++passes[i] == pass && first_of_all(name))
            raise(sig);
        at += n + (at[n] == ',');
    }
}

void crash_point_for(const char *name, const char *text)
{
    const char *only = getenv("DAC_CRASH_TEXT");

    if (only && text && strcmp(only, text) == 0)
        crash_point(name);
}

#else
typedef int crash_points_are_off;
#endif
