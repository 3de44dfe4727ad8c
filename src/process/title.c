/*
 * Sets the process title by overwriting the memory that the kernel reads for
 * /proc/PID/cmdline: the arguments and, where it follows them directly, the environment,
 * which is copied elsewhere first. PostgreSQL and nginx do the same on Linux.
 *
 * The name in /proc/PID/comm stays "dacd" in every process, so that pgrep(1) finds them
 * all. Any process.
 */
#include "process/title.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern char **environ;

static char *area;      /* the first byte of the arguments */
static size_t area_len; /* with the environment behind them */
static char **moved_environ;

/* Where the block of strings that begins at `end` stops. */
static char *contiguous_end(char *const *strings, char *end)
{
    for (; *strings; strings++) {
        if (*strings == end)
            end = *strings + strlen(*strings) + 1;
    }
    return end;
}

void title_init(int argc, char **argv)
{
    size_t count = 0;
    char *end;
    char **copy;

    if (argc < 1)
        return;
    end = contiguous_end(argv, argv[0]);
    while (environ[count])
        count++;
    copy = calloc(count + 1, sizeof(*copy));
    if (!copy)
        return;
    for (size_t i = 0; i < count; i++) {
        copy[i] = strdup(environ[i]);
        if (!copy[i])
            return; /* the original environment stays in use, and so the copies are few */
    }
    end = contiguous_end(environ, end);
    moved_environ = copy;
    environ = moved_environ;
    area = argv[0];
    area_len = (size_t)(end - area);
}

void title_set(const char *fmt, ...)
{
    va_list ap;
    char text[128];
    int n;

    if (area_len < 2)
        return;
    va_start(ap, fmt);
    n = vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    if (n < 0)
        return;
    memset(area, 0, area_len);
    snprintf(area, area_len, "dacd: %s", text);
}
