/*
 * The bare commit that a stored turn is measured against: one row of so many bytes, made
 * durable the way its store does it and nothing else done. Blocking; for one process and
 * thread.
 */
#ifndef DAC_BENCH_BARE_H
#define DAC_BENCH_BARE_H

#include <stdbool.h>
#include <stddef.h>

struct bare;

/* `where`: a file for SQLite ("sqlite:FILE"), or a libpq connection string
 * ("postgres:STRING"). Makes its table there. NULL after a message. */
struct bare *bare_open(const char *where);
/* Commits one row with `n` bytes of text. False after a message. */
bool bare_commit(struct bare *b, size_t n);
/* Upkeep between two measured commits. */
void bare_tidy(struct bare *b);
/* NULL is allowed. */
void bare_close(struct bare *b);

#endif
