/*
 * The first steps of every child, in the order that matters: ignore what a terminal sends
 * to the whole group, take the slot, give up root (which clears the parent-death signal),
 * ask for the parent-death signal, and only then look whether the master is still there.
 * SIGTERM stays blocked and is read from a signalfd: no work in signal handlers.
 *
 * Workers and the recorder run this.
 */
#include "process/child.h"

#include <errno.h>
#include <event2/event.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "config/live.h"
#include "process/limits.h"
#include "process/title.h"
#include "shm/crash.h"
#include "shm/live.h"
#include "shm/slot.h"

static void set_signals(void)
{
    static const int ignored[] = {SIGINT, SIGHUP, SIGQUIT, SIGPIPE};
    sigset_t mask;

    for (size_t i = 0; i < DAC_ARRAY_LEN(ignored); i++)
        signal(ignored[i], SIG_IGN);
    sigemptyset(&mask);
    sigaddset(&mask, SIGTERM);
    sigprocmask(SIG_SETMASK, &mask, NULL);
}

/* libevent prints to stderr by itself; 0 and 1 of its levels are for debugging. */
static void on_event_log(int severity, const char *text)
{
    if (severity >= EVENT_LOG_ERR) /* it ends the process then */
        log_error(0, "event loop: %s", text);
    else if (severity >= EVENT_LOG_WARN)
        log_warn(0, "event loop: %s", text);
}

static void set_name(const struct child_context *ctx)
{
    char name[32];

    if (ctx->kind == SLOT_WORKER)
        snprintf(name, sizeof(name), "worker %u", ctx->ordinal);
    else
        snprintf(name, sizeof(name), "recorder");
    log_set_identity(name);
    title_set("%s", name);
    crash_set_role(ctx->kind == SLOT_WORKER ? "worker" : "recorder");
}

int child_enter(const struct child_context *ctx)
{
    set_signals();
    set_name(ctx);
    event_set_log_callback(on_event_log);
    /* One that comes to run only now is to stay out: a recorder that is the dead master's
     * heir may have freed a slot in which nobody seemed to be. */
    if (child_orphaned(ctx))
        return EXIT_START;
    segment_enter_child(ctx->shm, ctx->slot);
    slot_enter(ctx->shm, clock_now_ns());
    if (privileges_drop(ctx->privileges) != DAC_OK)
        return child_fail(ctx, "could not become user \"%s\": %s", ctx->privileges->user,
                          strerror(errno));
    limits_core_dumps_of_child(ctx->config->core_dumps);
    if (prctl(PR_SET_PDEATHSIG, SIGTERM) != 0)
        log_warn(errno, "could not ask for a signal at the master's death");
    if (child_orphaned(ctx))
        return EXIT_START;
    return EXIT_OK;
}

bool child_orphaned(const struct child_context *ctx)
{
    return getppid() != ctx->master_pid;
}

bool child_live(const struct child_context *ctx, uint64_t *seen)
{
    uint64_t words[SHM_LIVE_MAX];

    if (!live_read(ctx->shm, seen, words))
        return false;
    config_live_apply(ctx->config, words);
    log_set_level((enum log_level)ctx->config->log_level);
    log_set_format((enum log_format)ctx->config->log_format);
    return true;
}

static void report(const struct child_context *ctx, const struct child_report *r)
{
    /* The pipe holds far more than all children together ever say; if the master is gone
     * or stands still, nobody is to wait for it. */
    if (write(ctx->report_fd, r, sizeof(*r)) != (ssize_t)sizeof(*r) && errno != EPIPE)
        log_warn(errno, "could not report to the master");
}

void child_ready(const struct child_context *ctx)
{
    struct child_report r = {.pid = getpid()};

    slot_set_state(ctx->shm, SLOT_READY);
    report(ctx, &r);
}

int child_fail(const struct child_context *ctx, const char *fmt, ...)
{
    struct child_report r = {.pid = getpid(), .fatal = 1};
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(r.text, sizeof(r.text), fmt, ap);
    va_end(ap);
    log_error(0, "%s", r.text);
    if (!ctx->starting)
        return EXIT_START;
    report(ctx, &r);
    return EXIT_FATAL;
}

static void on_signal(evutil_socket_t fd, short what, void *arg)
{
    struct child_stop *stop = arg;
    struct signalfd_siginfo info;
    bool term = false;

    (void)what;
    while (read(fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
        term = term || info.ssi_signo == SIGTERM;
    if (term)
        stop->fn(stop->arg);
}

enum dac_err child_stop_init(struct child_stop *stop, struct event_base *base,
                             void (*fn)(void *arg), void *arg)
{
    sigset_t mask;

    stop->fn = fn;
    stop->arg = arg;
    stop->event = NULL;
    sigemptyset(&mask);
    sigaddset(&mask, SIGTERM);
    stop->fd = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
    if (stop->fd < 0)
        return DAC_E_SYS;
    stop->event = event_new(base, stop->fd, EV_READ | EV_PERSIST, on_signal, stop);
    if (!stop->event || event_add(stop->event, NULL) != 0)
        return DAC_E_NOMEM;
    return DAC_OK;
}

void child_stop_free(struct child_stop *stop)
{
    if (stop->event)
        event_free(stop->event);
    if (stop->fd >= 0)
        close(stop->fd);
    stop->event = NULL;
    stop->fd = -1;
}
