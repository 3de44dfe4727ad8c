/*
 * GET /api/metrics/performance: figures of the last n turns, as JSON for alerts.
 *
 * Percentiles are nearest-rank over the samples themselves: p95 is a value that occurred.
 */
#include <stdlib.h>
#include <string.h>

#include "api/input.h"
#include "api/native.h"
#include "api/performance.h"
#include "api/routes.h"
#include "base/clock.h"
#include "shm/sample.h"

#define TEXT_MAX (1u << 20)

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a;
    uint32_t y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static double rank(const uint32_t *sorted, size_t n, unsigned percent)
{
    size_t at = (n * percent + 99) / 100;
    return (double)sorted[at > 0 ? at - 1 : 0] / 1000.0;
}

static struct quantiles quantiles_of(uint32_t *us, size_t n)
{
    struct quantiles q = {0};
    if (n == 0)
        return q;
    qsort(us, n, sizeof *us, by_value);
    q.p50 = rank(us, n, 50);
    q.p95 = rank(us, n, 95);
    q.p99 = rank(us, n, 99);
    q.max = (double)us[n - 1] / 1000.0;
    return q;
}

/* --- bursts --------------------------------------------------------------------------
 */

static uint64_t arrived(const struct sample *s)
{
    return s->ended_ns - s->latency_us * NS_PER_US;
}

static int by_question_and_arrival(const void *a, const void *b)
{
    const struct sample *x = a;
    const struct sample *y = b;

    if (x->question != y->question)
        return x->question < y->question ? -1 : 1;
    return (arrived(x) > arrived(y)) - (arrived(x) < arrived(y));
}

/* Adds a run of turns, of which each but the first began before an earlier one had ended.
 * `last_ns`: when the last of all bursts ended. */
static void add_run(const struct sample *s, size_t n, struct burst *b, uint64_t *last_ns)
{
    uint64_t followers = 0;

    for (size_t i = 0; i < n; i++)
        followers += (uint64_t)s[i].followers + s[i].hits;
    if (n + followers < BURST_REQUESTS)
        return;
    b->leaders += n;
    b->followers += followers;
    for (size_t i = 0; i < n; i++)
        if (s[i].ended_ns > *last_ns)
            *last_ns = s[i].ended_ns;
}

/* Sorts the samples. */
static void find_bursts(struct sample *s, size_t n, uint64_t now_ns, struct burst *b)
{
    uint64_t last_ns = 0;
    size_t from = 0;

    qsort(s, n, sizeof *s, by_question_and_arrival);
    while (from < n) {
        uint64_t end_ns = s[from].ended_ns;
        size_t to = from + 1;

        while (to < n && s[to].question == s[from].question && arrived(&s[to]) < end_ns) {
            if (s[to].ended_ns > end_ns)
                end_ns = s[to].ended_ns;
            to++;
        }
        if (s[from].question != 0)
            add_run(&s[from], to - from, b, &last_ns);
        from = to;
    }
    if (last_ns != 0 && now_ns > last_ns)
        b->age_ns = now_ns - last_ns;
}

static void find_times(const struct sample *s, size_t n, uint64_t now_ns,
                       struct performance *out)
{
    uint64_t first = UINT64_MAX, last = 0;

    for (size_t i = 0; i < n; i++) {
        if (arrived(&s[i]) < first)
            first = arrived(&s[i]);
        if (s[i].ended_ns > last)
            last = s[i].ended_ns;
    }
    if (n == 0)
        return;
    out->newest_age_ns = now_ns > last ? now_ns - last : 0;
    out->span_ns = last - first;
}

/* --- all ------------------------------------------------------------------------------
 */

bool performance_read(const struct shm *shm, size_t last_n, struct performance *out)
{
    struct sample *s = malloc(last_n * sizeof *s);
    uint32_t *us = malloc(last_n * sizeof *us);
    size_t errors = 0, n = 0;

    memset(out, 0, sizeof *out);
    if (s && us) {
        out->turns = sample_read(shm, s, last_n);
        for (size_t i = 0; i < out->turns; i++) {
            out->leaders++;
            out->followers += s[i].followers;
            out->hits += s[i].hits;
            errors += s[i].status == TURN_FAILED || s[i].status == TURN_INCOMPLETE;
            if (s[i].ttft_us != UINT32_MAX)
                us[n++] = s[i].ttft_us;
        }
        out->ttft = quantiles_of(us, n);
        for (size_t i = 0; i < out->turns; i++)
            us[i] = s[i].latency_us;
        out->latency = quantiles_of(us, out->turns);
        for (size_t i = 0; i < out->turns; i++)
            us[i] = s[i].queue_us;
        out->queue = quantiles_of(us, out->turns);
        if (out->turns > 0)
            out->error_rate = (double)errors / (double)out->turns;
        find_times(s, out->turns, clock_now_ns(), out);
        find_bursts(s, out->turns, clock_now_ns(), &out->burst);
    }
    bool ok = s && us;
    free(s);
    free(us);
    return ok;
}

static void put_quantiles(struct buf *b, const char *name, const struct quantiles *q)
{
    buf_printf(b, ",\"%s\":{\"p50\":%.3f,\"p95\":%.3f,\"p99\":%.3f,\"max\":%.3f}", name,
               q->p50, q->p95, q->p99, q->max);
}

static double seconds(uint64_t ns)
{
    return (double)ns / (double)NS_PER_S;
}

/* For scripts that look again and again: by when this is, of which start, and whether
 * there was a burst. Ages are null where there is nothing that has one. */
static void put_times(struct buf *b, const struct shm *shm, const struct performance *p)
{
    buf_printf(b, ",\"started_us\":%lld,\"uptime_s\":%.3f",
               (long long)shm->hdr->created_us,
               seconds(clock_now_ns() - shm->hdr->created_ns));
    if (p->turns > 0)
        buf_printf(b, ",\"span_s\":%.3f,\"newest_age_s\":%.3f", seconds(p->span_ns),
                   seconds(p->newest_age_ns));
    else
        buf_puts(b, ",\"span_s\":null,\"newest_age_s\":null");
    buf_printf(b, ",\"burst\":{\"leaders\":%llu,\"followers\":%llu,\"age_s\":",
               (unsigned long long)p->burst.leaders,
               (unsigned long long)p->burst.followers);
    if (p->burst.leaders > 0)
        buf_printf(b, "%.3f}", seconds(p->burst.age_ns));
    else
        buf_puts(b, "null}");
}

void api_performance(struct http_exchange *ex, void *ctx)
{
    struct api *api = ctx;
    const char *text = http_query(ex, "last_n");
    uint64_t last_n = PERFORMANCE_LAST;
    struct performance p;
    struct buf b = BUF_INIT(TEXT_MAX);

    if (text && (!bytes_parse_u64(text, strlen(text), SHM_SAMPLES, &last_n) || !last_n)) {
        input_refuse(ex, 400, "bad_query", "last_n",
                     "last_n must be a number from 1 to %u", SHM_SAMPLES);
        return;
    }
    if (!performance_read(api->shm, (size_t)last_n, &p)) {
        http_respond_no_memory(ex);
        return;
    }
    buf_printf(&b, "{\"last_n\":%llu,\"turns\":%zu", (unsigned long long)last_n, p.turns);
    put_quantiles(&b, "ttft_ms", &p.ttft);
    put_quantiles(&b, "latency_ms", &p.latency);
    put_quantiles(&b, "queue_wait_ms", &p.queue);
    buf_printf(&b,
               ",\"coalesce\":{\"leaders\":%llu,\"followers\":%llu,\"hits\":%llu},"
               "\"error_rate\":%.6g",
               (unsigned long long)p.leaders, (unsigned long long)p.followers,
               (unsigned long long)p.hits, p.error_rate);
    put_times(&b, api->shm, &p);
    buf_putc(&b, '}');
    native_respond(ex, 200, &b);
}
