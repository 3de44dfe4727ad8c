/*
 * The settings table: every key that a configuration may have. A setting stands here only
 * once it works. Order is that of the printed configuration and of the manual.
 */
#include "config/settings.h"

#include <limits.h>
#include <string.h>

#include "base/clock.h"
#include "config/value.h"
#include "shm/layout.h"

_Static_assert(CONFIG_PROVIDERS_MAX == SHM_PROVIDERS_MAX, "one pacer per provider");

#define KIB  UINT64_C(1024)
#define MIB  (1024 * KIB)
#define GIB  (1024 * MIB)
#define HOUR (3600 * NS_PER_S)
#define DAY  (24 * HOUR)

#define SERVER(member) .section = "server", .offset = offsetof(struct config, member)
#define MEMORY(member) .section = "memory", .offset = offsetof(struct config, member)
#define STORE(member)  .section = "store", .offset = offsetof(struct config, member)
#define FLIGHT(member) .section = "flight", .offset = offsetof(struct config, member)
#define FLAG(member)   .offset = offsetof(struct config, member)
#define PROVIDER(member)                                                                 \
    .section = "provider", .offset = offsetof(struct config_provider, member)

/* In the order of enum log_level. */
static const char *const log_levels[] = {"error", "warn", "info", "debug", NULL};
/* In the order of enum log_format. */
static const char *const log_formats[] = {"human", "json", NULL};
/* In the order of enum http_log_requests. */
static const char *const log_requests[] = {"off", "errors", "all", NULL};
static const char *const fetcher_deaths[] = {"restart", "fail", NULL};
static const char *const dialects[] = {"openai", NULL};
/* In the order of enum config_http2. */
static const char *const http2_words[] = {"auto", "off", NULL};

/* clang-format off */
const struct setting settings[] = {
    {SERVER(name), .name = "name", .type = SETTING_STRING, .def = "",
     .reload = SETTING_RESTART,
     .help = "name of this instance, and of its segment in /dev/shm; empty: dac-PORT of the "
             "first address"},
    {SERVER(user), .name = "user", .type = SETTING_STRING, .def = "",
     .reload = SETTING_RESTART,
     .help = "user to become when started as root"},
    {SERVER(listen), .name = "listen", .type = SETTING_ADDRESSES,
     .def = "127.0.0.1:8000", .reload = SETTING_NEW_WORKERS,
     .help = "addresses to serve, separated by commas: 127.0.0.1:8000, [::]:8000, "
             "unix:/run/dac/dac.sock"},
    {SERVER(workers), .name = "workers", .type = SETTING_INT, .def = "auto",
     .automatic = "auto", .min = 1, .max = SHM_WORKERS_MAX,
     .reload = SETTING_NEW_WORKERS,
     .help = "processes that serve clients; auto is one per core"},
    {SERVER(env_file), .name = "env_file", .type = SETTING_PATH,
     .def = "/etc/dac/dac.env", .reload = SETTING_IN_PLACE,
     .help = "file of flags that win over the environment; the default one may be "
             "missing"},
    {SERVER(header_timeout_ns), .name = "header_timeout", .type = SETTING_DURATION,
     .def = "10s", .min = 100 * NS_PER_MS, .max = HOUR, .reload = SETTING_IN_PLACE,
     .help = "for a request's head to arrive"},
    {SERVER(body_timeout_ns), .name = "body_timeout", .type = SETTING_DURATION,
     .def = "30s", .min = 100 * NS_PER_MS, .max = HOUR, .reload = SETTING_IN_PLACE,
     .help = "for a request's body to arrive"},
    {SERVER(body_max_bytes), .name = "body_max", .type = SETTING_SIZE, .def = "1m",
     .min = 1 * KIB, .max = 64 * MIB, .reload = SETTING_IN_PLACE,
     .help = "bytes of a request's body"},
    {SERVER(header_max_bytes), .name = "header_max", .type = SETTING_SIZE, .def = "16k",
     .min = 1 * KIB, .max = 1 * MIB, .reload = SETTING_IN_PLACE,
     .help = "bytes of a request's line and headers together"},
    {SERVER(keepalive_timeout_ns), .name = "keepalive_timeout", .type = SETTING_DURATION,
     .def = "60s", .min = 100 * NS_PER_MS, .max = DAY, .reload = SETTING_IN_PLACE,
     .help = "for the next request on a connection"},
    {SERVER(client_stall_timeout_ns), .name = "client_stall_timeout",
     .type = SETTING_DURATION, .def = "30s", .min = 100 * NS_PER_MS, .max = DAY,
     .reload = SETTING_IN_PLACE,
     .help = "a client that takes nothing this long is cut off"},
    {SERVER(drain_timeout_ns), .name = "drain_timeout", .type = SETTING_DURATION,
     .def = "60s", .min = 0, .max = DAY, .reload = SETTING_IN_PLACE,
     .help = "for running streams to end when the service stops"},
    {SERVER(control), .name = "control", .type = SETTING_PATH, .def = "",
     .reload = SETTING_RESTART,
     .help = "unix socket for dacctl reload, drain and cancel; by default "
             "/run/dac/NAME.sock"},
    {SERVER(max_connections), .name = "max_connections", .type = SETTING_INT,
     .def = "10000", .min = 1, .max = 1000000, .reload = SETTING_IN_PLACE,
     .help = "open client connections of all workers together"},
    {SERVER(watchdog_timeout_ns), .name = "watchdog_timeout", .type = SETTING_DURATION,
     .def = "5s", .min = 1 * NS_PER_S, .max = HOUR, .reload = SETTING_IN_PLACE,
     .help = "a process that shows no life this long is killed and started again"},
    {SERVER(log_level), .name = "log_level", .type = SETTING_ENUM, .def = "info",
     .words = log_levels, .reload = SETTING_IN_PLACE,
     .help = "least important messages that are written"},
    {SERVER(log_format), .name = "log_format", .type = SETTING_ENUM, .def = "human",
     .words = log_formats, .reload = SETTING_IN_PLACE,
     .help = "how messages are written: a line for people, or an object of JSON each"},
    {SERVER(log_requests), .name = "log_requests", .type = SETTING_ENUM, .def = "errors",
     .words = log_requests, .reload = SETTING_IN_PLACE,
     .help = "requests that get a line when they are over: those with status 500 and above, an "
             "error in their stream or cut off, or all"},
    {SERVER(core_dumps), .name = "core_dumps", .type = SETTING_BOOL, .def = "off",
     .reload = SETTING_RESTART,
     .help = "whether a process that crashes may leave its memory to the system: what people "
             "asked is in it, and keys"},

    {MEMORY(shm_size_bytes), .name = "shm_size", .type = SETTING_SIZE, .def = "48m",
     .min = 4 * MIB, .max = 64 * GIB, .reload = SETTING_RESTART,
     .help = "size of the shared-memory segment"},
    {MEMORY(max_flights), .name = "max_flights", .type = SETTING_INT, .def = "4096",
     .min = 16, .max = SHM_FLIGHTS_MAX, .reload = SETTING_RESTART,
     .help = "answers that are running or kept at the same time"},

    {STORE(postgres), .name = "postgres", .type = SETTING_STRING, .def = "",
     .reload = SETTING_RESTART, .secret = true,
     .help = "libpq connection string of the PostgreSQL database that threads and turns "
             "are kept in; empty: SQLite"},
    {STORE(sqlite), .name = "sqlite", .type = SETTING_PATH, .def = "/var/lib/dac/dac.db",
     .reload = SETTING_RESTART,
     .help = "database file of threads and turns"},
    {STORE(spool), .name = "spool", .type = SETTING_PATH, .def = "/var/lib/dac/spool.db",
     .reload = SETTING_RESTART,
     .help = "database file that takes turns while PostgreSQL is away, and keeps the "
             "threads used last readable"},
    {STORE(spool_max_bytes), .name = "spool_max", .type = SETTING_SIZE, .def = "1g",
     .min = 16 * MIB, .max = 1024 * GIB, .reload = SETTING_RESTART,
     .help = "size of the spool, which it never passes; threads that are only kept make way "
             "for turns, then new questions are refused at nine tenths of it"},
    {STORE(thread_cache), .name = "thread_cache", .type = SETTING_INT, .def = "10000",
     .min = 1, .max = 10000000, .reload = SETTING_RESTART,
     .help = "threads that the spool keeps, those used last"},
    {STORE(commit_timeout_ns), .name = "commit_timeout", .type = SETTING_DURATION,
     .def = "2s", .min = 100 * NS_PER_MS, .max = HOUR, .reload = SETTING_RESTART,
     .help = "for PostgreSQL to commit a batch; then the batch goes to the spool, and the "
             "next ones are smaller until they fit"},
    {STORE(done_timeout_ns), .name = "done_timeout", .type = SETTING_DURATION,
     .def = "10s", .min = 100 * NS_PER_MS, .max = HOUR, .reload = SETTING_IN_PLACE,
     .help = "for an answer to be stored, before its clients get an error"},

    {FLIGHT(result_ttl_ns), .name = "result_ttl", .type = SETTING_DURATION, .def = "30s",
     .min = 0, .max = DAY, .reload = SETTING_IN_PLACE,
     .help = "how long a finished answer serves the same question in a thread"},
    {FLIGHT(chat_result_ttl_ns), .name = "chat_result_ttl", .type = SETTING_DURATION,
     .def = "0s", .min = 0, .max = DAY, .reload = SETTING_IN_PLACE,
     .help = "the same for stateless chat; 0s shares only calls in flight"},
    {FLIGHT(flight_max_bytes), .name = "flight_max_bytes", .type = SETTING_SIZE,
     .def = "8m", .min = 4 * KIB, .max = 1 * GIB, .reload = SETTING_RESTART,
     .help = "bytes of one answer; a longer one ends as incomplete"},
    {FLIGHT(error_ttl_ns), .name = "error_ttl", .type = SETTING_DURATION, .def = "2s",
     .min = 0, .max = HOUR, .reload = SETTING_IN_PLACE,
     .help = "how long a failure answers the same question"},
    {FLIGHT(abandon_grace_ns), .name = "abandon_grace", .type = SETTING_DURATION,
     .def = "100ms", .min = 0, .max = HOUR, .reload = SETTING_IN_PLACE,
     .help = "between the last client's leaving and the end of the upstream call"},
    {FLIGHT(abandon_grace_max_ns), .name = "abandon_grace_max", .type = SETTING_DURATION,
     .def = "60s", .min = 0, .max = HOUR, .reload = SETTING_IN_PLACE,
     .help = "the longest grace that a client may ask for"},
    {FLIGHT(reconnect_grace_ns), .name = "reconnect_grace", .type = SETTING_DURATION,
     .def = "10s", .min = 0, .max = HOUR, .reload = SETTING_IN_PLACE,
     .help = "how long an answer waits for clients whose worker died"},
    {FLIGHT(on_fetcher_death), .name = "on_fetcher_death", .type = SETTING_ENUM,
     .def = "restart", .words = fetcher_deaths, .reload = SETTING_IN_PLACE,
     .help = "restart: another worker asks again when the one that fetches dies; fail: the "
             "answer ends as incomplete"},
    {FLIGHT(takeover_max), .name = "takeover_max", .type = SETTING_INT, .def = "2",
     .min = 0, .max = 100, .reload = SETTING_IN_PLACE,
     .help = "how often one answer is taken over before it ends as incomplete"},

    {PROVIDER(dialect), .name = "dialect", .type = SETTING_ENUM, .def = "openai",
     .words = dialects, .reload = SETTING_NEW_WORKERS,
     .help = "protocol that it speaks"},
    {PROVIDER(base_url), .name = "base_url", .type = SETTING_URL, .def = NULL,
     .reload = SETTING_NEW_WORKERS,
     .help = "where its API begins, such as https://api.example.com/v1"},
    {PROVIDER(api_key_file), .name = "api_key_file", .type = SETTING_PATH, .def = "",
     .credential = true, .reload = SETTING_NEW_WORKERS,
     .help = "file that holds the API key, or credential:NAME, which systemd gives the "
             "service by LoadCredential=; empty: none is sent"},
    {PROVIDER(ca_file), .name = "ca_file", .type = SETTING_PATH, .def = "",
     .reload = SETTING_NEW_WORKERS,
     .help = "PEM file of trusted roots; empty: those of the system"},
    {PROVIDER(models), .name = "models", .type = SETTING_LIST, .def = "*",
     .reload = SETTING_NEW_WORKERS,
     .help = "model names or globs, separated by commas; the first provider that "
             "matches serves a request that names none"},
    {PROVIDER(connect_timeout_ns), .name = "connect_timeout", .type = SETTING_DURATION,
     .def = "5s", .min = 10 * NS_PER_MS, .max = HOUR, .reload = SETTING_NEW_WORKERS,
     .help = "for a connection to stand"},
    {PROVIDER(first_token_timeout_ns), .name = "first_token_timeout",
     .type = SETTING_DURATION, .def = "60s", .min = 10 * NS_PER_MS, .max = HOUR,
     .reload = SETTING_NEW_WORKERS,
     .help = "from the start of a call to its first content"},
    {PROVIDER(stall_timeout_ns), .name = "stall_timeout", .type = SETTING_DURATION,
     .def = "30s", .min = 10 * NS_PER_MS, .max = HOUR, .reload = SETTING_NEW_WORKERS,
     .help = "between two pieces of content"},
    {PROVIDER(retry_deadline_ns), .name = "retry_deadline", .type = SETTING_DURATION,
     .def = "20s", .min = 0, .max = HOUR, .reload = SETTING_NEW_WORKERS,
     .help = "a call that fails before its first content is made once more inside this"},
    {PROVIDER(rps), .name = "rps", .env = "_RPS", .type = SETTING_RATE, .def = "0",
     .min = 0, .max = 100000, .reload = SETTING_IN_PLACE,
     .help = "calls started per second over all workers, such as 0.5; 0: no limit"},
    {PROVIDER(burst), .name = "burst", .env = "_BURST", .type = SETTING_INT,
     .def = "auto", .automatic = "auto", .min = 1, .max = 100000,
     .reload = SETTING_IN_PLACE,
     .help = "calls that may start at once after a pause; auto is rps, at least 1"},
    {PROVIDER(concurrency), .name = "concurrency", .env = "_CONCURRENCY",
     .type = SETTING_INT, .def = "64", .min = 1, .max = SHM_PERMITS_MAX,
     .reload = SETTING_IN_PLACE,
     .help = "calls that run at the same time over all workers"},
    {PROVIDER(http2), .name = "http2", .type = SETTING_ENUM, .def = "auto",
     .words = http2_words, .reload = SETTING_NEW_WORKERS,
     .help = "auto: HTTP/2 over TLS where the provider speaks it; off: HTTP/1.1"},
    {PROVIDER(trace), .name = "trace", .type = SETTING_BOOL, .def = "off",
     .reload = SETTING_NEW_WORKERS,
     .help = "whether calls have a traceparent header (W3C) with the trace id of the request "
             "that led to them"},

    {FLAG(coalesce_enabled), .name = "COALESCE_ENABLED", .env = "COALESCE_ENABLED",
     .type = SETTING_BOOL, .def = "on", .reload = SETTING_IN_PLACE,
     .help = "the same question is one upstream call"},
    {FLAG(stream_fanout_enabled), .name = "STREAM_FANOUT_ENABLED",
     .env = "STREAM_FANOUT_ENABLED", .type = SETTING_BOOL, .def = "on",
     .reload = SETTING_IN_PLACE,
     .help = "clients that stream share a call, too"},
};
/* clang-format on */

const size_t setting_count = DAC_ARRAY_LEN(settings);

_Static_assert(DAC_ARRAY_LEN(settings) <= CONFIG_SETTINGS_MAX,
               "origins have room for all");

const struct setting *setting_find(const char *section, const char *name)
{
    for (size_t i = 0; i < setting_count; i++) {
        if (settings[i].section && strcmp(settings[i].section, section) == 0 &&
            strcmp(settings[i].name, name) == 0)
            return &settings[i];
    }
    return NULL;
}

bool setting_section_exists(const char *section)
{
    for (size_t i = 0; i < setting_count; i++) {
        if (settings[i].section && strcmp(settings[i].section, section) == 0)
            return true;
    }
    return false;
}

bool setting_of_provider(const struct setting *s)
{
    return s->section && strcmp(s->section, "provider") == 0;
}

/* Whether `d` changes still look like the same word of `n` letters. */
static bool is_near(unsigned d, size_t n)
{
    unsigned limit = n < 4 ? 1 : n < 9 ? 2 : 3;

    return d <= limit;
}

/* "api_key" for api_key_file, "connect_timeout_ms" for connect_timeout. */
static const char *begins_alike(const char *section, const char *name)
{
    for (size_t i = 0; i < setting_count; i++) {
        size_t n = strlen(settings[i].name), given = strlen(name);

        if (!settings[i].section || strcmp(settings[i].section, section) != 0)
            continue;
        if (given >= 4 && n >= 4 &&
            strncmp(name, settings[i].name, n < given ? n : given) == 0)
            return settings[i].name;
    }
    return NULL;
}

const char *setting_suggest(const char *section, const char *name)
{
    const char *best = NULL;
    unsigned nearest = UINT_MAX;

    for (size_t i = 0; i < setting_count; i++) {
        unsigned d;

        if (!settings[i].section || strcmp(settings[i].section, section) != 0)
            continue;
        d = value_distance(name, settings[i].name);
        if (d < nearest && is_near(d, strlen(settings[i].name))) {
            nearest = d;
            best = settings[i].name;
        }
    }
    return best ? best : begins_alike(section, name);
}

const char *setting_suggest_section(const char *section)
{
    const char *best = NULL;
    unsigned nearest = UINT_MAX;

    for (size_t i = 0; i < setting_count; i++) {
        unsigned d;

        if (!settings[i].section)
            continue;
        d = value_distance(section, settings[i].section);
        if (d < nearest && is_near(d, strlen(settings[i].section))) {
            nearest = d;
            best = settings[i].section;
        }
    }
    return best;
}
