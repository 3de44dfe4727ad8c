/*
 * A worker: accepts clients, and runs the flights that they lead and follow.
 */
#ifndef DAC_PROCESS_WORKER_H
#define DAC_PROCESS_WORKER_H

#include "process/child.h"

/* Runs until it is drained; returns the exit code. */
int worker_run(const struct child_context *ctx) DAC_CHECK;

#endif
