/*
 * A growing set of measurements and its percentiles, and the report that a run prints:
 * rows of group, name, value and unit, as a table for people or as JSON for scripts. One
 * process, one thread.
 */
#ifndef DAC_BENCH_SAMPLES_H
#define DAC_BENCH_SAMPLES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Nanoseconds, in no order. Zeroed is empty. */
struct samples {
    uint64_t *v; /* owned */
    size_t n, cap;
};

void samples_add(struct samples *s, uint64_t ns);
/* Nearest rank, q in (0, 1]; 0 of an empty set. Sorts the set. */
uint64_t samples_quantile(struct samples *s, double q);
void samples_free(struct samples *s);

#define REPORT_ROWS 128

struct report {
    struct report_row {
        char group[32], name[40], unit[16];
        double value;
    } rows[REPORT_ROWS];
    size_t n;
};

void report_add(struct report *r, const char *group, const char *name, double value,
                const char *unit);
/* Adds n, p50, p90, p99 and max in milliseconds. */
void report_quantiles(struct report *r, const char *group, struct samples *s);
/* To standard output: aligned lines, or {"group": {"name_unit": value}}. */
void report_print(const struct report *r, bool json);

#endif
