/*
 * The recorder: the only process that writes to the store.
 *
 * It finds ended flights in shared memory, stores them in batches and then says so in
 * each flight's `stored` word, ends flights whose fetcher died, and frees flights that
 * nobody needs any more. It has no reader bit: a flight that is not stored cannot leave
 * memory.
 */
#ifndef DAC_PROCESS_RECORDER_H
#define DAC_PROCESS_RECORDER_H

#include "process/child.h"

/* Runs until the service has stopped and all that ended is stored; returns the exit code.
 */
int recorder_run(const struct child_context *ctx) DAC_CHECK;

#endif
