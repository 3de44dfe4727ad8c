/*
 * How large a batch may be, learnt from how long batches take: one that was not committed
 * in time is followed by one of half its size, down to a single row; after some that
 * worked near the limit it doubles. A doubling that fails at once makes the next one
 * wait for longer, as a limit that is tried again and again would cost a connection each
 * time. Both rows and bytes count, since either may be what took the time.
 */
#ifndef DAC_STORE_PACE_H
#define DAC_STORE_PACE_H

#include <stdbool.h>
#include <stddef.h>

struct pace {
    size_t rows_max, bytes_max; /* what it grows to */
    size_t rows;                /* of the next batch, 1 or more */
    size_t bytes;               /* of its texts; the first row may pass it */
    unsigned steps;             /* successes before it grows */
    unsigned worked;            /* of these so far */
    bool tried;                 /* it has grown, and nothing of that size worked yet */
};

void pace_init(struct pace *p, size_t rows_max, size_t bytes_max);
/* A batch of that size was not committed in time. */
void pace_failed(struct pace *p, size_t rows, size_t bytes);
/* A batch of that size was. */
void pace_worked(struct pace *p, size_t rows, size_t bytes);

#endif
