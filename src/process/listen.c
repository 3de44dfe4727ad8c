/*
 * Opening sockets so that a second instance is refused: SO_REUSEPORT lets any process of
 * the same user share a port unnoticed, so every address is bound once without it first.
 * A unix socket whose name exists is asked: only if nobody answers it is stale and
 * removed.
 *
 * The master runs this; children only close.
 */
#include "process/listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

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
static int bind_tcp(const struct sockaddr_storage *addr, socklen_t len, bool reuse_port)
{
    int fd = socket(addr->ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int saved;

    if (fd < 0)
        return -1;
    if (set_option(fd, SOL_SOCKET, SO_REUSEADDR) &&
        (!reuse_port || set_option(fd, SOL_SOCKET, SO_REUSEPORT)) &&
        (addr->ss_family != AF_INET6 || set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY)) &&
        bind(fd, (const struct sockaddr *)addr, len) == 0)
        return fd;
    saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

bool listen_unix_answers(const struct sockaddr_un *addr)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    bool answers;

    if (fd < 0)
        return true; /* not known, so it is left alone */
    answers =
        connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0 || errno == EAGAIN;
    close(fd);
    return answers;
}

/* Whether the address is free to be bound; else false with errno. */
static bool is_free(const struct config_address *a)
{
    struct stat st;
    int fd;

    if (!is_unix(a)) {
        fd = bind_tcp(&a->addr, a->len, false);
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
    if (listen_unix_answers((const struct sockaddr_un *)&a->addr)) {
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
        lstat(path, &st) != 0)
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
        l->fds[i] = bind_tcp(&a->addr, a->len, true);
        if (l->fds[i] < 0)
            return DAC_E_SYS;
    }
    return DAC_OK;
}

/* Bound, not listening yet. */
static enum dac_err open_address(const struct config_address *a, uint32_t ordinals,
                                 struct listener *l)
{
    return is_unix(a) ? open_unix(a, l) : open_tcp(a, ordinals, l);
}

/* --- passed by systemd
 * ------------------------------------------------------------------
 */

#define FIRST_PASSED 3 /* SD_LISTEN_FDS_START */

/* How many sockets this process was given; once, for the variables are taken back. */
static int passed_count(void)
{
    const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");
    int n = pid && fds && atol(pid) == (long)getpid() ? atoi(fds) : 0;

    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    return n > 0 ? n : 0;
}

static void name_passed(struct listener *l)
{
    const struct sockaddr_un *un = (const struct sockaddr_un *)&l->addr;
    char host[INET6_ADDRSTRLEN] = "", port[8] = "";

    if (l->addr.ss_family == AF_UNIX)
        snprintf(l->text, sizeof(l->text), "unix:%.107s", un->sun_path);
    else if (getnameinfo((const struct sockaddr *)&l->addr, l->len, host, sizeof(host),
                         port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) == 0)
        snprintf(l->text, sizeof(l->text),
                 l->addr.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

/* Whether `fd` is a stream socket that listens. */
static bool take_passed(int fd, struct listener *l)
{
    int listens = 0, type = 0;
    socklen_t n = sizeof(listens), m = sizeof(type);

    memset(l, 0, sizeof(*l));
    memset(l->fds, -1, sizeof(l->fds));
    l->len = sizeof(l->addr);
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &n) != 0 || !listens ||
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &m) != 0 || type != SOCK_STREAM ||
        getsockname(fd, (struct sockaddr *)&l->addr, &l->len) != 0 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) != 0 || fcntl(fd, F_SETFL, O_NONBLOCK) != 0)
        return false;
    l->shared = l->passed = true;
    l->fds[0] = fd;
    name_passed(l);
    return true;
}

static void open_passed(struct listeners *out)
{
    int n = passed_count();

    for (int fd = FIRST_PASSED; fd < FIRST_PASSED + n; fd++) {
        if (out->count < CONFIG_LISTEN_MAX && take_passed(fd, &out->items[out->count]))
            log_info(0, "systemd passes a socket on %s", out->items[out->count++].text);
        else
            log_warn(0,
                     "descriptor %d that systemd passes is no listening stream socket, "
                     "or one too many; it is not used",
                     fd);
    }
}

/* --- sets of sockets -------------------------------------------------------------------
 */

static bool same_address(const struct sockaddr_storage *a,
                         const struct sockaddr_storage *b)
{
    const struct sockaddr_in *a4 = (const void *)a, *b4 = (const void *)b;
    const struct sockaddr_in6 *a6 = (const void *)a, *b6 = (const void *)b;

    if (a->ss_family != b->ss_family)
        return false;
    switch (a->ss_family) {
    case AF_INET:
        return a4->sin_port == b4->sin_port && a4->sin_addr.s_addr == b4->sin_addr.s_addr;
    case AF_INET6:
        return a6->sin6_port == b6->sin6_port &&
               memcmp(&a6->sin6_addr, &b6->sin6_addr, sizeof(a6->sin6_addr)) == 0;
    case AF_UNIX:
        return strcmp(((const struct sockaddr_un *)a)->sun_path,
                      ((const struct sockaddr_un *)b)->sun_path) == 0;
    default:
        return false;
    }
}

static const struct listener *find(const struct listeners *l,
                                   const struct sockaddr_storage *addr)
{
    for (size_t i = 0; i < l->count; i++)
        if (same_address(&l->items[i].addr, addr))
            return &l->items[i];
    return NULL;
}

/* The address's place in `out`, which has a socket already if systemd passed it. NULL:
 * there are too many. */
static struct listener *place_for(struct listeners *out, const struct config_address *a)
{
    struct listener *l = (struct listener *)find(out, &a->addr);

    if (l || out->count == CONFIG_LISTEN_MAX) {
        errno = EMFILE;
        return l;
    }
    l = &out->items[out->count++];
    memset(l, 0, sizeof(*l));
    memset(l->fds, -1, sizeof(l->fds));
    snprintf(l->text, sizeof(l->text), "%s", a->text);
    l->addr = a->addr;
    l->len = a->len;
    return l;
}

enum dac_err listeners_open(const struct config *cfg, uint64_t wait_ns,
                            struct listeners *out, char *why, size_t n)
{
    uint64_t deadline = clock_now_ns() + wait_ns;

    memset(out, 0, sizeof(*out));
    out->ordinals = cfg->workers;
    open_passed(out);
    for (size_t i = 0; i < cfg->listen.count; i++) {
        const struct config_address *a = &cfg->listen.items[i];
        struct listener *l = place_for(out, a);
        enum dac_err e = DAC_E_SYS;

        if (l && l->passed)
            continue;
        if (l && await_free(a, deadline))
            e = open_address(a, out->ordinals, l);
        if (e != DAC_OK) {
            explain(a, errno, why, n);
            listeners_remove(out);
            return e;
        }
    }
    if (listeners_activate(out) == DAC_OK)
        return DAC_OK;
    snprintf(why, n, "could not listen: %s", strerror(errno));
    listeners_remove(out);
    return DAC_E_SYS;
}

static bool is_any(const struct sockaddr_storage *a)
{
    if (a->ss_family == AF_INET)
        return ((const struct sockaddr_in *)(const void *)a)->sin_addr.s_addr ==
               INADDR_ANY;
    return IN6_IS_ADDR_UNSPECIFIED(
        &((const struct sockaddr_in6 *)(const void *)a)->sin6_addr);
}

/* Whether an address that is in use is so by this instance itself: of all interfaces in
 * place of one on the same port, or the other way round. */
static bool is_in_own_use(const struct listeners *old, const struct config_address *a)
{
    const struct sockaddr_in *in = (const void *)&a->addr; /* the port is in one place */

    for (size_t i = 0; i < old->count && errno == EADDRINUSE && !is_unix(a); i++) {
        const struct sockaddr_storage *other = &old->items[i].addr;

        if (other->ss_family == a->addr.ss_family &&
            ((const struct sockaddr_in *)(const void *)other)->sin_port == in->sin_port &&
            (is_any(other) || is_any(&a->addr)))
            return true;
    }
    return false;
}

/* Sockets for ordinals that were not there before. */
static enum dac_err add_ordinals(struct listener *l, uint32_t from, uint32_t ordinals)
{
    for (uint32_t i = from; !l->shared && i < ordinals; i++) {
        l->fds[i] = bind_tcp(&l->addr, l->len, true);
        if (l->fds[i] < 0)
            return DAC_E_SYS;
    }
    return DAC_OK;
}

/* One address of all those that another one names. */
static bool is_part_of(const struct listener *part, const struct sockaddr_storage *all)
{
    const struct sockaddr_in *a = (const void *)&part->addr, *b = (const void *)all;

    return all->ss_family != AF_UNIX && part->addr.ss_family == all->ss_family &&
           a->sin_port == b->sin_port && is_any(all) && !is_any(&part->addr);
}

/* What is served of all interfaces from now on was served of one: that one's sockets stay
 * beside the others, for closing them would reset who is about to be accepted there. */
static void keep_parts(const struct listeners *old, const struct sockaddr_storage *all,
                       struct listeners *out)
{
    for (size_t i = 0; i < old->count && out->count < CONFIG_LISTEN_MAX; i++)
        if (is_part_of(&old->items[i], all) && !find(out, &old->items[i].addr))
            out->items[out->count++] = old->items[i];
}

enum dac_err listeners_prepare(const struct listeners *old, const struct config *cfg,
                               struct listeners *out, char *why, size_t n)
{
    memset(out, 0, sizeof(*out));
    out->ordinals = cfg->workers > old->ordinals ? cfg->workers : old->ordinals;
    for (size_t i = 0; i < old->count; i++)
        if (old->items[i].passed)
            out->items[out->count++] = old->items[i];
    for (size_t i = 0; i < cfg->listen.count; i++) {
        const struct config_address *a = &cfg->listen.items[i];
        const struct listener *kept = find(old, &a->addr);
        struct listener *l = place_for(out, a);
        enum dac_err e = DAC_E_SYS;

        if (l && l->passed)
            continue;
        if (l && kept) {
            *l = *kept;
            snprintf(l->text, sizeof(l->text), "%s", a->text);
            e = add_ordinals(l, old->ordinals, out->ordinals);
        } else if (l && (is_free(a) || is_in_own_use(old, a))) {
            e = open_address(a, out->ordinals, l);
        }
        if (e != DAC_OK) {
            explain(a, errno, why, n);
            listeners_drop(out, old, true);
            return e;
        }
    }
    for (size_t i = 0; i < cfg->listen.count; i++)
        keep_parts(old, &cfg->listen.items[i].addr, out);
    return DAC_OK;
}

enum dac_err listeners_activate(const struct listeners *l)
{
    for (size_t i = 0; i < l->count; i++) {
        for (uint32_t o = 0; o < SHM_WORKERS_MAX; o++) {
            /* Once more for one that listens only sets its queue's length again. */
            if (l->items[i].fds[o] >= 0 && !l->items[i].passed &&
                listen(l->items[i].fds[o], BACKLOG) != 0)
                return DAC_E_SYS;
        }
    }
    return DAC_OK;
}

static bool has_fd(const struct listeners *l, int fd)
{
    for (size_t i = 0; i < l->count; i++)
        for (uint32_t o = 0; o < SHM_WORKERS_MAX; o++)
            if (l->items[i].fds[o] == fd)
                return true;
    return false;
}

static void remove_name(struct listener *at)
{
    struct stat st;

    if (at->path[0] && lstat(at->path, &st) == 0 && st.st_dev == at->dev &&
        st.st_ino == at->ino)
        unlink(at->path);
    at->path[0] = '\0';
}

void listeners_drop(struct listeners *l, const struct listeners *kept, bool names)
{
    for (size_t i = 0; i < l->count; i++) {
        struct listener *at = &l->items[i];

        for (uint32_t o = 0; o < SHM_WORKERS_MAX; o++) {
            if (at->fds[o] < 0 || has_fd(kept, at->fds[o]))
                continue;
            close(at->fds[o]);
            at->fds[o] = -1;
        }
        if (names && !find(kept, &at->addr))
            remove_name(at);
    }
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
    for (size_t i = 0; i < l->count; i++)
        remove_name(&l->items[i]);
    listeners_close(l);
}
