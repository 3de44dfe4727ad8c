/*
 * Values as people write them: durations, sizes, numbers, switches. Pure functions on
 * NUL-terminated text; surrounding blanks are not expected. Internal to config.
 */
#ifndef DAC_CONFIG_VALUE_H
#define DAC_CONFIG_VALUE_H

#include "base/bytes.h"

/* Each returns whether the whole text is one such value that fits; only then *out is set.
 */

/* A number and one of ns, us, ms, s, m, h, d; a fraction is allowed ("1.5s"); "0" needs
 * no unit. In nanoseconds. */
bool value_parse_duration(const char *s, uint64_t *out);
/* A number of bytes, or with k, m, g (any case) of 1,024, 1,024^2, 1,024^3 bytes. */
bool value_parse_size(const char *s, uint64_t *out);
/* Not negative, decimal, no exponent: "0.5". */
bool value_parse_rate(const char *s, double *out);
/* 1, true, yes, on, 0, false, no, off in any case. */
bool value_parse_bool(const char *s, bool *out);

/* Append a value so that it parses to the same, in the largest unit that divides it. */
void value_put_duration(struct buf *b, uint64_t ns);
void value_put_size(struct buf *b, uint64_t bytes);

/* How many single-letter changes, swaps of neighbours included, make `a` of `b`, ignoring
 * case (optimal string alignment). Above 63 letters: UINT_MAX. */
unsigned value_distance(const char *a, const char *b);

#endif
