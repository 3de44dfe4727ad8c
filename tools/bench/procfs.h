/*
 * What /proc says of a server's processes: CPU time and memory of a master and its
 * children.
 */
#ifndef DAC_BENCH_PROCFS_H
#define DAC_BENCH_PROCFS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define PROCFS_MAX 128

struct procfs_tree {
    pid_t pids[PROCFS_MAX]; /* the master first */
    int n;
};

struct procfs_memory {
    uint64_t pss_bytes; /* shared pages counted in parts */
    uint64_t rss_bytes;
    uint64_t anon_bytes; /* heap, stacks and written data: no file, no shared memory */
};

/* Finds `master` and its direct children; false if there is no such process. */
bool procfs_find(pid_t master, struct procfs_tree *out);
/* Nanoseconds on a CPU since their start, summed over processes and threads. */
uint64_t procfs_cpu_ns(const struct procfs_tree *t);
struct procfs_memory procfs_memory(const struct procfs_tree *t);

#endif
