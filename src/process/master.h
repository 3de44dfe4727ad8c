/*
 * The master: owns the instance. It makes the segment and the sockets, starts children,
 * starts them again, and stops the service in order. It serves no client and takes no
 * shared lock.
 */
#ifndef DAC_PROCESS_MASTER_H
#define DAC_PROCESS_MASTER_H

#include "config/config.h"

/* Runs the service in the foreground until it is stopped; returns the program's exit
 * code: 0 stopped as asked, 1 it could not start, 2 a child said that it cannot go on.
 * `path` is where `cfg` was read from and is read from again, borrowed; `cfg` is taken
 * over.
 */
int master_run(const char *path, struct config *cfg) DAC_CHECK;

#endif
