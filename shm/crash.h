/*
 * Named crash points: where a test ends or stops a process inside a step on shared
 * memory. Without --enable-crashpoints they are nothing.
 *
 * DAC_CRASH_AT lists them, separated by commas: [ROLE/]NAME[:N][=STOP|=KILL]. A process
 * of that role ("worker", "recorder") gets that signal at its N-th pass (default 1).
 * DAC_CRASH_ROLE and DAC_CRASH_SIGNAL say role and signal where an entry does not;
 * without them it is any role, and SIGKILL. With DAC_CRASH_ONCE=PREFIX only one process
 * ever gets a point's signal: the one that could create the file PREFIX.NAME, which then
 * holds its pid. A point that CRASH_POINT_FOR() makes is one only where DAC_CRASH_TEXT is
 * the text that it is given: for what hits a certain turn and no other.
 */
#ifndef DAC_SHM_CRASH_H
#define DAC_SHM_CRASH_H

#include "config.h"

#ifdef DAC_CRASHPOINTS
void crash_point(const char *name);
/* Says what this process is; NULL: no crash point fires any more. */
void crash_set_role(const char *role);
void crash_point_for(const char *name, const char *text);
#define CRASH_POINT(name)           crash_point(name)
#define CRASH_POINT_FOR(name, text) crash_point_for(name, text)
#else
#define CRASH_POINT(name)                                                                \
    do {                                                                                 \
    } while (0)
#define CRASH_POINT_FOR(name, text)                                                      \
    do {                                                                                 \
    } while (0)
#define crash_set_role(role)                                                             \
    do {                                                                                 \
    } while (0)
#endif

#endif
