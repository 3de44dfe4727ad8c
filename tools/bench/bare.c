/*
 * PostgreSQL: one connection, one prepared INSERT outside of a transaction block, so one
 * round trip and one flush. SQLite: one INSERT in write-ahead mode with synchronous =
 * FULL, so one fdatasync; the log is moved into the file between the measured commits, as
 * the service does it, too.
 */
#include "tools/bench/bare.h"

#include <libpq-fe.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/ids.h"

#define TEXT_MAX  ((size_t)16 << 20)
#define TABLE     "CREATE TABLE IF NOT EXISTS bare (id %s PRIMARY KEY, data text NOT NULL)"
#define LOG_PAGES 1000

struct bare {
    PGconn *pg;
    sqlite3 *db;
    sqlite3_stmt *insert;
    int log_pages;
    char *text; /* owned */
};

static bool run_pg(struct bare *b, PGresult *res, const char *what)
{
    ExecStatusType status = PQresultStatus(res);
    bool ok = status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK;

    if (!ok)
        fprintf(stderr, "dac-bench: %s: %s", what, PQerrorMessage(b->pg));
    PQclear(res);
    return ok;
}

static bool open_pg(struct bare *b, const char *conninfo)
{
    char table[128];

    snprintf(table, sizeof(table), TABLE, "uuid");
    b->pg = PQconnectdb(conninfo);
    if (PQstatus(b->pg) != CONNECTION_OK) {
        fprintf(stderr, "dac-bench: %s", PQerrorMessage(b->pg));
        return false;
    }
    return run_pg(b, PQexec(b->pg, "SET client_min_messages = warning"), "SET") &&
           run_pg(b, PQexec(b->pg, table), "table bare") &&
           run_pg(b,
                  PQprepare(b->pg, "bare", "INSERT INTO bare VALUES ($1, $2)", 2, NULL),
                  "the bare INSERT");
}

static int wal_grew(void *arg, sqlite3 *db, const char *name, int pages)
{
    struct bare *b = arg;

    (void)db, (void)name;
    b->log_pages = pages;
    return SQLITE_OK;
}

static bool open_sqlite(struct bare *b, const char *path)
{
    char script[256];
    int rc = sqlite3_open(path, &b->db);

    snprintf(script, sizeof(script),
             "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; "
             "PRAGMA wal_autocheckpoint = 0; " TABLE,
             "text");
    if (rc == SQLITE_OK)
        rc = sqlite3_exec(b->db, script, NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_prepare_v2(b->db, "INSERT INTO bare VALUES (?1, ?2)", -1, &b->insert,
                                NULL);
    if (rc != SQLITE_OK) {
        fprintf(stderr, "dac-bench: %s: %s\n", path, sqlite3_errmsg(b->db));
        return false;
    }
    sqlite3_wal_hook(b->db, wal_grew, b);
    return true;
}

struct bare *bare_open(const char *where)
{
    struct bare *b = calloc(1, sizeof(*b));
    bool ok = false;

    if (b && (b->text = malloc(TEXT_MAX + 1)) != NULL) {
        memset(b->text, 'x', TEXT_MAX);
        if (strncmp(where, "postgres:", 9) == 0)
            ok = open_pg(b, where + 9);
        else if (strncmp(where, "sqlite:", 7) == 0)
            ok = open_sqlite(b, where + 7);
        else
            fprintf(stderr, "dac-bench: \"%s\" is neither postgres: nor sqlite:\n",
                    where);
    }
    if (ok)
        return b;
    bare_close(b);
    return NULL;
}

static bool commit_sqlite(struct bare *b, const char *id, size_t n)
{
    int rc = SQLITE_NOMEM;

    if (sqlite3_bind_text(b->insert, 1, id, -1, SQLITE_STATIC) == SQLITE_OK &&
        sqlite3_bind_text(b->insert, 2, b->text, (int)n, SQLITE_STATIC) == SQLITE_OK) {
        sqlite3_step(b->insert);
        rc = sqlite3_reset(b->insert);
    }
    if (rc != SQLITE_OK)
        fprintf(stderr, "dac-bench: the bare INSERT: %s\n", sqlite3_errmsg(b->db));
    return rc == SQLITE_OK;
}

bool bare_commit(struct bare *b, size_t n)
{
    char id[ID_TEXT_SIZE];
    struct id fresh = id_new();

    id_format(&fresh, id);
    n = n < TEXT_MAX ? n : TEXT_MAX;
    if (b->db)
        return commit_sqlite(b, id, n);

    const char *values[] = {id, b->text};

    b->text[n] = '\0';
    bool ok = run_pg(b, PQexecPrepared(b->pg, "bare", 2, values, NULL, NULL, 0),
                     "the bare INSERT");
    b->text[n] = 'x';
    return ok;
}

void bare_tidy(struct bare *b)
{
    if (b->log_pages < LOG_PAGES)
        return;
    (void)sqlite3_wal_checkpoint_v2(b->db, "main", SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
    b->log_pages = 0;
}

void bare_close(struct bare *b)
{
    if (!b)
        return;
    PQfinish(b->pg);
    sqlite3_finalize(b->insert);
    sqlite3_close(b->db);
    free(b->text);
    free(b);
}
