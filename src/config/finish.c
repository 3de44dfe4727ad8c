/*
 * The last step of loading: values that were left to us, files that settings name, and
 * rules between settings. Reports with the line of the setting that would have to change.
 */
#include "config/load.h"

#include <errno.h>
#include <libpq-fe.h>
#include <math.h>
#include <pwd.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "config/address.h"
#include "config/problems.h"
#include "shm/layout.h"

#define NO_ADDRESS   "no-address"
#define CONNINFO_MAX 65536

#define AT(o) LOAD_AT(l, (o))

const struct config_origin *load_origin(const struct config_origin *origins,
                                        const char *section, const char *name)
{
    return &origins[setting_find(section, name) - settings];
}

static uint32_t usable_cores(void)
{
    cpu_set_t set;
    long n;

    if (sched_getaffinity(0, sizeof(set), &set) == 0)
        n = CPU_COUNT(&set);
    else
        n = sysconf(_SC_NPROCESSORS_ONLN);
    if (n < 1)
        return 1;
    return n > (long)SHM_WORKERS_MAX ? SHM_WORKERS_MAX : (uint32_t)n;
}

/* --- [server] ----------------------------------------------------------------------- */

void load_derived(struct load *l)
{
    struct config *cfg = l->cfg;
    char name[CONFIG_NAME_MAX + 1];

    if (cfg->workers == 0)
        cfg->workers = usable_cores();
    if (!cfg->name && cfg->listen.count > 0) {
        address_instance_name(&cfg->listen.items[0], name);
        cfg->name = strdup(name);
        if (!cfg->name)
            l->nomem = true;
    }
    for (size_t i = 0; i < cfg->provider_count; i++) {
        struct config_provider *p = &cfg->providers[i];

        if (p->burst == 0)
            p->burst = p->rps > 1 ? (uint32_t)ceil(p->rps) : 1;
    }
}

static void check_name(struct load *l)
{
    const struct config *cfg = l->cfg;
    size_t n;

    if (!cfg->name)
        return;
    n = strspn(cfg->name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                          "0123456789._-");
    if (cfg->name[n] != '\0' || n > CONFIG_NAME_MAX || cfg->name[0] == '.')
        problem_add(l->problems, AT(load_origin(cfg->origin, "server", "name")),
                    "name: \"%.60s\" is not valid; use up to %d letters, digits, \".\", "
                    "\"_\" or \"-\", not beginning with \".\"",
                    cfg->name, CONFIG_NAME_MAX);
}

static void finish_user(struct load *l)
{
    struct config *cfg = l->cfg;
    struct passwd pw, *found = NULL;
    char text[16384];

    if (!cfg->user || geteuid() != 0 || l->again)
        return;
    if (getpwnam_r(cfg->user, &pw, text, sizeof(text), &found) != 0 || !found) {
        problem_add(l->problems, AT(load_origin(cfg->origin, "server", "user")),
                    "user: there is no user \"%.60s\"; create it or name another",
                    cfg->user);
        return;
    }
    cfg->uid = pw.pw_uid;
    cfg->gid = pw.pw_gid;
}

/* --- providers ---------------------------------------------------------------------- */

static void finish_provider(struct load *l, struct config_provider *p)
{
    /* One that is there but wrong has been reported. */
    if (!p->base_url &&
        load_origin(p->origin, "provider", "base_url")->source != CONFIG_FROM_FILE)
        problem_add(l->problems, AT(&p->section),
                    "[provider %s] has no base_url; add one like "
                    "base_url = https://api.example.com/v1",
                    p->name);
    load_provider_files(l, p);
    p->slot = (uint32_t)(p - l->cfg->providers);
}

/* Two names that differ only in what variables cannot tell apart. */
static void check_variable_names(struct load *l)
{
    struct config *cfg = l->cfg;

    for (size_t i = 1; i < cfg->provider_count; i++) {
        for (size_t k = 0; k < i; k++) {
            char a[64], b[64];

            load_variable_name(cfg->providers[i].name, "_RPS", a, sizeof(a));
            load_variable_name(cfg->providers[k].name, "_RPS", b, sizeof(b));
            if (strcmp(a, b) == 0)
                problem_add(
                    l->problems, AT(&cfg->providers[i].section),
                    "[provider %s] and [provider %s] share the flag %s; rename one",
                    cfg->providers[i].name, cfg->providers[k].name, a);
        }
    }
}

/* --- rules between settings ----------------------------------------------------------
 */

/* A connection that libpq refuses for the values in a string that it can read: it looks
 * at most of them only when it connects, so it is had begin with addresses that are none,
 * which it comes to last, before it opens anything. Free with PQfinish(). */
static PGconn *try_postgres(const char *conninfo, const PQconninfoOption *o)
{
    static const char *const keywords[] = {"dbname", "password", "hostaddr", NULL};
    const char *host = "";
    struct buf list = BUF_INIT(CONNINFO_MAX);

    for (; o->keyword; o++)
        if (o->val && (strcmp(o->keyword, "host") == 0 ||
                       (host[0] == '\0' && strcmp(o->keyword, "hostaddr") == 0)))
            host = o->val;
    buf_puts(&list, NO_ADDRESS);
    for (; *host; host++)
        if (*host == ',')
            buf_puts(&list, "," NO_ADDRESS);
    const char *values[] = {conninfo, "x", buf_cstr(&list), NULL};
    PGconn *pg = values[2] ? PQconnectStartParams(keywords, values, 1) : NULL;

    buf_free(&list);
    return pg;
}

/* What depends on the environment is left to the children, who have another home. */
static bool is_invalid(const char *complaint)
{
    return strstr(complaint, "invalid ") || strstr(complaint, "port numbers to");
}

/* Whether libpq understands it. Its words are given up to the first quotation: what it
 * quotes may be a password. */
static void check_postgres(struct load *l)
{
    const struct config_origin *at = load_origin(l->cfg->origin, "store", "postgres");
    char *complaint = NULL;
    PQconninfoOption *parsed = PQconninfoParse(l->cfg->postgres, &complaint);
    PGconn *pg = parsed ? try_postgres(l->cfg->postgres, parsed) : NULL;

    if (!parsed)
        problem_add(l->problems, AT(at),
                    "postgres: is no connection string of libpq (%.*s...); write it as "
                    "\"host=... dbname=...\" or postgresql://...",
                    complaint ? (int)strcspn(complaint, "\"\n") : 0,
                    complaint ? complaint : "");
    else if (pg && is_invalid(PQerrorMessage(pg)))
        problem_add(l->problems, AT(at), "postgres: libpq refuses it (%.*s...)",
                    (int)strcspn(PQerrorMessage(pg), ":\"\n"), PQerrorMessage(pg));
    PQfinish(pg);
    PQconninfoFree(parsed);
    PQfreemem(complaint);
}

/* A setting of nanoseconds or bytes as one writes it, into `text`. */
static const char *write_number(const char *section, const char *name, uint64_t v,
                                char text[32])
{
    struct buf b = BUF_INIT(31);

    setting_put_number(setting_find(section, name), v, &b);
    snprintf(text, 32, "%s", buf_cstr(&b) ? b.data : "?");
    buf_free(&b);
    return text;
}

static void check_store(struct load *l)
{
    struct config *cfg = l->cfg;

    if (!cfg->sqlite)
        problem_add(l->problems, AT(load_origin(cfg->origin, "store", "sqlite")),
                    "sqlite: is empty; name a database file");
    if (!cfg->spool)
        problem_add(l->problems, AT(load_origin(cfg->origin, "store", "spool")),
                    "spool: is empty; name a database file");
    if (cfg->spool && cfg->sqlite && strcmp(cfg->spool, cfg->sqlite) == 0)
        problem_add(l->problems, AT(load_origin(cfg->origin, "store", "spool")),
                    "spool: \"%s\" is the file of sqlite; name another one", cfg->spool);
    if (cfg->postgres)
        check_postgres(l);
}

static void check_flight(struct load *l)
{
    struct config *cfg = l->cfg;
    const struct config_origin *grace =
        load_origin(cfg->origin, "flight", "abandon_grace");
    char a[32], b[32];

    if (grace->source != CONFIG_FROM_FILE)
        grace = load_origin(cfg->origin, "flight", "abandon_grace_max");
    if (cfg->abandon_grace_ns > cfg->abandon_grace_max_ns)
        problem_add(
            l->problems, AT(grace),
            "abandon_grace: %s is longer than abandon_grace_max, which is %s; make it at "
            "most that",
            write_number("flight", "abandon_grace", cfg->abandon_grace_ns, a),
            write_number("flight", "abandon_grace", cfg->abandon_grace_max_ns, b));
    if (cfg->flight_max_bytes >= cfg->shm_size_bytes)
        problem_add(
            l->problems, AT(load_origin(cfg->origin, "flight", "flight_max_bytes")),
            "flight_max_bytes: %s is not below shm_size, which is %s; lower it or raise "
            "shm_size in [memory]",
            write_number("memory", "shm_size", cfg->flight_max_bytes, a),
            write_number("memory", "shm_size", cfg->shm_size_bytes, b));
}

void load_finish(struct load *l)
{
    struct config *cfg = l->cfg;

    load_derived(l);
    check_name(l);
    finish_user(l);
    for (size_t i = 0; i < cfg->provider_count; i++)
        finish_provider(l, &cfg->providers[i]);
    check_variable_names(l);
    check_store(l);
    check_flight(l);
}
