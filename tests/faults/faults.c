/*
 * A library to preload into dacd (LD_PRELOAD): it makes the Nth allocation, descriptor or
 * mapping fail, in the processes of one role, while a test has armed it.
 *
 * DAC_FAULTS names the file that test and processes share as a mapping (struct control).
 * The test writes kind, role, first and count, then `armed`; all processes of the role
 * count their calls in `seen` together, and calls first ... first + count - 1 fail as the
 * system would fail them. Where each failed is written as text for whom it may help.
 *
 * It does not see what the C library does inside itself (its own open() and mmap()), and
 * counts nothing that it does itself. Test tool; runs inside of every process of dacd.
 */
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

/* tests/faults/shim.py knows this layout. */
enum { KIND_ALLOC = 1, KIND_FD = 2, KIND_MMAP = 3 };
enum { ROLE_ANY, ROLE_MASTER, ROLE_WORKER, ROLE_RECORDER };
enum { TRACE_MAX = 32, TRACE_SIZE = 2040, FRAMES = 24 };

struct control {
    _Atomic uint32_t armed;
    uint32_t kind;
    uint32_t role;
    uint32_t unused;
    uint64_t first;
    uint64_t count;
    _Atomic uint64_t seen;   /* calls of the kind in the role since it was armed */
    _Atomic uint64_t failed; /* of them */
    uint64_t unused2[2];
    struct {
        uint64_t pid;
        char text[TRACE_SIZE];
    } trace[TRACE_MAX];
};

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);

static struct control *control;
static pid_t first_process;
static _Atomic uint32_t my_role; /* ROLE_ANY: not known yet */
static __thread bool inside __attribute__((tls_model("initial-exec")));

static void forget_role(void)
{
    atomic_store(&my_role, ROLE_ANY);
}

static void write_trace(uint64_t n, const char *what);

/* A crash is written down like a failed call, in the last place, and goes its way. */
static void on_crash(int signo)
{
    char what[32];

    snprintf(what, sizeof(what), "signal %d", signo);
    inside = true;
    if (control)
        write_trace(TRACE_MAX - 1, what);
    raise(signo); /* the handler is gone: SA_RESETHAND */
}

static void watch_crashes(void)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    struct sigaction sa = {.sa_handler = on_crash, .sa_flags = (int)SA_RESETHAND};

    for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        sigaction(signals[i], &sa, NULL);
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("DAC_FAULTS");
    void *frames[2];

    if (!path)
        return;
    inside = true;
    first_process = getpid();
    backtrace(frames, 2); /* which allocates at its first use */
    pthread_atfork(NULL, NULL, forget_role);
    watch_crashes();
    long fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
        void *p = (void *)syscall(SYS_mmap, NULL, sizeof(*control),
                                  PROT_READ | PROT_WRITE, MAP_SHARED, (int)fd, 0L);
        syscall(SYS_close, (int)fd);
        if (p != MAP_FAILED)
            control = p;
    }
    inside = false;
}

/* By its title, which a child has a moment after its birth. */
static uint32_t role(void)
{
    uint32_t known = atomic_load(&my_role);
    char title[64] = "";

    if (known != ROLE_ANY)
        return known;
    long fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return ROLE_ANY;
    syscall(SYS_read, (int)fd, title, sizeof(title) - 1);
    syscall(SYS_close, (int)fd);
    if (strncmp(title, "dacd: worker", 12) == 0)
        known = ROLE_WORKER;
    else if (strcmp(title, "dacd: recorder") == 0)
        known = ROLE_RECORDER;
    else if (getpid() == first_process)
        known = ROLE_MASTER;
    atomic_store(&my_role, known);
    return known;
}

static void write_trace(uint64_t n, const char *what)
{
    void *frames[FRAMES];
    int count = backtrace(frames, FRAMES);
    char *to = control->trace[n].text;
    char *end = to + TRACE_SIZE - 1;

    control->trace[n].pid = (uint64_t)getpid();
    to += snprintf(to, (size_t)(end - to), "%s", what);
    for (int i = 2; i < count; i++) {
        Dl_info info = {0};
        if (!dladdr(frames[i], &info) || !info.dli_fname)
            continue;
        const char *slash = strrchr(info.dli_fname, '/');
        size_t offset = (size_t)((char *)frames[i] - (char *)info.dli_fbase);
        int len = snprintf(to, (size_t)(end - to), "\n%s+0x%zx %s",
                           slash ? slash + 1 : info.dli_fname, offset,
                           info.dli_sname ? info.dli_sname : "");
        if (len < 0 || len >= end - to)
            break;
        to += len;
    }
}

/* Counts a call; true: it is to fail. errno stays as it was. */
static bool fails(uint32_t kind, const char *what)
{
    struct control *c = control;
    int saved = errno;
    bool hit = false;

    if (!c || inside || !atomic_load_explicit(&c->armed, memory_order_acquire) ||
        c->kind != kind)
        return false;
    inside = true;
    if (c->role == ROLE_ANY || c->role == role()) {
        uint64_t n = atomic_fetch_add(&c->seen, 1) + 1;
        hit = n >= c->first && n - c->first < c->count;
        if (hit) {
            uint64_t k = atomic_fetch_add(&c->failed, 1);
            if (k < TRACE_MAX - 1)
                write_trace(k, what);
        }
    }
    inside = false;
    errno = saved;
    return hit;
}

/* --- memory ------------------------------------------------------------------------- */

static bool no_memory(const char *what)
{
    if (!fails(KIND_ALLOC, what))
        return false;
    errno = ENOMEM;
    return true;
}

void *malloc(size_t n)
{
    return no_memory("malloc") ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    return no_memory("calloc") ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    return no_memory("realloc") ? NULL : __libc_realloc(p, n);
}

void *reallocarray(void *p, size_t n, size_t size)
{
    size_t all;

    if (__builtin_mul_overflow(n, size, &all) || no_memory("reallocarray")) {
        errno = ENOMEM;
        return NULL;
    }
    return __libc_realloc(p, all);
}

void *aligned_alloc(size_t align, size_t n)
{
    return no_memory("aligned_alloc") ? NULL : __libc_memalign(align, n);
}

void *memalign(size_t align, size_t n)
{
    return no_memory("memalign") ? NULL : __libc_memalign(align, n);
}

int posix_memalign(void **out, size_t align, size_t n)
{
    void *p = fails(KIND_ALLOC, "posix_memalign") ? NULL : __libc_memalign(align, n);

    if (!p)
        return ENOMEM;
    *out = p;
    return 0;
}

/* --- descriptors -------------------------------------------------------------------- */

static void *real_of(const char *name)
{
    bool was = inside;

    inside = true;
    void *p = dlsym(RTLD_NEXT, name);
    inside = was;
    return p;
}

#define REAL(name)                                                                       \
    static __typeof__(name) *real;                                                       \
    if (!real)                                                                           \
    *(void **)&real = real_of(#name)

/* CALL(kind, errno, failed value, type, name, parameters, arguments) */
#define CALL(kind, err, bad, type, name, params, args)                                   \
    type name params                                                                     \
    {                                                                                    \
        REAL(name);                                                                      \
        if (fails(kind, #name)) {                                                        \
            errno = (err);                                                               \
            return bad;                                                                  \
        }                                                                                \
        return real args;                                                                \
    }
#define FD_CALL(name, params, args) CALL(KIND_FD, EMFILE, -1, int, name, params, args)

FD_CALL(socket, (int domain, int type, int protocol), (domain, type, protocol))
FD_CALL(socketpair, (int domain, int type, int protocol, int fds[2]),
        (domain, type, protocol, fds))
FD_CALL(accept, (int fd, struct sockaddr *a, socklen_t *n), (fd, a, n))
FD_CALL(accept4, (int fd, struct sockaddr *a, socklen_t *n, int flags), (fd, a, n, flags))
FD_CALL(eventfd, (unsigned int value, int flags), (value, flags))
FD_CALL(timerfd_create, (clockid_t clock, int flags), (clock, flags))
FD_CALL(signalfd, (int fd, const sigset_t *mask, int flags), (fd, mask, flags))
FD_CALL(epoll_create, (int size), (size))
FD_CALL(epoll_create1, (int flags), (flags))
FD_CALL(pipe, (int fds[2]), (fds))
FD_CALL(pipe2, (int fds[2], int flags), (fds, flags))
FD_CALL(dup, (int fd), (fd))
FD_CALL(shm_open, (const char *name, int flags, mode_t mode), (name, flags, mode))
FD_CALL(memfd_create, (const char *name, unsigned int flags), (name, flags))

#define OPEN_CALL(name, params, args)                                                    \
    int name params                                                                      \
    {                                                                                    \
        va_list ap;                                                                      \
        REAL(name);                                                                      \
        va_start(ap, flags);                                                             \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(ap, mode_t) : 0;          \
        va_end(ap);                                                                      \
        if (fails(KIND_FD, #name)) {                                                     \
            errno = EMFILE;                                                              \
            return -1;                                                                   \
        }                                                                                \
        return real args;                                                                \
    }
OPEN_CALL(open, (const char *path, int flags, ...), (path, flags, mode))
OPEN_CALL(open64, (const char *path, int flags, ...), (path, flags, mode))
OPEN_CALL(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode))
OPEN_CALL(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode))

/* What open() becomes in programs built with _FORTIFY_SOURCE. */
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
FD_CALL(__open_2, (const char *path, int flags), (path, flags))
FD_CALL(__open64_2, (const char *path, int flags), (path, flags))

CALL(KIND_FD, EMFILE, NULL, FILE *, fopen, (const char *path, const char *mode),
     (path, mode))
CALL(KIND_FD, EMFILE, NULL, FILE *, fopen64, (const char *path, const char *mode),
     (path, mode))

/* --- mappings, and what needs memory of the kernel ---------------------------------- */

CALL(KIND_MMAP, ENOMEM, MAP_FAILED, void *, mmap,
     (void *at, size_t n, int prot, int flags, int fd, off_t offset),
     (at, n, prot, flags, fd, offset))
CALL(KIND_MMAP, ENOMEM, MAP_FAILED, void *, mmap64,
     (void *at, size_t n, int prot, int flags, int fd, off64_t offset),
     (at, n, prot, flags, fd, offset))
CALL(KIND_MMAP, ENOSPC, -1, int, ftruncate, (int fd, off_t n), (fd, n))
CALL(KIND_MMAP, ENOSPC, -1, int, ftruncate64, (int fd, off64_t n), (fd, n))
CALL(KIND_MMAP, ENOSPC, ENOSPC, int, posix_fallocate, (int fd, off_t at, off_t n),
     (fd, at, n))
CALL(KIND_MMAP, ENOSPC, ENOSPC, int, posix_fallocate64, (int fd, off64_t at, off64_t n),
     (fd, at, n))
CALL(KIND_MMAP, EAGAIN, -1, pid_t, fork, (void), ())
CALL(KIND_MMAP, EAGAIN, EAGAIN, int, pthread_create,
     (pthread_t *restrict thread, const pthread_attr_t *restrict attr,
      void *(*fn)(void *), void *restrict arg),
     (thread, attr, fn, arg))
