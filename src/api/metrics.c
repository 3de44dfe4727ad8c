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
               "\"error_rate\":%.6g}",
               (unsigned long long)p.leaders, (unsigned long long)p.followers,
               (unsigned long long)p.hits, p.error_rate);
    native_respond(ex, 200, &b);
}
