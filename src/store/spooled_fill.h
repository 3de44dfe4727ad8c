/*
 * Fetches the older turns of threads that are new to the spool, one thread at a time, so
 * that their histories are whole when PostgreSQL goes away. Best effort: what fails is
 * left out. Runs in the recorder.
 */
#ifndef DAC_STORE_SPOOLED_FILL_H
#define DAC_STORE_SPOOLED_FILL_H

#include "store/spool.h"
#include "store/store.h"

struct spooled_fill;

/* `spool` is borrowed. */
enum dac_err spooled_fill_new(struct event_base *base, const struct store_options *opt,
                              struct spool *spool, struct spooled_fill **out, char *why,
                              size_t n) DAC_CHECK;
void spooled_fill_free(struct spooled_fill *f);
/* Fetches what a history up to `until`, a stored turn of that thread, would take. */
void spooled_fill_want(struct spooled_fill *f, const char *org, const struct id *thread,
                       const struct id *until);

#endif
