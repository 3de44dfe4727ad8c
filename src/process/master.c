/*
 * The master's loop and the order in which a service starts and stops:
 *
 *   RECORDER  the recorder opens the store and migrates it
 *   WORKERS   workers start; all accept -> "ready"
 *   READY     serving; children that die are started again
 *   DRAIN     stop was asked: sockets closed, workers end their streams and go
 *   STORE     no worker is left: the recorder stores the rest and goes
 *   OVER      segment and sockets are removed
 *
 * A second signal stops at once: workers are killed, the recorder has STORE_HURRY_NS for
 * what has ended. A child that says that it cannot go on leads to DRAIN as well. Signals
 * are blocked and read from a signalfd, so nothing happens in handlers; time is counted
 * in ticks.
 */
#include "process/master.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "process/limits.h"
#include "process/notify.h"
#include "process/supervise.h"
#include "process/title.h"

#define REBIND_NS      (3 * NS_PER_S) /* a killed master's workers close their sockets */
#define DYING_NS       (500 * NS_PER_MS) /* a killed master has not let go of its lock yet */
#define DRAIN_EXTRA_NS (5 * NS_PER_S)    /* beyond drain_timeout, then SIGKILL */
#define STORE_EXTRA_NS (5 * NS_PER_S)    /* beyond done_timeout, then SIGKILL */
#define STORE_HURRY_NS (2 * NS_PER_S)
#define STORE_TRIES    3   /* recorders started to store the rest, if one dies doing so */
#define OWN_FILES      160 /* eventfds, sockets and files of a worker beside its clients */

enum phase {
    PHASE_RECORDER,
    PHASE_WORKERS,
    PHASE_READY,
    PHASE_DRAIN,
    PHASE_STORE,
    PHASE_OVER
};

struct master {
    const struct config *cfg;
    struct shm shm;
    struct listeners listeners;
    struct privileges privileges;
    struct supervisor sup;
    int signal_fd;
    enum phase phase;
    uint64_t phase_since_ns;
    uint64_t next_tick_ns;
    bool hurry; /* a second signal came */
    int store_tries;
    int exit_code;
};

/* --- stopping -------------------------------------------------------------------------
 */

static void enter(struct master *m, enum phase phase, uint64_t now_ns)
{
    m->phase = phase;
    m->phase_since_ns = now_ns;
}

static void begin_drain(struct master *m, uint64_t now_ns)
{
    notify_send("STOPPING=1");
    log_info(0, "stopping: %" PRIu32 " workers have %.0f s to end their streams",
             supervise_alive(&m->sup, SLOT_WORKER),
             (double)m->cfg->drain_timeout_ns / (double)NS_PER_S);
    atomic_store(&m->shm.hdr->draining, 1);
    listeners_remove(&m->listeners);
    supervise_want(&m->sup, SLOT_WORKER, false);
    supervise_signal(&m->sup, SLOT_WORKER, SIGTERM);
    enter(m, PHASE_DRAIN, now_ns);
}

static void begin_store(struct master *m, uint64_t now_ns)
{
    supervise_want(&m->sup, SLOT_RECORDER, false);
    supervise_signal(&m->sup, SLOT_RECORDER, SIGTERM);
    enter(m, PHASE_STORE, now_ns);
}

static void stop_now(struct master *m, uint64_t now_ns)
{
    if (m->hurry)
        return;
    log_warn(0, "stopping at once");
    m->hurry = true;
    if (m->phase == PHASE_STORE)
        m->phase_since_ns = now_ns;
    supervise_signal(&m->sup, SLOT_WORKER, SIGKILL);
}

static void step_drain(struct master *m, uint64_t now_ns)
{
    if (supervise_alive(&m->sup, SLOT_WORKER) == 0) {
        begin_store(m, now_ns);
    } else if (now_ns - m->phase_since_ns > m->cfg->drain_timeout_ns + DRAIN_EXTRA_NS) {
        log_error(0, "workers did not end in time; killing them");
        supervise_signal(&m->sup, SLOT_WORKER, SIGKILL);
        m->phase_since_ns = now_ns;
    }
}

/* The recorder stores the rest. One that dies over it is followed by another, since a
 * death must not cost what is in shared memory. */
static void step_store(struct master *m, uint64_t now_ns)
{
    uint64_t limit = m->hurry ? STORE_HURRY_NS : m->cfg->done_timeout_ns + STORE_EXTRA_NS;

    if (supervise_alive(&m->sup, SLOT_RECORDER) > 0) {
        if (now_ns - m->phase_since_ns > limit) {
            log_error(0, "the recorder did not end in time; turns may be lost");
            supervise_signal(&m->sup, SLOT_RECORDER, SIGKILL);
            m->store_tries = STORE_TRIES;
            m->phase_since_ns = now_ns;
        }
        return;
    }
    if (m->sup.recorder.crashed && !m->hurry && ++m->store_tries < STORE_TRIES) {
        m->sup.recorder.start_at_ns = now_ns;
        supervise_want(&m->sup, SLOT_RECORDER, true);
        supervise_start(&m->sup, now_ns);
        begin_store(m, now_ns);
        return;
    }
    if (m->exit_code == EXIT_OK && m->sup.recorder.exit_code != EXIT_OK)
        m->exit_code = EXIT_START;
    enter(m, PHASE_OVER, now_ns);
}

/* --- the loop -------------------------------------------------------------------------
 */

static void on_signal(struct master *m, uint32_t signo, uint64_t now_ns)
{
    bool stopping = m->phase >= PHASE_DRAIN;

    switch (signo) {
    case SIGTERM:
    case SIGINT:
        log_info(0, "received %s", signo == SIGTERM ? "SIGTERM" : "SIGINT");
        if (stopping)
            stop_now(m, now_ns);
        else
            begin_drain(m, now_ns);
        break;
    case SIGQUIT:
        log_info(0, "received SIGQUIT");
        if (!stopping)
            begin_drain(m, now_ns);
        stop_now(m, now_ns);
        break;
    case SIGHUP:
        log_warn(0, "received SIGHUP: nothing was read again; restart the service for "
                    "changes of the configuration to take effect");
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

static void wait_for_events(const struct master *m)
{
    struct pollfd fds[] = {{.fd = m->signal_fd, .events = POLLIN},
                           {.fd = m->sup.report_read, .events = POLLIN}};
    uint64_t until = supervise_next_start(&m->sup);
    uint64_t now = clock_now_ns();
    uint64_t wait_ns;

    if (m->next_tick_ns < until)
        until = m->next_tick_ns;
    wait_ns = until > now ? until - now : 0;
    if (poll(fds, DAC_ARRAY_LEN(fds), (int)((wait_ns + NS_PER_MS - 1) / NS_PER_MS)) < 0 &&
        errno != EINTR)
        log_error(errno, "poll");
}

static void become_ready(struct master *m, uint64_t now_ns)
{
    char text[512] = "";
    size_t len = 0;

    for (size_t i = 0; i < m->listeners.count && len < sizeof(text); i++)
        len += (size_t)snprintf(text + len, sizeof(text) - len, "%s%s", i > 0 ? ", " : "",
                                m->listeners.items[i].text);
    m->sup.starting = false;
    log_info(0, "ready: %" PRIu32 " worker%s, listening on %s", m->cfg->workers,
             m->cfg->workers == 1 ? "" : "s", text);
    notify_send("READY=1");
    enter(m, PHASE_READY, now_ns);
}

static void step(struct master *m, uint64_t now_ns)
{
    if (m->sup.fatal[0] && m->phase < PHASE_DRAIN) {
        log_error(0, "the service cannot go on: %s", m->sup.fatal);
        m->exit_code = EXIT_FATAL;
        begin_drain(m, now_ns);
    }
    switch (m->phase) {
    case PHASE_RECORDER:
        if (supervise_ready(&m->sup, SLOT_RECORDER) == 0)
            break;
        supervise_want(&m->sup, SLOT_WORKER, true);
        enter(m, PHASE_WORKERS, now_ns);
        break;
    case PHASE_WORKERS:
        if (supervise_ready(&m->sup, SLOT_WORKER) == m->cfg->workers)
            become_ready(m, now_ns);
        break;
    case PHASE_DRAIN:
        step_drain(m, now_ns);
        break;
    case PHASE_STORE:
        step_store(m, now_ns);
        break;
    case PHASE_READY:
    case PHASE_OVER:
        break;
    }
}

static void loop(struct master *m)
{
    uint64_t now = clock_now_ns();

    supervise_want(&m->sup, SLOT_RECORDER, true);
    enter(m, PHASE_RECORDER, now);
    while (m->phase != PHASE_OVER) {
        supervise_start(&m->sup, now);
        wait_for_events(m);
        now = clock_now_ns();
        read_signals(m, now);
        supervise_read_reports(&m->sup);
        supervise_reap(&m->sup, now);
        if (now >= m->next_tick_ns) {
            supervise_tick(&m->sup);
            m->next_tick_ns = now + BEAT_NS;
        }
        step(m, now);
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
    const struct shm_header *hdr = m->shm.hdr;
    struct shm_plan plan;
    char why[256];

    if (segment_plan(opt, &plan, why, sizeof(why)) != DAC_OK)
        return;
    log_info(0,
             "instance %s: %.1f MiB of shared memory, %" PRIu32
             " flights of at least %" PRIu64 " bytes each, %" PRIu32 " blocks of %" PRIu32
             " bytes",
             m->cfg->name, (double)m->shm.size / 1048576.0, hdr->flight_count,
             plan.bytes_per_flight, hdr->block_count, hdr->block_size);
}

/* The segment; a name that a living instance has means a port that it has, most often. */
static enum dac_err make_segment(struct master *m, bool *replaced)
{
    struct shm_provider_limits limits[SHM_PROVIDERS_MAX];
    struct shm_options opt = {.name = m->cfg->name,
                              .size = m->cfg->shm_size_bytes,
                              .max_flights = m->cfg->max_flights,
                              .flight_max_bytes = m->cfg->flight_max_bytes,
                              .providers = limits,
                              .provider_count = (uint32_t)m->cfg->provider_count,
                              .owner_uid = m->privileges.uid,
                              .owner_gid = m->privileges.gid};
    const struct timespec step = {.tv_nsec = 20 * NS_PER_MS};
    const char *in_use;
    char why[512] = "";
    uint64_t deadline;
    enum dac_err e;

    for (size_t i = 0; i < m->cfg->provider_count; i++) {
        const struct config_provider *p = &m->cfg->providers[i];
        limits[i] = (struct shm_provider_limits){.name = p->name,
                                                 .rps = p->rps,
                                                 .burst = p->burst,
                                                 .concurrency = p->concurrency};
    }
    deadline = clock_now_ns() + DYING_NS;
    while ((e = segment_create(&opt, &m->shm, replaced, why, sizeof(why))) ==
               DAC_E_EXISTS &&
           clock_now_ns() < deadline)
        nanosleep(&step, NULL);
    in_use = e == DAC_E_EXISTS ? listeners_in_use(m->cfg) : NULL;
    if (in_use)
        log_error(0, "address %s is already in use: %s", in_use, why);
    else if (e != DAC_OK)
        log_error(0, "%s", why);
    if (e != DAC_OK)
        return e;
    if (*replaced)
        log_warn(0, "instance %s was killed before: its shared memory is replaced",
                 m->cfg->name);
    log_sizes(m, &opt);
    return DAC_OK;
}

/* Sockets and what children need. The segment exists. */
static enum dac_err make_children_ready(struct master *m, bool replaced)
{
    char why[512] = "";
    enum dac_err e;

    e = listeners_open(m->cfg, replaced ? REBIND_NS : 0, &m->listeners, why, sizeof(why));
    if (e != DAC_OK) {
        log_error(0, "%s", why);
        return e;
    }
    m->sup.shm = &m->shm;
    m->sup.config = m->cfg;
    m->sup.listeners = &m->listeners;
    m->sup.privileges = &m->privileges;
    e = supervise_init(&m->sup, m->cfg->workers, m->cfg->watchdog_timeout_ns);
    if (e != DAC_OK) {
        log_error(errno, "could not make a pipe for the children's reports");
        listeners_remove(&m->listeners);
        return e;
    }
    atomic_store(&m->shm.hdr->worker_count, m->cfg->workers);
    return DAC_OK;
}

int master_run(const struct config *cfg)
{
    struct master m = {.cfg = cfg, .signal_fd = -1};
    char why[256] = "";
    bool replaced = false;
    int rc = EXIT_START;

    log_set_identity("master");
    title_set("master");
    if (cfg->provider_count == 0)
        log_warn(0,
                 "no [provider NAME] is configured: every question will be answered 503");
    limits_raise_files(cfg->max_connections, OWN_FILES);
    if (block_signals(&m) != DAC_OK) {
        log_error(errno, "could not set signals up");
        goto out;
    }
    if (privileges_find(cfg->user, &m.privileges, why, sizeof(why)) != DAC_OK) {
        log_error(0, "%s", why);
        goto out;
    }
    if (make_segment(&m, &replaced) != DAC_OK)
        goto out;
    if (make_children_ready(&m, replaced) == DAC_OK) {
        loop(&m);
        log_info(0, "stopped");
        rc = m.exit_code;
        supervise_free(&m.sup);
    }
    segment_destroy(&m.shm);
out:
    if (m.signal_fd >= 0)
        close(m.signal_fd);
    return rc;
}
