/*
 * `dac-bench ttft`: how much later the first token comes through the server than from the
 * mock provider directly. The two are asked in turn, one question at a time, each on a
 * kept connection, so that both see the same machine in the same state.
 */
#include <stdio.h>

#include "base/clock.h"
#include "tools/bench/bench.h"

struct ttft_run {
    struct bench_options o;
    struct questions questions;
    struct event_base *base;
    struct samples via, direct, difference;
    size_t failed;
};

static void on_end(struct client *c)
{
    struct ttft_run *run = c->user;

    event_base_loopbreak(run->base);
}

static const struct client_ops ops = {.on_end = on_end};

/* Asks once and returns the time to the first text, 0 if there was none. */
static uint64_t ask_once(struct ttft_run *run, struct client *c, size_t n)
{
    struct buf path = BUF_INIT(4096), body = BUF_INIT(65536);
    uint64_t took = 0;

    questions_write(&run->questions, c->index, n, &path, &body);
    if (buf_cstr(&path) && buf_cstr(&body) && !path.failed && !body.failed) {
        client_set_request(c, path.data, questions_headers(&run->o), body.data);
        client_ask(c);
        if (c->state != CLIENT_OVER)
            event_base_dispatch(run->base);
        if (c->ok && c->first_ns)
            took = c->first_ns - c->asked_ns;
        else
            run->failed++;
    }
    buf_free(&path);
    buf_free(&body);
    return took;
}

int bench_ttft(const struct bench_options *given, struct report *r)
{
    struct ttft_run run = {.o = *given};
    struct client via, direct;

    if (!given->has_mock) {
        fprintf(stderr,
                "dac-bench: ttft needs --mock, the provider to be asked directly\n");
        return 2;
    }
    run.o.identical = false;
    if (!run.o.path)
        run.o.path = "/v1/chat/completions";
    run.base = event_base_new();
    if (!run.base || !questions_init(&run.questions, &run.o, true))
        return 1;
    client_init(&via, run.base, &run.o.url, &ops, &run, 0);
    client_init(&direct, run.base, &run.o.mock, &ops, &run, 1);
    for (size_t n = 0; n < run.o.warmup + run.o.asks && run.failed < 10; n++) {
        uint64_t a = ask_once(&run, &direct, n), b = ask_once(&run, &via, n);

        if (n < run.o.warmup || !a || !b)
            continue;
        samples_add(&run.direct, a);
        samples_add(&run.via, b);
        samples_add(&run.difference, b > a ? b - a : 0);
    }
    report_add(r, "ttft", "asks", (double)run.via.n, "");
    report_add(r, "ttft", "failed", (double)run.failed, "");
    report_quantiles(r, "direct", &run.direct);
    report_quantiles(r, "through", &run.via);
    report_quantiles(r, "added_pairwise", &run.difference);
    for (int i = 0; i < 2 && run.via.n; i++) {
        double q = i == 0 ? 0.5 : 0.99;

        report_add(r, "added", i == 0 ? "p50" : "p99",
                   ((double)samples_quantile(&run.via, q) -
                    (double)samples_quantile(&run.direct, q)) /
                       (double)NS_PER_MS,
                   "ms");
    }
    client_close(&via);
    client_close(&direct);
    event_base_free(run.base);
    samples_free(&run.via);
    samples_free(&run.direct);
    samples_free(&run.difference);
    questions_free(&run.questions);
    return run.failed ? 1 : 0;
}
