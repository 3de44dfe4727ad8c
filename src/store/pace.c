/*
 * See pace.h. No state but the struct; in the recorder.
 */
#include "store/pace.h"

#define BYTES_MIN (64u << 10) /* below it, rows are what counts */
#define STEPS_MIN 4
#define STEPS_MAX 256

static size_t clamp(size_t n, size_t min, size_t max)
{
    return n < min ? min : n > max ? max : n;
}

void pace_init(struct pace *p, size_t rows_max, size_t bytes_max)
{
    *p = (struct pace){.rows_max = rows_max,
                       .bytes_max = bytes_max,
                       .rows = rows_max,
                       .bytes = bytes_max,
                       .steps = STEPS_MIN};
}

void pace_failed(struct pace *p, size_t rows, size_t bytes)
{
    p->steps = p->tried ? p->steps * 2 : STEPS_MIN;
    if (p->steps > STEPS_MAX)
        p->steps = STEPS_MAX;
    p->tried = false;
    p->worked = 0;
    p->rows = clamp(rows / 2, 1, p->rows);
    p->bytes = clamp(bytes / 2, BYTES_MIN, p->bytes);
}

void pace_worked(struct pace *p, size_t rows, size_t bytes)
{
    bool many = p->rows < p->rows_max && rows > p->rows / 2;
    bool large = p->bytes < p->bytes_max && bytes > p->bytes / 2;

    if (!many && !large)
        return;
    p->tried = false;
    if (++p->worked < p->steps)
        return;
    p->worked = 0;
    p->tried = true;
    if (many)
        p->rows = clamp(p->rows * 2, 1, p->rows_max);
    if (large)
        p->bytes = clamp(p->bytes * 2, BYTES_MIN, p->bytes_max);
}
