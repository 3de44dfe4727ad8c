/*
 * Forks, reaps and restarts the children. A child's slot is taken before fork, so that
 * the kernel's and the segment's view never disagree, and swept after waitpid().
 *
 * Master only.
 */
#include "process/supervise.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "process/recorder.h"
#include "process/watchdog.h"
#include "process/worker.h"
#include "shm/slot.h"
#include "shm/wake.h"

#define DEATHS_WINDOW_NS (10 * NS_PER_S)
#define BACKOFF_MIN_NS   (100 * NS_PER_MS)
#define BACKOFF_MAX_NS   (5 * NS_PER_S)
#define FORK_RETRY_NS    NS_PER_S
#define RECOUNT_TICKS    4

static void fill_set(struct worker_set *set, enum set_role role, struct config *cfg,
                     struct listeners *listeners)
{
    memset(set, 0, sizeof(*set));
    set->role = role;
    set->config = cfg;
    set->listeners = listeners;
    set->count = cfg->workers;
    for (uint32_t i = 0; i < set->count; i++)
        set->workers[i] = (struct child){
            .kind = SLOT_WORKER, .set = set, .ordinal = i, .slot = SHM_NO_SLOT};
}

void supervise_configure(struct supervisor *s)
{
    const struct config *cfg = s->serving->config;

    s->silence_max = (uint32_t)((cfg->watchdog_timeout_ns + BEAT_NS - 1) / BEAT_NS);
    atomic_store(&s->shm->hdr->reconnect_grace_ns, cfg->reconnect_grace_ns);
    atomic_store(&s->shm->hdr->worker_count, s->serving->count);
}

enum dac_err supervise_init(struct supervisor *s, struct config *cfg,
                            struct listeners *listeners)
{
    int fds[2];

    if (pipe2(fds, O_CLOEXEC | O_NONBLOCK) != 0)
        return DAC_E_SYS;
    s->report_read = fds[0];
    s->report_write = fds[1];
    s->starting = true;
    s->recorder = (struct child){.kind = SLOT_RECORDER, .slot = SHM_NO_SLOT};
    s->serving = &s->sets[0];
    fill_set(s->serving, SET_SERVES, cfg, listeners);
    supervise_configure(s);
    return DAC_OK;
}

void supervise_free(struct supervisor *s)
{
    close(s->report_read);
    close(s->report_write);
}

struct child *supervise_child(struct supervisor *s, uint32_t n)
{
    if (n == 0)
        return &s->recorder;
    n--;
    for (size_t i = 0; i < DAC_ARRAY_LEN(s->sets); i++) {
        if (n < s->sets[i].count)
            return &s->sets[i].workers[n];
        n -= s->sets[i].count;
    }
    return NULL;
}

static bool is_coming(const struct child *c)
{
    return c->set && c->set->role == SET_COMES;
}

/* Whether the service depends on it: not on one that leaves, be it that its set never
 * came up. */
static bool matters(const struct child *c)
{
    return !c->set || c->set->role == SET_SERVES;
}

static const char *child_name(const struct child *c, char buf[32])
{
    static const char *const roles[] = {
        [SET_NONE] = "", [SET_COMES] = "new ", [SET_SERVES] = "", [SET_LEAVES] = "old "};

    if (c->kind == SLOT_RECORDER)
        return "recorder";
    snprintf(buf, 32, "%sworker %" PRIu32, roles[c->set->role], c->ordinal);
    return buf;
}

/* --- starting -------------------------------------------------------------------------
 */

_Noreturn static void run_child(struct supervisor *s, const struct child *c, pid_t master)
{
    struct worker_set *set = c->set ? c->set : s->serving;
    struct child_context ctx = {.shm = s->shm,
                                .config = set->config,
                                .listeners = set->listeners,
                                .privileges = s->privileges,
                                .master_pid = master,
                                .report_fd = s->report_write,
                                .kind = c->kind,
                                .slot = c->slot,
                                .ordinal = c->ordinal,
                                .starting = s->starting || is_coming(c)};
    int rc;

    if (s->in_child)
        s->in_child(s->in_child_arg, s, set->listeners);
    rc = child_enter(&ctx);
    close(s->report_read);
    if (rc == EXIT_OK)
        rc = c->kind == SLOT_WORKER ? worker_run(&ctx) : recorder_run(&ctx);
    exit(rc);
}

/* One that does not come up is not tried again: the set as a whole does not. */
static void fail_set(struct child *c, const char *why)
{
    char name[32];

    c->wanted = false;
    if (!c->set->failed[0])
        snprintf(c->set->failed, sizeof(c->set->failed), "%s: %s", child_name(c, name),
                 why);
}

static void start_child(struct supervisor *s, struct child *c, uint64_t now_ns)
{
    char name[32];
    pid_t master = getpid();
    enum dac_err e = is_coming(c) ? slot_take_beside(s->shm, c->ordinal, &c->slot)
                                  : slot_take(s->shm, c->kind, c->ordinal, &c->slot);

    if (e != DAC_OK) {
        log_error(0, "could not start %s: slots: %s", child_name(c, name),
                  dac_err_text(e));
        if (is_coming(c))
            fail_set(c, "there is no slot for it");
        c->start_at_ns = now_ns + FORK_RETRY_NS;
        return;
    }
    c->ready = false;
    c->heartbeat = 0;
    c->silent_ticks = 0;
    c->silenced = false;
    c->pid = fork();
    if (c->pid == 0)
        run_child(s, c, master);
    if (c->pid < 0) {
        log_error(errno, "could not start %s: fork", child_name(c, name));
        c->pid = 0;
        slot_sweep(s->shm, c->slot);
        c->start_at_ns = now_ns + FORK_RETRY_NS;
        if (is_coming(c))
            fail_set(c, "it could not be started");
        if (s->starting && supervise_plan_restart(c, now_ns) > now_ns && !s->fatal[0])
            snprintf(s->fatal, sizeof(s->fatal), "%s could not be started",
                     child_name(c, name));
        return;
    }
    log_debug(0, "started %s as pid %d", child_name(c, name), (int)c->pid);
}

void supervise_want(struct supervisor *s, enum slot_kind kind, bool wanted)
{
    struct child *c;

    for (uint32_t i = 0; (c = supervise_child(s, i)); i++) {
        if (c->kind == kind && (!wanted || !c->set || c->set == s->serving))
            c->wanted = wanted;
    }
}

void supervise_start(struct supervisor *s, uint64_t now_ns)
{
    struct child *c;

    for (uint32_t i = 0; (c = supervise_child(s, i)); i++) {
        if (c->wanted && c->pid == 0 && c->start_at_ns <= now_ns)
            start_child(s, c, now_ns);
    }
}

uint64_t supervise_next_start(const struct supervisor *s)
{
    uint64_t next = UINT64_MAX;
    const struct child *c;

    for (uint32_t i = 0; (c = supervise_child((struct supervisor *)s, i)); i++) {
        if (c->wanted && c->pid == 0 && c->start_at_ns < next)
            next = c->start_at_ns;
    }
    return next;
}

/* --- reports --------------------------------------------------------------------------
 */

static struct child *child_of_pid(struct supervisor *s, pid_t pid)
{
    struct child *c;

    for (uint32_t i = 0; (c = supervise_child(s, i)); i++) {
        if (c->pid == pid)
            return c;
    }
    return NULL;
}

void supervise_read_reports(struct supervisor *s)
{
    struct child_report r;
    struct child *c;
    bool ready = false;
    char name[32];

    while (read(s->report_read, &r, sizeof(r)) == (ssize_t)sizeof(r)) {
        r.text[sizeof(r.text) - 1] = '\0';
        c = child_of_pid(s, r.pid);
        if (!c)
            continue;
        if (!r.fatal)
            c->ready = ready = true;
        else if (is_coming(c))
            fail_set(c, r.text);
        else if (matters(c) && !s->fatal[0])
            snprintf(s->fatal, sizeof(s->fatal), "%s: %s", child_name(c, name), r.text);
    }
    /* Those who accepted for it while it started are to leave its clients to it. */
    if (ready)
        wake_kick(s->shm);
}

/* --- reaping --------------------------------------------------------------------------
 */

uint64_t supervise_plan_restart(struct child *c, uint64_t now_ns)
{
    uint64_t oldest;

    memmove(c->deaths_ns + 1, c->deaths_ns, sizeof(c->deaths_ns[0]) * (DEATHS_KEPT - 1));
    c->deaths_ns[0] = now_ns;
    oldest = c->deaths_ns[DEATHS_KEPT - 1];
    /* The delays are not to count as time lived, or a growing delay would end itself. */
    if (oldest == 0 ||
        now_ns - oldest > DEATHS_WINDOW_NS + (DEATHS_KEPT - 1) * c->backoff_ns)
        c->backoff_ns = 0;
    else if (c->backoff_ns == 0)
        c->backoff_ns = BACKOFF_MIN_NS;
    else if (c->backoff_ns < BACKOFF_MAX_NS)
        c->backoff_ns =
            c->backoff_ns * 2 > BACKOFF_MAX_NS ? BACKOFF_MAX_NS : c->backoff_ns * 2;
    return now_ns + c->backoff_ns;
}

enum restart_reason supervise_restart_reason(const struct child *c, int status)
{
    if (!WIFSIGNALED(status))
        return RESTART_EXITED;
    return c->silenced && WTERMSIG(status) == SIGKILL ? RESTART_WATCHDOG : RESTART_KILLED;
}

static void describe_end(int status, char *out, size_t n)
{
    if (WIFSIGNALED(status))
        snprintf(out, n, "was ended by signal %d (%s)%s", WTERMSIG(status),
                 strsignal(WTERMSIG(status)), WCOREDUMP(status) ? ", core dumped" : "");
    else
        snprintf(out, n, "exited with code %d", WEXITSTATUS(status));
}

static void log_death(const struct supervisor *s, const struct child *c, int status,
                      const struct slot_sweep *swept, uint64_t delay_ns)
{
    char name[32], end[96], next[64] = "";

    describe_end(status, end, sizeof(end));
    if (!c->wanted && WIFEXITED(status) && WEXITSTATUS(status) == EXIT_OK) {
        log_debug(0, "%s (pid %d) is done", child_name(c, name), (int)c->pid);
        return;
    }
    if (c->wanted && !s->fatal[0]) {
        snprintf(next, sizeof(next), "; starting another now");
        if (delay_ns > 0)
            snprintf(next, sizeof(next), "; starting another in %.1f s",
                     (double)delay_ns / (double)NS_PER_S);
    }
    log_warn(0,
             "%s (pid %d) %s; it owned %" PRIu32 " flights and %" PRIu32
             " permits, read %" PRIu32 " flights%s%s",
             child_name(c, name), (int)c->pid, end, swept->orphaned + swept->freed,
             swept->permits, swept->reader_of,
             swept->held_lock ? ", was at a bucket's lock" : "", next);
}

static void bury(struct supervisor *s, struct child *c, int status, uint64_t now_ns)
{
    struct slot_sweep swept;
    bool fatal = WIFEXITED(status) && WEXITSTATUS(status) == EXIT_FATAL;
    char name[32];

    if (is_coming(c))
        fail_set(c, "it ended while it started");
    else if (fatal && matters(c) && !s->fatal[0])
        snprintf(s->fatal, sizeof(s->fatal), "%s gave up", child_name(c, name));
    swept = slot_sweep(s->shm, c->slot);
    wake_kick(s->shm);
    c->start_at_ns = supervise_plan_restart(c, now_ns);
    if (c->wanted)
        atomic_fetch_add(
            &s->shm->hdr->restarts[c->kind][supervise_restart_reason(c, status)], 1);
    log_death(s, c, status, &swept, c->start_at_ns - now_ns);
    /* A service that was never ready and whose children keep dying has nothing to wait
     * for. */
    if (s->starting && c->wanted && c->backoff_ns > 0 && !s->fatal[0])
        snprintf(s->fatal, sizeof(s->fatal), "%s died %d times while the service started",
                 child_name(c, name), DEATHS_KEPT);
    c->crashed = WIFSIGNALED(status);
    c->exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_START;
    c->pid = 0;
    c->slot = SHM_NO_SLOT;
    c->ready = false;
}

bool supervise_reaped(struct supervisor *s, pid_t pid, int status, uint64_t now_ns)
{
    struct child *c = child_of_pid(s, pid);

    if (!c)
        return false;
    supervise_read_reports(s); /* its last words are in the pipe now */
    bury(s, c, status, now_ns);
    return true;
}

/* --- the rest -------------------------------------------------------------------------
 */

void supervise_tick(struct supervisor *s)
{
    watchdog_tick(s);
    if (++s->ticks % RECOUNT_TICKS == 0)
        slot_recount(s->shm);
}

void supervise_signal(const struct supervisor *s, enum slot_kind kind, int sig)
{
    const struct child *c;

    for (uint32_t i = 0; (c = supervise_child((struct supervisor *)s, i)); i++) {
        if (c->kind == kind && c->pid != 0)
            kill(c->pid, sig);
    }
}

uint32_t supervise_alive(const struct supervisor *s, enum slot_kind kind)
{
    uint32_t n = 0;
    const struct child *c;

    for (uint32_t i = 0; (c = supervise_child((struct supervisor *)s, i)); i++)
        n += c->kind == kind && c->pid != 0;
    return n;
}

uint32_t supervise_ready(const struct supervisor *s, enum slot_kind kind)
{
    uint32_t n = 0;
    const struct child *c;

    for (uint32_t i = 0; (c = supervise_child((struct supervisor *)s, i)); i++)
        n += c->kind == kind && (!c->set || c->set == s->serving) && c->pid != 0 &&
             c->ready;
    return n;
}

/* --- sets -----------------------------------------------------------------------------
 */

void supervise_bring(struct supervisor *s, struct config *cfg,
                     struct listeners *listeners)
{
    DAC_ASSERT(!s->other);
    s->other = s->serving == &s->sets[0] ? &s->sets[1] : &s->sets[0];
    fill_set(s->other, SET_COMES, cfg, listeners);
    for (uint32_t i = 0; i < s->other->count; i++)
        s->other->workers[i].wanted = true;
}

bool supervise_brought(const struct supervisor *s)
{
    for (uint32_t i = 0; i < s->other->count; i++)
        if (s->other->workers[i].pid == 0 || !s->other->workers[i].ready)
            return false;
    return true;
}

static void signal_set(const struct worker_set *set, int sig)
{
    for (uint32_t i = 0; i < set->count; i++)
        if (set->workers[i].pid != 0)
            kill(set->workers[i].pid, sig);
}

static void let_go(struct worker_set *set, int sig)
{
    set->role = SET_LEAVES;
    for (uint32_t i = 0; i < set->count; i++)
        set->workers[i].wanted = false;
    signal_set(set, sig);
}

void supervise_switch(struct supervisor *s)
{
    struct worker_set *old = s->serving, *next = s->other;

    for (uint32_t i = 0; i < SHM_WORKERS_MAX; i++)
        slot_serve(s->shm, i, i < next->count ? next->workers[i].slot : SHM_NO_SLOT);
    next->role = SET_SERVES;
    s->serving = next;
    s->other = old;
    supervise_configure(s);
    wake_kick(s->shm);
    let_go(old, SIGTERM);
}

void supervise_dismiss(struct supervisor *s)
{
    let_go(s->other, SIGKILL);
}

bool supervise_alone(struct supervisor *s)
{
    if (!s->other)
        return true;
    for (uint32_t i = 0; i < s->other->count; i++)
        if (s->other->workers[i].pid != 0)
            return false;
    memset(s->other, 0, sizeof(*s->other));
    s->other = NULL;
    return true;
}
