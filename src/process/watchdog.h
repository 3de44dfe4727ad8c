/*
 * The watchdog: ends a child whose heartbeat stands still.
 */
#ifndef DAC_PROCESS_WATCHDOG_H
#define DAC_PROCESS_WATCHDOG_H

#include "process/supervise.h"

/* Once per tick of the master: counts silent ticks, and sends SIGKILL to at most one
 * child that was silent for longer than watchdog_timeout: one at a bucket's lock first,
 * since the others may stand still only because of it; those get a new period. Master. */
void watchdog_tick(struct supervisor *s);

#endif
