/*
 * What the commands of dac-bench share: their options, the questions they ask, and the
 * figures of the server and the mock provider around a run.
 */
#ifndef DAC_BENCH_BENCH_H
#define DAC_BENCH_BENCH_H

#include "tools/bench/load.h"
#include "tools/bench/procfs.h"
#include "tools/bench/samples.h"

enum thread_choice { THREADS_ONE, THREADS_NEW, THREADS_GIVEN, THREADS_NONE };

#define FOLLOWERS_MAX 16
#define REPEAT_MAX    15

struct bench_options {
    struct target url;  /* the server */
    struct target mock; /* the mock provider, if has_mock */
    bool has_mock;
    const char *path; /* NULL: the native API's, of a thread */
    const char *org, *provider, *model, *extra;
    enum thread_choice threads;
    const char *thread; /* THREADS_GIVEN */
    const char *bare;   /* store: where the bare commit goes */
    size_t clients, asks, warmup;
    bool identical, json, with_floor;
    pid_t pid; /* dacd's master, 0: unknown */
    size_t tokens, token_size, size;
    uint64_t gap_ns, ttft_ns, ramp_ns, timeout_ns, pause_ns;
    size_t followers[FOLLOWERS_MAX]; /* fit: ascending */
    size_t follower_count, repeat;
    bool ttft_given;
};

/* Runs a command and adds its rows; the exit code. */
int bench_stream(const struct bench_options *o, struct report *r);
int bench_burst(const struct bench_options *o, struct report *r);
int bench_ttft(const struct bench_options *o, struct report *r);
int bench_store(const struct bench_options *o, struct report *r);
int bench_floor(const struct bench_options *o, struct report *r);
int bench_fit(const struct bench_options *o, struct report *r);

/* --- questions -----------------------------------------------------------------------
 */

struct questions {
    const struct bench_options *o;
    char (*threads)[40]; /* owned: ids */
    size_t thread_count;
    uint64_t nonce; /* keeps runs apart, so that none is served from an earlier one */
    bool stream;
};

/* Makes the threads that the options ask for. False after a message. */
bool questions_init(struct questions *q, const struct bench_options *o, bool stream);
void questions_free(struct questions *q);
/* For struct load: path and body of client `index`'s question `n`. `arg` is the
 * questions. */
void questions_write(void *arg, size_t index, size_t n, struct buf *path,
                     struct buf *body);
/* "x-org-id" as a header line; static memory. */
const char *questions_headers(const struct bench_options *o);

/* --- around a run --------------------------------------------------------------------
 */

struct watch {
    const struct bench_options *o;
    struct procfs_tree tree;
    bool has_tree;
    struct procfs_memory before, during;
    uint64_t cpu_start_ns, cpu_end_ns;
    bool started;
    double calls_before;
};

void watch_begin(struct watch *w, const struct bench_options *o);
/* All clients wait for their first token: memory and CPU are noted here. */
void watch_waiting(struct watch *w);
/* Adds what the run cost; `deliveries` are tokens that reached clients. */
void watch_end(struct watch *w, const struct load *l, uint64_t deliveries,
               struct report *r);
/* Nanoseconds of CPU since watch_waiting(), 0 if unknown. */
uint64_t watch_cpu_ns(const struct watch *w);

/* Counts of a load: answered, failed, pieces, bytes. */
void report_load(struct report *r, const char *group, const struct load *l);

/* Runs a bare send() loop with the same number of clients and pieces, `size` bytes each,
 * and adds the rows of group "floor". Returns its nanoseconds of CPU per delivery, 0 on
 * failure. */
double floor_run(const struct bench_options *o, size_t size, struct report *r);

/* The same in steps: a child that listens at `target`, the load for it, and its CPU at
 * the end (0: it did not finish). */
struct floor {
    struct target target;
    pid_t pid;
    int report_fd;
};

bool floor_start(struct floor *f, const struct bench_options *o, size_t size);
void floor_load(const struct floor *f, const struct bench_options *o, struct load *l);
uint64_t floor_end(struct floor *f);

/* How long the provider has to wait with the first token, so that all have connected. */
uint64_t bench_patience_ns(const struct bench_options *o);

#endif
