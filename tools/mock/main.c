/*
 * dac-mock: a scriptable OpenAI-compatible provider for tests. Reads the command line,
 * opens the listeners, runs the loop until SIGTERM or SIGINT. See README.md beside this
 * file.
 */
#include <errno.h>
#include <getopt.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "tools/mock/call.h"
#include "tools/mock/mock.h"
#include "tools/mock/tls.h"

#define LISTENERS_MAX 8
#define ACCEPT_BATCH  64
#define JOURNAL_SIZE  65536
#define ADDRESS_SIZE  256

struct listener {
    struct mock *mock;
    struct event ev, again;
    int fd;
    bool tls;
    char address[ADDRESS_SIZE];
};

struct options {
    struct listener listeners[LISTENERS_MAX];
    size_t count;
    const char *cert, *key, *self_signed;
    bool no_h2;
};

static void usage(FILE *to)
{
    fputs(
        "usage: dac-mock [options]\n"
        "  --listen ADDR:PORT      clear text, several allowed (127.0.0.1:9090); port 0: "
        "any\n"
        "  --tls-listen ADDR:PORT  TLS with h2 and http/1.1 by ALPN\n"
        "  --cert FILE --key FILE  PEM files for it, or\n"
        "  --self-signed DIR       makes DIR/ca.pem, cert.pem, key.pem for localhost\n"
        "  --no-h2                 offers http/1.1 only\n"
        "  --default SPEC          how calls are answered, e.g. \"ttft=50ms tokens=10\"\n"
        "  --rps N --burst N --concurrency N --slack TIME   limits, above them 429\n"
        "  --api-key KEY           401 without \"Authorization: Bearer KEY\"\n"
        "  --models A,B            ids of /v1/models (mock-1)\n"
        "  --quiet                 prints the listening lines only\n"
        "  --help\n"
        "\nkeys of a spec:\n",
        to);
    spec_print_help(to);
}

static void accept_again(evutil_socket_t fd, short what, void *arg)
{
    struct listener *l = arg;

    (void)fd;
    (void)what;
    event_add(&l->ev, NULL);
}

static void on_accept(evutil_socket_t fd, short what, void *arg)
{
    struct listener *l = arg;
    struct timeval pause = {.tv_usec = 100000};

    (void)what;
    for (int i = 0; i < ACCEPT_BATCH; i++) {
        int c = accept4((int)fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (c >= 0) {
            conn_accept(l->mock, c, l->tls);
            continue;
        }
        if (errno == EMFILE || errno == ENFILE) {
            /* The level-triggered event would spin. */
            event_del(&l->ev);
            evtimer_add(&l->again, &pause);
        }
        return;
    }
}

/* Splits "host:port" or "[host]:port" and binds. -1 with a message. */
static int open_listener(const char *address)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list;
    char host[ADDRESS_SIZE];
    const char *colon = strrchr(address, ':');
    int fd = -1, on = 1, rc;
    size_t n;

    if (!colon) {
        fprintf(stderr, "dac-mock: no port in \"%s\"\n", address);
        return -1;
    }
    n = (size_t)(colon - address);
    memcpy(host, address, n);
    host[n] = '\0';
    if (n > 1 && host[0] == '[' && host[n - 1] == ']') {
        host[n - 1] = '\0';
        memmove(host, host + 1, n - 1);
    }
    rc = getaddrinfo(*host ? host : NULL, colon + 1, &hints, &list);
    if (rc != 0) {
        fprintf(stderr, "dac-mock: could not resolve \"%s\": %s\n", address,
                gai_strerror(rc));
        return -1;
    }
    fd = socket(list->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
        if (bind(fd, list->ai_addr, list->ai_addrlen) != 0 || listen(fd, 4096) != 0) {
            fprintf(stderr, "dac-mock: could not listen on \"%s\": %s\n", address,
                    strerror(errno));
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(list);
    return fd;
}

static void announce(const struct listener *l)
{
    struct sockaddr_storage a;
    socklen_t len = sizeof(a);
    char host[NI_MAXHOST], port[NI_MAXSERV];

    if (getsockname(l->fd, (struct sockaddr *)&a, &len) == 0 &&
        getnameinfo((struct sockaddr *)&a, len, host, sizeof(host), port, sizeof(port),
                    NI_NUMERICHOST | NI_NUMERICSERV) == 0)
        printf(strchr(host, ':') ? "listening %s [%s]:%s\n" : "listening %s %s:%s\n",
               l->tls ? "https" : "http", host, port);
}

static bool start_listeners(struct mock *m, struct options *o)
{
    if (o->count == 0) {
        snprintf(o->listeners[0].address, ADDRESS_SIZE, "127.0.0.1:9090");
        o->count = 1;
    }
    for (size_t i = 0; i < o->count; i++) {
        struct listener *l = &o->listeners[i];

        l->mock = m;
        l->fd = open_listener(l->address);
        if (l->fd < 0)
            return false;
        event_assign(&l->ev, m->base, l->fd, EV_READ | EV_PERSIST, on_accept, l);
        evtimer_assign(&l->again, m->base, accept_again, l);
        event_add(&l->ev, NULL);
        announce(l);
    }
    fflush(stdout);
    return true;
}

static bool start_tls(struct mock *m, struct options *o)
{
    char cert[4096], key[4096];
    bool wanted = false;

    for (size_t i = 0; i < o->count; i++)
        wanted |= o->listeners[i].tls;
    if (!wanted)
        return true;
    if (o->self_signed) {
        if (!tls_make_certificates(o->self_signed))
            return false;
        snprintf(cert, sizeof(cert), "%s/cert.pem", o->self_signed);
        snprintf(key, sizeof(key), "%s/key.pem", o->self_signed);
        m->tls = tls_context(cert, key, !o->no_h2);
    } else if (o->cert && o->key) {
        m->tls = tls_context(o->cert, o->key, !o->no_h2);
    } else {
        fputs("dac-mock: --tls-listen needs --cert and --key, or --self-signed\n",
              stderr);
    }
    return m->tls != NULL;
}

static bool parse_u64(const char *name, const char *text, uint64_t *out)
{
    if (bytes_parse_u64(text, strlen(text), 1000000000, out))
        return true;
    fprintf(stderr, "dac-mock: --%s needs a number, not \"%s\"\n", name, text);
    return false;
}

static bool add_listener(struct options *o, const char *address, bool tls)
{
    struct listener *l = &o->listeners[o->count];

    if (o->count == LISTENERS_MAX || strlen(address) >= ADDRESS_SIZE) {
        fputs("dac-mock: too many listeners, or too long an address\n", stderr);
        return false;
    }
    snprintf(l->address, ADDRESS_SIZE, "%s", address);
    l->tls = tls;
    o->count++;
    return true;
}

static bool parse_default(struct mock *m, const char *text)
{
    char err[SPEC_ERR_SIZE];

    if (spec_parse_words(&m->start_defaults, text, strlen(text), err) == DAC_OK)
        return true;
    fprintf(stderr, "dac-mock: --default: %s\n", err);
    return false;
}

static bool parse_limit(struct mock *m, int which, const char *name, const char *text)
{
    char *end;

    switch (which) {
    case 'r':
        m->start_limits.rps = strtod(text, &end);
        if (*text && !*end && m->start_limits.rps >= 0 && m->start_limits.rps <= 1e9)
            return true;
        fprintf(stderr, "dac-mock: --rps needs a number, not \"%s\"\n", text);
        return false;
    case 's':
        if (spec_parse_duration(text, strlen(text), &m->start_limits.slack_ns))
            return true;
        fprintf(stderr, "dac-mock: --slack needs a duration, not \"%s\"\n", text);
        return false;
    case 'b':
        return parse_u64(name, text, &m->start_limits.burst);
    default:
        return parse_u64(name, text, &m->start_limits.concurrency);
    }
}

/* 0: go on; else the exit code plus one. */
static int parse_options(struct mock *m, struct options *o, int argc, char **argv)
{
    static const struct option longs[] = {
        {"listen", required_argument, NULL, 'l'},
        {"tls-listen", required_argument, NULL, 't'},
        {"cert", required_argument, NULL, 'c'},
        {"key", required_argument, NULL, 'k'},
        {"self-signed", required_argument, NULL, 'S'},
        {"no-h2", no_argument, NULL, '1'},
        {"default", required_argument, NULL, 'd'},
        {"rps", required_argument, NULL, 'r'},
        {"burst", required_argument, NULL, 'b'},
        {"concurrency", required_argument, NULL, 'n'},
        {"slack", required_argument, NULL, 's'},
        {"api-key", required_argument, NULL, 'a'},
        {"models", required_argument, NULL, 'm'},
        {"quiet", no_argument, NULL, 'q'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    bool ok = true;
    int opt, index = 0;

    while (ok && (opt = getopt_long(argc, argv, "", longs, &index)) != -1) {
        if (opt == 'l' || opt == 't')
            ok = add_listener(o, optarg, opt == 't');
        else if (opt == 'c')
            o->cert = optarg;
        else if (opt == 'k')
            o->key = optarg;
        else if (opt == 'S')
            o->self_signed = optarg;
        else if (opt == '1')
            o->no_h2 = true;
        else if (opt == 'd')
            ok = parse_default(m, optarg);
        else if (opt == 'a')
            m->api_key = optarg;
        else if (opt == 'm')
            m->models = optarg;
        else if (opt == 'q')
            m->quiet = true;
        else if (opt == 'h') {
            usage(stdout);
            return 1;
        } else if (opt == '?')
            ok = false;
        else
            ok = parse_limit(m, opt, longs[index].name, optarg);
    }
    if (ok && optind < argc) {
        fprintf(stderr, "dac-mock: what is \"%s\"?\n", argv[optind]);
        ok = false;
    }
    if (!ok)
        fputs("dac-mock: see dac-mock --help\n", stderr);
    return ok ? 0 : 3;
}

static void on_reap(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    conn_reap(arg);
}

static void on_changed(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    control_check_waiters(arg);
}

static void on_signal(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    event_base_loopbreak(arg);
}

static bool mock_init(struct mock *m)
{
    struct event_config *config = event_config_new();

    TAILQ_INIT(&m->scripts);
    TAILQ_INIT(&m->barriers);
    TAILQ_INIT(&m->waiters);
    TAILQ_INIT(&m->conns);
    TAILQ_INIT(&m->graveyard);
    TAILQ_INIT(&m->calls);
    spec_init(&m->defaults);
    spec_init(&m->start_defaults);
    m->models = "mock-1";
    m->next_conn = m->next_call = 1;
    if (config) {
        /* Gaps of a few milliseconds must not be rounded to whole ones. */
        event_config_set_flag(config, EVENT_BASE_FLAG_PRECISE_TIMER);
        event_config_set_flag(config, EVENT_BASE_FLAG_NO_CACHE_TIME);
        m->base = event_base_new_with_config(config);
        event_config_free(config);
    }
    if (!m->base || !journal_init(&m->journal, JOURNAL_SIZE))
        return false;
    evtimer_assign(&m->reap, m->base, on_reap, m);
    evtimer_assign(&m->changed, m->base, on_changed, m);
    return true;
}

static void mock_free(struct mock *m)
{
    struct call *c;
    struct conn *k;
    struct script *q;

    while ((c = TAILQ_FIRST(&m->calls)))
        call_drop(c);
    while ((k = TAILQ_FIRST(&m->conns)))
        conn_gone(k, GONE_CLOSED);
    conn_reap(m);
    barrier_reset_all(m);
    while ((q = TAILQ_FIRST(&m->scripts))) {
        TAILQ_REMOVE(&m->scripts, q, link);
        spec_free(&q->spec);
        free(q->match);
        free(q);
    }
    spec_free(&m->defaults);
    spec_free(&m->start_defaults);
    journal_free(&m->journal);
    SSL_CTX_free(m->tls);
    if (m->base)
        event_base_free(m->base);
}

static void raise_file_limit(void)
{
    struct rlimit l;

    if (getrlimit(RLIMIT_NOFILE, &l) == 0) {
        l.rlim_cur = l.rlim_max;
        setrlimit(RLIMIT_NOFILE, &l);
    }
}

static void run(struct mock *m, struct options *o)
{
    struct event term, interrupt;

    evsignal_assign(&term, m->base, SIGTERM, on_signal, m->base);
    evsignal_assign(&interrupt, m->base, SIGINT, on_signal, m->base);
    event_add(&term, NULL);
    event_add(&interrupt, NULL);
    event_base_dispatch(m->base);
    event_del(&term);
    event_del(&interrupt);
    for (size_t i = 0; i < o->count; i++) {
        event_del(&o->listeners[i].ev);
        event_del(&o->listeners[i].again);
        close(o->listeners[i].fd);
    }
    if (!m->quiet)
        fprintf(stderr, "dac-mock: %llu calls, %llu completed, %llu left by the client\n",
                (unsigned long long)m->stats.calls,
                (unsigned long long)m->stats.completed,
                (unsigned long long)m->stats.client_gone);
}

int main(int argc, char **argv)
{
    static struct mock m;
    static struct options o;
    int rc = 1, parsed;

    signal(SIGPIPE, SIG_IGN);
    raise_file_limit();
    if (!mock_init(&m)) {
        fputs("dac-mock: out of memory\n", stderr);
        return 1;
    }
    parsed = parse_options(&m, &o, argc, argv);
    if (parsed) {
        mock_free(&m);
        return parsed - 1;
    }
    m.limits = m.start_limits;
    if (spec_overlay(&m.defaults, &m.start_defaults) == DAC_OK && start_tls(&m, &o) &&
        start_listeners(&m, &o)) {
        run(&m, &o);
        rc = 0;
    }
    mock_free(&m);
    return rc;
}
