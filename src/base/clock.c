/*
 * Reads the two clocks. Any process, any thread; the test clock is for single-threaded
 * tests.
 */
#include "base/clock.h"

#include <stddef.h>
#include <stdio.h>
#include <time.h>

static const uint64_t *test_now;

uint64_t clock_now_ns(void)
{
    struct timespec ts;

    if (test_now)
        return *test_now;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

int64_t clock_wall_us(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_REALTIME, &ts);
    return (int64_t)ts.tv_sec * 1000000 + (int64_t)ts.tv_nsec / 1000;
}

void clock_set_test(const uint64_t *now)
{
    test_now = now;
}

void clock_format_rfc3339(int64_t us, char out[32])
{
    int64_t part = us % 1000000;
    time_t seconds = (time_t)(us / 1000000);
    struct tm tm;

    if (part < 0) {
        part += 1000000;
        seconds--;
    }
    /* Four digits is all that RFC 3339 has for a year. */
    if (!gmtime_r(&seconds, &tm) || tm.tm_year < -1900 || tm.tm_year > 8099) {
        snprintf(out, 32, "0000-00-00T00:00:00.000Z");
        return;
    }
    snprintf(out, 32, "%04u-%02u-%02uT%02u:%02u:%02u.%03uZ",
             (unsigned)(tm.tm_year + 1900) % 10000u, (unsigned)(tm.tm_mon + 1) % 100u,
             (unsigned)tm.tm_mday % 100u, (unsigned)tm.tm_hour % 100u,
             (unsigned)tm.tm_min % 100u, (unsigned)tm.tm_sec % 100u,
             (unsigned)(part / 1000) % 1000u);
}
