/*
 * The segment: creating, locking, attaching, replacing and removing it.
 *
 * struct shm is one process's view of it: pointers into its own mapping, made once and
 * inherited by fork, plus the eventfds that all processes share.
 */
#ifndef DAC_SHM_SEGMENT_H
#define DAC_SHM_SEGMENT_H

#include "base/err.h"
#include "shm/layout.h"

#define SHM_BUSY_MAX 8

/* A bucket whose lock this process waited for in vain. */
struct shm_busy_bucket {
    uint32_t bucket;   /* its number plus 1, 0: none */
    uint64_t until_ns; /* before that it does not wait for it again */
};

struct shm {
    uint8_t *base;
    size_t size;
    bool writable;
    struct shm_header *hdr;
    struct shm_slot *slots;
    shm_u64 *dirty; /* [slot * hdr->dirty_words + word] */
    struct shm_pacer *pacers;
    struct shm_bucket *buckets;
    struct shm_flight *flights;
    struct shm_alias *aliases;
    struct shm_sample *samples;
    struct shm_timings *timings; /* SHM_PROVIDERS_MAX counted, as many taken over */
    struct shm_block *blocks;
    uint8_t *data;
    int eventfd[SHM_SLOTS]; /* -1 where there is none (readers from outside) */
    int lock_fd;            /* holds the instance's lock; -1 in children */
    uint32_t self; /* this process's slot, SHM_NO_SLOT in the master and outside */
    struct shm_busy_bucket
        busy[SHM_BUSY_MAX]; /* bucket.c's own; the oldest is forgotten */
    uint32_t busy_next;
};

struct shm_provider_limits {
    const char *name;
    double rps;           /* 0: no limit */
    uint32_t burst;       /* at least 1 */
    uint32_t concurrency; /* 0: no limit; at most SHM_PERMITS_MAX */
};

struct shm_options {
    const char *name; /* instance; the segment is /dev/shm/<name> */
    uint64_t size;    /* bytes of the whole segment */
    uint32_t max_flights;
    uint64_t flight_max_bytes;
    const struct shm_provider_limits *providers;
    uint32_t provider_count;
    uint32_t owner_uid; /* who will use it after dropping privileges */
    uint32_t owner_gid;
};

/* How the size divides; pure arithmetic. */
struct shm_plan {
    struct shm_areas areas;
    uint64_t total;
    uint32_t flight_count, bucket_count, alias_count, block_count, dirty_words;
    uint64_t bytes_per_flight; /* fixed part, one block, four aliases */
};

/* DAC_E_TOO_LARGE if `size` has no room for one whole answer beside the tables; `why` (of
 * `n` bytes) then names the setting and the least value that would do. */
enum dac_err segment_plan(const struct shm_options *opt, struct shm_plan *plan, char *why,
                          size_t n) DAC_CHECK;

/* Master. Creates, allocates (posix_fallocate), initialises and locks the segment, and
 * opens the eventfds. DAC_E_EXISTS: a living instance holds it (`why` names its pid). A
 * segment whose lock nobody holds was left by a killed master: it is replaced, *replaced
 * says so. DAC_E_FULL: /dev/shm has no room for it. */
enum dac_err segment_create(const struct shm_options *opt, struct shm *out,
                            bool *replaced, char *why, size_t n) DAC_CHECK;

/* Master of a living instance: the same beside the segment that it has, as
 * /dev/shm/.<name>.next. It stays there until segment_take_name(). DAC_E_SYS, DAC_E_FULL,
 * DAC_E_TOO_LARGE. */
enum dac_err segment_create_next(const struct shm_options *opt, struct shm *out,
                                 char *why, size_t n) DAC_CHECK;
/* Bytes that /dev/shm has room for now; 0 if one cannot know. */
uint64_t segment_room(void);
/* Master: gives it the instance's name, in one step. The segment that had the name goes
 * on without one. DAC_E_SYS: nothing changed. */
enum dac_err segment_take_name(struct shm *next) DAC_CHECK;

/* Pid of the master whose segment has this name, dead or alive; 0: none can be told. */
uint32_t segment_holder(const char *name);

/* From outside (dacctl): maps it read-only after checking magic, version and sizes. */
enum dac_err segment_attach(const char *name, struct shm *out, char *why,
                            size_t n) DAC_CHECK;

/* Child, right after fork: gives up the lock's descriptor and takes `slot`. */
void segment_enter_child(struct shm *shm, uint32_t slot);

/* Unmaps and closes. */
void segment_detach(struct shm *shm);
/* Master: removes the name, if it is still this segment's, then detaches. */
void segment_destroy(struct shm *shm);

/* Names the first broken invariant of the header in `why`. Any process. */
bool segment_valid(const struct shm *shm, char *why, size_t n);

/* Adds to a counter of this process (the base's, in the master). */
void shm_count(struct shm *shm, enum shm_counter c, uint64_t by);
/* A counter's sum over all slots and the base. */
uint64_t shm_counter_sum(const struct shm *shm, enum shm_counter c);
/* Processes started again after a death: for all kinds and reasons. */
uint64_t shm_restarts_sum(const struct shm *shm);
/* "killed", "exited", "watchdog". */
const char *shm_restart_reason_name(enum restart_reason reason);
/* "requests" and its help text. */
const char *shm_counter_name(enum shm_counter c);
const char *shm_counter_help(enum shm_counter c);

#endif
