/*
 * A row that was refused, as it is set aside in the table `rejected`: what it was, and
 * everything that was to be written, as one JSON object. For the writers.
 */
#ifndef DAC_STORE_REJECTED_H
#define DAC_STORE_REJECTED_H

#include <stdbool.h>

#include "base/bytes.h"
#include "store/store.h"

#define REJECTED_DATA_MAX (UINT64_C(1) << 30)

/* Whether the row is worth setting aside: what was asked for and cannot be had again.
 * Counts, titles and deletions of what is not there are not, nor is an alias. */
bool rejected_wanted(const struct store_row *row);
/* "thread", "turn", "counts", "title", "delete", "alias". */
const char *rejected_kind(const struct store_row *row);
/* Of the thread or turn; zero if it has none. Of any kind of row. */
const struct id *rejected_id(const struct store_row *row);
/* NULL: unknown, or not storable. */
const char *rejected_org(const struct store_row *row);
/* Appends the object; what is not UTF-8, or NUL, becomes U+FFFD. `out` remembers a
 * failure. */
void rejected_data(const struct store_row *row, struct buf *out);

/* Makes `out` the STORE_REJECTED row of `row`. It borrows `reason`, the row's texts, and
 * `data`, which the caller frees. */
void rejected_make(const struct store_row *row, const char *reason, struct buf *data,
                   struct store_row *out);

#endif
