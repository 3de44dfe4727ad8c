/*
 * The SQLite writer: one connection, write-ahead log, fsync at each commit. A batch is
 * one transaction, begun and committed inside store_write(); a turn that breaks a
 * constraint by its messages is taken out again alone (a savepoint around each would cost
 * the good ones a fifth of their time). Checkpoints are not left to SQLite, which would
 * run them inside a commit that somebody waits for: store_tidy() has a thread do it, and
 * waits only if that does not keep up; a commit does it when the log is long overdue or
 * readers keep it from starting over. Runs in the recorder.
 */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "shm/crash.h"
#include "store/internal.h"
#include "store/migrations.h"
#include "store/rejected.h"
#include "store/sqlite_rows.h"
#include "store/sqlite.h"
#include "store/sqlite_writer.h"

/* Lengths of the log, in pages of 4 KiB: store_tidy() begins a checkpoint, waits for it;
 * a commit does one; readers are waited for, so that the log starts over. A turn that
 * comes alone writes 9 pages, 13 into the spool. One turn finds the disk busy with the
 * checkpoint and one needs a second fdatasync as the log starts over: with a shorter log
 * that would be more than one in a hundred. */
#define WAL_TIDY_PAGES     2500
#define WAL_WAIT_PAGES     2900
#define WAL_OVERDUE_PAGES  4000
#define WAL_RESTART_PAGES  16000
#define WAL_RESTART_MS     50
#define WAL_FILE_MAX_BYTES "67108864" /* what a log that started over keeps */

static struct sqlite_store *self(struct store *st)
{
    return (struct sqlite_store *)st;
}

/* --- opening ------------------------------------------------------------------------ */

/* Makes the file with its mode before SQLite sees it, for the log's files take the same
 * mode. An existing file is not even opened: closing it would drop this process's SQLite
 * locks. */
static void create_file(const char *path)
{
    char copy[PATH_MAX];
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

    if (fd < 0)
        return; /* it is there, or SQLite's own attempt will tell why not */
    close(fd);
    snprintf(copy, sizeof(copy), "%s", path);
    fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
}

static int wal_grew(void *arg, sqlite3 *db, const char *name, int pages)
{
    struct sqlite_store *s = arg;

    (void)db;
    (void)name;
    if (pages < s->wal_pages) /* it started over */
        s->wal_due_pages = WAL_TIDY_PAGES;
    s->wal_pages = pages;
    return SQLITE_OK;
}

/* Turns the write-ahead log on. SQLite does not wait for a lock there itself, since it
 * holds one already; two programs that make the file at once meet here. */
static int turn_log_on(struct sqlite_store *s, bool *on)
{
    const struct timespec pause = {0, 5 * (long)NS_PER_MS};
    sqlite3_stmt *mode = NULL;
    int rc = sqlite3_prepare_v2(s->db, "PRAGMA journal_mode = WAL", -1, &mode, NULL);
    uint64_t until = clock_now_ns() + SQLITE_LOCK_WAIT_MS * NS_PER_MS;

    *on = false;
    if (rc != SQLITE_OK)
        return rc;
    while (sqlite_map(rc = sqlite3_step(mode)) == DAC_E_BUSY && clock_now_ns() < until) {
        sqlite3_reset(mode);
        nanosleep(&pause, NULL);
    }
    if (rc == SQLITE_ROW) {
        const char *word = (const char *)sqlite3_column_text(mode, 0);

        *on = word != NULL && strcmp(word, "wal") == 0;
        rc = SQLITE_OK;
    }
    sqlite3_finalize(mode);
    return rc;
}

static enum dac_err set_up(struct sqlite_store *s, char *why, size_t n)
{
    bool log_on;
    int rc = turn_log_on(s, &log_on);

    if (rc == SQLITE_OK && !log_on) {
        snprintf(why, n,
                 "database \"%s\": its file system has no shared memory for SQLite's "
                 "write-ahead log: use a local disk",
                 s->path);
        return DAC_E_SYS;
    }
    if (rc == SQLITE_OK)
        rc = sqlite3_exec(s->db,
                          "PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0; "
                          "PRAGMA journal_size_limit = " WAL_FILE_MAX_BYTES
                          "; PRAGMA temp_store = MEMORY; PRAGMA cache_size = -16384",
                          NULL, NULL, NULL);
    if (rc != SQLITE_OK)
        return sqlite_explain(s->db, s->path, rc, "could not open database", why, n);
    if (sqlite3_db_readonly(s->db, "main") == 1)
        return sqlite_explain(s->db, s->path, SQLITE_READONLY, "could not write database",
                              why, n);
    sqlite3_wal_hook(s->db, wal_grew, s);
    return DAC_OK;
}

/* --- migrating ---------------------------------------------------------------------- */

static int migrate_one(struct sqlite_store *s, const struct migration *m)
{
    char pragma[96];
    sqlite3_stmt *note = NULL;
    int rc = sqlite3_exec(s->db, m->sql, NULL, NULL, NULL);

    if (rc != SQLITE_OK)
        return rc;
    rc = sqlite3_prepare_v2(s->db,
                            "INSERT INTO schema_migrations (version, name, applied_at) "
                            "VALUES (?1, ?2, ?3)",
                            -1, &note, NULL);
    if (rc != SQLITE_OK)
        return rc;
    if ((sqlite3_bind_int(note, 1, m->number) | sqlite_bind_str(note, 2, m->name) |
         sqlite_bind_time(note, 3, clock_wall_us())) != 0) {
        sqlite3_finalize(note);
        return SQLITE_NOMEM;
    }
    sqlite3_step(note);
    rc = sqlite3_finalize(note);
    if (rc != SQLITE_OK)
        return rc;
    snprintf(pragma, sizeof(pragma),
             "PRAGMA application_id = %d; PRAGMA user_version = %d",
             SQLITE_APPLICATION_ID, m->number);
    return sqlite3_exec(s->db, pragma, NULL, NULL, NULL);
}

/* Versions that were applied before there was a column for it have no checksum yet. */
static int note_checksums(struct sqlite_store *s)
{
    sqlite3_stmt *note = NULL;
    int rc = sqlite3_prepare_v2(s->db,
                                "UPDATE schema_migrations SET checksum = ?2 "
                                "WHERE version = ?1 AND checksum IS NULL",
                                -1, &note, NULL);

    for (size_t i = 0; rc == SQLITE_OK && i < store_migrations_sqlite_count; i++) {
        const struct migration *m = &store_migrations_sqlite[i];
        char sum[MIGRATION_CHECKSUM_SIZE];

        rc = SQLITE_NOMEM;
        if (migration_checksum(m, sum) &&
            (sqlite3_bind_int(note, 1, m->number) | sqlite_bind_str(note, 2, sum)) == 0) {
            sqlite3_step(note);
            rc = sqlite3_reset(note);
        }
    }
    sqlite3_finalize(note);
    return rc;
}

static enum dac_err migrate_all(struct sqlite_store *s, char *why, size_t n)
{
    char what[128];
    int version = 0;
    int rc = sqlite_version(s->db, &version);

    if (rc != SQLITE_OK)
        return sqlite_explain(s->db, s->path, rc, "could not read database", why, n);
    enum dac_err e =
        sqlite_version_check(s->path, version, sqlite_version_newest(), why, n);

    for (size_t i = 0; e == DAC_OK && i < store_migrations_sqlite_count; i++) {
        const struct migration *m = &store_migrations_sqlite[i];

        if (m->number <= version)
            continue;
        rc = migrate_one(s, m);
        if (rc == SQLITE_OK)
            continue;
        snprintf(what, sizeof(what), "could not apply migration %03d_%s to database",
                 m->number, m->name);
        e = sqlite_explain(s->db, s->path, rc, what, why, n);
    }
    if (e == DAC_OK && version < sqlite_version_newest()) {
        rc = note_checksums(s);
        if (rc != SQLITE_OK)
            e = sqlite_explain(s->db, s->path, rc, "could not migrate database", why, n);
    }
    return e;
}

/* Version and migrations under one lock: two programs starting at once take turns. */
static enum dac_err migrate_locked(struct sqlite_store *s, char *why, size_t n)
{
    int rc = sqlite3_exec(s->db, "BEGIN IMMEDIATE", NULL, NULL, NULL);

    if (rc != SQLITE_OK)
        return sqlite_explain(s->db, s->path, rc, "could not lock database", why, n);
    enum dac_err e = migrate_all(s, why, n);

    if (e == DAC_OK) {
        rc = sqlite3_exec(s->db, "COMMIT", NULL, NULL, NULL);
        if (rc != SQLITE_OK)
            e = sqlite_explain(s->db, s->path, rc, "could not migrate database", why, n);
    }
    if (!sqlite3_get_autocommit(s->db))
        (void)sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL);
    return e;
}

static enum dac_err sqlite_store_migrate(struct store *st, char *why, size_t n)
{
    struct sqlite_store *s = self(st);
    enum dac_err e = DAC_OK;
    int version = 0;

    /* Where there is nothing to do, nobody's lock is in the way of a start. */
    if (sqlite_version(s->db, &version) != SQLITE_OK ||
        version != sqlite_version_newest())
        e = migrate_locked(s, why, n);
    if (e != DAC_OK)
        return e;
    if (!s->prepared) {
        int rc = sqlite_prepare_all(s->db, sqlite_rows_sql, W_N, s->stmt);
        if (rc != SQLITE_OK)
            return sqlite_explain(s->db, s->path, rc, "could not use database", why, n);
        s->prepared = true;
    }
    return DAC_OK;
}

/* --- batches ------------------------------------------------------------------------ */

static enum dac_err begin(struct sqlite_store *s)
{
    if (!s->prepared) {
        snprintf(s->core.error, sizeof(s->core.error),
                 "database \"%s\" has not been migrated", s->path);
        return DAC_E_STATE;
    }
    int rc = sqlite_rows_run(s, W_BEGIN);

    return rc == SQLITE_OK ? DAC_OK : sqlite_rows_fail(s, rc, "could not lock database");
}

static void checkpoint(struct sqlite_store *s)
{
    int mode = SQLITE_CHECKPOINT_PASSIVE;

    if (s->wal_pages >= WAL_RESTART_PAGES) {
        mode = SQLITE_CHECKPOINT_RESTART;
        sqlite3_busy_timeout(s->db, WAL_RESTART_MS);
    }
    /* What cannot be moved now, because of a reader, is moved by a later one. */
    (void)sqlite3_wal_checkpoint_v2(s->db, "main", mode, NULL, NULL);
    if (mode != SQLITE_CHECKPOINT_PASSIVE)
        sqlite3_busy_timeout(s->db, SQLITE_LOCK_WAIT_MS);
    s->wal_due_pages = s->wal_pages + WAL_TIDY_PAGES;
}

static enum dac_err commit(struct sqlite_store *s)
{
    store_alive(&s->core);
    CRASH_POINT("recorder_before_commit");
    int rc = sqlite3_get_autocommit(s->db) ? SQLITE_ABORT : sqlite_rows_run(s, W_COMMIT);

    if (rc != SQLITE_OK)
        return sqlite_rows_fail(s, rc, "could not commit to database");
    CRASH_POINT("recorder_after_commit");
    if (s->wal_pages >= s->wal_due_pages + (WAL_OVERDUE_PAGES - WAL_TIDY_PAGES))
        checkpoint(s);
    return DAC_OK;
}

static void sqlite_store_write(struct store *st)
{
    enum dac_err e = sqlite_writer_begin(st);

    for (size_t i = 0; e == DAC_OK && i < st->n; i++) {
        if (st->rows[i].result == DAC_OK)
            e = sqlite_writer_put(st, &st->rows[i]);
    }
    for (size_t i = 0; e == DAC_OK && i < st->n; i++) {
        if (rejected_wanted(&st->rows[i]))
            e = sqlite_writer_set_aside(st, &st->rows[i]);
    }
    if (e == DAC_OK)
        e = sqlite_writer_commit(st);
    if (e != DAC_OK)
        sqlite_writer_rollback(st);
    store_finish(st, e);
}

/* --- its steps, for who adds statements of its own ------------------------------------
 */

sqlite3 *sqlite_writer_db(struct store *st)
{
    return self(st)->db;
}

enum dac_err sqlite_writer_begin(struct store *st)
{
    return begin(self(st));
}

enum dac_err sqlite_writer_put(struct store *st, struct store_row *row)
{
    return sqlite_rows_put(self(st), row);
}

enum dac_err sqlite_writer_set_aside(struct store *st, const struct store_row *row)
{
    return sqlite_rows_set_aside(self(st), row);
}

enum dac_err sqlite_writer_commit(struct store *st)
{
    return commit(self(st));
}

void sqlite_writer_rollback(struct store *st)
{
    if (!sqlite3_get_autocommit(self(st)->db))
        (void)sqlite_rows_run(self(st), W_ROLLBACK);
}

/* A batch has ended before store_write() returns, so none can run. */
static void sqlite_store_abort(struct store *st)
{
    (void)st;
}

static bool sqlite_store_up(const struct store *st)
{
    return ((const struct sqlite_store *)st)->prepared;
}

static void sqlite_store_tidy(struct store *st)
{
    struct sqlite_store *s = self(st);

    if (s->wal_pages < s->wal_due_pages)
        return;
    if (s->wal_pages < s->wal_due_pages + (WAL_WAIT_PAGES - WAL_TIDY_PAGES) &&
        sqlite_checkpoint_begin(s->checkpoint))
        return;
    sqlite_checkpoint_wait(s->checkpoint);
    checkpoint(s);
}

static void sqlite_store_close(struct store *st)
{
    struct sqlite_store *s = self(st);

    sqlite_checkpoint_free(s->checkpoint);
    sqlite_finalize_all(s->stmt, W_N);
    sqlite3_close(s->db);
    free(s->path);
    store_fini(st);
    free(s);
}

static const struct store_ops sqlite_ops = {
    .kind = "sqlite",
    .place = STORE_IN_SQLITE,
    .migrate = sqlite_store_migrate,
    .close = sqlite_store_close,
    .up = sqlite_store_up,
    .write = sqlite_store_write,
    .abort = sqlite_store_abort,
    .tidy = sqlite_store_tidy,
};

enum dac_err store_sqlite_open(struct event_base *base, const struct store_options *opt,
                               struct store **out, char *why, size_t n)
{
    struct sqlite_store *s = calloc(1, sizeof(*s));
    enum dac_err e = DAC_E_NOMEM;

    snprintf(why, n, "out of memory");
    if (s == NULL)
        return e;
    s->wal_due_pages = WAL_TIDY_PAGES;
    s->path = strdup(opt->sqlite);
    s->checkpoint = sqlite_checkpoint_new(opt->sqlite);
    if (store_init(&s->core, &sqlite_ops, base, opt) != DAC_OK || s->path == NULL ||
        s->checkpoint == NULL)
        goto fail;
    create_file(s->path);
    e = sqlite_connect(s->path, SQLITE_OPEN_READWRITE, &s->db, why, n);
    if (e == DAC_OK)
        e = set_up(s, why, n);
    if (e != DAC_OK)
        goto fail;
    *out = &s->core;
    return DAC_OK;

fail:
    sqlite_store_close(&s->core);
    return e;
}
