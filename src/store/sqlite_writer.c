/*
 * The SQLite writer: one connection, write-ahead log, fsync at each commit. A batch is
 * one transaction, begun and committed inside store_write(); a turn that breaks a
 * constraint by its messages is taken out again alone (a savepoint around each would cost
 * the good ones a fifth of their time). Checkpoints are not left to SQLite, which would
 * run them inside a commit that somebody waits for: store_tidy() does, and a commit only
 * when the log is long overdue or readers keep it from starting over. Runs in the
 * recorder.
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
#include "store/sqlite.h"
#include "store/sqlite_writer.h"

/* Lengths of the log, in pages of 4 KiB: store_tidy() checkpoints; a commit does; readers
 * are waited for, so that the log starts over. */
#define WAL_TIDY_PAGES     1000
#define WAL_OVERDUE_PAGES  4000
#define WAL_RESTART_PAGES  16000
#define WAL_RESTART_MS     50
#define WAL_FILE_MAX_BYTES "67108864" /* what a log that started over keeps */

enum {
    W_BEGIN,
    W_COMMIT,
    W_ROLLBACK,
    W_THREAD,
    W_THREAD_ORG,
    W_TURN,
    W_TURN_ORG,
    W_MESSAGE,
    W_COUNTS,
    W_TITLE,
    W_DELETE,
    W_UNDO_MESSAGES,
    W_UNDO_TURN,
    W_ASIDE,
    W_REJECTED,
    W_N
};

static const char *const writer_sql[W_N] = {
    [W_BEGIN] = "BEGIN IMMEDIATE",
    [W_COMMIT] = "COMMIT",
    [W_ROLLBACK] = "ROLLBACK",
    [W_THREAD] =
        "INSERT INTO threads (id, org, title, created_at) VALUES (?1, ?2, ?3, ?4) "
        "ON CONFLICT (id) DO NOTHING",
    [W_THREAD_ORG] = "SELECT org FROM threads WHERE id = ?1",
    [W_TURN] =
        "INSERT INTO turns (id, org, thread_id, provider, model, status, "
        "finish_reason, error_code, ttft_ms, latency_ms, queue_wait_ms, prompt_tokens, "
        "completion_tokens, followers, hits, generation, key_digest, created_at, "
        "finished_at, fetcher) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, "
        "?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20) ON CONFLICT (id) DO NOTHING",
    [W_TURN_ORG] = "SELECT org FROM turns WHERE id = ?1",
    [W_MESSAGE] =
        "INSERT INTO messages (id, turn_id, thread_id, role, content, citations, "
        "created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    [W_COUNTS] = "UPDATE turns SET followers = ?2, hits = ?3 WHERE id = ?1",
    [W_TITLE] = "UPDATE threads SET title = ?3 WHERE id = ?1 AND org = ?2 AND "
                "deleted_at IS NULL",
    [W_DELETE] = "UPDATE threads SET deleted_at = coalesce(deleted_at, ?3) WHERE id = ?1 "
                 "AND org = ?2",
    [W_UNDO_MESSAGES] = "DELETE FROM messages WHERE turn_id = ?1",
    [W_UNDO_TURN] = "DELETE FROM turns WHERE id = ?1",
    [W_ASIDE] =
        "INSERT INTO rejected (id, kind, org, reason, data, created_at) "
        "SELECT ?1, ?2, ?3, ?4, ?5, ?6 "
        "WHERE NOT (?2 = 'turn' AND EXISTS (SELECT 1 FROM turns WHERE id = ?1)) "
        "AND NOT (?2 = 'thread' AND EXISTS (SELECT 1 FROM threads WHERE id = ?1)) "
        "ON CONFLICT (id, kind) DO UPDATE SET reason = excluded.reason",
    [W_REJECTED] = "INSERT INTO rejected (id, kind, org, reason, data, created_at) "
                   "VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (id, kind) DO NOTHING",
};

struct sqlite_store {
    struct store core; /* first */
    sqlite3 *db;
    char *path;              /* owned */
    sqlite3_stmt *stmt[W_N]; /* prepared by the migration */
    bool prepared;
    int wal_pages;     /* length of the log after the last commit */
    int wal_due_pages; /* length at which the next checkpoint is worth it */
};

static struct sqlite_store *self(struct store *st)
{
    return (struct sqlite_store *)st;
}

/* A damaged database concerns the batch, never the row, so it is not DAC_E_CORRUPT, which
 * a caller takes as a word about what it wanted to store. */
static enum dac_err fail(struct sqlite_store *s, int rc, const char *what)
{
    enum dac_err e =
        sqlite_explain(s->db, s->path, rc, what, s->core.error, sizeof(s->core.error));

    return e == DAC_E_CORRUPT ? DAC_E_SYS : e;
}

/* Runs a statement to its end and resets it. SQLITE_OK, or what went wrong. */
static int run(struct sqlite_store *s, int which)
{
    int rc = sqlite3_step(s->stmt[which]);

    if (rc == SQLITE_ROW)
        rc = SQLITE_DONE;
    int rc2 = sqlite3_reset(s->stmt[which]);

    if (rc != SQLITE_DONE)
        return rc;
    return rc2;
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
        int rc = sqlite_prepare_all(s->db, writer_sql, W_N, s->stmt);
        if (rc != SQLITE_OK)
            return sqlite_explain(s->db, s->path, rc, "could not use database", why, n);
        s->prepared = true;
    }
    return DAC_OK;
}

/* --- rows --------------------------------------------------------------------------- */

/* Whether the row of `id` that `which` finds is of `org`; *found: whether there is one.
 */
static int same_org(struct sqlite_store *s, int which, const struct id *id,
                    const char *org, bool *found, bool *same)
{
    sqlite3_stmt *q = s->stmt[which];

    *found = *same = false;
    if (sqlite_bind_id(q, 1, id) != 0)
        return SQLITE_NOMEM;
    int rc = sqlite3_step(q);

    if (rc == SQLITE_ROW) {
        const char *text = (const char *)sqlite3_column_text(q, 0);

        *found = true;
        *same = text != NULL && strcmp(text, org) == 0;
        rc = SQLITE_DONE;
    }
    sqlite3_reset(q);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* What a statement's failure means: DAC_OK if the row alone is refused, else the batch is
 * lost. */
static enum dac_err row_failed(struct sqlite_store *s, struct store_row *row, int rc,
                               const char *what)
{
    enum dac_err e = fail(s, rc, what);

    if (e != DAC_E_INVALID)
        return e;
    store_row_refuse(row, e, "%s %s", what, sqlite3_errmsg(s->db));
    s->core.error[0] = '\0';
    return DAC_OK;
}

/* The row was there before. That is a replay, unless it is another org's. */
static enum dac_err check_replay(struct sqlite_store *s, struct store_row *row, int which,
                                 const struct id *id, const char *org)
{
    char text[ID_TEXT_SIZE];
    bool found, same;
    int rc = same_org(s, which, id, org, &found, &same);

    if (rc != SQLITE_OK)
        return fail(s, rc, "could not read database");
    if (same)
        return DAC_OK;
    id_format(id, text);
    store_row_refuse(row, DAC_E_INVALID, "%s exists in another org", text);
    return DAC_OK;
}

static enum dac_err put_thread(struct sqlite_store *s, struct store_row *row)
{
    const struct store_thread *t = &row->u.thread;
    sqlite3_stmt *q = s->stmt[W_THREAD];
    int rc = SQLITE_NOMEM;

    if ((sqlite_bind_id(q, 1, &t->id) | sqlite_bind_str(q, 2, t->org) |
         sqlite_bind_text(q, 3, &t->title) | sqlite_bind_time(q, 4, t->created_us)) == 0)
        rc = run(s, W_THREAD);
    sqlite3_clear_bindings(q);
    if (rc != SQLITE_OK)
        return row_failed(s, row, rc, "could not store a thread in");
    if (sqlite3_changes(s->db) == 0)
        return check_replay(s, row, W_THREAD_ORG, &t->id, t->org);
    return DAC_OK;
}

static int bind_real(sqlite3_stmt *q, int i, double v)
{
    return v < 0 ? sqlite3_bind_null(q, i) : sqlite3_bind_double(q, i, v);
}

static int bind_count(sqlite3_stmt *q, int i, int64_t v)
{
    return v < 0 ? sqlite3_bind_null(q, i) : sqlite3_bind_int64(q, i, v);
}

static int insert_turn(struct sqlite_store *s, const struct store_turn *t)
{
    sqlite3_stmt *q = s->stmt[W_TURN];
    int rc = SQLITE_NOMEM;
    int bad =
        sqlite_bind_id(q, 1, &t->id) | sqlite_bind_str(q, 2, t->org) |
        sqlite_bind_id(q, 3, &t->thread_id) | sqlite_bind_str(q, 4, t->provider) |
        sqlite_bind_str(q, 5, t->model) | sqlite_bind_str(q, 6, t->status) |
        sqlite_bind_str(q, 7, t->finish_reason) | sqlite_bind_str(q, 8, t->error_code) |
        bind_real(q, 9, t->ttft_ms) | bind_real(q, 10, t->latency_ms) |
        bind_real(q, 11, t->queue_wait_ms) | bind_count(q, 12, t->prompt_tokens) |
        bind_count(q, 13, t->completion_tokens) |
        sqlite3_bind_int64(q, 14, t->followers) | sqlite3_bind_int64(q, 15, t->hits) |
        sqlite3_bind_int(q, 16, t->generation) |
        sqlite3_bind_blob(q, 17, t->key_digest, sizeof(t->key_digest), SQLITE_STATIC) |
        sqlite_bind_time(q, 18, t->created_us) | sqlite_bind_time(q, 19, t->finished_us) |
        sqlite_bind_str(q, 20, t->fetcher);

    if (bad == 0)
        rc = run(s, W_TURN);
    sqlite3_clear_bindings(q);
    return rc;
}

static int insert_message(struct sqlite_store *s, const struct store_turn *t, bool answer)
{
    static const struct store_text none = {NULL, 0};
    sqlite3_stmt *q = s->stmt[W_MESSAGE];
    int rc = SQLITE_NOMEM;
    int bad =
        sqlite_bind_id(q, 1, answer ? &t->assistant_message_id : &t->user_message_id) |
        sqlite_bind_id(q, 2, &t->id) | sqlite_bind_id(q, 3, &t->thread_id) |
        sqlite_bind_str(q, 4, answer ? "assistant" : "user") |
        sqlite_bind_text(q, 5, answer ? &t->assistant_content : &t->user_content) |
        sqlite_bind_text(q, 6, answer ? &t->citations : &none) |
        sqlite_bind_time(q, 7, answer ? t->finished_us : t->created_us);

    if (bad == 0)
        rc = run(s, W_MESSAGE);
    sqlite3_clear_bindings(q);
    return rc;
}

/* Takes out a turn that this batch has put in without all of its messages. */
static bool undo_turn(struct sqlite_store *s, const struct id *turn)
{
    static const int statements[] = {W_UNDO_MESSAGES, W_UNDO_TURN};

    for (size_t i = 0; i < DAC_ARRAY_LEN(statements); i++) {
        if (sqlite_bind_id(s->stmt[statements[i]], 1, turn) != 0 ||
            run(s, statements[i]) != SQLITE_OK)
            return false;
    }
    return true;
}

static void refuse_thread(struct store_row *row, const struct id *thread)
{
    char text[ID_TEXT_SIZE];

    id_format(thread, text);
    store_row_refuse(row, DAC_E_NOT_FOUND, "thread %s does not exist in its org", text);
}

static enum dac_err check_thread(struct sqlite_store *s, struct store_row *row,
                                 const struct store_turn *t)
{
    bool found, same;

    if (id_is_zero(&t->thread_id))
        return DAC_OK;
    int rc = same_org(s, W_THREAD_ORG, &t->thread_id, t->org, &found, &same);

    if (rc != SQLITE_OK)
        return fail(s, rc, "could not read database");
    if (!same)
        refuse_thread(row, &t->thread_id);
    return DAC_OK;
}

static enum dac_err put_turn(struct sqlite_store *s, struct store_row *row)
{
    static const char what[] = "could not store a turn in";
    const struct store_turn *t = &row->u.turn;
    enum dac_err e = check_thread(s, row, t);

    if (e != DAC_OK || row->result != DAC_OK)
        return e;
    int rc = insert_turn(s, t);

    if (rc != SQLITE_OK)
        return row_failed(s, row, rc, what);
    if (sqlite3_changes(s->db) == 0) /* and its messages with it */
        return check_replay(s, row, W_TURN_ORG, &t->id, t->org);
    rc = insert_message(s, t, false);
    if (rc == SQLITE_OK && t->assistant_content.s != NULL)
        rc = insert_message(s, t, true);
    if (rc == SQLITE_OK)
        return DAC_OK;
    e = row_failed(s, row, rc, what);
    /* Any other failure loses the batch anyway. */
    return e == DAC_OK && !undo_turn(s, &t->id) ? DAC_E_SYS : e;
}

static enum dac_err put_counts(struct sqlite_store *s, struct store_row *row)
{
    const struct store_counts *c = &row->u.counts;
    char text[ID_TEXT_SIZE];
    sqlite3_stmt *q = s->stmt[W_COUNTS];
    int rc = SQLITE_NOMEM;

    if ((sqlite_bind_id(q, 1, &c->turn) | sqlite3_bind_int64(q, 2, c->followers) |
         sqlite3_bind_int64(q, 3, c->hits)) == 0)
        rc = run(s, W_COUNTS);
    sqlite3_clear_bindings(q);
    if (rc != SQLITE_OK)
        return row_failed(s, row, rc, "could not store counts in");
    if (sqlite3_changes(s->db) > 0)
        return DAC_OK;
    id_format(&c->turn, text);
    store_row_refuse(row, DAC_E_NOT_FOUND, "turn %s is not stored", text);
    return DAC_OK;
}

static enum dac_err put_change(struct sqlite_store *s, struct store_row *row)
{
    const struct store_change *c = &row->u.change;
    int which = row->kind == STORE_TITLE ? W_TITLE : W_DELETE;
    sqlite3_stmt *q = s->stmt[which];
    int rc = SQLITE_NOMEM;

    if ((sqlite_bind_id(q, 1, &c->thread) | sqlite_bind_str(q, 2, c->org) |
         (which == W_TITLE ? sqlite_bind_text(q, 3, &c->title)
                           : sqlite_bind_time(q, 3, c->at_us))) == 0)
        rc = run(s, which);
    sqlite3_clear_bindings(q);
    if (rc != SQLITE_OK)
        return row_failed(s, row, rc, "could not change a thread in");
    if (sqlite3_changes(s->db) == 0)
        refuse_thread(row, &c->thread);
    return DAC_OK;
}

static int run_rejected(struct sqlite_store *s, int which, const struct store_rejected *j)
{
    sqlite3_stmt *q = s->stmt[which];
    int rc = SQLITE_NOMEM;

    if ((sqlite_bind_id(q, 1, &j->id) | sqlite_bind_str(q, 2, j->kind) |
         sqlite_bind_str(q, 3, j->org) | sqlite_bind_str(q, 4, j->reason) |
         sqlite_bind_text(q, 5, &j->data) | sqlite_bind_time(q, 6, j->at_us)) == 0)
        rc = run(s, which);
    sqlite3_clear_bindings(q);
    return rc;
}

static enum dac_err put_rejected(struct sqlite_store *s, struct store_row *row)
{
    int rc = run_rejected(s, W_ASIDE, &row->u.rejected);

    if (rc != SQLITE_OK)
        return row_failed(s, row, rc, "could not set a row aside in");
    row->u.rejected.was_stored = sqlite3_changes(s->db) == 0;
    return DAC_OK;
}

/* A row that was refused goes to `rejected`, in the same transaction. */
static enum dac_err set_aside(struct sqlite_store *s, const struct store_row *row)
{
    struct buf data = BUF_INIT(REJECTED_DATA_MAX);
    enum dac_err e = DAC_OK;
    struct store_row aside;
    int rc;

    rejected_make(row, row->why, &data, &aside);
    rc = run_rejected(s, W_REJECTED, &aside.u.rejected);
    if (rc != SQLITE_OK && fail(s, rc, "could not set a row aside in") != DAC_E_INVALID)
        e = DAC_E_SYS;
    else if (rc != SQLITE_OK)
        log_error(0, "a refused row could not be set aside either: %s", s->core.error);
    buf_free(&data);
    return e;
}

/* --- batches ------------------------------------------------------------------------ */

static enum dac_err begin(struct sqlite_store *s)
{
    if (!s->prepared) {
        snprintf(s->core.error, sizeof(s->core.error),
                 "database \"%s\" has not been migrated", s->path);
        return DAC_E_STATE;
    }
    int rc = run(s, W_BEGIN);

    return rc == SQLITE_OK ? DAC_OK : fail(s, rc, "could not lock database");
}

static enum dac_err put(struct sqlite_store *s, struct store_row *row)
{
    switch (row->kind) {
    case STORE_THREAD:
        return put_thread(s, row);
    case STORE_TURN:
        return put_turn(s, row);
    case STORE_COUNTS:
        return put_counts(s, row);
    case STORE_TITLE:
    case STORE_DELETE:
        return put_change(s, row);
    case STORE_REJECTED:
        return put_rejected(s, row);
    }
    return DAC_E_STATE;
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
    int rc = sqlite3_get_autocommit(s->db) ? SQLITE_ABORT : run(s, W_COMMIT);

    if (rc != SQLITE_OK)
        return fail(s, rc, "could not commit to database");
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
    return put(self(st), row);
}

enum dac_err sqlite_writer_set_aside(struct store *st, const struct store_row *row)
{
    return set_aside(self(st), row);
}

enum dac_err sqlite_writer_commit(struct store *st)
{
    return commit(self(st));
}

void sqlite_writer_rollback(struct store *st)
{
    if (!sqlite3_get_autocommit(self(st)->db))
        (void)run(self(st), W_ROLLBACK);
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

    if (s->wal_pages >= s->wal_due_pages)
        checkpoint(s);
}

static void sqlite_store_close(struct store *st)
{
    struct sqlite_store *s = self(st);

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
    if (store_init(&s->core, &sqlite_ops, base, opt) != DAC_OK || s->path == NULL)
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
