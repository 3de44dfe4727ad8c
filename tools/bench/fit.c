/*
 * `dac-bench fit`: what one more follower costs. For each number of followers it runs the
 * gateway and the bare loop in turn, several times, and counts CPU and deliveries between
 * two tokens of the same run (a tenth of the way, and nineteen twentieths), so that
 * neither connecting nor the endings count. Medians over the repetitions go into the line
 *
 *     CPU per chunk = a + b x deliveries per chunk
 *
 * by least squares of the relative errors: with plain ones the largest runs alone would
 * decide, and `a` would be their noise. A chunk is a token that came from the provider;
 * where a server falls behind it may deliver two in one send(), which is one delivery.
 *
 * A server's heartbeats cost the same without any client. That rate is measured first,
 * reported by itself and taken off. Memory is what the heaps grew by since then.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "tools/bench/bench.h"

/* One run: a span between two tokens, and what was read at its ends. */
struct span {
    const struct bench_options *o;
    struct questions questions;
    struct load load;
    struct procfs_tree tree;
    uint64_t before_bytes, waiting_bytes; /* memory of the server's heaps */
    uint64_t at_ns[2], cpu_ns[2], pieces[2], tokens[2];
    double idle; /* CPU per time without a client */
    int reached; /* ends of the span that were seen */
};

struct figures {
    double chunk_us;   /* CPU per chunk */
    double deliveries; /* per chunk */
    double p50_ms, p99_ms, lost;
    double memory; /* bytes that each waiting client added */
    double event_bytes;
};

static void write_question(void *arg, size_t index, size_t n, struct buf *path,
                           struct buf *body)
{
    struct span *s = arg;

    questions_write(&s->questions, index, n, path, body);
}

static void all_wait(void *arg)
{
    struct span *s = arg;

    s->waiting_bytes = procfs_memory(&s->tree).anon_bytes;
}

static void first_seen(void *arg, uint64_t mark)
{
    struct span *s = arg;
    uint64_t token = mark / s->o->token_size;
    uint64_t due = s->o->tokens * (s->reached == 0 ? 2 : 19) / 20;

    if (s->reached == 2 || token < due)
        return;
    s->at_ns[s->reached] = clock_now_ns();
    s->cpu_ns[s->reached] = procfs_cpu_ns(&s->tree);
    s->pieces[s->reached] = s->load.pieces;
    s->tokens[s->reached] = token;
    s->reached++;
}

/* Runs the load and takes its figures; false if it did not get to the span's end. */
static bool run(struct span *s, struct figures *f)
{
    struct load *l = &s->load;

    l->arg = s;
    l->on_first_seen = first_seen;
    load_run(l);
    *f = (struct figures){
        .lost = (double)l->failed,
        .p50_ms = (double)samples_quantile(&l->delay, 0.5) / (double)NS_PER_MS,
        .p99_ms = (double)samples_quantile(&l->delay, 0.99) / (double)NS_PER_MS,
        .memory =
            ((double)s->waiting_bytes - (double)s->before_bytes) / (double)l->clients,
        .event_bytes = l->pieces ? (double)l->bytes / (double)l->pieces : 0};
    load_free(l);
    double chunks = (double)(s->tokens[1] - s->tokens[0]);
    if (s->reached < 2 || chunks <= 0) {
        fprintf(stderr, "dac-bench: %zu followers: too few tokens arrived\n", l->clients);
        return false;
    }
    double cpu_ns = (double)(s->cpu_ns[1] - s->cpu_ns[0]) -
                    s->idle * (double)(s->at_ns[1] - s->at_ns[0]);
    f->chunk_us = cpu_ns / chunks / (double)NS_PER_US;
    f->deliveries = (double)(s->pieces[1] - s->pieces[0]) / chunks;
    return true;
}

/* The server before the first run. */
struct rest {
    uint64_t heap_bytes;
    double idle;
};

/* Watches it do nothing. */
static bool look_at_rest(const struct bench_options *o, struct rest *out)
{
    struct procfs_tree tree;
    struct timespec pause = {.tv_sec = 3};
    uint64_t cpu_ns, at_ns;

    if (!procfs_find(o->pid, &tree)) {
        fprintf(stderr, "dac-bench: no process %d\n", (int)o->pid);
        return false;
    }
    cpu_ns = procfs_cpu_ns(&tree);
    at_ns = clock_now_ns();
    nanosleep(&pause, NULL);
    out->idle =
        (double)(procfs_cpu_ns(&tree) - cpu_ns) / (double)(clock_now_ns() - at_ns);
    out->heap_bytes = procfs_memory(&tree).anon_bytes;
    return true;
}

static bool run_gateway(const struct bench_options *given, size_t followers,
                        const struct rest *rest, struct figures *f)
{
    struct bench_options o = *given;
    struct span s = {.o = &o, .before_bytes = rest->heap_bytes, .idle = rest->idle};
    bool ok;

    o.clients = followers;
    o.ttft_ns = o.ttft_given ? o.ttft_ns : bench_patience_ns(&o);
    s.load = (struct load){.target = &o.url,
                           .headers = questions_headers(&o),
                           .clients = followers,
                           .asks = 1,
                           .ramp_ns = o.ramp_ns,
                           .timeout_ns = o.timeout_ns,
                           .identical = true,
                           .token_size = o.token_size,
                           .question = write_question,
                           .on_all_heads = all_wait};
    ok = procfs_find(o.pid, &s.tree) && questions_init(&s.questions, &o, true) &&
         run(&s, f);
    questions_free(&s.questions);
    return ok;
}

static bool run_floor(const struct bench_options *given, size_t followers, size_t size,
                      struct figures *f)
{
    struct bench_options o = *given;
    struct span s = {.o = &o};
    struct floor child;
    bool ok;

    o.clients = followers;
    if (!floor_start(&child, &o, size))
        return false;
    s.tree = (struct procfs_tree){.pids = {child.pid}, .n = 1};
    floor_load(&child, &o, &s.load);
    ok = run(&s, f);
    floor_end(&child);
    return ok;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(const double *v, size_t n)
{
    double sorted[REPEAT_MAX] = {0};

    for (size_t i = 0; i < n; i++)
        sorted[i] = v[i];
    qsort(sorted, n, sizeof(sorted[0]), compare_doubles);
    return n % 2 ? sorted[n / 2] : (sorted[n / 2 - 1] + sorted[n / 2]) / 2;
}

/* Each figure's median by itself; lost clients are summed, memory is the first run's,
 * for later ones find what earlier ones left. */
static struct figures combine(const struct figures *f, size_t n)
{
    struct figures out = {.memory = f[0].memory, .event_bytes = f[0].event_bytes};
    double v[4][REPEAT_MAX];

    for (size_t i = 0; i < n; i++) {
        v[0][i] = f[i].chunk_us;
        v[1][i] = f[i].deliveries;
        v[2][i] = f[i].p50_ms;
        v[3][i] = f[i].p99_ms;
        out.lost += f[i].lost;
    }
    out.chunk_us = median(v[0], n);
    out.deliveries = median(v[1], n);
    out.p50_ms = median(v[2], n);
    out.p99_ms = median(v[3], n);
    return out;
}

struct line {
    double a, b;
};

static struct line fit(const struct figures *f, size_t n)
{
    double sw = 0, sx = 0, sy = 0, sxx = 0, sxy = 0;

    for (size_t i = 0; i < n; i++) {
        double x = f[i].deliveries, y = f[i].chunk_us;
        double w = y > 0 ? 1 / (y * y) : 0;

        sw += w;
        sx += w * x;
        sy += w * y;
        sxx += w * x * x;
        sxy += w * x * y;
    }
    double d = sw * sxx - sx * sx;
    if (n < 2 || d <= 0)
        return (struct line){0, sx > 0 ? sy / sx : 0};
    double b = (sw * sxy - sx * sy) / d;
    return (struct line){(sy - b * sx) / sw, b};
}

/* --- what is printed -----------------------------------------------------------------
 */

struct fit_result {
    size_t followers;
    struct figures gateway, floor;
};

static double each_us(const struct figures *f, double a)
{
    return f->deliveries > 0 ? (f->chunk_us - a) / f->deliveries : 0;
}

static void print_rows(const struct fit_result *r, size_t n)
{
    printf(
        "| followers | deliveries per chunk | dacd CPU per chunk, us | per delivery, us "
        "| loop per delivery, us | ratio | delay p50 / p99, ms | loop's p50 / p99, ms "
        "| p99 ratio | lost | bytes per waiting follower |\n"
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for (size_t i = 0; i < n; i++) {
        const struct figures *g = &r[i].gateway, *l = &r[i].floor;

        printf("| %zu | %.0f | %.0f | %.2f | %.2f | %.2f | %.1f / %.1f | %.1f / %.1f "
               "| %.2f | %.0f | %.0f |\n",
               r[i].followers, g->deliveries, g->chunk_us, each_us(g, 0), each_us(l, 0),
               each_us(g, 0) / each_us(l, 0), g->p50_ms, g->p99_ms, l->p50_ms, l->p99_ms,
               g->p99_ms / l->p99_ms, g->lost, g->memory);
    }
}

/* CPU per delivery behind `a`, as bars: flat if one more follower costs the same. */
static void print_bars(const struct fit_result *r, size_t n, struct line g, struct line l)
{
    printf("\n```\n(CPU per chunk - a) / deliveries, us\n");
    for (size_t i = 0; i < n; i++) {
        const double us[] = {each_us(&r[i].gateway, g.a), each_us(&r[i].floor, l.a)};

        for (size_t k = 0; k < DAC_ARRAY_LEN(us); k++) {
            printf("%6zu %s %5.2f ", r[i].followers, k == 0 ? "dacd" : "loop", us[k]);
            for (double x = 0; x + 0.125 < us[k] && x < 15; x += 0.25)
                putchar(k == 0 ? '#' : '-');
            putchar('\n');
        }
    }
    printf("```\n\n");
}

static void add_line(struct line g, struct line l, struct report *r)
{
    report_add(r, "fit", "a", g.a, "us");
    report_add(r, "fit", "b", g.b, "us");
    report_add(r, "fit", "floor_a", l.a, "us");
    report_add(r, "fit", "floor_b", l.b, "us");
    report_add(r, "fit", "b_ratio", l.b > 0 ? g.b / l.b : 0, "");
}

static void add_rows(const struct fit_result *res, size_t n, struct report *r)
{
    for (size_t i = 0; i < n; i++) {
        char group[32];

        snprintf(group, sizeof(group), "followers_%zu", res[i].followers);
        report_add(r, group, "cpu_per_chunk", res[i].gateway.chunk_us, "us");
        report_add(r, group, "deliveries_per_chunk", res[i].gateway.deliveries, "");
        report_add(r, group, "floor_cpu_per_delivery", each_us(&res[i].floor, 0), "us");
        report_add(r, group, "delay_p99", res[i].gateway.p99_ms, "ms");
        report_add(r, group, "floor_delay_p99", res[i].floor.p99_ms, "ms");
        report_add(r, group, "lost", res[i].gateway.lost, "");
        report_add(r, group, "memory", res[i].gateway.memory, "bytes");
    }
}

static void print_result(const struct bench_options *o, const struct fit_result *res,
                         struct report *r)
{
    struct figures gateway[FOLLOWERS_MAX] = {0}, loop[FOLLOWERS_MAX] = {0};
    size_t n = o->follower_count;

    for (size_t i = 0; i < n; i++) {
        gateway[i] = res[i].gateway;
        loop[i] = res[i].floor;
    }
    struct line g = fit(gateway, n), l = fit(loop, n);
    add_line(g, l, r);
    if (o->json) {
        add_rows(res, n, r);
        return;
    }
    print_rows(res, n);
    print_bars(res, n, g, l);
}

int bench_fit(const struct bench_options *o, struct report *r)
{
    struct figures gateway[REPEAT_MAX] = {0}, loop[REPEAT_MAX] = {0}, warm;
    struct fit_result res[FOLLOWERS_MAX];
    struct rest rest = {0};

    if (o->path || !o->identical || o->pid == 0 || o->tokens < 20) {
        fprintf(stderr,
                "dac-bench: fit asks the same in a thread, of at least 20 tokens, "
                "and needs --pid-of\n");
        return 2;
    }
    if (!run_gateway(o, 1, &rest, &warm) || !look_at_rest(o, &rest))
        return 1;
    for (size_t i = 0; i < o->follower_count; i++) {
        size_t n = o->followers[i];

        for (size_t k = 0; k < o->repeat; k++) {
            if (!run_gateway(o, n, &rest, &gateway[k]) ||
                !run_floor(o, n, (size_t)gateway[k].event_bytes, &loop[k]))
                return 1;
            fprintf(stderr, "%zu followers, run %zu: dacd %.2f us, loop %.2f us\n", n,
                    k + 1, each_us(&gateway[k], 0), each_us(&loop[k], 0));
        }
        res[i] = (struct fit_result){.followers = n,
                                     .gateway = combine(gateway, o->repeat),
                                     .floor = combine(loop, o->repeat)};
    }
    report_add(r, "idle", "cpu_per_second", rest.idle * 1e6, "us");
    print_result(o, res, r);
    return 0;
}
