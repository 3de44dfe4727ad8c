/*
 * break_locks NAME [used]: makes locks of a living instance ENOTRECOVERABLE, all of them
 * or those of buckets in which there is something, as a process would that dies under a
 * lock and whose heir gives it back unmended. Exits 0 once nobody can have any of them
 * again.
 *
 * A worker that comes in between mends the lock, as it should; then it is broken again.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shm/layout.h"

#define TRIES   100
#define AT_ONCE 512u /* the kernel follows 2048 links of a dead thread's list */

static struct shm_header *h;
static char *base;
static struct shm_bucket *buckets;

static int map(const char *name, uint32_t *count)
{
    char path[SHM_NAME_SIZE + 2];

    snprintf(path, sizeof(path), "/%s", name);
    int fd = shm_open(path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    h = mmap(NULL, sizeof(*h), PROT_READ, MAP_SHARED, fd, 0);
    if (h == MAP_FAILED || h->magic != SHM_MAGIC ||
        h->layout_version != SHM_LAYOUT_VERSION)
        return -1;
    base = mmap(NULL, h->total_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if ((void *)base == MAP_FAILED)
        return -1;
    buckets = (struct shm_bucket *)(void *)(base + h->areas.buckets);
    *count = h->bucket_count;
    return 0;
}

static void die_under(uint32_t first, uint32_t count)
{
    pid_t pid = fork();

    if (pid == 0) {
        for (uint32_t i = first; i < first + count; i++)
            (void)pthread_mutex_lock(&buckets[i].lock);
        raise(SIGKILL);
    }
    waitpid(pid, NULL, 0);
}

/* Whether nobody can have it any more. */
static int give_back_unmended(uint32_t bucket)
{
    int rc = pthread_mutex_lock(&buckets[bucket].lock);

    if (rc == 0 || rc == EOWNERDEAD)
        pthread_mutex_unlock(&buckets[bucket].lock);
    return rc == ENOTRECOVERABLE || rc == EOWNERDEAD;
}

static int break_some(uint32_t first, uint32_t count)
{
    for (int i = 0; i < TRIES; i++) {
        uint32_t broken = 0;

        die_under(first, count);
        for (uint32_t b = first; b < first + count; b++)
            broken += give_back_unmended(b) != 0;
        if (broken == count)
            return 0;
    }
    return -1;
}

int main(int argc, char **argv)
{
    uint32_t count;

    if (argc < 2 || argc > 3 || map(argv[1], &count) != 0) {
        fprintf(stderr, "break_locks: no segment\n");
        return 1;
    }
    bool used = argc == 3 && strcmp(argv[2], "used") == 0;
    uint32_t step = used ? 1 : AT_ONCE;

    for (uint32_t first = 0; first < count; first += step) {
        uint32_t n = count - first < step ? count - first : step;

        if (used && atomic_load(&buckets[first].head) == 0)
            continue;
        if (break_some(first, n) != 0)
            return 1;
    }
    return 0;
}
