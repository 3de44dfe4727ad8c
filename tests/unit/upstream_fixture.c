/*
 * The scripted provider over HTTP/1.1 and the calls that are written down: see
 * upstream_fixture.h.
 */
#include "upstream_fixture.h"

#include <arpa/inet.h>
#include <check.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* --- provider -------------------------------------------------------------------------
 */

struct seen_request *provider_note(struct fake_provider *p, const char *script, size_t n,
                                   int connection)
{
    struct seen_request *r;

    pthread_mutex_lock(&p->lock);
    ck_assert_int_lt(atomic_load(&p->requests), SEEN_MAX);
    r = &p->seen[atomic_load(&p->requests)];
    snprintf(r->script, sizeof(r->script), "%.*s", (int)n, script);
    r->connection = connection;
    r->arrived_ns = clock_now_ns();
    atomic_fetch_add(&p->requests, 1);
    pthread_mutex_unlock(&p->lock);
    return r;
}

/* Waits; false: the client left, or the provider stops. */
static bool wait_ms(struct connection *c, int ms)
{
    uint64_t until = clock_now_ns() + (uint64_t)ms * NS_PER_MS;

    while (!atomic_load(&c->p->stop)) {
        struct pollfd f = {.fd = c->fd, .events = POLLIN | POLLRDHUP};
        uint64_t now = clock_now_ns();
        char byte;
        if (ms >= 0 && now >= until)
            return true;
        int left = ms < 0 ? 20 : (int)((until - now) / NS_PER_MS) + 1;
        if (poll(&f, 1, left < 20 ? left : 20) > 0) {
            if (f.revents & (POLLRDHUP | POLLHUP | POLLERR))
                return false;
            if (recv(c->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) <= 0)
                return false;
            poll(NULL, 0, 1);
        }
    }
    return false;
}

static bool send_all(int fd, const char *s, size_t n)
{
    while (n > 0) {
        ssize_t k = send(fd, s, n, MSG_NOSIGNAL);
        if (k <= 0)
            return false;
        s += k;
        n -= (size_t)k;
    }
    return true;
}

static bool send_step(int fd, const char *s)
{
    char size[32];

    if (strncmp(s, "data:", 5) != 0 && s[0] != ':')
        return send_all(fd, s, strlen(s));
    snprintf(size, sizeof(size), "%zx\r\n", strlen(s));
    return send_all(fd, size, strlen(size)) && send_all(fd, s, strlen(s)) &&
           send_all(fd, "\r\n", 2);
}

/* Reads a whole request into `in`; false: the connection is over. */
static bool read_request(struct connection *c, struct buf *in)
{
    while (!atomic_load(&c->p->stop)) {
        const char *text = buf_cstr(in);
        const char *end = strstr(text, "\r\n\r\n");
        const char *length = end ? strcasestr(text, "\r\ncontent-length:") : NULL;
        struct pollfd f = {.fd = c->fd, .events = POLLIN};
        if (end && (size_t)(in->data + in->len - end - 4) >=
                       (length ? strtoul(length + 17, NULL, 10) : 0))
            return true;
        if (poll(&f, 1, 20) <= 0)
            continue;
        char *room = buf_reserve(in, 4096);
        ssize_t n = recv(c->fd, room, 4095, 0);
        if (n <= 0)
            return false;
        in->len += (size_t)n;
    }
    return false;
}

static const struct script *find_script(struct fake_provider *p, const char *name)
{
    for (const struct script *s = p->scripts; s && s->name; s++)
        if (strcmp(s->name, name) == 0)
            return s;
    ck_abort_msg("no script \"%s\"", name);
    return NULL;
}

/* False: the connection is over. */
static bool play(struct connection *c, const struct script *s, struct seen_request *r)
{
    bool there = s->delay_ms == 0 || wait_ms(c, s->delay_ms);

    for (int i = 0; there && i < SENDS_MAX && s->send[i]; i++) {
        if (i > 0 && s->gap_ms > 0)
            there = wait_ms(c, s->gap_ms);
        there = there && send_step(c->fd, s->send[i]);
    }
    if (there && s->after == AFTER_HOLD)
        there = wait_ms(c, -1);
    if (!there && !atomic_load(&c->p->stop))
        atomic_store(&r->gone_ns, clock_now_ns());
    if (there && s->after == AFTER_RESET) {
        struct linger l = {.l_onoff = 1};
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &l, sizeof(l));
    }
    return there && s->after == AFTER_KEEP;
}

static void *connection_run(void *arg)
{
    struct connection *c = arg;
    struct fake_provider *p = c->p;
    struct buf in = BUF_INIT(1 << 20);

    while (read_request(c, &in)) {
        const char *name = strstr(in.data, "\"content\":\"");
        ck_assert_ptr_nonnull(name);
        name += strlen("\"content\":\"");
        struct seen_request *r = provider_note(p, name, strcspn(name, "\""), c->number);
        pthread_mutex_lock(&p->lock);
        buf_reset(&p->last);
        buf_append(&p->last, in.data, in.len);
        pthread_mutex_unlock(&p->lock);
        buf_reset(&in);
        if (!play(c, find_script(p, r->script), r))
            break;
    }
    atomic_store(&p->closed_ns, clock_now_ns());
    close(c->fd);
    buf_free(&in);
    free(c);
    atomic_fetch_sub(&p->threads, 1);
    return NULL;
}

static void *accept_run(void *arg)
{
    struct fake_provider *p = arg;

    while (!atomic_load(&p->stop)) {
        struct pollfd f = {.fd = p->fd, .events = POLLIN};
        pthread_t t;
        int one = 1;
        if (poll(&f, 1, 20) <= 0)
            continue;
        int fd = accept(p->fd, NULL, NULL);
        if (fd < 0)
            continue;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        struct connection *c = calloc(1, sizeof(*c));
        *c = (struct connection){p, fd, atomic_fetch_add(&p->accepted, 1)};
        atomic_fetch_add(&p->threads, 1);
        ck_assert_int_eq(
            pthread_create(&t, NULL, p->tls ? provider_h2_connection : connection_run, c),
            0);
        pthread_detach(t);
    }
    return NULL;
}

void provider_start(struct fake_provider *p, const struct script *scripts)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(a);

    p->scripts = scripts;
    p->last = BUF_INIT(1 << 20);
    pthread_mutex_init(&p->lock, NULL);
    p->fd = socket(AF_INET, SOCK_STREAM, 0);
    ck_assert_int_ge(p->fd, 0);
    ck_assert_int_eq(bind(p->fd, (struct sockaddr *)&a, sizeof(a)), 0);
    ck_assert_int_eq(listen(p->fd, 1024), 0);
    ck_assert_int_eq(getsockname(p->fd, (struct sockaddr *)&a, &n), 0);
    p->port = ntohs(a.sin_port);
    ck_assert_int_eq(pthread_create(&p->thread, NULL, accept_run, p), 0);
}

void provider_stop(struct fake_provider *p)
{
    atomic_store(&p->stop, true);
    pthread_join(p->thread, NULL);
    while (atomic_load(&p->threads) > 0)
        poll(NULL, 0, 1);
    close(p->fd);
    buf_free(&p->last);
    if (p->tls) {
        unlink(p->ca_path);
        SSL_CTX_free(p->tls);
    }
}

void provider_await(struct fake_provider *p, int requests)
{
    for (int i = 0; i < 5000 && atomic_load(&p->requests) < requests; i++)
        poll(NULL, 0, 1);
    ck_assert_int_ge(atomic_load(&p->requests), requests);
}

uint64_t provider_gone_after(struct fake_provider *p, int i, uint64_t since)
{
    uint64_t at = 0;

    for (int k = 0; k < 5000 && at == 0; k++) {
        at = atomic_load(&p->seen[i].gone_ns);
        if (at == 0)
            poll(NULL, 0, 1);
    }
    ck_assert_msg(at != 0, "the provider never saw that call %d (%s) left", i,
                  p->seen[i].script);
    return at > since ? at - since : 0;
}

/* --- calls ----------------------------------------------------------------------------
 */

static void on_accepted(void *arg)
{
    struct probe *p = arg;

    p->accepted++;
}

static void on_text(void *arg, const char *s, size_t n)
{
    struct probe *p = arg;

    ck_assert_ptr_nonnull(p->call);
    buf_append(&p->text, s, n);
    p->texts++;
    if (p->pause_at == p->texts)
        upstream_pause(p->call);
    if (p->on_text)
        p->on_text(p);
    if (p->cancel_at == p->texts)
        probe_cancel(p);
}

static void on_other(void *arg, const char *s, size_t n)
{
    struct probe *p = arg;

    (void)s;
    (void)n;
    p->others++;
}

static void on_usage(void *arg, const struct upstream_usage *u)
{
    struct probe *p = arg;

    (void)u;
    p->others++;
}

static void on_end(void *arg, const struct upstream_end *end)
{
    struct probe *p = arg;

    ck_assert_ptr_nonnull(p->call);
    p->call = NULL;
    p->ended++;
    p->end = *end;
    if (p->on_end)
        p->on_end(p);
}

static const struct upstream_ops ops = {on_accepted, on_text,  on_other, on_other,
                                        on_other,    on_usage, on_end};

void caller_open(struct caller *c, const struct fake_provider *p)
{
    *c = (struct caller){.base = event_base_new()};
    ck_assert_ptr_nonnull(c->base);
    ck_assert_int_eq(upstream_new(c->base, &c->u), DAC_OK);
    snprintf(c->url, sizeof(c->url), "%s://127.0.0.1:%d/v1", p->tls ? "https" : "http",
             p->port);
    c->provider = (struct upstream_provider){.name = "test",
                                             .dialect = "openai",
                                             .base_url = c->url,
                                             .api_key = "sk-test-key",
                                             .ca_file = p->tls ? p->ca_path : NULL,
                                             .http2 = p->tls != NULL,
                                             .connect_timeout_ns = 5 * NS_PER_S,
                                             .first_token_timeout_ns = 5 * NS_PER_S,
                                             .stall_timeout_ns = 5 * NS_PER_S,
                                             .answer_max_bytes = 1 << 20};
}

void caller_close(struct caller *c)
{
    upstream_free(c->u);
    event_base_free(c->base);
}

void probe_start(struct probe *p, struct caller *c, const char *script)
{
    struct json_object *messages = json_object_new_array();
    struct json_object *m = json_object_new_object();
    struct upstream_request req = {.model = "m-1", .messages = messages};
    int ended = p->ended;

    p->caller = c;
    if (p->text.max == 0)
        p->text = BUF_INIT(8 << 20);
    json_object_object_add(m, "role", json_object_new_string("user"));
    json_object_object_add(m, "content", json_object_new_string(script));
    json_object_array_add(messages, m);
    ck_assert_int_eq(upstream_start(c->u, &c->provider, &req, &ops, p, &p->call), DAC_OK);
    ck_assert_int_eq(p->ended, ended);
    json_object_put(messages);
}

void probe_cancel(struct probe *p)
{
    struct upstream_call *c = p->call;

    p->call = NULL;
    p->cancelled_ns = clock_now_ns();
    upstream_cancel(c);
}

void probe_free(struct probe *p)
{
    buf_free(&p->text);
}

static void stop_loop(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    event_base_loopbreak(arg);
}

void caller_run(struct caller *c, int ms)
{
    struct timeval tv = {.tv_sec = ms / 1000, .tv_usec = (ms % 1000) * 1000};
    struct event *ev = evtimer_new(c->base, stop_loop, c->base);

    event_add(ev, &tv);
    event_base_dispatch(c->base);
    event_free(ev);
}

void caller_run_until(struct caller *c, const int *value, int want)
{
    for (int i = 0; i < 10000 && *value < want; i++)
        caller_run(c, 1);
    ck_assert_int_ge(*value, want);
}

void caller_run_until_asked(struct caller *c, struct fake_provider *p, int requests)
{
    for (int i = 0; i < 10000 && atomic_load(&p->requests) < requests; i++)
        caller_run(c, 1);
    ck_assert_int_ge(atomic_load(&p->requests), requests);
}
