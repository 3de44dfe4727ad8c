/*
 * A load: many clients that ask one target, all at once or spread over a ramp, and what
 * they measured. The same code measures dacd, a provider asked directly, and the bare
 * loop.
 */
#ifndef DAC_BENCH_LOAD_H
#define DAC_BENCH_LOAD_H

#include "base/bytes.h"
#include "tools/bench/client.h"
#include "tools/bench/samples.h"

struct load {
    /* To be set by the caller. */
    const struct target *target;
    const char *headers; /* "Name: value\r\n" lines */
    size_t clients;
    size_t asks; /* per client, one after the other on its connection */
    uint64_t ramp_ns;
    uint64_t timeout_ns;
    bool identical;  /* all get the same text: its delay counts from whom it reached first
                      */
    uint64_t gap_ns; /* else: from the schedule that began with the first piece */
    uint64_t token_size; /* bytes of text per token, 0: unknown */
    /* Writes path and body of question `n` of client `index` into empty buffers. */
    void (*question)(void *arg, size_t index, size_t n, struct buf *path,
                     struct buf *body);
    void (*on_all_heads)(void *arg); /* every client has its head; may be NULL */
    /* `identical`: somebody is the first to see text up to `mark`; may be NULL. */
    void (*on_first_seen)(void *arg, uint64_t mark);
    void *arg;
    /* Results. */
    struct samples ttft, head, delay, latency;
    size_t answered, failed, refused; /* questions */
    size_t first_bad_status;
    uint64_t pieces; /* events with text that arrived */
    uint64_t tokens; /* tokens that arrived, merged or not */
    uint64_t bytes;
    uint64_t wall_ns;
    bool early; /* text came before all clients had their heads */
};

/* Runs it to the end or to the timeout (what runs then counts as failed). */
void load_run(struct load *l);
void load_free(struct load *l);

#endif
