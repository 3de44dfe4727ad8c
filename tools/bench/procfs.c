/*
 * Reads /proc. CPU time comes from schedstat, which counts nanoseconds, where the kernel
 * has it; else from stat in clock ticks. A process that ends between two steps counts as
 * nothing.
 */
#include "tools/bench/procfs.h"

#include <ctype.h>
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

static bool read_file(const char *path, char *out, size_t size)
{
    FILE *f = fopen(path, "re");
    size_t n;

    if (!f)
        return false;
    n = fread(out, 1, size - 1, f);
    out[n] = '\0';
    fclose(f);
    return n > 0;
}

/* The parent of a process, 0 if it is gone. */
static pid_t parent_of(pid_t pid)
{
    char path[64], text[1024];
    const char *p;
    int parent;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    if (!read_file(path, text, sizeof(text)) || !(p = strrchr(text, ')')) ||
        sscanf(p + 1, " %*c %d", &parent) != 1)
        return 0;
    return parent;
}

bool procfs_find(pid_t master, struct procfs_tree *out)
{
    DIR *dir = opendir("/proc");
    struct dirent *e;

    out->n = 0;
    if (!dir)
        return false;
    if (parent_of(master) != 0)
        out->pids[out->n++] = master;
    while (out->n > 0 && out->n < PROCFS_MAX && (e = readdir(dir))) {
        pid_t pid = isdigit((unsigned char)e->d_name[0]) ? atoi(e->d_name) : 0;

        if (pid > 0 && parent_of(pid) == master)
            out->pids[out->n++] = pid;
    }
    closedir(dir);
    return out->n > 0;
}

static uint64_t ticks_ns(pid_t pid)
{
    char path[64], text[1024];
    uint64_t user, sys;
    const char *p;

    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    if (!read_file(path, text, sizeof(text)) || !(p = strrchr(text, ')')) ||
        sscanf(p + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %" SCNu64 " %" SCNu64,
               &user, &sys) != 2)
        return 0;
    return (user + sys) * (NS_PER_S / (uint64_t)sysconf(_SC_CLK_TCK));
}

static uint64_t threads_ns(pid_t pid)
{
    char path[320], text[128];
    uint64_t sum = 0, ns;
    struct dirent *e;
    DIR *dir;

    snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    if (!(dir = opendir(path)))
        return 0;
    while ((e = readdir(dir))) {
        if (!isdigit((unsigned char)e->d_name[0]))
            continue;
        snprintf(path, sizeof(path), "/proc/%d/task/%s/schedstat", (int)pid, e->d_name);
        if (read_file(path, text, sizeof(text)) && sscanf(text, "%" SCNu64, &ns) == 1)
            sum += ns;
    }
    closedir(dir);
    return sum;
}

uint64_t procfs_cpu_ns(const struct procfs_tree *t)
{
    uint64_t sum = 0;

    for (int i = 0; i < t->n; i++) {
        uint64_t ns = threads_ns(t->pids[i]);

        sum += ns ? ns : ticks_ns(t->pids[i]);
    }
    return sum;
}

static uint64_t kilobytes(const char *text, const char *label)
{
    const char *p = strstr(text, label);
    uint64_t kb;

    return p && sscanf(p + strlen(label), " %" SCNu64, &kb) == 1 ? kb * 1024 : 0;
}

struct procfs_memory procfs_memory(const struct procfs_tree *t)
{
    struct procfs_memory sum = {0, 0, 0};
    char path[64], text[4096];

    for (int i = 0; i < t->n; i++) {
        snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", (int)t->pids[i]);
        if (!read_file(path, text, sizeof(text)))
            continue;
        sum.pss_bytes += kilobytes(text, "\nPss:");
        sum.anon_bytes += kilobytes(text, "\nPss_Anon:");
        sum.rss_bytes += kilobytes(text, "\nRss:");
    }
    return sum;
}
