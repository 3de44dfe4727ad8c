/*
 * The two clocks: a monotonic one in nanoseconds, the only one that may stand in shared
 * memory, and the wall clock in microseconds since 1970 for what people and stores read.
 */
#ifndef DAC_BASE_CLOCK_H
#define DAC_BASE_CLOCK_H

#include <stdint.h>

#define NS_PER_US UINT64_C(1000)
#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S  UINT64_C(1000000000)

/* CLOCK_MONOTONIC in nanoseconds, or the test clock where one is set. */
uint64_t clock_now_ns(void);
/* Wall clock, microseconds since 1970-01-01 UTC. */
int64_t clock_wall_us(void);
/* Tests only: replaces clock_now_ns() by `*now`; NULL restores the real clock. */
void clock_set_test(const uint64_t *now);
/* Writes `us` (wall clock) as RFC 3339 with milliseconds, "2026-01-31T12:00:00.123Z". */
void clock_format_rfc3339(int64_t us, char out[32]);

#endif
