/*
 * The locks of the key index's buckets. Under one lie two chains: of flights by their key
 * (shm/index.h), and of aliases by theirs (shm/alias.h).
 *
 * Process-shared robust mutexes, tried for 20 ms at most; at most one is held, and under
 * it no system call, allocation, log line or callback. The chains are hints: after a
 * death (EOWNERDEAD) both are rebuilt from the `bucket` fields of what is in them, and
 * only then is the lock declared consistent.
 *
 * A lock that can never be had again (ENOTRECOVERABLE) loses its bucket: the header's
 * `lock_lost` asks the master for a new segment. Any process but the master.
 */
#ifndef DAC_SHM_BUCKET_H
#define DAC_SHM_BUCKET_H

#include "shm/segment.h"

#define BUCKET_LOCK_NS UINT64_C(20000000)
#define BUCKET_BUSY_NS UINT64_C(250000000) /* no second wait for the same lock before */

/* DAC_OK: it is held. DAC_E_BUSY: not now. DAC_E_STATE: the bucket is lost, nobody is in
 * it, and nobody will be. */
enum dac_err bucket_lock(struct shm *shm, uint32_t bucket) DAC_CHECK;
/* The same, for who needs the lock itself: DAC_OK or DAC_E_BUSY. */
enum dac_err bucket_enter(struct shm *shm, uint32_t bucket) DAC_CHECK;
void bucket_unlock(struct shm *shm, uint32_t bucket);

#endif
