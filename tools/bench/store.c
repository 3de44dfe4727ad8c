/*
 * `dac-bench store`: how long a client waits for `done` once the provider has written its
 * last byte, and beside it a bare commit of the same bytes on the same disk. One turn at
 * a time, each followed by a bare commit, with a pause before both, so that whatever else
 * the machine does hits the two alike. The provider's end is read from its own log, whose
 * clock is the same (CLOCK_MONOTONIC).
 */
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "tools/bench/bare.h"
#include "tools/bench/bench.h"

#define ROW_FIELDS 300 /* bytes of a turn that are neither question nor answer, about */
#define FAILED_MAX 10

struct store_run {
    struct bench_options o;
    struct questions questions;
    struct event_base *base;
    struct client client;
    struct bare *bare;
    struct samples turn, commit, total;
    uint64_t log_seq; /* of the provider's log, what was read */
    size_t failed, elsewhere;
    char stored[16]; /* where the first one was */
};

static void on_end(struct client *c)
{
    struct store_run *run = c->user;

    event_base_loopbreak(run->base);
}

static const struct client_ops ops = {.on_end = on_end};

static void pause_for(uint64_t ns)
{
    struct timespec t = {.tv_sec = (time_t)(ns / NS_PER_S),
                         .tv_nsec = (long)(ns % NS_PER_S)};

    (void)clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL);
}

/* When the provider ended the newest of the calls that its log has behind log_seq, of the
 * first thousand; 0: none ended. They are behind us then. */
static uint64_t provider_end(struct store_run *run)
{
    static char answer[1 << 20];
    char path[96];
    struct json_object *root, *events, *event, *value;
    uint64_t end_ns = 0;
    size_t n;

    snprintf(path, sizeof(path), "/mock/log?event=end&limit=1000&since=%llu",
             (unsigned long long)run->log_seq);
    if (http_once(&run->o.mock, path, "", NULL, answer, sizeof(answer)) != 200)
        return 0;
    root = json_tokener_parse(answer);
    if (json_object_object_get_ex(root, "next", &value))
        run->log_seq = (uint64_t)json_object_get_int64(value);
    if (json_object_object_get_ex(root, "events", &events) &&
        (n = json_object_array_length(events)) > 0) {
        event = json_object_array_get_idx(events, n - 1);
        if (json_object_object_get_ex(event, "t_ns", &value))
            end_ns = (uint64_t)json_object_get_int64(value);
    }
    json_object_put(root);
    return end_ns;
}

/* Asks once. False: no `done`. *bytes: of question and answer. */
static bool ask(struct store_run *run, size_t n, size_t *bytes)
{
    struct buf path = BUF_INIT(4096), body = BUF_INIT(65536);
    struct client *c = &run->client;
    bool ok = false;

    questions_write(&run->questions, n, n, &path, &body);
    if (buf_cstr(&path) && buf_cstr(&body) && !path.failed && !body.failed) {
        client_set_request(c, path.data, questions_headers(&run->o), body.data);
        client_ask(c);
        if (c->state != CLIENT_OVER)
            event_base_dispatch(run->base);
        ok = c->ok && c->done_ns != 0;
        *bytes = body.len + run->o.tokens * run->o.token_size;
    }
    buf_free(&path);
    buf_free(&body);
    return ok;
}

static bool one_turn(struct store_run *run, size_t n, bool counts, size_t *bytes)
{
    const struct client *c = &run->client;
    uint64_t end_ns;

    pause_for(run->o.pause_ns);
    if (!ask(run, n, bytes)) {
        fprintf(stderr, "dac-bench: turn %zu: status %d, no done\n", n, c->status);
        return false;
    }
    end_ns = provider_end(run);
    if (end_ns == 0) {
        fprintf(stderr, "dac-bench: turn %zu: the provider logged no end of its call\n",
                n);
        return false;
    }
    if (run->stored[0] == '\0')
        snprintf(run->stored, sizeof(run->stored), "%s", c->stored);
    run->elsewhere += strcmp(run->stored, c->stored) != 0;
    if (counts) {
        samples_add(&run->turn, c->done_ns > end_ns ? c->done_ns - end_ns : 0);
        samples_add(&run->total, c->done_ns - c->asked_ns);
    }
    return true;
}

static bool one_commit(struct store_run *run, bool counts, size_t bytes)
{
    uint64_t began_ns;

    pause_for(run->o.pause_ns);
    began_ns = clock_now_ns();
    if (!bare_commit(run->bare, bytes))
        return false;
    if (counts)
        samples_add(&run->commit, clock_now_ns() - began_ns);
    bare_tidy(run->bare);
    return true;
}

static void report(struct store_run *run, struct report *r)
{
    static const double q[] = {0.5, 0.99};

    report_add(r, "turns", "answered", (double)run->turn.n, "");
    report_add(r, "turns", "failed", (double)run->failed, "");
    report_add(r, "turns", "stored_elsewhere", (double)run->elsewhere, "");
    report_quantiles(r, "done_after_end", &run->turn);
    report_quantiles(r, "bare_commit", &run->commit);
    report_quantiles(r, "whole_turn", &run->total);
    for (size_t i = 0; i < DAC_ARRAY_LEN(q) && run->turn.n > 0; i++)
        report_add(r, "added", i == 0 ? "p50" : "p99",
                   ((double)samples_quantile(&run->turn, q[i]) -
                    (double)samples_quantile(&run->commit, q[i])) /
                       (double)NS_PER_MS,
                   "ms");
}

int bench_store(const struct bench_options *given, struct report *r)
{
    struct store_run run = {.o = *given};
    size_t bytes = 0;

    if (!given->has_mock || !given->bare) {
        fprintf(stderr, "dac-bench: store needs --mock and --bare\n");
        return 2;
    }
    run.o.identical = false;
    run.o.path = NULL;
    run.base = event_base_new();
    run.bare = bare_open(given->bare);
    if (!run.base || !run.bare || !questions_init(&run.questions, &run.o, true))
        return 1;
    client_init(&run.client, run.base, &run.o.url, &ops, &run, 0);
    while (provider_end(&run) != 0) { /* those of former runs */
    }
    for (size_t n = 0; n < run.o.warmup + run.o.asks && run.failed < FAILED_MAX; n++) {
        bool counts = n >= run.o.warmup;

        if (!one_turn(&run, n, counts, &bytes))
            run.failed++;
        if (!one_commit(&run, counts, bytes + ROW_FIELDS))
            return 1;
    }
    report(&run, r);
    client_close(&run.client);
    event_base_free(run.base);
    bare_close(run.bare);
    samples_free(&run.turn);
    samples_free(&run.commit);
    samples_free(&run.total);
    questions_free(&run.questions);
    return run.failed || run.elsewhere ? 1 : 0;
}
