/*
 * `dac-bench stream`: many clients that stream, `dac-bench burst`: many that wait for the
 * whole answer. All clients are connected before the first token, so that what is
 * measured behind it is delivery alone.
 */
#include <stdio.h>

#include "base/clock.h"
#include "tools/bench/bench.h"

uint64_t bench_patience_ns(const struct bench_options *o)
{
    return o->ttft_given ? o->ttft_ns
                         : NS_PER_S / 2 + o->ramp_ns + o->clients * (NS_PER_MS / 2);
}

struct stream_run {
    struct questions questions;
    struct watch watch;
    struct load load;
};

static void write_question(void *arg, size_t index, size_t n, struct buf *path,
                           struct buf *body)
{
    struct stream_run *run = arg;

    questions_write(&run->questions, index, n, path, body);
}

static void all_wait(void *arg)
{
    struct stream_run *run = arg;

    watch_waiting(&run->watch);
}

/* `dac-bench stream` and `burst` against a server. */
static int run_load(const struct bench_options *given, bool stream, struct report *r)
{
    struct bench_options o = *given;
    struct stream_run run = {.load = {.target = &o.url,
                                      .headers = questions_headers(&o),
                                      .clients = o.clients,
                                      .asks = o.asks,
                                      .ramp_ns = o.ramp_ns,
                                      .timeout_ns = o.timeout_ns,
                                      .identical = o.identical,
                                      .gap_ns = o.gap_ns,
                                      /* OpenAI chunks don't say how many bytes came. */
                                      .token_size = o.path ? 0 : o.token_size,
                                      .question = write_question,
                                      .on_all_heads = all_wait}};
    struct load *l = &run.load;
    uint64_t deliveries;
    bool ok;

    if (stream)
        o.ttft_ns = bench_patience_ns(&o);
    l->arg = &run;
    if (!questions_init(&run.questions, &o, stream)) {
        questions_free(&run.questions);
        return 1;
    }
    watch_begin(&run.watch, &o);
    if (!stream)
        watch_waiting(&run.watch);
    load_run(l);
    deliveries = stream ? l->tokens : l->answered;
    report_load(r, stream ? "stream" : "burst", l);
    if (stream)
        report_add(r, "stream", "tokens_delivered", (double)deliveries, "");
    report_quantiles(r, "first_byte", &l->head);
    if (stream) {
        report_quantiles(r, "ttft", &l->ttft);
        report_quantiles(
            r, o.identical ? "token_delay_after_first" : "token_delay_after_due",
            &l->delay);
    } else {
        report_quantiles(r, "latency", &l->latency);
    }
    watch_end(&run.watch, l, deliveries, r);
    if (l->early)
        fprintf(stderr,
                "dac-bench: the first token came before all clients had connected; "
                "CPU and memory are not comparable (give a longer --ttft)\n");
    if (stream && o.with_floor && l->pieces) {
        double floor_us = floor_run(&o, (size_t)(l->bytes / l->pieces), r);
        double cpu_us = (double)watch_cpu_ns(&run.watch) / (double)NS_PER_US;

        if (floor_us > 0 && cpu_us > 0 && deliveries) {
            report_add(r, "ratio", "cpu_per_delivery_to_floor",
                       cpu_us / (double)deliveries / floor_us, "");
            report_add(r, "ratio", "cpu_per_event_to_floor",
                       cpu_us / (double)l->pieces / floor_us, "");
        }
    }
    ok = l->failed == 0;
    load_free(l);
    questions_free(&run.questions);
    return ok ? 0 : 1;
}

int bench_stream(const struct bench_options *o, struct report *r)
{
    return run_load(o, true, r);
}

int bench_burst(const struct bench_options *o, struct report *r)
{
    return run_load(o, false, r);
}
