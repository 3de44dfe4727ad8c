/*
 * What the service manager hears from the master besides READY and STOPPING: that it is
 * alive, that a stop takes its time, and how it goes, in one line.
 *
 *   WATCHDOG=1            if the unit has WatchdogSec=, and while somebody serves: at
 *                         least one worker that newcomers reach shows life
 *   EXTEND_TIMEOUT_USEC   while streams end after a stop: TimeoutStopSec= need not cover
 *                         drain_timeout
 *   STATUS                what `systemctl status` shows
 *
 * Master only.
 */
#ifndef DAC_PROCESS_SYSTEMD_H
#define DAC_PROCESS_SYSTEMD_H

#include "process/generation.h"

struct systemd {
    uint32_t watchdog_ticks; /* master's ticks between two signs of life; 0: none asked */
    uint32_t ticks;
    char status[200]; /* as told last */
};

/* Reads WATCHDOG_USEC and WATCHDOG_PID. */
void systemd_init(struct systemd *sd);
/* Every BEAT_NS. `stopping`: the service is to end. */
void systemd_tick(struct systemd *sd, struct generation *serving, bool stopping);

#endif
