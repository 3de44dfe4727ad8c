/*
 * `dacctl check`: looks at every structure of a segment and says in words what is wrong.
 *
 *   live     the master holds the segment's lock: what one load decides counts at once,
 *            all else if it is found in three passes a second apart
 *   leaving  the master is dead, some of its processes are not yet: the same
 *   dead     nobody is left: a private copy is brought to rest as the master and the next
 *            holders of the locks would have done, then everything must be right
 *
 * The lock is looked for in /proc/locks and not tried: a dacd that starts at that moment
 * would find it taken.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"
#include "dacctl.h"
#include "dacctl_exit.h"
#include "shm/verify.h"

#define PASSES    3
#define FOUND_MAX 512
#define LOOK_LINE 512

enum life { LIVE, LEAVING, DEAD };

static const char *const life_names[] = {
    [LIVE] = "live", [LEAVING] = "leaving", [DEAD] = "dead"};

struct found {
    struct verify_finding f;
    unsigned passes; /* in a row, from the first on */
};

struct report {
    struct found found[FOUND_MAX];
    size_t count;
    uint64_t more; /* findings that had no room */
    struct verify_finding notes[8];
    size_t note_count;
    unsigned pass; /* from 1 */
};

/* --- who is there ----------------------------------------------------------------------
 */

/* Whether somebody has the file's lock: 1, 0, or -1 if one cannot know. */
static int is_locked(const char *name)
{
    char path[SHM_NAME_SIZE + 16], line[LOOK_LINE], want[64];
    struct stat st;
    int locked = 0;
    FILE *locks;

    snprintf(path, sizeof(path), "/dev/shm/%s", name);
    if (stat(path, &st) != 0)
        return 0;
    locks = fopen("/proc/locks", "re");
    if (!locks)
        return -1;
    snprintf(want, sizeof(want), " %02x:%02x:%llu ", major(st.st_dev), minor(st.st_dev),
             (unsigned long long)st.st_ino);
    while (fgets(line, sizeof(line), locks)) {
        if (strstr(line, " FLOCK ") && strstr(line, want))
            locked = 1;
    }
    fclose(locks);
    return locked;
}

static bool is_alive(uint32_t pid)
{
    return pid != 0 && (kill((pid_t)pid, 0) == 0 || errno == EPERM);
}

/* Whether that process has the segment mapped, and not merely the number of one that had.
 * Who may not look takes it for one. */
static bool has_mapped(uint32_t pid, const char *name)
{
    char path[64], line[LOOK_LINE], want[SHM_NAME_SIZE + 16];
    bool found = false;
    FILE *maps;

    if (!is_alive(pid))
        return false;
    snprintf(path, sizeof(path), "/proc/%" PRIu32 "/maps", pid);
    snprintf(want, sizeof(want), " /dev/shm/%s", name);
    maps = fopen(path, "re");
    if (!maps)
        return errno != ENOENT;
    while (fgets(line, sizeof(line), maps)) {
        const char *at = strstr(line, want);

        /* The name ends there, or is followed by " (deleted)". */
        found = found || (at && strchr(" \n", at[strlen(want)]));
    }
    fclose(maps);
    return found;
}

static enum life life_of(const struct shm *shm, const char *name)
{
    int locked = is_locked(name);

    if (locked < 0)
        locked = has_mapped(atomic_load(&shm->hdr->master_pid), name);
    if (locked)
        return LIVE;
    for (uint32_t i = 0; i < SHM_SLOTS; i++) {
        if (has_mapped(atomic_load(&shm->slots[i].pid), name))
            return LEAVING;
    }
    return DEAD;
}

/* --- findings --------------------------------------------------------------------------
 */

static bool is_same(const struct verify_finding *a, const struct verify_finding *b)
{
    return a->index == b->index && a->use == b->use && a->certain == b->certain &&
           strcmp(a->object, b->object) == 0 && strcmp(a->words, b->words) == 0;
}

static void collect(void *ctx, const struct verify_finding *f)
{
    struct report *r = ctx;

    if (f->note) {
        if (r->note_count < DAC_ARRAY_LEN(r->notes))
            r->notes[r->note_count++] = *f;
        return;
    }
    for (size_t i = 0; i < r->count; i++) {
        struct found *known = &r->found[i];

        if (!is_same(&known->f, f))
            continue;
        if (known->passes == r->pass - 1)
            known->passes = r->pass;
        return;
    }
    if (r->pass > 1 && !f->certain)
        return; /* it cannot be in three passes any more */
    if (r->count == FOUND_MAX)
        r->more++;
    else
        r->found[r->count++] = (struct found){.f = *f, .passes = r->pass};
}

static bool counts(const struct found *found)
{
    return found->f.certain || found->passes == PASSES;
}

/* Whether another pass could tell more. */
static bool is_open(const struct report *r)
{
    for (size_t i = 0; i < r->count; i++) {
        if (!r->found[i].f.certain && r->found[i].passes == r->pass)
            return true;
    }
    return false;
}

static uint64_t count_problems(const struct report *r)
{
    uint64_t n = r->more;

    for (size_t i = 0; i < r->count; i++)
        n += counts(&r->found[i]);
    return n;
}

/* --- passes ----------------------------------------------------------------------------
 */

/* A master reaps at once: a process that is gone and still has its slot was forgotten. */
static void check_processes(const struct shm *shm, struct report *r)
{
    for (uint32_t i = 0; i < SHM_SLOTS; i++) {
        uint32_t pid = atomic_load(&shm->slots[i].pid);
        struct verify_finding f = {.object = "slot", .index = i, .use = pid};

        if (pid == 0 || is_alive(pid) || atomic_load(&shm->slots[i].pid) != pid)
            continue;
        snprintf(f.words, sizeof(f.words),
                 "its process %" PRIu32 " is gone, and nobody swept it", pid);
        collect(r, &f);
    }
}

static void check_living(const struct shm *shm, enum life life, struct report *r)
{
    struct verify_view view = {.shm = shm, .live = true, .master = life == LIVE};
    const struct timespec second = {.tv_sec = 1};

    for (r->pass = 1;; r->pass++) {
        view.now_ns = clock_now_ns();
        r->note_count = 0;
        verify_pass(&view, collect, r);
        if (life == LIVE)
            check_processes(shm, r);
        if (r->pass == PASSES || !is_open(r))
            return;
        nanosleep(&second, NULL);
    }
}

/* Puts a private, writable copy where the segment is mapped. */
static bool make_private(struct shm *shm)
{
    void *copy =
        mmap(NULL, shm->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (copy == MAP_FAILED)
        return false;
    memcpy(copy, shm->base, shm->size);
    if (mremap(copy, shm->size, shm->size, MREMAP_MAYMOVE | MREMAP_FIXED, shm->base) ==
        MAP_FAILED) {
        munmap(copy, shm->size);
        return false;
    }
    shm->writable = true;
    return true;
}

static void note_remains(const struct verify_remains *left, struct report *r)
{
    struct verify_finding f = {
        .object = "processes", .index = VERIFY_NO_INDEX, .note = true};

    if (left->processes == 0)
        return;
    snprintf(f.words, sizeof(f.words),
             "%" PRIu32 " died unswept; they owned %" PRIu32 " flights and %" PRIu32
             " permits and were at %" PRIu32 " locks",
             left->processes, left->flights, left->permits, left->locks);
    collect(r, &f);
}

static void collect_certain(void *ctx, const struct verify_finding *f)
{
    if (f->certain && !f->note)
        collect(ctx, f);
}

static bool check_dead(struct shm *shm, struct report *r)
{
    struct verify_view view = {.shm = shm, .live = true};
    struct verify_remains left;

    if (!make_private(shm))
        return false;
    /* What one load decides first, as it was left. */
    r->pass = 1;
    verify_pass(&view, collect_certain, r);
    left = verify_settle(shm);
    note_remains(&left, r);
    view.live = false;
    verify_pass(&view, collect, r);
    return true;
}

/* --- telling ---------------------------------------------------------------------------
 */

static void text_finding(const struct verify_finding *f, const char *mark,
                         struct buf *out)
{
    buf_printf(out, "%s%s", mark, f->object);
    if (f->index != VERIFY_NO_INDEX)
        buf_printf(out, " %" PRIu32, f->index);
    buf_printf(out, ": %s\n", f->words);
}

static void text_report(const struct shm *shm, enum life life, const struct report *r,
                        struct buf *out)
{
    const struct shm_header *h = shm->hdr;
    uint64_t problems = count_problems(r);

    buf_printf(out,
               "instance   %.63s, %s (master pid %" PRIu32 ")\n"
               "looked at  %u slots, %" PRIu32 " providers, %" PRIu32 " buckets, %" PRIu32
               " flights, %" PRIu32 " blocks, %u samples\n",
               h->name, life_names[life], atomic_load(&h->master_pid), SHM_SLOTS,
               atomic_load(&h->provider_count), h->bucket_count, h->flight_count,
               h->block_count, SHM_SAMPLES);
    for (size_t i = 0; i < r->note_count; i++)
        text_finding(&r->notes[i], "note       ", out);
    for (size_t i = 0; i < r->count; i++) {
        if (counts(&r->found[i]))
            text_finding(&r->found[i].f, "WRONG      ", out);
    }
    if (r->more > 0)
        buf_printf(out, "WRONG      %" PRIu64 " more\n", r->more);
    if (problems == 0)
        buf_puts(out, "result     nothing is wrong\n");
    else
        buf_printf(out, "result     %" PRIu64 " wrong\n", problems);
}

static void json_finding(const struct verify_finding *f, const char *comma,
                         struct buf *out)
{
    buf_printf(out, "%s{\"object\":\"%s\"", comma, f->object);
    if (f->index != VERIFY_NO_INDEX)
        buf_printf(out, ",\"index\":%" PRIu32, f->index);
    buf_puts(out, ",\"words\":");
    json_put_string(out, f->words, strlen(f->words));
    buf_puts(out, "}");
}

static void json_report(const struct shm *shm, enum life life, const struct report *r,
                        struct buf *out)
{
    const char *comma = "";

    buf_puts(out, "{\"instance\":");
    json_put_string(out, shm->hdr->name, strnlen(shm->hdr->name, sizeof(shm->hdr->name)));
    buf_printf(out,
               ",\"state\":\"%s\",\"passes\":%u,\"wrong\":%" PRIu64 ",\"problems\":[",
               life_names[life], r->pass, count_problems(r));
    for (size_t i = 0; i < r->count; i++) {
        if (!counts(&r->found[i]))
            continue;
        json_finding(&r->found[i].f, comma, out);
        comma = ",";
    }
    buf_puts(out, "],\"notes\":[");
    for (size_t i = 0; i < r->note_count; i++)
        json_finding(&r->notes[i], i > 0 ? "," : "", out);
    buf_puts(out, "]}\n");
}

int dacctl_check(struct shm *shm, const char *name, bool json, struct buf *out)
{
    static struct report r;
    enum life life = life_of(shm, name);

    if (life != DEAD) {
        check_living(shm, life, &r);
    } else if (!check_dead(shm, &r)) {
        fprintf(stderr, "dacctl: could not copy %zu MiB to look at: %s\n",
                shm->size >> 20, strerror(errno));
        return EXIT_UNUSABLE;
    }
    if (json)
        json_report(shm, life, &r, out);
    else
        text_report(shm, life, &r, out);
    return count_problems(&r) > 0 ? EXIT_NOT_DONE : EXIT_DONE;
}
