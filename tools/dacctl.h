/*
 * dacctl's commands. Each looks at an attached, read-only segment and appends what it has
 * to say to `out`: a table for people, or one JSON object with `json`. They never show
 * what was asked or answered.
 */
#ifndef DAC_TOOLS_DACCTL_H
#define DAC_TOOLS_DACCTL_H

#include <stdbool.h>

#include "base/bytes.h"
#include "shm/segment.h"

void dacctl_status(const struct shm *shm, bool json, struct buf *out);
void dacctl_flights(const struct shm *shm, bool json, struct buf *out);

#endif
