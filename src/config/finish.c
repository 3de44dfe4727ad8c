/*
 * The last step of loading: values that were left to us, files that settings name, and
 * rules between settings. Reports with the line of the setting that would have to change.
 */
#include "config/load.h"

#include <errno.h>
#include <libpq-fe.h>
#include <math.h>
#include <openssl/evp.h>
#include <pwd.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "config/address.h"
#include "config/problems.h"
#include "shm/layout.h"

#define KEY_MAX_BYTES   4096
#define ROOTS_MAX_BYTES (16u << 20)
#define NO_ADDRESS      "no-address"
#define CONNINFO_MAX    65536

/* Where a setting or section stands: file and line, 0 if in none. */
#define AT(o) load_file_of(l, (o)), ((o)->source == CONFIG_FROM_FILE ? (o)->line : 0)

static const struct config_origin *origin_of(const struct config_origin *origins,
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
        problem_add(l->problems, AT(origin_of(cfg->origin, "server", "name")),
                    "name: \"%.60s\" is not valid; use up to %d letters, digits, \".\", "
                    "\"_\" or \"-\", not beginning with \".\"",
                    cfg->name, CONFIG_NAME_MAX);
}

static void finish_user(struct load *l)
{
    struct config *cfg = l->cfg;
    struct passwd pw, *found = NULL;
    char text[16384];

    if (!cfg->user || geteuid() != 0)
        return;
    if (getpwnam_r(cfg->user, &pw, text, sizeof(text), &found) != 0 || !found) {
        problem_add(l->problems, AT(origin_of(cfg->origin, "server", "user")),
                    "user: there is no user \"%.60s\"; create it or name another",
                    cfg->user);
        return;
    }
    cfg->uid = pw.pw_uid;
    cfg->gid = pw.pw_gid;
}

/* --- providers ---------------------------------------------------------------------- */

/* Whether text[0..n) can stand in a header as it is. */
static bool key_valid(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (text[i] <= ' ' || text[i] >= 0x7f)
            return false;
    }
    return true;
}

static size_t key_length(const char *text, size_t n)
{
    while (n > 0 && strchr(" \t\r\n", text[n - 1]) && text[n - 1] != '\0')
        n--;
    return n;
}

static void read_key(struct load *l, struct config_provider *p)
{
    const struct config_origin *at = origin_of(p->origin, "provider", "api_key_file");
    struct buf text = BUF_INIT(KEY_MAX_BYTES);
    struct stat st;
    char why[160];
    size_t n;
    int err;

    if (!load_read_file(p->api_key_file, &text, why, sizeof(why), &err)) {
        problem_add(
            l->problems, AT(at),
            "api_key_file: could not read \"%s\": %s; create it with the key in it",
            p->api_key_file, why);
        goto out;
    }
    n = key_length(text.data, text.len);
    if (n == 0) {
        problem_add(l->problems, AT(at),
                    "api_key_file: \"%s\" is empty; put the key into it",
                    p->api_key_file);
    } else if (!key_valid(text.data, n)) {
        problem_add(
            l->problems, AT(at),
            "api_key_file: \"%s\" has more in it than one key; put the key alone on "
            "one line",
            p->api_key_file);
    } else {
        p->api_key = buf_cstr(&text) ? strndup(text.data, n) : NULL;
        if (!p->api_key)
            l->nomem = true;
    }
    if (stat(p->api_key_file, &st) == 0 && (st.st_mode & S_IROTH))
        problem_warn(l->problems, AT(at),
                     "api_key_file: every user can read \"%s\"; chmod it to 0640",
                     p->api_key_file);
out:
    if (text.data)
        explicit_bzero(text.data, text.cap);
    buf_free(&text);
}

/* The roots themselves are read by who needs them; here it matters whether they are
 * others than at the last loading. */
static void read_roots(struct load *l, struct config_provider *p)
{
    struct buf text = BUF_INIT(ROOTS_MAX_BYTES);
    unsigned char sum[EVP_MAX_MD_SIZE];
    char why[160];
    int err;

    if (!load_read_file(p->ca_file, &text, why, sizeof(why), &err))
        problem_add(l->problems, AT(origin_of(p->origin, "provider", "ca_file")),
                    "ca_file: could not read \"%s\": %s; name a PEM file", p->ca_file,
                    why);
    else if (EVP_Q_digest(NULL, "SHA256", NULL, text.data, text.len, sum, NULL) != 1)
        l->nomem = true;
    else
        memcpy(&p->ca_digest, sum, sizeof(p->ca_digest));
    buf_free(&text);
}

static void finish_provider(struct load *l, struct config_provider *p)
{
    /* One that is there but wrong has been reported. */
    if (!p->base_url &&
        origin_of(p->origin, "provider", "base_url")->source != CONFIG_FROM_FILE)
        problem_add(l->problems, AT(&p->section),
                    "[provider %s] has no base_url; add one like "
                    "base_url = https://api.example.com/v1",
                    p->name);
    if (p->api_key_file)
        read_key(l, p);
    if (p->ca_file)
        read_roots(l, p);
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
    const struct config_origin *at = origin_of(l->cfg->origin, "store", "postgres");
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

static void check_rules(struct load *l)
{
    struct config *cfg = l->cfg;
    const struct config_origin *grace = origin_of(cfg->origin, "flight", "abandon_grace");

    if (grace->source != CONFIG_FROM_FILE)
        grace = origin_of(cfg->origin, "flight", "abandon_grace_max");
    if (!cfg->sqlite)
        problem_add(l->problems, AT(origin_of(cfg->origin, "store", "sqlite")),
                    "sqlite: is empty; name a database file");
    if (!cfg->spool)
        problem_add(l->problems, AT(origin_of(cfg->origin, "store", "spool")),
                    "spool: is empty; name a database file");
    if (cfg->spool && cfg->sqlite && strcmp(cfg->spool, cfg->sqlite) == 0)
        problem_add(l->problems, AT(origin_of(cfg->origin, "store", "spool")),
                    "spool: is the file of sqlite; name another one");
    if (cfg->postgres)
        check_postgres(l);
    if (cfg->abandon_grace_ns > cfg->abandon_grace_max_ns)
        problem_add(
            l->problems, AT(grace),
            "abandon_grace: is longer than abandon_grace_max; make it at most that");
    if (cfg->flight_max_bytes >= cfg->shm_size_bytes)
        problem_add(
            l->problems, AT(origin_of(cfg->origin, "flight", "flight_max_bytes")),
            "flight_max_bytes: is not below shm_size; lower it or raise shm_size in "
            "[memory]");
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
    check_rules(l);
}
