/*
 * Memory that is given piecewise and released at once: the texts of a query's rows.
 * Pieces never move. Not shared between processes or threads.
 */
#ifndef DAC_STORE_ARENA_H
#define DAC_STORE_ARENA_H

#include <stddef.h>

struct arena_chunk;

/* Zero-initialised is empty. The owner calls arena_free(). */
struct arena {
    struct arena_chunk *newest;
};

/* Copies `n` bytes and puts a NUL behind them. NULL without memory. */
char *arena_copy(struct arena *a, const void *s, size_t n);
void arena_free(struct arena *a);

#endif
