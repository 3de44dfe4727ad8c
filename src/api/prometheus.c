/*
 * GET /metrics: the figures of the whole instance as Prometheus text (version 0.0.4):
 * counters, histograms of turns by provider, what processes, memory and store are doing
 * now, and percentiles over the last 100 turns.
 *
 * Base units only. Labels are names of providers from the configuration and words of
 * this file, so the text does not grow with traffic. No counter and no bucket ever goes
 * back while the service runs, whatever dies. docs/metrics.md has the list.
 */
#include <math.h>
#include <stdio.h>

#include "api/native.h"
#include "api/performance.h"
#include "api/routes.h"
#include "base/clock.h"
#include "http/problem.h"
#include "shm/alias.h"
#include "shm/blocklog.h"
#include "shm/pacer.h"
#include "shm/slot.h"
#include "shm/timing.h"

#define TEXT_MAX (1u << 20)

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

/* --- by provider ---------------------------------------------------------------------
 */

/* A histogram of turns. Those of the provider's call have OpenTelemetry's names. */
struct family {
    enum shm_timing_kind kind;
    const char *name;
    const char *labels; /* before the provider's name */
    const char *help;
};

static const struct family families[] = {
    {TIMING_TTFT, "dac_turn_ttft_seconds", "provider",
     "from the leader's request to the first content"},
    {TIMING_LATENCY, "dac_turn_latency_seconds", "provider",
     "from the leader's request to the end of the turn"},
    {TIMING_QUEUE, "dac_turn_queue_wait_seconds", "provider",
     "time that turns waited for their provider's pacer"},
    {TIMING_OWN, "dac_turn_overhead_seconds", "provider",
     "time of turns that went into the gateway's own code"},
    {TIMING_CALL, "gen_ai_client_operation_duration_seconds",
     "gen_ai_operation_name=\"chat\",gen_ai_provider_name",
     "duration of the last call to the provider of a turn"},
    {TIMING_CALL_TTFT, "gen_ai_server_time_to_first_token_seconds",
     "gen_ai_operation_name=\"chat\",gen_ai_provider_name",
     "from that call to its first content"},
};

/* Buckets are kept each for itself, so their sums are in order whenever they are read. */
static void put_family(struct buf *b, const struct shm *shm, const struct family *f)
{
    size_t n;
    const uint32_t *bounds = timing_bounds(f->kind, &n);

    put_help(b, f->name, "histogram", f->help);
    for (uint32_t p = 0; p < atomic_load(&shm->hdr->provider_count); p++) {
        const char *provider = shm->hdr->provider_names[p];
        struct timing t = timing_sum(shm, p, f->kind);
        unsigned long long count = 0;

        for (size_t i = 0; i <= n; i++) {
            char le[32] = "+Inf";

            if (i < n)
                snprintf(le, sizeof le, "%.10g", (double)bounds[i] / 1e6);
            count += t.buckets[i];
            buf_printf(b, "%s_bucket{%s=\"%s\",le=\"%s\"} %llu\n", f->name, f->labels,
                       provider, le, count);
        }
        buf_printf(b, "%s_sum{%s=\"%s\"} %.10g\n%s_count{%s=\"%s\"} %llu\n", f->name,
                   f->labels, provider, (double)t.sum_us / 1e6, f->name, f->labels,
                   provider, count);
    }
}

static void put_providers(struct buf *b, const struct shm *shm)
{
    put_help(b, "dac_provider_calls_in_flight", "gauge", "calls under way, by provider");
    for (uint32_t i = 0; i < atomic_load(&shm->hdr->provider_count); i++)
        buf_printf(b, "dac_provider_calls_in_flight{provider=\"%s\"} %u\n",
                   shm->hdr->provider_names[i], pacer_in_flight(shm, i));
    for (size_t i = 0; i < DAC_ARRAY_LEN(families); i++)
        put_family(b, shm, &families[i]);
}

/* --- the last turns ------------------------------------------------------------------
 */

static void put_quantiles(struct buf *b, const char *name, const char *help,
                          const struct quantiles *q)
{
    put_help(b, name, "gauge", help);
    buf_printf(b, "%s{percentile=\"50\"} %.6f\n", name, q->p50 / 1e3);
    buf_printf(b, "%s{percentile=\"95\"} %.6f\n", name, q->p95 / 1e3);
    buf_printf(b, "%s{percentile=\"99\"} %.6f\n", name, q->p99 / 1e3);
    buf_printf(b, "%s{percentile=\"100\"} %.6f\n", name, q->max / 1e3);
}

static void put_last(struct buf *b, const struct performance *p)
{
    put_quantiles(b, "dac_last_turns_ttft_seconds",
                  "time to first token of the last 100 turns", &p->ttft);
    put_quantiles(b, "dac_last_turns_latency_seconds", "latency of the last 100 turns",
                  &p->latency);
    put_quantiles(b, "dac_last_turns_queue_wait_seconds",
                  "time in the pacer's queue of the last 100 turns", &p->queue);
    put_gauge(b, "dac_last_turns_error_ratio",
              "share of failed and incomplete turns among the last 100", p->error_rate);
    put_gauge(
        b, "dac_last_turns_burst_leaders",
        "turns of the last 100 that were asked the same at the same time, in bursts "
        "of 11 requests or more",
        (double)p->burst.leaders);
    put_gauge(b, "dac_last_turns_burst_followers",
              "requests that got one of those turns without a call of their own",
              (double)p->burst.followers);
    put_gauge(b, "dac_last_turns_burst_age_seconds",
              "since the last of those turns ended, NaN if there is none",
              p->burst.leaders > 0 ? (double)p->burst.age_ns / (double)NS_PER_S : NAN);
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
    if (performance_read(api->shm, PERFORMANCE_LAST, &p))
        put_last(&b, &p);
    /* Looked at last: what was summed up before is part of the new memory's sums. */
    if (atomic_load(&api->shm->hdr->superseded))
        http_respond_problem(ex, &moved, "other processes know these numbers; try again");
    else if (b.failed)
        http_respond_no_memory(ex);
    else
        http_respond(ex, 200, "text/plain; version=0.0.4; charset=utf-8", b.data, b.len);
    buf_free(&b);
}
