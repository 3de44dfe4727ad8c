/*
 * Having a bucket's lock, mending what a dead holder left, and telling that a lock is
 * lost.
 *
 * A lock that is ENOTRECOVERABLE loses its bucket: `lost` is set, and from then on nobody
 * gets in, whatever the lock says. So who saw `lost` before a try that did not end in a
 * time-out knows that nobody is inside and nobody will be: there are no new readers, and
 * what else needs the lock may be done without it.
 */
#include "shm/bucket.h"

#include <errno.h>
#include <time.h>

#include "base/clock.h"
#include "shm/alias.h"
#include "shm/crash.h"
#include "shm/index.h"

static void note_lock(struct shm *shm, uint32_t bucket_plus_one)
{
    if (shm->self < SHM_SLOTS)
        atomic_store_explicit(&shm->slots[shm->self].locking_bucket, bucket_plus_one,
                              memory_order_release);
}

static struct shm_busy_bucket *busy_of(struct shm *shm, uint32_t bucket)
{
    for (size_t i = 0; i < SHM_BUSY_MAX; i++) {
        if (shm->busy[i].bucket == bucket + 1)
            return &shm->busy[i];
    }
    return NULL;
}

static void note_busy(struct shm *shm, uint32_t bucket, uint64_t now_ns)
{
    struct shm_busy_bucket *b = busy_of(shm, bucket);

    if (!b)
        b = &shm->busy[shm->busy_next++ % SHM_BUSY_MAX];
    *b = (struct shm_busy_bucket){.bucket = bucket + 1,
                                  .until_ns = now_ns + BUCKET_BUSY_NS};
}

/* Waits for a lock that somebody else has, but not again and again: if that one stands
 * still, a crowd that wants this bucket must not cost one wait each, since the process
 * would seem to stand still, too. Not by trylock, ever: glibc's keeps the lock of which
 * it says ENOTRECOVERABLE. */
static int lock_within_limit(struct shm *shm, uint32_t bucket)
{
    struct shm_busy_bucket *busy = busy_of(shm, bucket);
    uint64_t now = clock_now_ns();
    bool impatient = busy && now < busy->until_ns;
    uint64_t until_ns = impatient ? now : now + BUCKET_LOCK_NS;
    struct timespec until = {.tv_sec = (time_t)(until_ns / NS_PER_S),
                             .tv_nsec = (long)(until_ns % NS_PER_S)};
    int rc = pthread_mutex_clocklock(&shm->buckets[bucket].lock, CLOCK_MONOTONIC, &until);

    if (rc == ETIMEDOUT && !impatient)
        note_busy(shm, bucket, now);
    else if (rc != ETIMEDOUT && busy)
        busy->bucket = 0;
    return rc;
}

/* Its last holder died; the lock is held. 0, or ENOTRECOVERABLE and it is not. */
static int mend(struct shm *shm, uint32_t bucket)
{
    pthread_mutex_t *m = &shm->buckets[bucket].lock;

    CRASH_POINT("repair_before");
    index_rebuild(shm, bucket);
    alias_rebuild(shm, bucket);
    CRASH_POINT("repair_after");
    shm_count(shm, SHM_C_lock_recoveries, 1);
    if (pthread_mutex_consistent(m) == 0)
        return 0;
    pthread_mutex_unlock(m);
    return ENOTRECOVERABLE;
}

static void tell_lost(struct shm *shm, uint32_t bucket)
{
    /* The master's word first: a death in between must not leave it untold. */
    if (atomic_load(&shm->hdr->lock_lost) == 0)
        atomic_store(&shm->hdr->lock_lost, 1);
    if (atomic_exchange(&shm->buckets[bucket].lost, 1) == 0)
        shm_count(shm, SHM_C_locks_lost, 1);
}

enum dac_err bucket_lock(struct shm *shm, uint32_t bucket)
{
    struct shm_bucket *b = &shm->buckets[bucket];
    bool was_lost = atomic_load(&b->lost) != 0;

    note_lock(shm, bucket + 1);
    int rc = lock_within_limit(shm, bucket);
    if ((rc == 0 || rc == EOWNERDEAD) && atomic_load(&b->lost) != 0) {
        pthread_mutex_unlock(&b->lock);
        rc = ENOTRECOVERABLE;
    }
    if (rc == EOWNERDEAD)
        rc = mend(shm, bucket);
    if (rc == 0) {
        CRASH_POINT("bucket_locked");
        return DAC_OK;
    }
    note_lock(shm, 0);
    if (rc == ENOTRECOVERABLE)
        tell_lost(shm, bucket);
    if (rc == ENOTRECOVERABLE && was_lost)
        return DAC_E_STATE;
    shm_count(shm, SHM_C_lock_timeouts, 1);
    return DAC_E_BUSY;
}

enum dac_err bucket_enter(struct shm *shm, uint32_t bucket)
{
    enum dac_err e = bucket_lock(shm, bucket);

    return e == DAC_E_STATE ? DAC_E_BUSY : e;
}

void bucket_unlock(struct shm *shm, uint32_t bucket)
{
    pthread_mutex_unlock(&shm->buckets[bucket].lock);
    note_lock(shm, 0);
}
