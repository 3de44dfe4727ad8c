/*
 * dac-bench: measures a gateway from the outside. README.md in this folder says what each
 * command does and how to read its figures. Prints a table, or with --json one object.
 */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "tools/bench/bench.h"

static const struct {
    const char *name;
    int (*run)(const struct bench_options *o, struct report *r);
    const char *help;
} commands[] = {
    {"stream", bench_stream,
     "many clients stream: TTFT, delay per token, CPU, memory, calls"},
    {"burst", bench_burst, "many clients wait for whole answers: latency"},
    {"ttft", bench_ttft, "TTFT through the server and from the mock, asked in turn"},
    {"floor", bench_floor, "a bare send() loop to the same clients: the baseline"},
    {"store", bench_store, "from the provider's end to done, and a bare commit, in turn"},
    {"fit", bench_fit,
     "both for many numbers of followers, and CPU = a + b x deliveries"},
};

enum option_key {
    OPT_URL = 256,
    OPT_MOCK,
    OPT_PATH,
    OPT_CLIENTS,
    OPT_ASKS,
    OPT_WARMUP,
    OPT_IDENTICAL,
    OPT_DISTINCT,
    OPT_THREADS,
    OPT_PID,
    OPT_TOKENS,
    OPT_TOKEN_SIZE,
    OPT_GAP,
    OPT_TTFT,
    OPT_RAMP,
    OPT_SIZE,
    OPT_ORG,
    OPT_PROVIDER,
    OPT_MODEL,
    OPT_EXTRA,
    OPT_TIMEOUT,
    OPT_FLOOR,
    OPT_FOLLOWERS,
    OPT_REPEAT,
    OPT_BARE,
    OPT_PAUSE,
    OPT_JSON,
    OPT_HELP
};

static const struct option long_options[] = {
    {"url", required_argument, NULL, OPT_URL},
    {"mock", required_argument, NULL, OPT_MOCK},
    {"path", required_argument, NULL, OPT_PATH},
    {"clients", required_argument, NULL, OPT_CLIENTS},
    {"asks", required_argument, NULL, OPT_ASKS},
    {"warmup", required_argument, NULL, OPT_WARMUP},
    {"identical", no_argument, NULL, OPT_IDENTICAL},
    {"distinct", no_argument, NULL, OPT_DISTINCT},
    {"threads", required_argument, NULL, OPT_THREADS},
    {"pid-of", required_argument, NULL, OPT_PID},
    {"tokens", required_argument, NULL, OPT_TOKENS},
    {"token-size", required_argument, NULL, OPT_TOKEN_SIZE},
    {"gap", required_argument, NULL, OPT_GAP},
    {"ttft", required_argument, NULL, OPT_TTFT},
    {"ramp", required_argument, NULL, OPT_RAMP},
    {"size", required_argument, NULL, OPT_SIZE},
    {"org", required_argument, NULL, OPT_ORG},
    {"provider", required_argument, NULL, OPT_PROVIDER},
    {"model", required_argument, NULL, OPT_MODEL},
    {"extra", required_argument, NULL, OPT_EXTRA},
    {"timeout", required_argument, NULL, OPT_TIMEOUT},
    {"with-floor", no_argument, NULL, OPT_FLOOR},
    {"followers", required_argument, NULL, OPT_FOLLOWERS},
    {"repeat", required_argument, NULL, OPT_REPEAT},
    {"bare", required_argument, NULL, OPT_BARE},
    {"pause", required_argument, NULL, OPT_PAUSE},
    {"json", no_argument, NULL, OPT_JSON},
    {"help", no_argument, NULL, OPT_HELP},
    {NULL, 0, NULL, 0},
};

static const char usage[] =
    "  --url URL          the server (http://127.0.0.1:8000)\n"
    "  --mock URL         the mock provider, for its count of calls\n"
    "  --path PATH        ask there in the OpenAI dialect, instead of in a thread\n"
    "  --clients N        (50)        --asks N      per client, one after the other (1)\n"
    "  --identical        all ask the same (default)   --distinct  each asks its own\n"
    "  --threads WHICH    one: a new one for all (default), new: one each, or an id\n"
    "  --tokens N         (50)        --token-size BYTES (16)\n"
    "  --gap TIME         between tokens (20ms)  --ttft TIME  (stream: until all wait)\n"
    "  --ramp TIME        spread the opening over it (0)\n"
    "  --extra WORDS      more directives for the mock\n"
    "  --org NAME --provider NAME --model NAME\n"
    "  --pid-of PID       master of the server, for CPU and memory\n"
    "  --with-floor       stream: the bare loop in the same run\n"
    "  --size BYTES       floor: of one event on the wire (80)\n"
    "  --followers LIST   fit: ascending (10,100,250,500,1000,2500,5000)\n"
    "  --repeat N         fit: runs of each, of which the median counts (3)\n"
    "  --warmup N         ttft, store: unmeasured questions first (20)\n"
    "  --bare WHERE       store: sqlite:FILE, or postgres: with a connection string\n"
    "  --pause TIME       store: before each turn and each commit (3ms)\n"
    "  --timeout TIME     for the whole run (120s)     --json\n"
    "Times are 5s, 20ms or 100us; a bare number is milliseconds.\n";

static void print_usage(FILE *to)
{
    fputs("usage: dac-bench COMMAND [options]\n", to);
    for (size_t i = 0; i < DAC_ARRAY_LEN(commands); i++)
        fprintf(to, "  %-18s %s\n", commands[i].name, commands[i].help);
    fputs(usage, to);
}

static _Noreturn void bad(const char *what, const char *value, const char *why)
{
    fprintf(stderr, "dac-bench: %s \"%s\": %s\n", what, value, why);
    exit(2);
}

static size_t parse_count(const char *what, const char *s, uint64_t max)
{
    uint64_t n;

    if (!bytes_parse_u64(s, strlen(s), max, &n) || n == 0)
        bad(what, s, "a number from 1 on was expected");
    return (size_t)n;
}

static uint64_t parse_time(const char *what, const char *s)
{
    char *unit;
    double n = strtod(s, &unit);
    uint64_t scale = strcmp(unit, "s") == 0                  ? NS_PER_S
                     : strcmp(unit, "us") == 0               ? NS_PER_US
                     : strcmp(unit, "ms") == 0 || *unit == 0 ? NS_PER_MS
                                                             : 0;

    if (unit == s || scale == 0 || n < 0 || n > 1e6)
        bad(what, s, "a time such as 20ms was expected");
    return (uint64_t)(n * (double)scale);
}

static void parse_target(const char *what, const char *s, struct target *t)
{
    const char *why;

    if (!target_parse(s, t, &why))
        bad(what, s, why);
}

static void parse_threads(struct bench_options *o, const char *s)
{
    o->threads = strcmp(s, "one") == 0   ? THREADS_ONE
                 : strcmp(s, "new") == 0 ? THREADS_NEW
                                         : THREADS_GIVEN;
    o->thread = s;
}

static void parse_followers(struct bench_options *o, const char *list)
{
    char text[256], *save = NULL;

    snprintf(text, sizeof(text), "%s", list);
    o->follower_count = 0;
    for (char *s = strtok_r(text, ",", &save); s; s = strtok_r(NULL, ",", &save)) {
        size_t n = parse_count("--followers", s, 1000000);

        if (o->follower_count == FOLLOWERS_MAX ||
            (o->follower_count && n <= o->followers[o->follower_count - 1]))
            bad("--followers", list, "up to 16 ascending numbers were expected");
        o->followers[o->follower_count++] = n;
    }
    if (o->follower_count == 0)
        bad("--followers", list, "numbers were expected");
}

static void take_load_option(int key, struct bench_options *o)
{
    switch (key) {
    case OPT_CLIENTS:
        o->clients = parse_count("--clients", optarg, 1000000);
        break;
    case OPT_ASKS:
        o->asks = parse_count("--asks", optarg, 10000000);
        break;
    case OPT_WARMUP:
        o->warmup = parse_count("--warmup", optarg, 1000000);
        break;
    case OPT_TOKENS:
        o->tokens = parse_count("--tokens", optarg, 10000000);
        break;
    case OPT_TOKEN_SIZE:
        o->token_size = parse_count("--token-size", optarg, 1 << 20);
        break;
    case OPT_SIZE:
        o->size = parse_count("--size", optarg, 1 << 19);
        break;
    case OPT_REPEAT:
        o->repeat = parse_count("--repeat", optarg, REPEAT_MAX);
        break;
    case OPT_FOLLOWERS:
        parse_followers(o, optarg);
        break;
    case OPT_GAP:
        o->gap_ns = parse_time("--gap", optarg);
        break;
    case OPT_TTFT:
        o->ttft_ns = parse_time("--ttft", optarg);
        o->ttft_given = true;
        break;
    case OPT_RAMP:
        o->ramp_ns = parse_time("--ramp", optarg);
        break;
    case OPT_PAUSE:
        o->pause_ns = parse_time("--pause", optarg);
        break;
    case OPT_TIMEOUT:
        o->timeout_ns = parse_time("--timeout", optarg);
        break;
    default:
        print_usage(stderr);
        exit(2);
    }
}

static void take_option(int key, struct bench_options *o)
{
    switch (key) {
    case OPT_URL:
        parse_target("--url", optarg, &o->url);
        break;
    case OPT_MOCK:
        parse_target("--mock", optarg, &o->mock);
        o->has_mock = true;
        break;
    case OPT_PATH:
        o->path = optarg;
        break;
    case OPT_IDENTICAL:
        o->identical = true;
        break;
    case OPT_DISTINCT:
        o->identical = false;
        break;
    case OPT_THREADS:
        parse_threads(o, optarg);
        break;
    case OPT_PID:
        o->pid = (pid_t)parse_count("--pid-of", optarg, INT32_MAX);
        break;
    case OPT_ORG:
        o->org = optarg;
        break;
    case OPT_PROVIDER:
        o->provider = optarg;
        break;
    case OPT_MODEL:
        o->model = optarg;
        break;
    case OPT_EXTRA:
        o->extra = optarg;
        break;
    case OPT_BARE:
        o->bare = optarg;
        break;
    case OPT_FLOOR:
        o->with_floor = true;
        break;
    case OPT_JSON:
        o->json = true;
        break;
    case OPT_HELP:
        print_usage(stdout);
        exit(0);
    default:
        take_load_option(key, o);
    }
}

static void raise_descriptor_limit(const struct bench_options *o)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    if (o->clients + 64 > limit.rlim_cur)
        fprintf(stderr,
                "dac-bench: only %llu open files allowed, %zu clients will not all "
                "connect\n",
                (unsigned long long)limit.rlim_cur, o->clients);
}

int main(int argc, char **argv)
{
    struct bench_options o = {.org = "org_bench",
                              .provider = "perplexity",
                              .model = "m-1",
                              .extra = "",
                              .clients = 50,
                              .asks = 1,
                              .warmup = 20,
                              .identical = true,
                              .tokens = 50,
                              .token_size = 16,
                              .size = 80,
                              .gap_ns = 20 * NS_PER_MS,
                              .timeout_ns = 120 * NS_PER_S,
                              .pause_ns = 3 * NS_PER_MS,
                              .repeat = 3};
    static struct report report;
    int key, status;

    parse_target("--url", "http://127.0.0.1:8000", &o.url);
    parse_followers(&o, "10,100,250,500,1000,2500,5000");
    while ((key = getopt_long(argc, argv, "", long_options, NULL)) != -1)
        take_option(key, &o);
    if (optind != argc - 1) {
        print_usage(stderr);
        return 2;
    }
    for (size_t i = 0; i < DAC_ARRAY_LEN(commands); i++) {
        if (strcmp(argv[optind], commands[i].name) != 0)
            continue;
        raise_descriptor_limit(&o);
        status = commands[i].run(&o, &report);
        report_print(&report, o.json);
        return status;
    }
    bad("command", argv[optind], "not known");
}
