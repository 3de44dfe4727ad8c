/*
 * Opening sockets so that a second instance is refused: SO_REUSEPORT lets any process of
 * the same user share a port unnoticed, so every address is bound once without it first.
 * A unix socket whose name exists is asked: only if nobody answers it is stale and
 * removed.
 *
 * The master runs this; children only close.
 */
#include "process/listen.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

#define BACKLOG       4096
#define RETRY_STEP_NS (20 * NS_PER_MS)

static const struct sockaddr *sockaddr_of(const struct config_address *a)
{
    return (const struct sockaddr *)&a->addr;
}

static bool is_unix(const struct config_address *a)
{
    return a->addr.ss_family == AF_UNIX;
}

static bool set_option(int fd, int level, int option)
{
    const int on = 1;

    return setsockopt(fd, level, option, &on, sizeof(on)) == 0;
}

/* A bound TCP socket, or -1 with errno. */
static int bind_tcp(const struct config_address *a, bool reuse_port)
{
    int fd = socket(a->addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int saved;

    if (fd < 0)
        return -1;
    if (set_option(fd, SOL_SOCKET, SO_REUSEADDR) &&
        (!reuse_port || set_option(fd, SOL_SOCKET, SO_REUSEPORT)) &&
        (a->addr.ss_family != AF_INET6 || set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY)) &&
        bind(fd, sockaddr_of(a), a->len) == 0)
        return fd;
    saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

/* Whether somebody answers at a unix socket. */
static bool unix_answers(const struct config_address *a)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool answers;

    if (fd < 0)
        return true; /* not known, so it is left alone */
    answers = connect(fd, sockaddr_of(a), a->len) == 0 || errno == EAGAIN;
    close(fd);
    return answers;
}

/* Whether the address is free to be bound; else false with errno. */
static bool is_free(const struct config_address *a)
{
    struct stat st;
    int fd;

    if (!is_unix(a)) {
        fd = bind_tcp(a, false);
        if (fd < 0)
            return false;
        close(fd);
        return true;
    }
    if (lstat(((const struct sockaddr_un *)&a->addr)->sun_path, &st) != 0)
        return errno == ENOENT;
    if (!S_ISSOCK(st.st_mode)) {
        errno = EEXIST;
        return false;
    }
    if (unix_answers(a)) {
        errno = EADDRINUSE;
        return false;
    }
    return true;
}

static const char *hint(int err)
{
    switch (err) {
    case EADDRINUSE:
        return "; is another dacd running? (ss -lntxp shows who listens)";
    case EACCES:
        return "; a port below 1024 needs root or CAP_NET_BIND_SERVICE, a unix socket a "
               "folder "
               "that may be written";
    case EADDRNOTAVAIL:
        return "; no interface of this machine has that address";
    case EAFNOSUPPORT:
        return "; IPv6 is switched off here";
    case EEXIST:
        return "; it is there and is no socket, so it is left alone";
    case ENOENT:
        return "; the folder does not exist";
    default:
        return "";
    }
}

static void explain(const struct config_address *a, int err, char *why, size_t n)
{
    if (err == EADDRINUSE)
        snprintf(why, n, "address %s is already in use%s", a->text, hint(err));
    else
        snprintf(why, n, "could not bind %s: %s%s", a->text, strerror(err), hint(err));
}

/* Waits until the address is free, at most until `deadline_ns`. */
static bool await_free(const struct config_address *a, uint64_t deadline_ns)
{
    const struct timespec step = {.tv_nsec = RETRY_STEP_NS};

    while (!is_free(a)) {
        if (errno != EADDRINUSE || clock_now_ns() >= deadline_ns)
            return false;
        nanosleep(&step, NULL);
    }
    return true;
}

static enum dac_err open_unix(const struct config_address *a, struct listener *l)
{
    const char *path = ((const struct sockaddr_un *)&a->addr)->sun_path;
    struct stat st;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return DAC_E_SYS;
    l->shared = true;
    l->fds[0] = fd;
    if (unlink(path) != 0 && errno != ENOENT)
        return DAC_E_SYS;
    /* Whoever may reach the path may connect, as with a port of this machine. */
    if (bind(fd, sockaddr_of(a), a->len) != 0 || chmod(path, 0666) != 0 ||
        lstat(path, &st) != 0 || listen(fd, BACKLOG) != 0)
        return DAC_E_SYS;
    snprintf(l->path, sizeof(l->path), "%s", path);
    l->dev = st.st_dev;
    l->ino = st.st_ino;
    return DAC_OK;
}

static enum dac_err open_tcp(const struct config_address *a, uint32_t ordinals,
                             struct listener *l)
{
    for (uint32_t i = 0; i < ordinals; i++) {
        l->fds[i] = bind_tcp(a, true);
        if (l->fds[i] < 0 || listen(l->fds[i], BACKLOG) != 0)
            return DAC_E_SYS;
    }
    return DAC_OK;
}

enum dac_err listeners_open(const struct config *cfg, uint64_t wait_ns,
                            struct listeners *out, char *why, size_t n)
{
    uint64_t deadline = clock_now_ns() + wait_ns;

    memset(out, 0, sizeof(*out));
    out->ordinals = cfg->workers;
    for (size_t i = 0; i < cfg->listen.count; i++) {
        const struct config_address *a = &cfg->listen.items[i];
        struct listener *l = &out->items[out->count++];
        enum dac_err e = DAC_E_SYS;

        l->text = a->text;
        memset(l->fds, -1, sizeof(l->fds));
        if (await_free(a, deadline))
            e = is_unix(a) ? open_unix(a, l) : open_tcp(a, out->ordinals, l);
        if (e != DAC_OK) {
            explain(a, errno, why, n);
            listeners_remove(out);
            return e;
        }
    }
    return DAC_OK;
}

const char *listeners_in_use(const struct config *cfg)
{
    for (size_t i = 0; i < cfg->listen.count; i++) {
        if (!is_free(&cfg->listen.items[i]) && errno == EADDRINUSE)
            return cfg->listen.items[i].text;
    }
    return NULL;
}

void listeners_close(struct listeners *l)
{
    for (size_t i = 0; i < l->count; i++) {
        for (size_t o = 0; o < SHM_WORKERS_MAX; o++) {
            if (l->items[i].fds[o] >= 0)
                close(l->items[i].fds[o]);
            l->items[i].fds[o] = -1;
        }
    }
}

void listeners_remove(struct listeners *l)
{
    for (size_t i = 0; i < l->count; i++) {
        struct listener *at = &l->items[i];
        struct stat st;

        if (at->path[0] && lstat(at->path, &st) == 0 && st.st_dev == at->dev &&
            st.st_ino == at->ino)
            unlink(at->path);
        at->path[0] = '\0';
    }
    listeners_close(l);
}
