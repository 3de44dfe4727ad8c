/*
 * Resource limits of the service's processes.
 */
#ifndef DAC_PROCESS_LIMITS_H
#define DAC_PROCESS_LIMITS_H

#include <stdint.h>

/* Raises the limit of open files to the hard one; children inherit it. Warns if
 * `max_connections` clients would not fit beside `own` descriptors of a worker. Master,
 * before the first fork. */
void limits_raise_files(uint64_t max_connections, uint64_t own);

#endif
