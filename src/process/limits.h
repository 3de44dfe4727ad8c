/*
 * Resource limits of the service's processes.
 */
#ifndef DAC_PROCESS_LIMITS_H
#define DAC_PROCESS_LIMITS_H

#include <stdbool.h>
#include <stdint.h>

/* Raises the limit of open files to the hard one; children inherit it. Warns if
 * `max_connections` clients would not fit beside `own` descriptors of a worker. Master,
 * before the first fork. */
void limits_raise_files(uint64_t max_connections, uint64_t own);
/* Whether a process that crashes may leave its memory, with what people asked, and keys.
 * `allowed`: as the system's limits have it. Master, before the first fork. */
void limits_core_dumps(bool allowed);
/* The same for a child, after it has become another user, of whom the kernel dumps
 * nothing by itself. */
void limits_core_dumps_of_child(bool allowed);

#endif
