/*
 * See dacctl_store.h: finding and opening the database, of either kind, and running a
 * statement that both understand. Calls block; nobody waits for dacctl but its user.
 */
#include "dacctl_store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "config/config.h"
#include "dacctl_exit.h"
#include "dacctl_print.h"
#include "store/sqlite.h"

#define LOCK_WAIT_MS 30000

/* --- opening ------------------------------------------------------------------------ */

bool database_is_conninfo(const char *s)
{
    return strchr(s, '=') != NULL || strncmp(s, "postgres://", 11) == 0 ||
           strncmp(s, "postgresql://", 13) == 0;
}

/* The server's notices, such as what a migration did not have to do. */
static void keep_quiet(void *arg, const PGresult *res)
{
    (void)arg;
    (void)res;
}

static void print_lines(const char *text)
{
    int n = (int)strcspn(text, "\n");

    fprintf(stderr, "dacctl: %.*s\n", n, text);
}

static int open_postgres(const char *conninfo, struct database *out)
{
    const char *const names[] = {"dbname", "fallback_application_name", "client_encoding",
                                 NULL};
    const char *const values[] = {conninfo, "dacctl", "UTF8", NULL};

    out->pg = PQconnectdbParams(names, values, 1);
    if (out->pg == NULL || PQstatus(out->pg) != CONNECTION_OK) {
        print_lines(out->pg != NULL ? PQerrorMessage(out->pg) : "out of memory");
        return EXIT_UNUSABLE;
    }
    PQsetNoticeReceiver(out->pg, keep_quiet, NULL);
    return EXIT_DONE;
}

static int open_sqlite(const char *path, struct database *out)
{
    char why[512];
    bool opened = false;
    int version = 0;

    if (access(path, F_OK) != 0) {
        fprintf(
            stderr,
            "dacctl: there is no database \"%s\": %s (dacd makes it when it starts)\n",
            path, strerror(errno));
        return EXIT_UNUSABLE;
    }
    out->path = strdup(path);
    if (out->path == NULL) {
        fputs("dacctl: out of memory\n", stderr);
        return EXIT_UNUSABLE;
    }
    enum dac_err e =
        sqlite_connect(path, SQLITE_OPEN_READWRITE, &out->db, why, sizeof(why));

    if (e == DAC_OK && sqlite3_busy_timeout(out->db, LOCK_WAIT_MS) == SQLITE_OK) {
        int rc = sqlite_version(out->db, &version);

        if (rc != SQLITE_OK)
            e = sqlite_explain(out->db, path, rc, "could not read database", why,
                               sizeof(why));
        else
            e = sqlite_version_check(path, version, sqlite_version_newest(), why,
                                     sizeof(why));
        opened = rc == SQLITE_OK;
    }
    if (e != DAC_OK)
        fprintf(stderr, "dacctl: %s\n", why);
    if (e == DAC_OK)
        return EXIT_DONE;
    return opened ? EXIT_NOT_DONE : EXIT_UNUSABLE;
}

static int open_named(const char *name, struct database *out)
{
    return database_is_conninfo(name) ? open_postgres(name, out) : open_sqlite(name, out);
}

int database_open(const struct store_arguments *args, struct database *out)
{
    struct config_problems problems = {0};
    struct config *cfg = NULL;
    int rc = EXIT_UNUSABLE;

    memset(out, 0, sizeof(*out));
    if (args->database != NULL) {
        rc = open_named(args->database, out);
    } else if (config_look(args->conf, (const char *const *)environ, &cfg, &problems) !=
               DAC_OK) {
        config_problems_print(&problems, stderr);
        fputs(
            "dacctl: the configuration cannot be used (-d names a database without it)\n",
            stderr);
    } else if (cfg->postgres != NULL) {
        rc = open_postgres(cfg->postgres, out);
    } else {
        rc = open_sqlite(cfg->sqlite, out);
    }
    config_problems_free(&problems);
    config_free(cfg);
    if (rc != EXIT_DONE)
        database_close(out);
    return rc;
}

void database_close(struct database *d)
{
    PQfinish(d->pg);
    sqlite3_close(d->db);
    free(d->path);
    memset(d, 0, sizeof(*d));
}

/* --- running ------------------------------------------------------------------------ */

static bool run_postgres(struct database *d, const char *doing, const char *sql,
                         const char *const params[2], int64_t *n)
{
    int count = params[1] != NULL ? 2 : params[0] != NULL;
    PGresult *res = PQexecParams(d->pg, sql, count, NULL, params, NULL, NULL, 0);
    ExecStatusType status = PQresultStatus(res);
    const char *text = NULL;
    bool ok = true;

    if (status == PGRES_TUPLES_OK && PQntuples(res) == 1)
        text = PQgetvalue(res, 0, 0);
    else if (status == PGRES_COMMAND_OK)
        text = PQcmdTuples(res);
    else
        ok = false;
    if (ok && n != NULL)
        *n = text[0] != '\0' ? strtoll(text, NULL, 10) : 0;
    if (!ok) {
        const char *state = PQresultErrorField(res, PG_DIAG_SQLSTATE);
        const char *why = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);

        fprintf(stderr, "dacctl: could not %s: %s%s\n", doing,
                why != NULL ? why : PQerrorMessage(d->pg),
                state != NULL && strcmp(state, "42501") == 0
                    ? ": run it as the database's owner (-d)"
                    : "");
    }
    PQclear(res);
    return ok;
}

static bool run_sqlite(struct database *d, const char *doing, const char *sql,
                       const char *const params[2], int64_t *n)
{
    static const char *const names[] = {"$1", "$2"};
    sqlite3_stmt *s = NULL;
    char why[512];
    int rc = sqlite3_prepare_v2(d->db, sql, -1, &s, NULL);

    for (int i = 0; rc == SQLITE_OK && i < 2; i++) {
        int at = sqlite3_bind_parameter_index(s, names[i]);

        if (at > 0)
            rc = sqlite3_bind_text(s, at, params[i], -1, SQLITE_STATIC);
    }
    if (rc == SQLITE_OK) {
        rc = sqlite3_step(s);
        if (n != NULL)
            *n = rc == SQLITE_ROW ? sqlite3_column_int64(s, 0) : sqlite3_changes(d->db);
    }
    int rc2 = sqlite3_finalize(s);

    if (rc == SQLITE_ROW || rc == SQLITE_DONE)
        rc = rc2;
    if (rc == SQLITE_OK)
        return true;
    char what[128];

    snprintf(what, sizeof(what), "could not %s in", doing);
    (void)sqlite_explain(d->db, d->path, rc, what, why, sizeof(why));
    fprintf(stderr, "dacctl: %s\n", why);
    return false;
}

bool database_run(struct database *d, const char *doing, const char *sql, const char *p1,
                  const char *p2, int64_t *n)
{
    const char *const params[] = {p1, p2};

    return d->pg != NULL ? run_postgres(d, doing, sql, params, n)
                         : run_sqlite(d, doing, sql, params, n);
}

/* --- what is printed ---------------------------------------------------------------- */

int store_print(struct buf *b, int rc)
{
    return dacctl_print(b) ? rc : EXIT_UNUSABLE;
}

int store_say_no(const struct store_arguments *args, int rc)
{
    struct buf b = BUF_INIT(64);

    if (!args->json || rc != EXIT_NOT_DONE)
        return rc;
    buf_puts(&b, "{\"ok\":false}\n");
    return store_print(&b, rc);
}
