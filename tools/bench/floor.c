/*
 * `dac-bench floor`: what the same delivery costs without a gateway. A child process
 * accepts the clients, and then for each token calls send() once per socket, with a
 * payload that was framed before. The clients are those of the other commands, in the
 * parent.
 */
#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "tools/bench/bench.h"

static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                           "Transfer-Encoding: chunked\r\n\r\n"
                           "16\r\nevent: ping\ndata: {}\n\n\r\n";
static const char tail[] = "16\r\nevent: done\ndata: {}\n\n\r\n0\r\n\r\n";

static uint64_t process_cpu_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static bool send_all(int fd, const char *p, size_t n)
{
    while (n > 0) {
        ssize_t sent = send(fd, p, n, MSG_NOSIGNAL);

        if (sent <= 0)
            return false;
        p += sent;
        n -= (size_t)sent;
    }
    return true;
}

/* One event of `size` bytes on the wire, as the native dialect frames it. */
static void frame(struct buf *out, size_t token, size_t token_size, size_t size)
{
    char lead[96];
    int n = snprintf(lead, sizeof(lead), "event: delta\nid: 0-%zu\ndata: {\"text\":\"",
                     (token + 1) * token_size);
    size_t fixed = (size_t)n + sizeof("\"}\n\n") - 1 + 8;
    size_t fill = size > fixed ? size - fixed : token_size;

    buf_reset(out);
    buf_printf(out, "%zx\r\n%s", (size_t)n + fill + 4, lead);
    for (size_t i = 0; i < fill; i++)
        buf_putc(out, 'x');
    buf_puts(out, "\"}\n\n\r\n");
}

static void sleep_until(uint64_t at_ns)
{
    struct timespec t = {.tv_sec = (time_t)(at_ns / NS_PER_S),
                         .tv_nsec = (long)(at_ns % NS_PER_S)};

    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static bool accept_all(int listener, int *fds, size_t n)
{
    char request[8192];
    int one = 1;

    for (size_t i = 0; i < n; i++) {
        fds[i] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fds[i] < 0)
            return false;
        (void)setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    }
    for (size_t i = 0; i < n; i++) {
        if (recv(fds[i], request, sizeof(request), 0) <= 0 ||
            !send_all(fds[i], head, sizeof(head) - 1))
            return false;
    }
    return true;
}

/* The child: delivers and writes its nanoseconds of CPU to `report_fd`. */
static void serve(const struct bench_options *o, size_t size, int listener, int report_fd)
{
    int *fds = calloc(o->clients, sizeof(*fds));
    struct buf piece = BUF_INIT((size_t)1 << 20);
    uint64_t cpu, due;

    if (!fds || !accept_all(listener, fds, o->clients))
        _exit(1);
    due = clock_now_ns() + 300 * NS_PER_MS;
    cpu = process_cpu_ns();
    for (size_t k = 0; k < o->tokens; k++, due += o->gap_ns) {
        sleep_until(due);
        frame(&piece, k, o->token_size, size);
        if (piece.failed)
            _exit(1);
        for (size_t i = 0; i < o->clients; i++)
            (void)send_all(fds[i], piece.data, piece.len);
    }
    for (size_t i = 0; i < o->clients; i++)
        (void)send_all(fds[i], tail, sizeof(tail) - 1);
    cpu = process_cpu_ns() - cpu;
    if (write(report_fd, &cpu, sizeof(cpu)) != sizeof(cpu))
        _exit(1);
    _exit(0);
}

static int open_listener(struct target *t)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t len = sizeof(t->addr);

    memset(&t->addr, 0, sizeof(t->addr));
    t->addr.sin_family = AF_INET;
    t->addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || bind(fd, (struct sockaddr *)&t->addr, sizeof(t->addr)) != 0 ||
        listen(fd, 4096) != 0 || getsockname(fd, (struct sockaddr *)&t->addr, &len) != 0)
        return -1;
    snprintf(t->host, sizeof(t->host), "127.0.0.1:%d", ntohs(t->addr.sin_port));
    return fd;
}

static void ask_floor(void *arg, size_t index, size_t n, struct buf *path,
                      struct buf *body)
{
    (void)arg;
    (void)index;
    (void)n;
    buf_puts(path, "/floor");
    buf_puts(body, "{}");
}

bool floor_start(struct floor *f, const struct bench_options *o, size_t size)
{
    int listener = open_listener(&f->target), pipe_fds[2];

    if (listener < 0 || pipe(pipe_fds) != 0 || fflush(stdout) != 0 ||
        (f->pid = fork()) < 0) {
        perror("dac-bench: floor");
        return false;
    }
    if (f->pid == 0) {
        close(pipe_fds[0]);
        serve(o, size, listener, pipe_fds[1]);
    }
    close(pipe_fds[1]);
    close(listener);
    f->report_fd = pipe_fds[0];
    return true;
}

uint64_t floor_end(struct floor *f)
{
    uint64_t cpu_ns = 0;
    int status;

    if (read(f->report_fd, &cpu_ns, sizeof(cpu_ns)) != sizeof(cpu_ns)) {
        fprintf(stderr, "dac-bench: the bare loop did not finish\n");
        cpu_ns = 0;
    }
    close(f->report_fd);
    waitpid(f->pid, &status, 0);
    return cpu_ns;
}

void floor_load(const struct floor *f, const struct bench_options *o, struct load *l)
{
    *l = (struct load){.target = &f->target,
                       .headers = "",
                       .clients = o->clients,
                       .asks = 1,
                       .timeout_ns = o->timeout_ns,
                       .identical = true,
                       .gap_ns = o->gap_ns,
                       .token_size = o->token_size,
                       .question = ask_floor};
}

double floor_run(const struct bench_options *o, size_t size, struct report *r)
{
    struct floor f;
    struct load l;
    uint64_t cpu_ns;
    double each_us = 0;

    if (!floor_start(&f, o, size))
        return 0;
    floor_load(&f, o, &l);
    load_run(&l);
    cpu_ns = floor_end(&f);
    report_load(r, "floor", &l);
    report_quantiles(r, "floor_token_delay_after_first", &l.delay);
    if (l.delay.n && cpu_ns) {
        each_us = (double)cpu_ns / (double)l.delay.n / (double)NS_PER_US;
        report_add(r, "floor_server", "cpu", (double)cpu_ns / (double)NS_PER_S, "s");
        report_add(r, "floor_server", "cpu_per_delivery", each_us, "us");
    }
    load_free(&l);
    return each_us;
}

int bench_floor(const struct bench_options *o, struct report *r)
{
    return floor_run(o, o->size, r) > 0 ? 0 : 1;
}
