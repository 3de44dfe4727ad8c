/*
 * Creating, locking, attaching and removing the segment.
 *
 * The master holds an exclusive flock() on the segment's own descriptor for as long as it
 * lives; children give their copy up. So a segment whose lock can be had belongs to
 * nobody: a killed master left it, and it is unlinked and made anew. Whoever still maps
 * the old one (its workers, on their way out) keeps the old memory and disturbs nobody.
 *
 * A living master replaces its own segment by making the next one under another name,
 * locked as well, and renaming it over the old one: the name always leads to a locked
 * file.
 * Runs in the master (create, destroy), in children after fork (enter), outside (attach).
 */
#include "shm/segment.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/clock.h"
#include "shm/flight.h"
#include "shm/pacer.h"

#define SEGMENT_TRIES 3
#define SEGMENT_MODE  0640       /* the service's group may look on, if umask lets it */
#define SHM_FOLDER    "/dev/shm" /* where shm_open() has its names, on Linux */
#define PATH_SIZE     (SHM_NAME_SIZE + 16)
#define FILE_SIZE     (sizeof(SHM_FOLDER) + PATH_SIZE)

static uint64_t align_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

static uint32_t power_of_two_at_least(uint32_t n)
{
    uint32_t p = 64;
    while (p < n)
        p *= 2;
    return p;
}

/* Where the areas lie follows from the counts alone: of flights, and of blocks. */
static void place_areas(struct shm_plan *plan, uint32_t flights, uint32_t blocks)
{
    struct shm_areas *a = &plan->areas;

    plan->flight_count = flights;
    plan->bucket_count = power_of_two_at_least(flights);
    plan->alias_count = flights * 4 > SHM_ALIASES_LEAST ? flights * 4 : SHM_ALIASES_LEAST;
    plan->block_count = blocks;
    plan->dirty_words = (flights + 63) / 64;
    a->slots = align_up(sizeof(struct shm_header), 4096);
    a->dirty = align_up(a->slots + SHM_SLOTS * sizeof(struct shm_slot), 64);
    a->pacers = align_up(a->dirty + SHM_SLOTS * plan->dirty_words * sizeof(uint64_t), 64);
    a->buckets = align_up(a->pacers + SHM_PROVIDERS_MAX * sizeof(struct shm_pacer), 64);
    a->flights =
        align_up(a->buckets + plan->bucket_count * sizeof(struct shm_bucket), 64);
    a->aliases = align_up(a->flights + flights * sizeof(struct shm_flight), 64);
    a->samples = align_up(a->aliases + plan->alias_count * sizeof(struct shm_alias), 64);
    a->timings = align_up(a->samples + SHM_SAMPLES * sizeof(struct shm_sample), 64);
    a->blocks = align_up(
        a->timings + UINT64_C(2) * SHM_PROVIDERS_MAX * sizeof(struct shm_timings), 64);
    a->data = align_up(a->blocks + blocks * sizeof(struct shm_block), 4096);
    a->end = a->data + (uint64_t)blocks * SHM_BLOCK_SIZE;
    plan->total = align_up(a->end, 4096);
}

enum dac_err segment_plan(const struct shm_options *opt, struct shm_plan *plan, char *why,
                          size_t n)
{
    struct shm_areas *a = &plan->areas;
    uint32_t flights = opt->max_flights;

    if (flights < 1 || flights > SHM_FLIGHTS_MAX) {
        snprintf(why, n, "max_flights = %u is not between 1 and %u", flights,
                 SHM_FLIGHTS_MAX);
        return DAC_E_INVALID;
    }
    if (opt->provider_count > SHM_PROVIDERS_MAX) {
        snprintf(why, n, "%u providers are more than %u", opt->provider_count,
                 SHM_PROVIDERS_MAX);
        return DAC_E_INVALID;
    }
    memset(plan, 0, sizeof *plan);
    place_areas(plan, flights, 0);

    /* One whole answer, and beside it a block for every sixteenth flight at least. */
    uint64_t least_blocks = opt->flight_max_bytes / SHM_BLOCK_SIZE + flights / 16 + 64;
    uint64_t per_block = SHM_BLOCK_SIZE + sizeof(struct shm_block);
    uint64_t least = align_up(a->blocks + least_blocks * per_block + 8192, 4096);
    if (opt->size < least) {
        snprintf(why, n,
                 "shm_size = %llu bytes is too small for max_flights = %u and "
                 "flight_max_bytes = %llu: at least %lluk is needed",
                 (unsigned long long)opt->size, flights,
                 (unsigned long long)opt->flight_max_bytes,
                 (unsigned long long)(least + 1023) / 1024);
        return DAC_E_TOO_LARGE;
    }
    uint64_t blocks = (opt->size - a->blocks - 4096) / per_block;
    place_areas(plan, flights,
                blocks > UINT32_MAX / 2 ? UINT32_MAX / 2 : (uint32_t)blocks);
    plan->bytes_per_flight = sizeof(struct shm_flight) + sizeof(struct shm_bucket) +
                             4 * sizeof(struct shm_alias) + SHM_BLOCK_SIZE +
                             sizeof(struct shm_block) + SHM_SLOTS / 8;
    return DAC_OK;
}

static void segment_point(struct shm *shm)
{
    struct shm_header *h = (struct shm_header *)(void *)shm->base;
    const struct shm_areas *a = &h->areas;

    shm->hdr = h;
    shm->slots = (struct shm_slot *)(void *)(shm->base + a->slots);
    shm->dirty = (shm_u64 *)(void *)(shm->base + a->dirty);
    shm->pacers = (struct shm_pacer *)(void *)(shm->base + a->pacers);
    shm->buckets = (struct shm_bucket *)(void *)(shm->base + a->buckets);
    shm->flights = (struct shm_flight *)(void *)(shm->base + a->flights);
    shm->aliases = (struct shm_alias *)(void *)(shm->base + a->aliases);
    shm->samples = (struct shm_sample *)(void *)(shm->base + a->samples);
    shm->timings = (struct shm_timings *)(void *)(shm->base + a->timings);
    shm->blocks = (struct shm_block *)(void *)(shm->base + a->blocks);
    shm->data = shm->base + a->data;
}

static enum dac_err segment_init_locks(struct shm *shm)
{
    pthread_mutexattr_t attr;
    int rc = pthread_mutexattr_init(&attr);
    if (rc == 0)
        rc = pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    if (rc == 0)
        rc = pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    for (uint32_t i = 0; rc == 0 && i < shm->hdr->bucket_count; i++)
        rc = pthread_mutex_init(&shm->buckets[i].lock, &attr);
    pthread_mutexattr_destroy(&attr);
    errno = rc;
    return rc == 0 ? DAC_OK : DAC_E_SYS;
}

/* The mapping is all zero bytes: only what is not zero is written. Magic comes last. */
static enum dac_err segment_init(struct shm *shm, const struct shm_options *opt,
                                 const struct shm_plan *plan)
{
    struct shm_header *h = (struct shm_header *)(void *)shm->base;

    h->layout_version = SHM_LAYOUT_VERSION;
    h->header_size = sizeof *h;
    h->slot_size = sizeof(struct shm_slot);
    h->pacer_size = sizeof(struct shm_pacer);
    h->bucket_size = sizeof(struct shm_bucket);
    h->flight_size = sizeof(struct shm_flight);
    h->alias_size = sizeof(struct shm_alias);
    h->sample_size = sizeof(struct shm_sample);
    h->timings_size = sizeof(struct shm_timings);
    h->block_size = SHM_BLOCK_SIZE;
    h->flight_count = plan->flight_count;
    h->bucket_count = plan->bucket_count;
    h->alias_count = plan->alias_count;
    h->block_count = plan->block_count;
    atomic_store(&h->provider_count, opt->provider_count);
    h->dirty_words = plan->dirty_words;
    h->total_size = plan->total;
    h->flight_max_bytes = opt->flight_max_bytes;
    h->created_ns = clock_now_ns();
    h->created_us = clock_wall_us();
    h->areas = plan->areas;
    snprintf(h->name, sizeof h->name, "%s", opt->name);
    segment_point(shm);

    atomic_store(&h->master_pid, (uint32_t)getpid());
    atomic_store(&h->recorder_slot, SHM_NO_SLOT);
    for (size_t i = 0; i < SHM_WORKERS_MAX; i++)
        atomic_store(&h->ordinal_slot[i], SHM_NO_SLOT);
    const struct flight_word free_word = {.state = FLIGHT_FREE, .owner = SHM_NO_SLOT};
    for (uint32_t i = 0; i < h->flight_count; i++)
        atomic_store(&shm->flights[i].word, flight_pack(free_word));
    for (uint32_t i = 0; i < opt->provider_count; i++) {
        const struct shm_provider_limits *p = &opt->providers[i];
        snprintf(h->provider_names[i], sizeof h->provider_names[i], "%s", p->name);
        pacer_set_limits(shm, i, p->rps, p->burst, p->concurrency);
    }
    enum dac_err e = segment_init_locks(shm);
    if (e == DAC_OK) {
        atomic_thread_fence(memory_order_release);
        h->magic = SHM_MAGIC;
    }
    return e;
}

static enum dac_err open_eventfds(struct shm *shm, char *why, size_t n)
{
    for (size_t i = 0; i < SHM_SLOTS; i++) {
        shm->eventfd[i] = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (shm->eventfd[i] < 0) {
            snprintf(why, n, "could not open eventfd %zu of %u: %s", i, SHM_SLOTS,
                     strerror(errno));
            return DAC_E_SYS;
        }
    }
    return DAC_OK;
}

static void path_of(const char *name, char path[PATH_SIZE])
{
    snprintf(path, PATH_SIZE, "/%.*s", (int)SHM_NAME_SIZE, name);
}

/* Of the segment that is to follow; an instance's name never begins with a dot. */
static void next_path_of(const char *name, char path[PATH_SIZE])
{
    snprintf(path, PATH_SIZE, "/.%.*s.next", (int)SHM_NAME_SIZE, name);
}

/* Whether the name still leads to the file that `fd` has open. Needs no descriptor, since
 * a maker that had none left would leave what it just made. */
static bool same_file(const char *path, int fd)
{
    char file[FILE_SIZE];
    struct stat a, b;

    snprintf(file, sizeof file, SHM_FOLDER "%s", path);
    return stat(file, &a) == 0 && fstat(fd, &b) == 0 && a.st_ino == b.st_ino &&
           a.st_dev == b.st_dev;
}

static uint32_t read_master_pid(int fd)
{
    struct shm_header h;

    if (pread(fd, &h, sizeof h, 0) != (ssize_t)sizeof h || h.magic != SHM_MAGIC)
        return 0;
    return atomic_load(&h.master_pid);
}

static void name_the_holder(const char *name, int fd, char *why, size_t n)
{
    unsigned pid = read_master_pid(fd);

    snprintf(
        why, n,
        "instance \"%s\" is already running (master pid %u); stop it, or give this one "
        "another [server] name",
        name, pid);
}

/* Opens a file of that name that nobody had, locked; a dead master's is unlinked first.
 */
static enum dac_err open_locked(const char *path, const char *name, int *out,
                                bool *replaced, char *why, size_t n)
{
    for (int i = 0; i < SEGMENT_TRIES; i++) {
        int fd = shm_open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, SEGMENT_MODE);
        if (fd >= 0) {
            /* Another starter may take it, unlocked as it is, for a dead master's. */
            if (flock(fd, LOCK_EX | LOCK_NB) == 0 && same_file(path, fd)) {
                *out = fd;
                return DAC_OK;
            }
            close(fd);
            continue;
        }
        if (errno != EEXIST)
            break;
        fd = shm_open(path, O_RDWR | O_CLOEXEC, 0);
        if (fd < 0 && errno == ENOENT)
            continue;
        if (fd < 0)
            break;
        if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
            name_the_holder(name, fd, why, n);
            close(fd);
            return DAC_E_EXISTS;
        }
        if (same_file(path, fd)) {
            shm_unlink(path);
            *replaced = true;
        }
        close(fd);
        errno = EBUSY; /* in case that was the last try */
    }
    snprintf(why, n, "could not open shared memory \"%s\": %s", path, strerror(errno));
    return DAC_E_SYS;
}

static enum dac_err allocate(struct shm *shm, int fd, const struct shm_options *opt,
                             char *why, size_t n)
{
    /* A sandbox may forbid it, also where it would change nothing. */
    if ((opt->owner_uid != geteuid() || opt->owner_gid != getegid()) &&
        fchown(fd, opt->owner_uid, opt->owner_gid) != 0) {
        snprintf(why, n, "could not give shared memory to uid %u: %s", opt->owner_uid,
                 strerror(errno));
        return DAC_E_SYS;
    }
    int rc = posix_fallocate(fd, 0, (off_t)shm->size);
    if (rc != 0) {
        snprintf(why, n,
                 "could not allocate %zu MiB in /dev/shm: %s; make /dev/shm larger or "
                 "[memory] shm_size smaller",
                 shm->size >> 20, strerror(rc));
        return rc == ENOSPC ? DAC_E_FULL : DAC_E_SYS;
    }
    void *p = mmap(NULL, shm->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        snprintf(why, n, "could not map %zu MiB of shared memory: %s", shm->size >> 20,
                 strerror(errno));
        return DAC_E_SYS;
    }
    shm->base = p;
    shm->writable = true;
    return DAC_OK;
}

static void shm_blank(struct shm *shm)
{
    memset(shm, 0, sizeof *shm);
    for (size_t i = 0; i < SHM_SLOTS; i++)
        shm->eventfd[i] = -1;
    shm->lock_fd = -1;
    shm->self = SHM_NO_SLOT;
}

/* Everything behind the lock: memory, contents, eventfds. On failure the name and the
 * lock are gone. */
static enum dac_err build(const char *path, const struct shm_options *opt,
                          const struct shm_plan *plan, struct shm *out, char *why,
                          size_t n)
{
    enum dac_err e;

    out->size = (size_t)plan->total;
    /* A second description of the file: a mapping keeps the one it was made from open,
     * and with it flock()'s lock, so children would hold the instance beyond the master's
     * death. */
    int map_fd = shm_open(path, O_RDWR | O_CLOEXEC, 0);
    if (map_fd < 0) {
        snprintf(why, n, "could not open shared memory \"%s\": %s", path,
                 strerror(errno));
        e = DAC_E_SYS;
    } else {
        e = allocate(out, map_fd, opt, why, n);
        close(map_fd);
    }
    if (e == DAC_OK) {
        e = segment_init(out, opt, plan);
        if (e != DAC_OK)
            snprintf(why, n, "could not make the locks of the key index: %s",
                     strerror(errno));
    }
    if (e == DAC_OK)
        e = open_eventfds(out, why, n);
    if (e != DAC_OK) {
        shm_unlink(path);
        segment_detach(out);
    }
    return e;
}

enum dac_err segment_create(const struct shm_options *opt, struct shm *out,
                            bool *replaced, char *why, size_t n)
{
    char path[PATH_SIZE], next[PATH_SIZE];
    struct shm_plan plan;
    enum dac_err e;

    shm_blank(out);
    *replaced = false;
    if (strlen(opt->name) >= SHM_NAME_SIZE || strchr(opt->name, '/') || !opt->name[0]) {
        snprintf(why, n, "[server] name = \"%s\" is no name for shared memory",
                 opt->name);
        return DAC_E_INVALID;
    }
    e = segment_plan(opt, &plan, why, n);
    if (e != DAC_OK)
        return e;
    path_of(opt->name, path);
    e = open_locked(path, opt->name, &out->lock_fd, replaced, why, n);
    if (e != DAC_OK)
        return e;
    next_path_of(opt->name, next);
    shm_unlink(next); /* of a master that was killed over it */
    return build(path, opt, &plan, out, why, n);
}

enum dac_err segment_create_next(const struct shm_options *opt, struct shm *out,
                                 char *why, size_t n)
{
    char path[PATH_SIZE];
    struct shm_plan plan;
    enum dac_err e = segment_plan(opt, &plan, why, n);

    shm_blank(out);
    if (e != DAC_OK)
        return e;
    next_path_of(opt->name, path);
    shm_unlink(path);
    out->lock_fd = shm_open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, SEGMENT_MODE);
    if (out->lock_fd < 0 || flock(out->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        snprintf(why, n, "could not make shared memory \"%s\": %s", path,
                 strerror(errno));
        segment_detach(out);
        return DAC_E_SYS;
    }
    return build(path, opt, &plan, out, why, n);
}

uint64_t segment_room(void)
{
    struct statvfs fs;

    return statvfs(SHM_FOLDER, &fs) == 0 ? (uint64_t)fs.f_bavail * fs.f_frsize : 0;
}

enum dac_err segment_take_name(struct shm *next)
{
    char from[PATH_SIZE], to[PATH_SIZE];
    char from_file[FILE_SIZE], to_file[FILE_SIZE];

    next_path_of(next->hdr->name, from);
    path_of(next->hdr->name, to);
    snprintf(from_file, sizeof from_file, SHM_FOLDER "%s", from);
    snprintf(to_file, sizeof to_file, SHM_FOLDER "%s", to);
    return rename(from_file, to_file) == 0 ? DAC_OK : DAC_E_SYS;
}

uint32_t segment_holder(const char *name)
{
    char path[PATH_SIZE];
    uint32_t pid;

    path_of(name, path);
    int fd = shm_open(path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return 0;
    pid = read_master_pid(fd);
    close(fd);
    return pid;
}

enum dac_err segment_attach(const char *name, struct shm *out, char *why, size_t n)
{
    char path[SHM_NAME_SIZE + 2];
    struct stat st;
    int fd;

    shm_blank(out);
    snprintf(path, sizeof path, "/%s", name);
    fd = shm_open(path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) {
        int err = errno;
        snprintf(why, n, "could not open instance \"%s\" in /dev/shm: %s%s", name,
                 strerror(err),
                 err == EACCES ? "; be root, or in the group of the service" : "");
        return err == ENOENT ? DAC_E_NOT_FOUND : DAC_E_SYS;
    }
    enum dac_err e = DAC_E_CORRUPT;
    if (fstat(fd, &st) != 0 || (size_t)st.st_size < sizeof(struct shm_header)) {
        snprintf(why, n, "/dev/shm%s is no segment of dacd", path);
    } else {
        out->size = (size_t)st.st_size;
        void *p = mmap(NULL, out->size, PROT_READ, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED) {
            snprintf(why, n, "could not map /dev/shm%s: %s", path, strerror(errno));
            e = DAC_E_SYS;
        } else {
            out->base = p;
            out->hdr = p;
            e = segment_valid(out, why, n) ? DAC_OK : DAC_E_CORRUPT;
        }
    }
    close(fd);
    if (e == DAC_OK)
        segment_point(out);
    else
        segment_detach(out);
    return e;
}

void segment_enter_child(struct shm *shm, uint32_t slot)
{
    if (shm->lock_fd >= 0)
        close(shm->lock_fd);
    shm->lock_fd = -1;
    shm->self = slot;
}

void segment_detach(struct shm *shm)
{
    if (shm->base)
        munmap(shm->base, shm->size);
    for (size_t i = 0; i < SHM_SLOTS; i++)
        if (shm->eventfd[i] >= 0)
            close(shm->eventfd[i]);
    if (shm->lock_fd >= 0)
        close(shm->lock_fd);
    shm_blank(shm);
}

void segment_destroy(struct shm *shm)
{
    void (*const names[])(const char *, char[PATH_SIZE]) = {path_of, next_path_of};
    char path[PATH_SIZE];

    for (size_t i = 0; i < DAC_ARRAY_LEN(names); i++) {
        names[i](shm->hdr->name, path);
        if (shm->lock_fd >= 0 && same_file(path, shm->lock_fd))
            shm_unlink(path);
    }
    segment_detach(shm);
}

/* The counts are within bounds, and the areas are where they put them. */
static bool areas_valid(const struct shm_header *h)
{
    struct shm_plan plan = {0};

    if (h->flight_count == 0 || h->flight_count > SHM_FLIGHTS_MAX ||
        h->block_count == 0 || h->block_count > UINT32_MAX / 2 ||
        atomic_load(&h->provider_count) > SHM_PROVIDERS_MAX)
        return false;
    place_areas(&plan, h->flight_count, h->block_count);
    return h->bucket_count == plan.bucket_count && h->alias_count == plan.alias_count &&
           h->dirty_words == plan.dirty_words &&
           memcmp(&h->areas, &plan.areas, sizeof plan.areas) == 0 &&
           h->total_size == plan.total;
}

static bool names_valid(const struct shm_header *h)
{
    bool ended = memchr(h->name, '\0', sizeof h->name) != NULL;

    for (uint32_t i = 0; i < atomic_load(&h->provider_count); i++)
        ended = ended && memchr(h->provider_names[i], '\0', sizeof h->provider_names[i]);
    return ended;
}

bool segment_valid(const struct shm *shm, char *why, size_t n)
{
    const struct shm_header *h = shm->hdr;

    if (h->magic != SHM_MAGIC)
        snprintf(why, n,
                 "the magic number is wrong: no segment of dacd, or one half made");
    else if (h->layout_version != SHM_LAYOUT_VERSION)
        snprintf(why, n,
                 "layout version is %u, this program knows %u: another version of dacd "
                 "made it; restart the service",
                 h->layout_version, SHM_LAYOUT_VERSION);
    else if (h->header_size != sizeof *h || h->slot_size != sizeof(struct shm_slot) ||
             h->pacer_size != sizeof(struct shm_pacer) ||
             h->bucket_size != sizeof(struct shm_bucket) ||
             h->flight_size != sizeof(struct shm_flight) ||
             h->alias_size != sizeof(struct shm_alias) ||
             h->sample_size != sizeof(struct shm_sample) ||
             h->timings_size != sizeof(struct shm_timings) ||
             h->block_size != SHM_BLOCK_SIZE)
        snprintf(why, n, "sizes of structs differ: made by another build");
    else if (h->total_size != shm->size)
        snprintf(why, n, "the file has %zu bytes, the header says %llu", shm->size,
                 (unsigned long long)h->total_size);
    else if (!areas_valid(h))
        snprintf(why, n, "a count is out of bounds, or an area is not where it belongs");
    else if (!names_valid(h))
        snprintf(why, n, "a name has no end");
    else
        return true;
    return false;
}
