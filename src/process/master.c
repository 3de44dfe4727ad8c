/*
 * The master's loop: signals, reports, deaths and ticks go to the generations, of which
 * there is one (generation.h), or two while the segment is renewed (renew.h). SIGHUP has
 * the configuration read again (reload.h).
 *
 *   starting  the first generation comes up -> "ready"
 *   serving   children that die are started again
 *   stopping  sockets are closed, all generations drain; segment and sockets are removed
 *
 * A second signal stops at once: workers are killed, the recorder has little time for
 * what has ended. A child that says that it cannot go on stops the service as well.
 * Signals are blocked and read from a signalfd, so nothing happens in handlers; time is
 * counted in ticks.
 */
#include "process/master.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "process/control.h"
#include "process/limits.h"
#include "process/notify.h"
#include "process/reload.h"
#include "process/renew.h"
#include "process/systemd.h"
#include "process/title.h"

#define REBIND_NS (3 * NS_PER_S)    /* a killed master's workers close their sockets */
#define DYING_NS  (500 * NS_PER_MS) /* a killed master has not let go of its lock yet */
#define DEAD_NS   (10 * NS_PER_S)   /* it is dead, but a child of it has not run yet */
#define OWN_FILES 160 /* eventfds, sockets and files of a worker beside its clients */

struct master {
    struct privileges privileges;
    struct generations gens;
    struct generation_parts parts;
    struct renewal renewal;
    struct reload reload;
    struct control control;
    struct systemd systemd;
    int signal_fd;
    uint64_t next_tick_ns;
    bool ready;    /* it was */
    bool stopping; /* all generations drain */
    bool hurry;    /* a second signal came */
    int exit_code;
};

static const struct config *config_of(const struct master *m)
{
    return m->reload.now->config;
}

/* --- stopping -------------------------------------------------------------------------
 */

static void begin_stop(struct master *m, uint64_t now_ns)
{
    uint32_t workers = 0;

    notify_send("STOPPING=1");
    m->stopping = true;
    reload_stop(&m->reload);
    FOR_EACH_GENERATION(g, &m->gens)
    workers += supervise_alive(&g->sup, SLOT_WORKER);
    log_info(0, "stopping: %" PRIu32 " workers have %.0f s to end their streams", workers,
             (double)config_of(m)->drain_timeout_ns / (double)NS_PER_S);
    listeners_remove(&m->reload.now->listeners);
    FOR_EACH_GENERATION(g, &m->gens)
    generation_drain(g, true, now_ns);
}

static void stop_now(struct master *m, uint64_t now_ns)
{
    if (m->hurry)
        return;
    log_warn(0, "stopping at once");
    m->hurry = true;
    FOR_EACH_GENERATION(g, &m->gens)
    generation_hurry(g, now_ns);
}

/* Whether all has ended. What a generation did not store makes the exit code. */
static bool is_over(struct master *m)
{
    bool unstored = m->renewal.unstored;

    FOR_EACH_GENERATION(g, &m->gens)
    {
        if (g->phase != GENERATION_OVER)
            return false;
        unstored = unstored || g->unstored;
    }
    if (m->exit_code == EXIT_OK && unstored)
        m->exit_code = EXIT_START;
    return true;
}

/* --- the loop -------------------------------------------------------------------------
 */

static void on_signal(struct master *m, uint32_t signo, uint64_t now_ns)
{
    switch (signo) {
    case SIGTERM:
    case SIGINT:
        log_info(0, "received %s", signo == SIGTERM ? "SIGTERM" : "SIGINT");
        if (m->stopping)
            stop_now(m, now_ns);
        else
            begin_stop(m, now_ns);
        break;
    case SIGQUIT:
        log_info(0, "received SIGQUIT");
        if (!m->stopping)
            begin_stop(m, now_ns);
        stop_now(m, now_ns);
        break;
    case SIGHUP:
        log_info(0, "received SIGHUP");
        reload_ask(&m->reload);
        break;
    default:
        break; /* SIGCHLD: only wakes the loop */
    }
}

static void read_signals(struct master *m, uint64_t now_ns)
{
    struct signalfd_siginfo info;

    while (read(m->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info))
        on_signal(m, info.ssi_signo, now_ns);
}

static void wait_for_events(struct master *m)
{
    struct pollfd fds[2 + CONTROL_CLIENTS + DAC_ARRAY_LEN(m->gens.all)] = {
        {.fd = m->signal_fd, .events = POLLIN}};
    uint64_t now = clock_now_ns();
    uint64_t until = renew_next(&m->renewal, now);
    uint64_t wait_ns;
    nfds_t n = 1 + control_fds(&m->control, fds + 1);

    FOR_EACH_GENERATION(g, &m->gens)
    {
        fds[n++] = (struct pollfd){.fd = g->sup.report_read, .events = POLLIN};
        if (supervise_next_start(&g->sup) < until)
            until = supervise_next_start(&g->sup);
    }
    if (m->next_tick_ns < until)
        until = m->next_tick_ns;
    wait_ns = until > now ? until - now : 0;
    if (poll(fds, n, (int)((wait_ns + NS_PER_MS - 1) / NS_PER_MS)) < 0 && errno != EINTR)
        log_error(errno, "poll");
}

/* Each dead child is one of some generation's, or a stranger: as process 1 of a container
 * one inherits orphans. */
static void reap(struct master *m, uint64_t now_ns)
{
    pid_t pid;
    int status;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        FOR_EACH_GENERATION(g, &m->gens)
        {
            if (supervise_reaped(&g->sup, pid, status, now_ns))
                break;
        }
    }
}

static void become_ready(struct master *m)
{
    const struct listeners *l = &m->reload.now->listeners;
    char text[512] = "";
    size_t len = 0;

    for (size_t i = 0; i < l->count && len < sizeof(text); i++)
        len += (size_t)snprintf(text + len, sizeof(text) - len, "%s%s", i > 0 ? ", " : "",
                                l->items[i].text);
    log_info(0, "ready: %" PRIu32 " worker%s, listening on %s", config_of(m)->workers,
             config_of(m)->workers == 1 ? "" : "s", text);
    notify_send("READY=1");
    m->ready = true;
}

static void step(struct master *m, uint64_t now_ns)
{
    const struct generation *serving = m->gens.serving;

    if (serving->sup.fatal[0] && !m->stopping) {
        log_error(0, "the service cannot go on: %s", serving->sup.fatal);
        m->exit_code = EXIT_FATAL;
        begin_stop(m, now_ns);
    }
    FOR_EACH_GENERATION(g, &m->gens)
    generation_step(g, now_ns);
    if (m->stopping)
        return;
    if (m->control.drain_asked) {
        begin_stop(m, now_ns);
        return;
    }
    if (!m->ready && serving->phase == GENERATION_READY)
        become_ready(m);
    if (!reload_comes(&m->reload))
        renew_step(&m->renewal, now_ns);
    if (m->ready)
        reload_step(&m->reload, m->renewal.phase == RENEWAL_IDLE, now_ns);
}

static void tick(struct master *m, uint64_t now_ns)
{
    if (now_ns < m->next_tick_ns)
        return;
    FOR_EACH_GENERATION(g, &m->gens)
    supervise_tick(&g->sup);
    renew_tick(&m->renewal, now_ns);
    systemd_tick(&m->systemd, m->gens.serving, m->stopping);
    log_tick(now_ns);
    m->next_tick_ns = now_ns + BEAT_NS;
}

static void loop(struct master *m)
{
    uint64_t now = clock_now_ns();

    while (!m->stopping || !is_over(m)) {
        FOR_EACH_GENERATION(g, &m->gens)
        supervise_start(&g->sup, now);
        wait_for_events(m);
        now = clock_now_ns();
        read_signals(m, now);
        FOR_EACH_GENERATION(g, &m->gens)
        supervise_read_reports(&g->sup);
        reap(m, now);
        tick(m, now);
        control_step(&m->control, now); /* what is asked */
        step(m, now);
        control_step(&m->control, now); /* what came of it */
    }
}

/* --- starting -------------------------------------------------------------------------
 */

static enum dac_err block_signals(struct master *m)
{
    sigset_t mask;

    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&mask);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGINT);
    sigaddset(&mask, SIGQUIT);
    sigaddset(&mask, SIGHUP);
    sigaddset(&mask, SIGCHLD);
    if (sigprocmask(SIG_SETMASK, &mask, NULL) != 0)
        return DAC_E_SYS;
    m->signal_fd = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
    return m->signal_fd < 0 ? DAC_E_SYS : DAC_OK;
}

static void log_sizes(const struct master *m, const struct shm_options *opt)
{
    const struct shm *shm = &m->gens.serving->shm;
    struct shm_plan plan;
    char why[256];

    if (segment_plan(opt, &plan, why, sizeof(why)) != DAC_OK)
        return;
    log_info(0,
             "instance %s: %.1f MiB of shared memory, %" PRIu32
             " flights of at least %" PRIu64 " bytes each, %" PRIu32 " blocks of %" PRIu32
             " bytes",
             config_of(m)->name, (double)shm->size / 1048576.0, shm->hdr->flight_count,
             plan.bytes_per_flight, shm->hdr->block_count, shm->hdr->block_size);
}

/* Whether the lock on the segment may yet be had: a child that was forked just before its
 * master was killed holds it until it runs, which on a busy machine takes a while. */
static bool may_be_let_go(const struct master *m, uint64_t waited_ns)
{
    pid_t holder = (pid_t)segment_holder(config_of(m)->name);

    if (waited_ns < DYING_NS)
        return true;
    return waited_ns < DEAD_NS && holder > 0 && kill(holder, 0) != 0 && errno == ESRCH;
}

/* The segment; a name that a living instance has means a port that it has, most often. */
static enum dac_err make_segment(struct master *m, bool *replaced)
{
    struct generation_memory memory;
    const struct timespec step = {.tv_nsec = 20 * NS_PER_MS};
    const char *in_use;
    char why[512] = "";
    uint64_t began = clock_now_ns();
    enum dac_err e;

    generation_memory(config_of(m), &m->privileges, NULL, &memory);
    while ((e = segment_create(&memory.options, &m->gens.serving->shm, replaced, why,
                               sizeof(why))) == DAC_E_EXISTS &&
           may_be_let_go(m, clock_now_ns() - began))
        nanosleep(&step, NULL);
    in_use = e == DAC_E_EXISTS ? listeners_in_use(config_of(m)) : NULL;
    if (in_use)
        log_error(0, "address %s is already in use: %s", in_use, why);
    else if (e != DAC_OK)
        log_error(0, "%s", why);
    if (e != DAC_OK)
        return e;
    if (*replaced)
        log_warn(0, "instance %s was killed before: its shared memory is replaced",
                 config_of(m)->name);
    log_sizes(m, &memory.options);
    return DAC_OK;
}

/* In a child: what belongs to the other generation, to another set and to the master. */
static void forget_others(void *arg, const struct supervisor *s,
                          const struct listeners *own)
{
    struct master *m = arg;
    struct running *all[] = {m->reload.now, m->reload.coming, m->reload.leaving};

    close(m->signal_fd);
    control_forget(&m->control);
    for (size_t i = 0; i < DAC_ARRAY_LEN(all); i++)
        if (all[i] && &all[i]->listeners != own)
            listeners_drop(&all[i]->listeners, own, false);
    FOR_EACH_GENERATION(g, &m->gens)
    {
        if (&g->sup == s)
            continue;
        supervise_free(&g->sup);
        segment_detach(&g->shm);
    }
}

/* Sockets and children. The segment exists. */
static enum dac_err start(struct master *m, bool replaced)
{
    struct running *now = m->reload.now;
    char why[512] = "";
    enum dac_err e;

    e = listeners_open(now->config, replaced ? REBIND_NS : 0, &now->listeners, why,
                       sizeof(why));
    if (e != DAC_OK) {
        log_error(0, "%s", why);
        return e;
    }
    m->control.reload = &m->reload;
    m->control.gens = &m->gens;
    e = control_open(&m->control, now->config, &m->privileges, why, sizeof(why));
    if (e != DAC_OK) {
        log_error(0, "%s", why);
        listeners_remove(&now->listeners);
        return e;
    }
    m->parts = (struct generation_parts){.config = now->config,
                                         .listeners = &now->listeners,
                                         .privileges = &m->privileges,
                                         .control = m->control.path,
                                         .in_child = forget_others,
                                         .in_child_arg = m};
    m->renewal.gens = m->reload.gens = &m->gens;
    m->reload.renewal = &m->renewal;
    m->renewal.parts = m->reload.parts = &m->parts;
    e = generation_start(m->gens.serving, &m->parts, clock_now_ns());
    if (e != DAC_OK) {
        log_error(errno, "could not make a pipe for the children's reports");
        control_close(&m->control);
        listeners_remove(&now->listeners);
    }
    return e;
}

/* From a configuration to the end of the service. */
static int run(struct master *m)
{
    const struct config *cfg = config_of(m);
    char why[256] = "";
    bool replaced = false;
    int rc = EXIT_START;

    if (cfg->provider_count == 0)
        log_warn(0,
                 "no [provider NAME] is configured: every question will be answered 503; "
                 "add one with its base_url and api_key_file to %s, then reload",
                 m->reload.path);
    limits_raise_files(cfg->max_connections, OWN_FILES);
    limits_core_dumps(cfg->core_dumps);
    if (block_signals(m) != DAC_OK) {
        log_error(errno, "could not set signals up");
        return rc;
    }
    if (privileges_find(cfg->user, &m->privileges, why, sizeof(why)) != DAC_OK) {
        log_error(0, "%s", why);
        return rc;
    }
    m->gens.serving = &m->gens.all[0];
    if (make_segment(m, &replaced) != DAC_OK)
        return rc;
    if (start(m, replaced) == DAC_OK) {
        loop(m);
        control_close(&m->control);
        log_info(0, "stopped");
        rc = m->exit_code;
    }
    for (size_t i = 0; i < DAC_ARRAY_LEN(m->gens.all); i++) {
        if (m->gens.all[i].shm.hdr)
            generation_free(&m->gens.all[i]);
    }
    return rc;
}

int master_run(const char *path, struct config *cfg)
{
    struct master m = {.signal_fd = -1, .reload.path = path};
    int rc = EXIT_START;

    log_set_identity("master");
    title_set("master");
    systemd_init(&m.systemd);
    m.reload.now = calloc(1, sizeof(*m.reload.now));
    if (m.reload.now) {
        m.reload.now->config = cfg;
        rc = run(&m);
    } else {
        log_error(0, "out of memory");
        config_free(cfg);
    }
    if (m.signal_fd >= 0)
        close(m.signal_fd);
    reload_free(&m.reload);
    return rc;
}
