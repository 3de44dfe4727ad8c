/*
 * Named crash points: where a test ends or stops a process inside a step on shared
 * memory. Without --enable-crashpoints they are nothing.
 *
 * DAC_CRASH_AT="name" or "name:N" kills the process with SIGKILL at its N-th pass
 * (default 1); DAC_CRASH_SIGNAL=STOP stops it instead. DAC_CRASH_ROLE limits it to
 * "worker", "recorder"; DAC_CRASH_ONCE names a file, and only the process that creates it
 * is hit.
 */
#ifndef DAC_SHM_CRASH_H
#define DAC_SHM_CRASH_H

#include "config.h"

#ifdef DAC_CRASHPOINTS
void crash_point(const char *name);
/* Says what this process is; NULL: no crash point fires any more. */
void crash_set_role(const char *role);
#define CRASH_POINT(name) crash_point(name)
#else
#define CRASH_POINT(name)                                                                \
    do {                                                                                 \
    } while (0)
#define crash_set_role(role)                                                             \
    do {                                                                                 \
    } while (0)
#endif

#endif
