/*
 * What the tests of the spool share: one spool in a folder of its own.
 */
#ifndef DAC_TESTS_SPOOL_FIXTURE_H
#define DAC_TESTS_SPOOL_FIXTURE_H

#include "store/spool_internal.h"

/* A checked fixture's two halves; the spool between them, of 64 MiB and 8 threads, which
 * a test may close and open anew. */
void sx_setup(void);
void sx_teardown(void);
extern struct spool *sx_spool;
extern size_t sx_turns_kept; /* of one thread, by the next that is opened; 4 */

struct spool *sx_open(uint64_t max_bytes, size_t threads);
/* Turn `n` of thread `thread`, as fx_turn() makes it, into the queue. */
void sx_put_turn(unsigned n, unsigned thread);
/* The same, only to be kept. */
void sx_keep_turn(unsigned n, unsigned thread);
uint64_t sx_rows_left(void);

#endif
