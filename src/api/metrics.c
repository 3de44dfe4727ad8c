/*
 * GET /api/metrics/performance: percentiles of the last n turns, as JSON for alerts.
 * GET /metrics: the counters of the whole instance as Prometheus text, with the same
 * percentiles over the last 100 turns.
 *
 * Percentiles are nearest-rank over the samples themselves: p95 is a value that occurred.
 */
#include <stdlib.h>
#include <string.h>

#include "api/input.h"
#include "api/native.h"
#include "api/routes.h"
#include "base/clock.h"
#include "http/problem.h"
#include "shm/alias.h"
#include "shm/blocklog.h"
#include "shm/pacer.h"
#include "shm/sample.h"
#include "shm/slot.h"

#define TEXT_MAX     (1u << 20)
#define LAST_DEFAULT 100

struct quantiles {
    double p50, p95, p99, max; /* milliseconds, 0 where there is no sample */
};

struct performance {
    size_t turns;
    struct quantiles ttft, latency, queue;
    uint64_t leaders, followers, hits;
    double error_rate; /* of failed and incomplete turns, 0 to 1 */
};

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

static bool performance_read(const struct shm *shm, size_t last_n,
                             struct performance *out)
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
    uint64_t last_n = LAST_DEFAULT;
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

/* --- Prometheus --------------------------------------------------------------------- */

static void put_help(struct buf *b, const char *name, const char *type, const char *help)
{
    buf_printf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void put_gauge(struct buf *b, const char *name, const char *help, double v)
{
    put_help(b, name, "gauge", help);
    buf_printf(b, "%s %.10g\n", name, v);
}

static void put_counters(struct buf *b, const struct shm *shm)
{
    char name[80];
    for (int i = 0; i < SHM_C_COUNT; i++) {
        enum shm_counter c = (enum shm_counter)i;
        if (c >= SHM_C_store_commits_1ms && c <= SHM_C_store_commits_256_rows)
            continue; /* put_store() has them */
        snprintf(name, sizeof name, "dac_%s_total", shm_counter_name(c));
        put_help(b, name, "counter", shm_counter_help(c));
        buf_printf(b, "%s %llu\n", name, (unsigned long long)shm_counter_sum(shm, c));
    }
}

static void put_flights(struct buf *b, const struct shm *shm)
{
    uint32_t by_state[FLIGHT_STATE_COUNT] = {0};

    for (uint32_t i = 0; i < shm->hdr->flight_count; i++)
        by_state[flight_load(shm, i).state % FLIGHT_STATE_COUNT]++;
    put_help(b, "dac_flights", "gauge", "flights in the table, by state");
    for (int i = 0; i < FLIGHT_STATE_COUNT; i++)
        buf_printf(b, "dac_flights{state=\"%s\"} %u\n",
                   flight_state_name((enum flight_state)i), by_state[i]);
    put_gauge(b, "dac_blocks", "blocks of the log pool", shm->hdr->block_count);
    put_gauge(b, "dac_blocks_free", "blocks that no flight holds", blocks_free_hint(shm));
    put_gauge(b, "dac_idempotency_keys",
              "values of Idempotency-Key that turns in memory have",
              alias_used_hint(shm));
    put_gauge(b, "dac_idempotency_keys_max", "how many of them memory has room for",
              shm->hdr->alias_count);
}

/* What is at most `le` of its histogram. */
struct bucket {
    enum shm_counter c;
    const char *le;
};

/* `sum` is counted in 1/`per` of the histogram's unit. The count of all is read last, so
 * that it is not less than what is in a bucket. */
static void put_histogram(struct buf *b, const struct shm *shm, const char *name,
                          const char *help, const struct bucket *buckets, size_t n,
                          enum shm_counter all, enum shm_counter sum, double per)
{
    put_help(b, name, "histogram", help);
    for (size_t i = 0; i < n; i++)
        buf_printf(b, "%s_bucket{le=\"%s\"} %llu\n", name, buckets[i].le,
                   (unsigned long long)shm_counter_sum(shm, buckets[i].c));
    unsigned long long count = shm_counter_sum(shm, all);

    buf_printf(b, "%s_bucket{le=\"+Inf\"} %llu\n", name, count);
    buf_printf(b, "%s_sum %.10g\n%s_count %llu\n", name,
               (double)shm_counter_sum(shm, sum) / per, name, count);
}

static void put_store(struct buf *b, const struct shm *shm)
{
    static const struct bucket seconds[] = {
        {SHM_C_store_commits_1ms, "0.001"}, {SHM_C_store_commits_5ms, "0.005"},
        {SHM_C_store_commits_20ms, "0.02"}, {SHM_C_store_commits_100ms, "0.1"},
        {SHM_C_store_commits_500ms, "0.5"}, {SHM_C_store_commits_2s, "2"}};
    static const struct bucket rows[] = {{SHM_C_store_commits_1_row, "1"},
                                         {SHM_C_store_commits_4_rows, "4"},
                                         {SHM_C_store_commits_16_rows, "16"},
                                         {SHM_C_store_commits_64_rows, "64"},
                                         {SHM_C_store_commits_256_rows, "256"}};
    const struct shm_store *s = &shm->hdr->store;
    uint64_t oldest = atomic_load(&s->spool_oldest_us);
    uint64_t now = (uint64_t)clock_wall_us();

    put_histogram(b, shm, "dac_store_commit_seconds",
                  "what the recorder's commits took, to the database or to the spool",
                  seconds, DAC_ARRAY_LEN(seconds), SHM_C_store_commits,
                  SHM_C_store_commit_us, 1e6);
    put_histogram(b, shm, "dac_store_batch_rows",
                  "rows of the recorder's commits, turns and others", rows,
                  DAC_ARRAY_LEN(rows), SHM_C_store_commits, SHM_C_store_rows, 1);
    put_gauge(b, "dac_store_up", "1: the database takes turns; 0: they go to the spool",
              atomic_load(&s->up));
    put_gauge(b, "dac_spool_rows", "rows of the spool that the database has not got",
              (double)atomic_load(&s->spool_rows));
    put_gauge(b, "dac_spool_bytes", "size of the spool, kept threads included",
              (double)atomic_load(&s->spool_bytes));
    put_gauge(b, "dac_spool_full",
              "1: new questions are refused, since the spool is full",
              atomic_load(&s->spool_full));
    put_gauge(b, "dac_spool_oldest_seconds", "how long the first row in the spool waits",
              oldest != 0 && now > oldest ? (double)(now - oldest) / 1e6 : 0);
}

static void put_restarts(struct buf *b, const struct shm *shm)
{
    static const char *const kinds[SHM_KINDS] = {
        [SLOT_WORKER] = "worker", [SLOT_RECORDER] = "recorder"};

    put_help(b, "dac_restarts_total", "counter",
             "processes started again after a death, by what ended them");
    for (size_t kind = SLOT_WORKER; kind < SHM_KINDS; kind++)
        for (size_t i = 0; i < RESTART_REASON_COUNT; i++)
            buf_printf(b, "dac_restarts_total{kind=\"%s\",reason=\"%s\"} %llu\n",
                       kinds[kind], shm_restart_reason_name((enum restart_reason)i),
                       (unsigned long long)atomic_load(&shm->hdr->restarts[kind][i]));
}

static void put_processes(struct buf *b, const struct shm *shm)
{
    uint64_t connections = 0, streams = 0;
    uint32_t ready = 0;

    for (uint32_t i = 0; i < SHM_SLOTS; i++) {
        const struct shm_slot *s = &shm->slots[i];
        connections += atomic_load(&s->connections);
        streams += atomic_load(&s->streams);
        ready += atomic_load(&s->kind) == SLOT_WORKER && slot_state(shm, i) == SLOT_READY;
    }
    put_gauge(b, "dac_connections", "open client connections", (double)connections);
    put_gauge(b, "dac_streams", "open streams", (double)streams);
    put_gauge(b, "dac_workers_ready", "workers that accept", ready);
    put_restarts(b, shm);
    put_help(b, "dac_renewals_total", "counter",
             "times that shared memory was renewed because a lock was lost");
    buf_printf(b, "dac_renewals_total %u\n", atomic_load(&shm->hdr->renewals));
    put_gauge(b, "dac_uptime_seconds", "since the master started",
              (double)(clock_now_ns() - shm->hdr->created_ns) / (double)NS_PER_S);
}

static void put_providers(struct buf *b, const struct shm *shm)
{
    put_help(b, "dac_provider_calls_in_flight", "gauge", "calls under way, by provider");
    for (uint32_t i = 0; i < atomic_load(&shm->hdr->provider_count); i++)
        buf_printf(b, "dac_provider_calls_in_flight{provider=\"%s\"} %u\n",
                   shm->hdr->provider_names[i], pacer_in_flight(shm, i));
}

static void put_summary(struct buf *b, const char *name, const char *help,
                        const struct quantiles *q)
{
    put_help(b, name, "gauge", help);
    buf_printf(b, "%s{quantile=\"0.5\"} %.3f\n", name, q->p50);
    buf_printf(b, "%s{quantile=\"0.95\"} %.3f\n", name, q->p95);
    buf_printf(b, "%s{quantile=\"0.99\"} %.3f\n", name, q->p99);
    buf_printf(b, "%s{quantile=\"1\"} %.3f\n", name, q->max);
}

void api_metrics(struct http_exchange *ex, void *ctx)
{
    struct api *api = ctx;
    struct buf b = BUF_INIT(TEXT_MAX);
    struct performance p;
    struct http_problem moved = {.status = 503,
                                 .code = "moved",
                                 .offset = -1,
                                 .retryable = true,
                                 .retry_after_ms = 1000};

    put_counters(&b, api->shm);
    put_flights(&b, api->shm);
    put_store(&b, api->shm);
    put_processes(&b, api->shm);
    put_providers(&b, api->shm);
    if (performance_read(api->shm, LAST_DEFAULT, &p)) {
        put_summary(&b, "dac_turn_ttft_ms", "time to first token of the last 100 turns",
                    &p.ttft);
        put_summary(&b, "dac_turn_latency_ms", "latency of the last 100 turns",
                    &p.latency);
        put_summary(&b, "dac_turn_queue_wait_ms",
                    "time in the pacer's queue of the last 100 turns", &p.queue);
        put_gauge(&b, "dac_turn_error_rate",
                  "share of failed and incomplete turns among the last 100",
                  p.error_rate);
    }
    /* Looked at last: what was summed up before is part of the new memory's sums. */
    if (atomic_load(&api->shm->hdr->superseded))
        http_respond_problem(ex, &moved, "other processes know these numbers; try again");
    else if (b.failed)
        http_respond_no_memory(ex);
    else
        http_respond(ex, 200, "text/plain; version=0.0.4; charset=utf-8", b.data, b.len);
    buf_free(&b);
}
