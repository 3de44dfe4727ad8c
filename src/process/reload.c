/*
 * See reload.h. Everything that can fail is tried before anything is touched: the files,
 * the certificates, the new addresses, a number for each provider, and at last the new
 * workers themselves.
 */
#include "process/reload.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "config/live.h"
#include "process/notify.h"
#include "shm/live.h"
#include "shm/pacer.h"
#include "shm/wake.h"

#define COMING_MAX_NS (30 * NS_PER_S) /* for the new workers to come up */
#define REPORT_MAX    (64u << 10)

extern char **environ;

/* --- telling -------------------------------------------------------------------------
 */

static void begin_report(struct reload *r)
{
    const struct buf empty = BUF_INIT(REPORT_MAX);
    char text[96];

    r->number++;
    r->outcome = RELOAD_UNDER_WAY;
    buf_free(&r->report);
    r->report = empty;
    snprintf(text, sizeof(text), "RELOADING=1\nMONOTONIC_USEC=%" PRIu64,
             clock_now_ns() / NS_PER_US);
    notify_send(text);
}

/* A line for who asked; the log has its own words. */
static void DAC_PRINTF(2, 3) report(struct reload *r, const char *fmt, ...)
{
    char line[1024];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    buf_printf(&r->report, "%s\n", line);
}

static void end_report(struct reload *r, enum reload_outcome outcome)
{
    r->outcome = outcome;
    notify_send("READY=1");
}

void reload_log_problems(const struct config_problems *p)
{
    char place[32] = "";

    for (size_t i = 0; i < p->count; i++) {
        const struct config_problem *at = &p->items[i];

        if (at->line > 0)
            snprintf(place, sizeof(place), ":%u", at->line);
        (at->warning ? log_warn : log_error)(0, "%s%s: %s", at->file,
                                             at->line > 0 ? place : "", at->text);
    }
    if (p->dropped > 0)
        log_error(0, "and %zu more problems", p->dropped);
}

static void report_problems(struct reload *r, const struct config_problems *p)
{
    for (size_t i = 0; i < p->count; i++) {
        const struct config_problem *at = &p->items[i];

        if (at->line > 0)
            report(r, "%s:%u: %s%s", at->file, at->line, at->warning ? "warning: " : "",
                   at->text);
        else
            report(r, "%s: %s%s", at->file, at->warning ? "warning: " : "", at->text);
    }
    if (p->dropped > 0)
        report(r, "and %zu more problems", p->dropped);
}

static void refuse(struct reload *r, const char *why)
{
    log_error(0, "reload refused, everything stays as it is: %s", why);
    report(r, "refused, everything stays as it is: %s", why);
    end_report(r, RELOAD_REFUSED);
}

/* --- what has changed -----------------------------------------------------------------
 */

struct found {
    struct reload *r;
    size_t in_place, new_workers, restart;
};

static void on_change(void *arg, const struct config_change *c)
{
    static const char *const words[] = {[CONFIG_IN_PLACE] = "in place",
                                        [CONFIG_NEW_WORKERS] = "new workers",
                                        [CONFIG_RESTART] = "needs a restart, kept"};
    struct found *f = arg;

    f->in_place += c->reload == CONFIG_IN_PLACE;
    f->new_workers += c->reload == CONFIG_NEW_WORKERS;
    f->restart += c->reload == CONFIG_RESTART;
    report(f->r, "%s: %s -> %s (%s)", c->name, *c->from ? c->from : "(none)",
           *c->to ? c->to : "(none)", words[c->reload]);
    if (c->reload == CONFIG_RESTART)
        log_warn(0, "%s changes only with a restart: \"%s\" stays, not \"%s\"", c->name,
                 c->from, c->to);
    else
        log_info(0, "reload: %s: %s -> %s", c->name, c->from, c->to);
}

/* --- in place -------------------------------------------------------------------------
 */

/* All segments: one that is being left has its own pacers and processes. */
static void publish(struct reload *r, const struct config *cfg)
{
    uint64_t words[CONFIG_LIVE_MAX];
    size_t n = config_live_words(cfg, words);

    FOR_EACH_GENERATION(g, r->gens)
    {
        live_publish(&g->shm, words, n);
        for (size_t i = 0; i < cfg->provider_count; i++) {
            const struct config_provider *p = &cfg->providers[i];

            pacer_set_limits(&g->shm, p->slot, p->rps, p->burst, p->concurrency);
        }
        supervise_configure(&g->sup);
    }
    renew_share_limits(r->renewal, clock_now_ns());
    FOR_EACH_GENERATION(g, r->gens)
    wake_kick(&g->shm);
    log_set_level((enum log_level)cfg->log_level);
    log_set_format((enum log_format)cfg->log_format);
}

/* The values alone, of what both know, into the configuration that is in effect: the rest
 * has to wait. */
static void take_values(struct config *to, const struct config *from)
{
    uint64_t words[CONFIG_LIVE_MAX];

    config_live_words(from, words);
    config_live_apply(to, words);
    for (size_t i = 0; i < to->provider_count; i++) {
        struct config_provider *p = &to->providers[i];
        const struct config_provider *q = config_provider_find(from, p->name);

        if (!q)
            continue;
        p->rps = q->rps;
        p->burst = q->burst;
        p->concurrency = q->concurrency;
    }
}

/* Nobody else has the old one: children have copies. */
static void replace_config(struct reload *r, struct config *cfg)
{
    FOR_EACH_GENERATION(g, r->gens)
    g->sup.serving->config = cfg;
    r->parts->config = cfg;
    config_free(r->now->config);
    r->now->config = cfg;
    publish(r, cfg);
}

/* --- new workers ----------------------------------------------------------------------
 */

static void free_running(struct running *x)
{
    if (x)
        config_free(x->config);
    free(x);
}

/* Names stay for the life of the segment, so there must be room for all that are new. */
static bool have_numbers(struct reload *r, const struct config *cfg)
{
    const struct shm *shm = &r->gens->serving->shm;
    uint32_t n = atomic_load(&shm->hdr->provider_count);

    for (size_t i = 0; i < cfg->provider_count; i++)
        n += pacer_find(shm, cfg->providers[i].name) == PACER_NONE;
    if (n <= SHM_PROVIDERS_MAX)
        return true;
    refuse(r, "there were too many names of providers since the start; only a restart "
              "makes room for others");
    return false;
}

static void number_providers(struct reload *r, struct config *cfg)
{
    struct shm *shm = &r->gens->serving->shm;

    for (size_t i = 0; i < cfg->provider_count; i++) {
        struct config_provider *p = &cfg->providers[i];
        bool is_new = pacer_find(shm, p->name) == PACER_NONE;

        if (pacer_name(shm, p->name, &p->slot) == DAC_OK && is_new)
            pacer_set_limits(shm, p->slot, p->rps, p->burst, p->concurrency);
    }
}

static void bring(struct reload *r, struct config *cfg, uint64_t now_ns)
{
    struct running *next = calloc(1, sizeof(*next));
    char why[512] = "out of memory";

    if (next)
        next->config = cfg;
    if (!next || listeners_prepare(&r->now->listeners, cfg, &next->listeners, why,
                                   sizeof(why)) != DAC_OK) {
        refuse(r, why);
        config_free(cfg);
        free(next);
        return;
    }
    number_providers(r, cfg);
    r->coming = next;
    r->coming_ns = now_ns;
    supervise_bring(&r->gens->serving->sup, cfg, &next->listeners);
}

static void did_not_come(struct reload *r, const char *why)
{
    supervise_dismiss(&r->gens->serving->sup);
    listeners_drop(&r->coming->listeners, &r->now->listeners, true);
    DAC_ASSERT(!r->leaving);
    r->leaving = r->coming; /* until the last of them is reaped */
    r->coming = NULL;
    r->dismissed = true;
    refuse(r, why);
}

static void switch_over(struct reload *r)
{
    struct supervisor *sup = &r->gens->serving->sup;

    if (listeners_activate(&r->coming->listeners) != DAC_OK) {
        did_not_come(r, strerror(errno));
        return;
    }
    r->leaving = r->now;
    r->now = r->coming;
    r->coming = NULL;
    r->parts->config = r->now->config;
    r->parts->listeners = &r->now->listeners;
    supervise_switch(sup);
    publish(r, r->now->config);
    listeners_drop(&r->leaving->listeners, &r->now->listeners, true);
    log_info(0, "reloaded: %" PRIu32 " new workers serve; old ones end their streams",
             sup->serving->count);
    report(r, "%" PRIu32 " new workers serve; old ones end their streams",
           sup->serving->count);
    end_report(r, RELOAD_DONE);
}

static void step_coming(struct reload *r, uint64_t now_ns)
{
    struct supervisor *sup = &r->gens->serving->sup;

    if (sup->other->failed[0])
        did_not_come(r, sup->other->failed);
    else if (supervise_brought(sup))
        switch_over(r);
    else if (now_ns - r->coming_ns > COMING_MAX_NS)
        did_not_come(r, "the new workers did not come up in time");
}

/* --- the whole ------------------------------------------------------------------------
 */

static struct config *load(struct reload *r)
{
    struct config_problems *problems = calloc(1, sizeof(*problems));
    struct config *cfg = NULL;
    enum dac_err e = DAC_E_NOMEM;

    if (problems) {
        e = config_load_again(r->path, (const char *const *)environ, &cfg, problems);
        reload_log_problems(problems);
        report_problems(r, problems);
        config_problems_free(problems);
        free(problems);
    }
    if (e != DAC_OK)
        refuse(r, e == DAC_E_INVALID ? "the configuration has errors" : dac_err_text(e));
    return cfg;
}

/* Of what takes new workers nothing, for now. */
static void wait_for_old(struct reload *r, struct config *cfg)
{
    r->again = true;
    take_values(r->now->config, cfg);
    publish(r, r->now->config);
    config_free(cfg);
    log_info(0, "reloaded in part: what takes new workers waits for old ones to end");
    report(r,
           "what changes in place is in effect; new workers wait until the old ones have "
           "ended their streams (dacctl status shows them)");
    end_report(r, RELOAD_WAITS);
}

static void begin(struct reload *r, bool calm, uint64_t now_ns)
{
    struct found found = {.r = r};
    struct config *cfg;

    r->asked = false;
    r->again = false;
    begin_report(r);
    log_info(0, "reading \"%s\" again", r->path);
    cfg = load(r);
    if (!cfg)
        return;
    config_diff(r->now->config, cfg, on_change, &found);
    if (config_keep_fixed(cfg, r->now->config) != DAC_OK) {
        refuse(r, "out of memory");
        config_free(cfg);
        return;
    }
    if (found.new_workers > 0 && !(calm && supervise_alone(&r->gens->serving->sup))) {
        wait_for_old(r, cfg);
        return;
    }
    if (!have_numbers(r, cfg)) {
        config_free(cfg);
        return;
    }
    if (found.new_workers > 0) {
        bring(r, cfg, now_ns);
        return;
    }
    number_providers(r, cfg);
    replace_config(r, cfg);
    log_info(0, "reloaded: %zu values have changed in place", found.in_place);
    report(r,
           found.in_place + found.restart == 0 ? "nothing has changed"
                                               : "%zu values have changed in place",
           found.in_place);
    end_report(r, RELOAD_DONE);
}

void reload_ask(struct reload *r)
{
    r->asked = true;
}

bool reload_comes(const struct reload *r)
{
    return r->coming != NULL;
}

void reload_step(struct reload *r, bool calm, uint64_t now_ns)
{
    bool alone = supervise_alone(&r->gens->serving->sup);

    if (alone && r->leaving) {
        free_running(r->leaving);
        r->leaving = NULL;
        if (!r->dismissed)
            log_info(0, "the old workers have ended");
        r->dismissed = false;
    }
    if (r->coming)
        step_coming(r, now_ns);
    else if (!r->dismissed && (r->asked || (r->again && alone && calm)))
        begin(r, calm, now_ns);
}

void reload_stop(struct reload *r)
{
    r->stopped = true;
    if (r->asked || (r->outcome == RELOAD_UNDER_WAY && r->number > 0)) {
        r->number += r->asked; /* who has asked for it is told as well */
        report(r, "refused: the service stops");
        r->outcome = RELOAD_REFUSED;
    }
    r->asked = r->again = false;
    if (r->coming)
        listeners_drop(&r->coming->listeners, &r->now->listeners, true);
}

void reload_free(struct reload *r)
{
    free_running(r->now);
    free_running(r->coming);
    free_running(r->leaving);
    buf_free(&r->report);
    memset(r, 0, sizeof(*r));
}
