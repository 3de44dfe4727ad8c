/*
 * The test server's routes and thread, and the client: see http_fixture.h.
 */
#include "http_fixture.h"

#include <arpa/inet.h>
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

#define PUMP_PIECE 65536

const struct http_limits http_fixture_limits = {
    .header_max = 2048,
    .body_max = 65536,
    .header_timeout_ns = 5 * NS_PER_S,
    .body_timeout_ns = 5 * NS_PER_S,
    .keepalive_timeout_ns = 5 * NS_PER_S,
    .client_stall_timeout_ns = 5 * NS_PER_S,
};

/* --- handlers --------------------------------------------------------------------------
 */

static void on_gone(struct http_exchange *ex, void *user)
{
    struct http_fixture *f = user;

    for (size_t i = 0; i < f->held_count; i++)
        if (f->held[i] == ex)
            f->held[i] = NULL;
    atomic_fetch_add(&f->gone, 1);
}

static void on_writable(struct http_exchange *ex, void *user)
{
    struct http_fixture *f = user;

    (void)ex;
    atomic_fetch_add(&f->writable, 1);
}

static const struct http_callbacks callbacks = {.on_gone = on_gone,
                                                .on_writable = on_writable};

static void hold(struct http_exchange *ex, void *ctx)
{
    struct http_fixture *f = ctx;

    ck_assert_uint_lt(f->held_count, FIXTURE_HELD_MAX);
    http_set_callbacks(ex, &callbacks, f);
    f->held[f->held_count++] = ex;
    atomic_fetch_add(&f->holding, 1);
}

static void hold_stream(struct http_exchange *ex, void *ctx)
{
    http_add_header(ex, "X-Test", "1");
    http_stream_begin(ex, 200, "text/event-stream");
    hold(ex, ctx);
}

static void hello(struct http_exchange *ex, void *ctx)
{
    (void)ctx;
    http_respond(ex, 200, "text/plain", "hello", 5);
}

static void echo(struct http_exchange *ex, void *ctx)
{
    size_t n;
    const char *body = http_body(ex, &n);

    (void)ctx;
    http_respond(ex, 200, "text/plain", body, n);
}

static void describe(struct http_exchange *ex, void *ctx)
{
    struct buf b = BUF_INIT(8192);
    const char *q = http_query(ex, "q");
    const char *x = http_header(ex, "x-list");

    (void)ctx;
    buf_printf(&b, "%s|%s|%s|%s|%s|%d", http_path(ex), http_path_arg(ex, 0),
               http_path_arg(ex, 1), q ? q : "-", x ? x : "-",
               http_header_has_token(ex, "Accept", "text/event-stream"));
    ck_assert_ptr_null(http_path_arg(ex, 2));
    http_respond(ex, 200, "text/plain", b.data, b.len);
    buf_free(&b);
}

/* The n-th byte of a big answer depends on its place. */
static void big(struct http_exchange *ex, void *ctx)
{
    size_t n = (size_t)atol(http_query(ex, "n"));
    char *body = malloc(n);

    (void)ctx;
    for (size_t i = 0; i < n; i++)
        body[i] = (char)('a' + i % 23);
    http_respond(ex, 200, "text/plain", body, n);
    free(body);
}

static void none(struct http_exchange *ex, void *ctx)
{
    (void)ctx;
    http_respond(ex, 204, NULL, NULL, 0);
}

static void abort_now(struct http_exchange *ex, void *ctx)
{
    (void)ctx;
    http_abort(ex);
}

/* Sends until the socket is full, and on from on_writable; ends there, too. */
static void pump(struct http_exchange *ex, void *user)
{
    struct http_fixture *f = user;

    while (f->pump_left > 0) {
        enum dac_err e = http_stream_send(ex, &f->pump_piece);
        ck_assert(e == DAC_OK || e == DAC_E_AGAIN);
        f->pump_left--;
        if (e == DAC_E_AGAIN) {
            ck_assert(!http_stream_ready(ex));
            ck_assert_int_eq(http_stream_send(ex, &f->pump_piece), DAC_E_STATE);
            return;
        }
    }
    http_stream_end(ex);
}

static const struct http_callbacks pump_callbacks = {.on_gone = on_gone,
                                                     .on_writable = pump};

static void pump_begin(struct http_exchange *ex, void *ctx)
{
    struct http_fixture *f = ctx;

    f->pump_left = (unsigned)atoi(http_query(ex, "n"));
    f->pump_buf = BUF_INIT(PUMP_PIECE + 32);
    http_piece_begin(&f->pump_buf);
    for (size_t i = 0; i < PUMP_PIECE; i++)
        buf_putc(&f->pump_buf, (char)('a' + i % 23));
    ck_assert_int_eq(http_piece_end(&f->pump_buf, &f->pump_piece), DAC_OK);
    http_stream_begin(ex, 200, "text/plain");
    http_set_callbacks(ex, &pump_callbacks, f);
    pump(ex, f);
}

static const struct http_route routes[] = {
    {HTTP_GET, "/hello", hello, false},
    {HTTP_POST, "/echo", echo, false},
    {HTTP_POST | HTTP_PUT, "/json", echo, true},
    {HTTP_GET, "/describe/{a}/x/{b}", describe, false},
    {HTTP_GET, "/big", big, false},
    {HTTP_GET | HTTP_POST, "/hold", hold, false},
    {HTTP_GET, "/stream", hold_stream, false},
    {HTTP_GET, "/pump", pump_begin, false},
    {HTTP_DELETE, "/none", none, false},
    {HTTP_GET, "/abort", abort_now, false},
};

static bool may_accept(void *ctx)
{
    struct http_fixture *f = ctx;

    return !atomic_load(&f->refuse);
}

/* --- the server's thread
 * ----------------------------------------------------------------- */

static void on_wake(int fd, short what, void *arg)
{
    struct http_fixture *f = arg;
    char c;

    (void)what;
    if (read(fd, &c, 1) != 1)
        return;
    f->fn(f, f->arg);
    sem_post(&f->done);
}

static void on_tick(int fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    (void)arg;
}

static void *run(void *arg)
{
    struct http_fixture *f = arg;

    event_base_dispatch(f->base);
    return NULL;
}

void http_fixture_start_on(struct http_fixture *f, const struct http_limits *limits,
                           int fd)
{
    struct http_server_options opt = {
        .limits = limits ? *limits : http_fixture_limits,
        .routes = routes,
        .route_count = DAC_ARRAY_LEN(routes),
        .ctx = f,
        .may_accept = may_accept,
        .server_name = "test",
    };
    struct timeval hour = {.tv_sec = 3600};

    memset(f, 0, sizeof(*f));
    f->listen_fd = fd;
    f->base = event_base_new();
    ck_assert_int_eq(http_server_new(f->base, &opt, &f->server), DAC_OK);
    ck_assert_int_eq(http_server_listen(f->server, fd), DAC_OK);
    ck_assert_int_eq(http_server_listen(f->server, fd), DAC_OK);
    ck_assert_int_eq(pipe2(f->wake, O_CLOEXEC), 0);
    ck_assert_int_eq(sem_init(&f->done, 0, 0), 0);
    event_assign(&f->ev_wake, f->base, f->wake[0], EV_READ | EV_PERSIST, on_wake, f);
    event_add(&f->ev_wake, NULL);
    event_assign(&f->ev_tick, f->base, -1, EV_PERSIST, on_tick, f);
    event_add(&f->ev_tick, &hour);
    ck_assert_int_eq(pthread_create(&f->thread, NULL, run, f), 0);
}

void http_fixture_start(struct http_fixture *f, const struct http_limits *limits)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(a);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    ck_assert_int_eq(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    ck_assert_int_eq(listen(fd, 1024), 0);
    ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    http_fixture_start_on(f, limits, fd);
    f->port = ntohs(a.sin_port);
}

void http_fixture_call(struct http_fixture *f, void (*fn)(struct http_fixture *, void *),
                       void *arg)
{
    f->fn = fn;
    f->arg = arg;
    ck_assert_int_eq(write(f->wake[1], "x", 1), 1);
    while (sem_wait(&f->done) != 0)
        ck_assert_int_eq(errno, EINTR);
}

static void stop(struct http_fixture *f, void *arg)
{
    (void)arg;
    event_base_loopbreak(f->base);
}

void http_fixture_stop(struct http_fixture *f)
{
    http_fixture_call(f, stop, NULL);
    pthread_join(f->thread, NULL);
    http_server_free(f->server);
    event_del(&f->ev_wake);
    event_del(&f->ev_tick);
    event_base_free(f->base);
    buf_free(&f->pump_buf);
    close(f->wake[0]);
    close(f->wake[1]);
    close(f->listen_fd);
    sem_destroy(&f->done);
}

static void copy_stats(struct http_fixture *f, void *arg)
{
    *(struct http_stats *)arg = *http_server_stats(f->server);
}

struct http_stats http_fixture_stats(struct http_fixture *f)
{
    struct http_stats st;

    http_fixture_call(f, copy_stats, &st);
    return st;
}

static void nap(void)
{
    struct timespec ts = {.tv_nsec = 2000000};

    nanosleep(&ts, NULL);
}

void http_fixture_await(atomic_int *value, int want)
{
    for (int i = 0; i < 2500 && atomic_load(value) < want; i++)
        nap();
    ck_assert_int_eq(atomic_load(value), want);
}

void http_fixture_await_connections(struct http_fixture *f, uint64_t want)
{
    struct http_stats st = {0};

    for (int i = 0; i < 2500; i++) {
        st = http_fixture_stats(f);
        if (st.connections == want)
            break;
        nap();
    }
    ck_assert_uint_eq(st.connections, want);
}

/* --- client
 * ------------------------------------------------------------------------------ */

struct client client_open(struct http_fixture *f)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                            .sin_port = htons((uint16_t)f->port)};
    struct timeval tv = {.tv_sec = 10};
    struct client c = {.in = BUF_INIT(256u << 20)};
    int on = 1;

    c.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_ge(c.fd, 0);
    setsockopt(c.fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
    setsockopt(c.fd, SOL_SOCKET, SO_SNDTIMEO, &tv, sizeof(tv));
    setsockopt(c.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    ck_assert_int_eq(connect(c.fd, (struct sockaddr *)&a, sizeof(a)), 0);
    return c;
}

void client_close(struct client *c)
{
    close(c->fd);
    c->fd = -1;
    buf_free(&c->in);
}

void client_send(struct client *c, const char *data, size_t n)
{
    while (n > 0) {
        ssize_t sent = send(c->fd, data, n, MSG_NOSIGNAL);
        if (sent < 0)
            return; /* the server closed; the test sees it by the answer */
        data += sent;
        n -= (size_t)sent;
    }
}

void client_puts(struct client *c, const char *raw)
{
    client_send(c, raw, strlen(raw));
}

/* Receives once more. False at the end or after 10 s. */
static bool more(struct client *c)
{
    char *to = buf_reserve(&c->in, 65536);
    ssize_t n = recv(c->fd, to, 65536, 0);

    if (n <= 0)
        return false;
    c->in.len += (size_t)n;
    return true;
}

/* Moves n bytes from the input to `to`; false if they do not come. */
static bool take(struct client *c, size_t n, struct buf *to)
{
    while (c->in.len < n)
        if (!more(c))
            return false;
    buf_append(to, c->in.data, n);
    buf_consume(&c->in, n);
    return true;
}

/* Moves all up to and with `end`. */
static bool take_until(struct client *c, const char *end, struct buf *to)
{
    char *at;

    while (!(at = c->in.len ? memmem(c->in.data, c->in.len, end, strlen(end)) : NULL))
        if (!more(c))
            return false;
    return take(c, (size_t)(at - c->in.data) + strlen(end), to);
}

static bool take_chunks(struct client *c, struct buf *body)
{
    struct buf line = BUF_INIT(1024);
    bool ok = false;
    size_t n = 1;

    while (n > 0) {
        buf_reset(&line);
        if (!take_until(c, "\r\n", &line))
            goto out;
        n = strtoul(buf_cstr(&line), NULL, 16);
        buf_reset(&line);
        if ((n > 0 && !take(c, n, body)) || !take(c, 2, &line) ||
            memcmp(line.data, "\r\n", 2) != 0)
            goto out;
    }
    ok = true;
out:
    buf_free(&line);
    return ok;
}

const char *reply_header(struct reply *r, const char *name)
{
    static char value[512];
    const char *line = buf_cstr(&r->head);

    while ((line = strstr(line, "\r\n")) && line[2]) {
        line += 2;
        size_t n = strcspn(line, ":");
        if (n == strlen(name) && strncasecmp(line, name, n) == 0) {
            snprintf(value, sizeof(value), "%.*s", (int)strcspn(line + n + 2, "\r"),
                     line + n + 2);
            return value;
        }
    }
    return NULL;
}

struct reply client_reply(struct client *c, bool head_only)
{
    struct reply r = {.head = BUF_INIT(65536), .body = BUF_INIT(256u << 20)};
    const char *length;

    if (!take_until(c, "\r\n\r\n", &r.head))
        return r;
    ck_assert_mem_eq(r.head.data, "HTTP/1.1 ", 9);
    r.status = atoi(r.head.data + 9);
    if (head_only || r.status == 204 || r.status < 200) {
        r.whole = true;
    } else if ((length = reply_header(&r, "Content-Length"))) {
        r.whole = take(c, (size_t)atol(length), &r.body);
    } else if (reply_header(&r, "Transfer-Encoding")) {
        r.whole = take_chunks(c, &r.body);
    } else {
        while (more(c))
            ;
        r.whole = take(c, c->in.len, &r.body);
    }
    return r;
}

void reply_free(struct reply *r)
{
    buf_free(&r->head);
    buf_free(&r->body);
}

bool client_sees_end(struct client *c, int ms)
{
    struct pollfd p = {.fd = c->fd, .events = POLLIN};
    char byte;

    if (c->in.len > 0 || poll(&p, 1, ms) != 1)
        return false;
    return recv(c->fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) <= 0;
}
