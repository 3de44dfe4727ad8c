/*
 * See sqlite.h. Used by the recorder's writer and the workers' readers.
 */
#include "store/sqlite.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/migrations.h"

/* --- failures ----------------------------------------------------------------------- */

enum dac_err sqlite_map(int rc)
{
    switch (rc & 0xff) {
    case SQLITE_OK:
    case SQLITE_ROW:
    case SQLITE_DONE:
        return DAC_OK;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_PROTOCOL:
        return DAC_E_BUSY;
    case SQLITE_NOMEM:
        return DAC_E_NOMEM;
    case SQLITE_FULL:
        return DAC_E_FULL;
    case SQLITE_CONSTRAINT:
    case SQLITE_TOOBIG:
    case SQLITE_MISMATCH:
        return DAC_E_INVALID;
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return DAC_E_CORRUPT;
    case SQLITE_PERM:
    case SQLITE_READONLY:
    case SQLITE_AUTH:
        return DAC_E_DENIED;
    default:
        return DAC_E_SYS;
    }
}

static bool allowed(const char *path, int mode)
{
    return faccessat(AT_FDCWD, path, mode, AT_EACCESS) == 0;
}

/* Why the file cannot be opened, as far as the file system tells; false if it tells
 * nothing. */
static bool explain_path(const char *path, char *out, size_t n)
{
    char copy[PATH_MAX];
    struct stat st;

    if (strlen(path) >= sizeof(copy)) {
        snprintf(out, n, "the path is longer than %d bytes", PATH_MAX - 1);
        return true;
    }
    strcpy(copy, path);
    const char *folder = dirname(copy);

    if (stat(folder, &st) != 0) {
        snprintf(out, n,
                 "its folder \"%s\" cannot be reached (%s): create it or change "
                 "sqlite in [store]",
                 folder, strerror(errno));
        return true;
    }
    if (!S_ISDIR(st.st_mode)) {
        snprintf(out, n, "\"%s\" is not a folder", folder);
        return true;
    }
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) {
        snprintf(out, n, "it is not a regular file");
        return true;
    }
    if (!allowed(folder, W_OK | X_OK)) {
        snprintf(out, n,
                 "user %u may not write in its folder \"%s\", where SQLite keeps "
                 "further files: change the folder's owner",
                 (unsigned)geteuid(), folder);
        return true;
    }
    if (!allowed(path, F_OK)) {
        snprintf(out, n, "%s", strerror(errno));
        return true;
    }
    if (!allowed(path, R_OK | W_OK)) {
        snprintf(out, n, "user %u may not read and write it: change its owner or mode",
                 (unsigned)geteuid());
        return true;
    }
    return false;
}

enum dac_err sqlite_explain(sqlite3 *db, const char *path, int rc, const char *what,
                            char *why, size_t n)
{
    char detail[PATH_MAX + 128];
    bool latest = db != NULL && sqlite3_extended_errcode(db) == rc;
    const char *text = latest ? sqlite3_errmsg(db) : sqlite3_errstr(rc);
    int sys = latest ? sqlite3_system_errno(db) : 0;

    switch (rc & 0xff) {
    case SQLITE_CANTOPEN:
    case SQLITE_PERM:
    case SQLITE_READONLY:
        if (!explain_path(path, detail, sizeof(detail)))
            snprintf(detail, sizeof(detail), "%s%s%s", text, sys != 0 ? ": " : "",
                     sys != 0 ? strerror(sys) : "");
        break;
    case SQLITE_NOTADB:
        snprintf(
            detail, sizeof(detail),
            "it is not an SQLite database: move it away or change sqlite in [store]");
        break;
    case SQLITE_CORRUPT:
        snprintf(
            detail, sizeof(detail),
            "it is damaged (%s): check it with the sqlite3 shell's .recover, or restore "
            "a backup",
            text);
        break;
    case SQLITE_FULL:
        snprintf(detail, sizeof(detail), "the disk is full: free space on it");
        break;
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_PROTOCOL:
        snprintf(detail, sizeof(detail),
                 "another program holds its lock: is a second service or a shell with an "
                 "open transaction using it?");
        break;
    default:
        snprintf(detail, sizeof(detail), "%s%s%s", text, sys != 0 ? ": " : "",
                 sys != 0 ? strerror(sys) : "");
        break;
    }
    snprintf(why, n, "%s \"%s\": %s", what, path, detail);
    return sqlite_map(rc);
}

/* --- connecting --------------------------------------------------------------------- */

enum dac_err sqlite_connect(const char *path, int flags, sqlite3 **db, char *why,
                            size_t n)
{
    /* Statistics that nobody reads would take a mutex at each allocation. Refused, and
     * harmless, once SQLite has started. */
    (void)sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0);
    int rc = sqlite3_open_v2(path, db,
                             flags | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, NULL);

    if (rc == SQLITE_OK)
        rc = sqlite3_busy_timeout(*db, SQLITE_LOCK_WAIT_MS);
    if (rc == SQLITE_OK)
        rc = sqlite3_exec(*db, "PRAGMA foreign_keys = ON", NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        return DAC_OK;
    enum dac_err e = sqlite_explain(*db, path, rc, "could not open database", why, n);

    sqlite3_close(*db);
    *db = NULL;
    return e;
}

static int query_int(sqlite3 *db, const char *sql, int *out)
{
    sqlite3_stmt *s = NULL;
    int rc = sqlite3_prepare_v2(db, sql, -1, &s, NULL);

    if (rc != SQLITE_OK)
        return rc;
    rc = sqlite3_step(s);
    if (rc == SQLITE_ROW)
        *out = sqlite3_column_int(s, 0);
    sqlite3_finalize(s);
    return rc == SQLITE_ROW ? SQLITE_OK : rc;
}

int sqlite_version(sqlite3 *db, int *version)
{
    int app = 0;
    int objects = 0;
    /* All of one moment: another program may be migrating. */
    int rc = sqlite3_exec(db, "SAVEPOINT version", NULL, NULL, NULL);

    if (rc != SQLITE_OK)
        return rc;
    rc = query_int(db, "PRAGMA application_id", &app);
    if (rc == SQLITE_OK)
        rc = query_int(db, "PRAGMA user_version", version);
    if (rc == SQLITE_OK)
        rc = query_int(db, "SELECT count(*) FROM sqlite_schema", &objects);
    (void)sqlite3_exec(db, "RELEASE version", NULL, NULL, NULL);
    if (rc != SQLITE_OK)
        return rc;
    if (app == 0 && *version == 0 && objects == 0)
        return SQLITE_OK;
    if (app != SQLITE_APPLICATION_ID)
        *version = -1;
    return SQLITE_OK;
}

int sqlite_version_newest(void)
{
    return store_migrations_sqlite[store_migrations_sqlite_count - 1].number;
}

enum dac_err sqlite_version_check(const char *path, int version, int newest, char *why,
                                  size_t n)
{
    if (version < 0) {
        snprintf(why, n,
                 "database \"%s\" belongs to another program: change sqlite in [store]",
                 path);
        return DAC_E_STATE;
    }
    if (version > newest) {
        snprintf(
            why, n,
            "database \"%s\" has version %d, this program knows versions up to %d: it "
            "was written by a newer release; install that, or restore a backup",
            path, version, newest);
        return DAC_E_STATE;
    }
    return DAC_OK;
}

int sqlite_prepare_all(sqlite3 *db, const char *const *sql, size_t n, sqlite3_stmt **out)
{
    for (size_t i = 0; i < n; i++) {
        int rc =
            sqlite3_prepare_v3(db, sql[i], -1, SQLITE_PREPARE_PERSISTENT, &out[i], NULL);

        if (rc != SQLITE_OK)
            return rc;
    }
    return SQLITE_OK;
}

void sqlite_finalize_all(sqlite3_stmt **stmts, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        sqlite3_finalize(stmts[i]);
        stmts[i] = NULL;
    }
}

/* --- values ------------------------------------------------------------------------- */

int sqlite_bind_id(sqlite3_stmt *s, int i, const struct id *id)
{
    char text[ID_TEXT_SIZE];

    if (id_is_zero(id))
        return sqlite3_bind_null(s, i);
    id_format(id, text);
    return sqlite3_bind_text(s, i, text, ID_TEXT_LEN, SQLITE_TRANSIENT);
}

int sqlite_bind_time(sqlite3_stmt *s, int i, int64_t us)
{
    char text[SQLITE_TIME_LEN + 1];

    sqlite_time_format(us, text);
    return sqlite3_bind_text(s, i, text, SQLITE_TIME_LEN, SQLITE_TRANSIENT);
}

int sqlite_bind_text(sqlite3_stmt *s, int i, const struct store_text *t)
{
    if (t->s == NULL)
        return sqlite3_bind_null(s, i);
    return sqlite3_bind_text64(s, i, t->s, t->n, SQLITE_STATIC, SQLITE_UTF8);
}

int sqlite_bind_str(sqlite3_stmt *s, int i, const char *str)
{
    if (str == NULL)
        return sqlite3_bind_null(s, i);
    return sqlite3_bind_text(s, i, str, -1, SQLITE_STATIC);
}

bool sqlite_read_id(sqlite3_stmt *s, int i, struct id *id)
{
    const char *text = (const char *)sqlite3_column_text(s, i);

    memset(id, 0, sizeof(*id));
    return text == NULL || id_parse(text, (size_t)sqlite3_column_bytes(s, i), id);
}

bool sqlite_read_time(sqlite3_stmt *s, int i, int64_t *us)
{
    const char *text = (const char *)sqlite3_column_text(s, i);

    *us = 0;
    return text != NULL &&
           sqlite_time_parse(text, (size_t)sqlite3_column_bytes(s, i), us);
}

bool sqlite_read_digest(sqlite3_stmt *s, int i, uint8_t out[32])
{
    const void *digest = sqlite3_column_blob(s, i);

    if (digest == NULL || sqlite3_column_bytes(s, i) != 32)
        return false;
    memcpy(out, digest, 32);
    return true;
}

static double read_real(sqlite3_stmt *s, int i)
{
    return sqlite3_column_type(s, i) == SQLITE_NULL ? -1 : sqlite3_column_double(s, i);
}

static int64_t read_count(sqlite3_stmt *s, int i)
{
    return sqlite3_column_type(s, i) == SQLITE_NULL ? -1 : sqlite3_column_int64(s, i);
}

void sqlite_read_figures(sqlite3_stmt *s, int i, struct store_turn *t)
{
    t->ttft_ms = read_real(s, i);
    t->latency_ms = read_real(s, i + 1);
    t->queue_wait_ms = read_real(s, i + 2);
    t->prompt_tokens = read_count(s, i + 3);
    t->completion_tokens = read_count(s, i + 4);
    t->followers = sqlite3_column_int64(s, i + 5);
    t->hits = sqlite3_column_int64(s, i + 6);
    t->generation = sqlite3_column_int(s, i + 7);
}
