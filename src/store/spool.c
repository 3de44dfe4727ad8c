/*
 * See spool.h. The file and what goes into its queue; what comes out is in spool_drain.c,
 * what is kept of threads in spool_keep.c, the idempotency keys are in spool_alias.c.
 * Runs in the recorder.
 */
#include "store/spool.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "store/internal.h"
#include "store/rejected.h"
#include "store/spool_internal.h"
#include "store/sqlite.h"
#include "store/sqlite_writer.h"

#define ROW_BYTES   2048       /* of a row without its texts, at most */
#define LONG_PAGES  3          /* and of long ones, beyond their own length */
#define SPARE_BYTES (1u << 20) /* beyond the limit, for what takes rows off the queue */

static const char own_tables[] =
    "CREATE TABLE IF NOT EXISTS spool_queue ("
    "seq INTEGER PRIMARY KEY AUTOINCREMENT, kind INTEGER NOT NULL, id TEXT NOT NULL, "
    "thread_id TEXT, org TEXT, title TEXT, at_us INTEGER, followers INTEGER, "
    "hits INTEGER, queued_us INTEGER NOT NULL, key_digest BLOB, body_digest BLOB) STRICT;"
    "CREATE INDEX IF NOT EXISTS spool_queue_by_id ON spool_queue (id);"
    "CREATE INDEX IF NOT EXISTS spool_queue_by_thread ON spool_queue (thread_id) "
    "WHERE thread_id IS NOT NULL;"
    "CREATE TABLE IF NOT EXISTS spool_threads ("
    "thread_id TEXT PRIMARY KEY NOT NULL, used INTEGER NOT NULL, depth INTEGER NOT NULL) "
    "STRICT, WITHOUT ROWID;"
    "CREATE INDEX IF NOT EXISTS spool_threads_by_use ON spool_threads (used);"
    "CREATE TABLE IF NOT EXISTS spool_aliases ("
    "seq INTEGER PRIMARY KEY, org TEXT NOT NULL, key_digest BLOB NOT NULL, "
    "body_digest BLOB NOT NULL, turn_id TEXT NOT NULL, created_us INTEGER NOT NULL, "
    "UNIQUE (org, key_digest)) STRICT;"
    "CREATE TABLE IF NOT EXISTS spool_hand (one INTEGER PRIMARY KEY CHECK (one = 1), "
    "held INTEGER NOT NULL, pid INTEGER NOT NULL, weight INTEGER NOT NULL) STRICT;"
    "CREATE TABLE IF NOT EXISTS spool_deaths ("
    "seq INTEGER PRIMARY KEY, deaths INTEGER NOT NULL) STRICT;"
    "CREATE TABLE IF NOT EXISTS spool_left ("
    "seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, id TEXT NOT NULL, org TEXT, "
    "left_at TEXT NOT NULL, data TEXT NOT NULL) STRICT;"
    "CREATE INDEX IF NOT EXISTS spool_loose_turns ON turns (id) WHERE thread_id IS NULL";

static const char *const spool_sql[S_N] = {
    [S_QUEUE] = "INSERT INTO spool_queue (kind, id, thread_id, org, title, at_us, "
                "followers, hits, queued_us, key_digest, body_digest) "
                "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    [S_PLACEHOLDER] = "INSERT INTO threads (id, org, title, created_at) "
                      "VALUES (?1, ?2, NULL, ?3) ON CONFLICT (id) DO NOTHING",
    [S_TOUCH] = "INSERT INTO spool_threads (thread_id, used, depth) VALUES (?1, ?2, ?3) "
                "ON CONFLICT (thread_id) DO UPDATE SET used = excluded.used",
    [S_DEPTH] = "SELECT depth FROM spool_threads WHERE thread_id = ?1",
    [S_SET_DEPTH] = "UPDATE spool_threads SET depth = ?2 WHERE thread_id = ?1",
    [S_OVERLONG] = "SELECT count(*) FROM (SELECT 1 FROM turns WHERE thread_id = ?1 "
                   "ORDER BY created_at, id LIMIT 1 OFFSET ?2)",
    [S_OLD_TURNS] =
        "SELECT id FROM turns WHERE thread_id = ?1 AND id NOT IN (SELECT id FROM turns "
        "WHERE thread_id = ?1 ORDER BY created_at DESC, id DESC LIMIT ?2) AND NOT EXISTS "
        "(SELECT 1 FROM spool_queue q WHERE q.id = turns.id) ORDER BY created_at, id",
    [S_LOOSE_TURNS] = "SELECT id FROM turns WHERE thread_id IS NULL AND NOT EXISTS "
                      "(SELECT 1 FROM spool_queue q WHERE q.id = turns.id) ORDER BY id",
    [S_DROP_MESSAGES] = "DELETE FROM messages WHERE turn_id = ?1",
    [S_DROP_TURN] = "DELETE FROM turns WHERE id = ?1",
    [S_TRIM_DEPTH] =
        "UPDATE spool_threads SET depth = min(depth, ?2) WHERE thread_id = ?1",
    [S_NEXT] =
        "SELECT q.seq, q.kind, q.id, q.thread_id, q.org, q.title, q.at_us, q.followers, "
        "q.hits, t.provider, t.model, t.status, t.finish_reason, t.error_code, "
        "t.ttft_ms, "
        "t.latency_ms, t.queue_wait_ms, t.prompt_tokens, t.completion_tokens, "
        "t.followers, t.hits, t.generation, t.key_digest, t.created_at, t.finished_at, "
        "u.id, u.content, a.id, a.content, a.citations, t.fetcher, r.reason, r.data, "
        "q.key_digest, q.body_digest, a.tool_calls "
        "FROM spool_queue q "
        "LEFT JOIN turns t ON t.id = q.id AND q.kind = 1 "
        "LEFT JOIN messages u ON u.turn_id = t.id AND u.role = 'user' "
        "LEFT JOIN messages a ON a.turn_id = t.id AND a.role = 'assistant' "
        "LEFT JOIN rejected r ON r.id = q.id AND r.kind = q.title AND q.kind = 5 "
        "ORDER BY q.seq LIMIT ?1",
    [S_FORGET] = "DELETE FROM rejected WHERE (id, kind) IN (SELECT id, title FROM "
                 "spool_queue WHERE kind = 5 AND seq <= ?1)",
    [S_DONE] = "DELETE FROM spool_queue WHERE seq <= ?1",
    [S_REJECT] = "INSERT INTO rejected (id, kind, org, reason, created_at) "
                 "VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id, kind) DO NOTHING",
    [S_COUNT] = "SELECT count(*), min(queued_us) FROM spool_queue",
    [S_PAGES] = "PRAGMA page_count",
    [S_FREE_PAGES] = "PRAGMA freelist_count",
    [S_STALE] =
        "SELECT thread_id, used FROM spool_threads s WHERE NOT EXISTS (SELECT 1 FROM "
        "spool_queue q WHERE q.thread_id = s.thread_id) ORDER BY used LIMIT "
        "max(0, min(?2, (SELECT count(*) FROM spool_threads) - ?1))",
    [S_HEAVY] =
        "SELECT thread_id, used FROM spool_threads s WHERE (used, thread_id) > (?1, ?2) "
        "AND EXISTS (SELECT 1 FROM turns t WHERE t.thread_id = s.thread_id AND NOT "
        "EXISTS (SELECT 1 FROM spool_queue q WHERE q.id = t.id AND q.kind = 1)) "
        "ORDER BY used, thread_id LIMIT ?3",
    [S_HISTORY] =
        "SELECT count(*), sum(length(CAST(m.content AS BLOB))) FROM turns t JOIN "
        "messages m ON m.turn_id = t.id WHERE t.thread_id = ?1 "
        "GROUP BY t.created_at, t.id ORDER BY t.created_at DESC, t.id DESC LIMIT ?2",
    [S_HAND] = "INSERT INTO spool_hand (one, held, pid, weight) VALUES (1, ?1, ?2, ?3) "
               "ON CONFLICT (one) DO UPDATE SET held = excluded.held, "
               "pid = excluded.pid, weight = excluded.weight",
    [S_HELD] = "SELECT held, pid, weight FROM spool_hand",
    [S_DEATHS] = "INSERT INTO spool_deaths (seq, deaths) SELECT seq, ?2 FROM "
                 "(SELECT seq FROM spool_queue ORDER BY seq LIMIT ?1) WHERE true "
                 "ON CONFLICT (seq) DO UPDATE SET deaths = deaths + excluded.deaths",
    [S_SUSPECTS] = "SELECT count(*) FROM spool_deaths",
    [S_SUSPECT] =
        "SELECT seq, deaths, q.id, q.kind, (SELECT count(*) FROM (SELECT 1 FROM "
        "spool_queue b WHERE b.seq < d.seq LIMIT 1000)) FROM spool_deaths d JOIN "
        "spool_queue q USING (seq) WHERE deaths >= ?1 ORDER BY seq LIMIT 1",
    [S_CLEARED] = "DELETE FROM spool_deaths WHERE seq <= ?1",
    [S_LEAVE] =
        "INSERT INTO spool_left (seq, kind, id, org, left_at, data) SELECT q.seq, "
        "CASE q.kind WHEN 0 THEN 'thread' WHEN 1 THEN 'turn' WHEN 2 THEN 'counts' "
        "WHEN 3 THEN 'title' WHEN 4 THEN 'delete' WHEN 5 THEN 'rejected' ELSE 'alias' "
        "END, q.id, q.org, ?2, json_object('thread_id', q.thread_id, 'title', q.title, "
        "'at_us', q.at_us, 'provider', t.provider, 'model', t.model, 'status', t.status, "
        "'finish_reason', t.finish_reason, 'error_code', t.error_code, 'ttft_ms', "
        "t.ttft_ms, 'latency_ms', t.latency_ms, 'queue_wait_ms', t.queue_wait_ms, "
        "'prompt_tokens', t.prompt_tokens, 'completion_tokens', t.completion_tokens, "
        "'followers', coalesce(q.followers, t.followers), 'hits', coalesce(q.hits, "
        "t.hits), 'generation', t.generation, 'fetcher', t.fetcher, 'key_digest', "
        "hex(t.key_digest), 'created_at', t.created_at, 'finished_at', t.finished_at, "
        "'user_message_id', u.id, 'question', u.content, 'assistant_message_id', a.id, "
        "'answer', a.content, 'citations', a.citations, 'tool_calls', a.tool_calls, "
        "'reason', r.reason, 'rejected', "
        "r.data) FROM spool_queue q "
        "LEFT JOIN turns t ON t.id = q.id AND q.kind = 1 "
        "LEFT JOIN messages u ON u.turn_id = t.id AND u.role = 'user' "
        "LEFT JOIN messages a ON a.turn_id = t.id AND a.role = 'assistant' "
        "LEFT JOIN rejected r ON r.id = q.id AND r.kind = q.title AND q.kind = 5 "
        "WHERE q.seq = ?1",
    [S_LEAVE_QUEUE] = "DELETE FROM spool_queue WHERE seq = ?1",
    [S_LEAVE_DEATHS] = "DELETE FROM spool_deaths WHERE seq = ?1",
    [S_DROP_THREAD] = "DELETE FROM threads WHERE id = ?1",
    [S_DROP_INDEX] = "DELETE FROM spool_threads WHERE thread_id = ?1",
    [S_ALIAS] = "INSERT INTO spool_aliases (org, key_digest, body_digest, turn_id, "
                "created_us) VALUES (?1, ?2, ?3, ?4, ?5) "
                "ON CONFLICT (org, key_digest) DO NOTHING",
    [S_ALIAS_DEAD] = "DELETE FROM spool_aliases WHERE org = ?1 AND key_digest = ?2 AND "
                     "created_us < ?3",
    [S_ALIAS_REFUSED] =
        "SELECT count(*) FROM rejected WHERE id = ?1 AND kind = 'turn' AND "
        "NOT EXISTS (SELECT 1 FROM turns WHERE id = ?1)",
    [S_ALIAS_DROP] = "DELETE FROM spool_aliases WHERE org = ?1 AND key_digest = ?2 AND "
                     "turn_id = ?3",
    [S_ALIAS_TRIM] = "DELETE FROM spool_aliases WHERE seq IN "
                     "(SELECT seq FROM spool_aliases ORDER BY seq LIMIT ?1)",
    [S_ALIAS_COUNT] = "SELECT count(*) FROM spool_aliases",
};

_Static_assert(STORE_TURN == 1 && STORE_REJECTED == 5, "S_NEXT and S_FORGET say so");

/* --- failures ----------------------------------------------------------------------- */

enum dac_err spool_fail(struct spool *sp, int rc, const char *what)
{
    return sqlite_explain(sp->db, sp->path, rc, what, sp->error, sizeof sp->error);
}

/* To a store a damaged file is one failure of many; here it is replaced. */
enum dac_err spool_store_failed(struct spool *sp, enum dac_err e)
{
    enum dac_err latest = sqlite_map(sqlite3_errcode(sp->db));

    snprintf(sp->error, sizeof sp->error, "%s", store_error(sp->st));
    return e == DAC_E_SYS && latest == DAC_E_CORRUPT ? latest : e;
}

int spool_run(struct spool *sp, int which)
{
    sqlite3_stmt *s = sp->stmt[which];
    int rc = sqlite3_step(s);

    while (rc == SQLITE_ROW)
        rc = sqlite3_step(s);
    sqlite3_reset(s);
    sqlite3_clear_bindings(s);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

/* --- the queue ---------------------------------------------------------------------- */

const struct id *spool_thread_of(const struct store_row *row)
{
    switch (row->kind) {
    case STORE_THREAD:
        return &row->u.thread.id;
    case STORE_TURN:
        return &row->u.turn.thread_id;
    case STORE_TITLE:
    case STORE_DELETE:
        return &row->u.change.thread;
    case STORE_COUNTS:
    case STORE_REJECTED:
    case STORE_ALIAS:
        break;
    }
    return NULL;
}

static int enqueue(struct spool *sp, const struct store_row *row, int64_t now_us)
{
    static const struct id none = {{0}};
    sqlite3_stmt *s = sp->stmt[S_QUEUE];
    const struct id *thread = spool_thread_of(row);
    const struct store_text *title = NULL;
    struct store_text kind;
    int64_t at_us = 0;
    int bad;

    if (row->kind == STORE_THREAD) {
        title = &row->u.thread.title;
        at_us = row->u.thread.created_us;
    } else if (row->kind == STORE_TITLE || row->kind == STORE_DELETE) {
        title = &row->u.change.title;
        at_us = row->u.change.at_us;
    } else if (row->kind == STORE_REJECTED) {
        kind = (struct store_text){row->u.rejected.kind, strlen(row->u.rejected.kind)};
        title = &kind;
        at_us = row->u.rejected.at_us;
    } else if (row->kind == STORE_ALIAS) {
        at_us = row->u.alias.created_us;
    }
    bad = sqlite3_bind_int(s, 1, (int)row->kind) |
          sqlite_bind_id(s, 2, rejected_id(row)) |
          sqlite_bind_id(s, 3, thread ? thread : &none) |
          sqlite_bind_str(s, 4, rejected_org(row)) | sqlite3_bind_int64(s, 6, at_us) |
          sqlite3_bind_int64(s, 9, now_us);
    if (title)
        bad |= sqlite_bind_text(s, 5, title);
    if (row->kind == STORE_COUNTS)
        bad |= sqlite3_bind_int64(s, 7, row->u.counts.followers) |
               sqlite3_bind_int64(s, 8, row->u.counts.hits);
    if (row->kind == STORE_ALIAS)
        bad |= sqlite3_bind_blob(s, 10, row->u.alias.key_digest,
                                 sizeof row->u.alias.key_digest, SQLITE_STATIC) |
               sqlite3_bind_blob(s, 11, row->u.alias.body_digest,
                                 sizeof row->u.alias.body_digest, SQLITE_STATIC);
    return bad ? SQLITE_NOMEM : spool_run(sp, S_QUEUE);
}

/* The thread was used now. One that is new here begins at `depth`. */
static int touch(struct spool *sp, const struct id *thread, int depth, int64_t now_us)
{
    sqlite3_stmt *s = sp->stmt[S_TOUCH];

    sp->stale = true;
    if ((sqlite_bind_id(s, 1, thread) | sqlite3_bind_int64(s, 2, now_us) |
         sqlite3_bind_int(s, 3, depth)) != 0)
        return SQLITE_NOMEM;
    return spool_run(sp, S_TOUCH);
}

static int make_placeholder(struct spool *sp, const struct store_turn *t)
{
    sqlite3_stmt *s = sp->stmt[S_PLACEHOLDER];

    if ((sqlite_bind_id(s, 1, &t->thread_id) | sqlite_bind_str(s, 2, t->org) |
         sqlite_bind_time(s, 3, t->created_us)) != 0)
        return SQLITE_NOMEM;
    return spool_run(sp, S_PLACEHOLDER);
}

/* One row into the ordinary tables. A thread was looked up before it was asked in, so
 * that it is not here says nothing. */
static enum dac_err put_row(struct spool *sp, struct store_row *row, int64_t now_us)
{
    const struct id *thread = spool_thread_of(row);
    int rc = SQLITE_OK;
    enum dac_err e;

    if (row->kind == STORE_ALIAS) {
        rc = spool_alias_put(sp, row);
        return rc == SQLITE_OK
                   ? DAC_OK
                   : spool_fail(sp, rc, "could not spool an idempotency key in");
    }
    if (row->kind == STORE_TURN && thread && !id_is_zero(thread))
        rc = make_placeholder(sp, &row->u.turn);
    if (rc != SQLITE_OK)
        return spool_fail(sp, rc, "could not spool a turn in");
    e = sqlite_writer_put(sp->st, row);
    if (e != DAC_OK)
        return spool_store_failed(sp, e);
    if (row->result == DAC_E_NOT_FOUND && row->kind != STORE_TURN) {
        row->result = DAC_OK;
        return DAC_OK;
    }
    if (row->result == DAC_OK && thread && !id_is_zero(thread))
        rc = touch(sp, thread, row->kind == STORE_THREAD ? 2 : 0, now_us);
    return rc == SQLITE_OK ? DAC_OK : spool_fail(sp, rc, "could not spool in");
}

/* What was refused here is set aside, here and, once it is there, in PostgreSQL. */
static enum dac_err reject(struct spool *sp, const struct store_row *row, int64_t now_us)
{
    const struct store_row aside = {.kind = STORE_REJECTED,
                                    .u.rejected = {.id = *rejected_id(row),
                                                   .kind = rejected_kind(row),
                                                   .org = rejected_org(row),
                                                   .at_us = now_us}};
    enum dac_err e = sqlite_writer_set_aside(sp->st, row);

    if (e != DAC_OK)
        return spool_store_failed(sp, e);
    int rc = enqueue(sp, &aside, now_us);

    return rc == SQLITE_OK ? DAC_OK : spool_fail(sp, rc, "could not spool in");
}

void spool_give_up(struct spool *sp)
{
    sqlite_writer_rollback(sp->st);
    sp->used_known = false;
    (void)spool_alias_recount(sp);
}

enum dac_err spool_put_rows(struct spool *sp, struct store_row *rows, size_t n,
                            bool queued)
{
    int64_t now_us = clock_wall_us();
    struct spool_step step = spool_step();
    enum dac_err e = sqlite_writer_begin(sp->st);

    if (e != DAC_OK)
        return spool_store_failed(sp, e);
    for (size_t i = 0; e == DAC_OK && i < n; i++) {
        if (rows[i].result != DAC_OK) {
            if (queued && rejected_wanted(&rows[i]))
                e = reject(sp, &rows[i], now_us);
            continue;
        }
        e = put_row(sp, &rows[i], now_us);
        if (e == DAC_OK && queued && rejected_wanted(&rows[i]))
            e = reject(sp, &rows[i], now_us);
        if (e != DAC_OK || rows[i].result != DAC_OK ||
            (rows[i].kind == STORE_REJECTED && rows[i].u.rejected.was_stored))
            continue;
        if (!queued) {
            /* As many as came here, and a step's worth. */
            if (rows[i].kind == STORE_TURN && step.turns <= n &&
                spool_is_overlong(sp, &rows[i].u.turn.thread_id))
                (void)spool_trim(sp, &rows[i].u.turn.thread_id, sp->turns_kept, 1, &step);
            continue;
        }
        int rc = enqueue(sp, &rows[i], now_us);
        if (rc != SQLITE_OK)
            e = spool_fail(sp, rc, "could not spool in");
    }
    if (e == DAC_OK) {
        e = sqlite_writer_commit(sp->st);
        if (e != DAC_OK)
            e = spool_store_failed(sp, e);
    }
    if (e != DAC_OK)
        spool_give_up(sp);
    return e;
}

int spool_read_number(struct spool *sp, int which, int64_t *first, int64_t *second)
{
    sqlite3_stmt *s = sp->stmt[which];
    int rc = sqlite3_step(s);

    if (rc == SQLITE_ROW) {
        *first = sqlite3_column_int64(s, 0);
        if (second)
            *second = sqlite3_column_int64(s, 1);
        rc = SQLITE_OK;
    }
    sqlite3_reset(s);
    return rc;
}

int spool_recount(struct spool *sp)
{
    int64_t rows = 0, oldest = 0;
    int rc = spool_read_number(sp, S_COUNT, &rows, &oldest);

    if (rc == SQLITE_OK) {
        sp->rows = (uint64_t)rows;
        sp->oldest_us = oldest;
    }
    return rc;
}

/* Asked for each batch that somebody waits for, and so not of the file unless something
 * has changed there, which is by this connection alone. */
uint64_t spool_bytes_used(struct spool *sp)
{
    int64_t pages = 0, unused = 0;
    int changes = sqlite3_total_changes(sp->db);

    if (sp->used_known && changes == sp->used_changes)
        return sp->used;
    if (spool_read_number(sp, S_PAGES, &pages, NULL) != SQLITE_OK ||
        spool_read_number(sp, S_FREE_PAGES, &unused, NULL) != SQLITE_OK)
        return 0;
    sp->used = (uint64_t)(pages - unused) * sp->page_size;
    sp->used_changes = changes;
    sp->used_known = true;
    return sp->used;
}

/* --- its limit ---------------------------------------------------------------------- */

/* SQLite itself sees to it that the file does not grow beyond this, whatever it is that
 * grows; what is there already stays. */
static void limit_file(struct spool *sp, uint64_t bytes)
{
    char pragma[64];

    snprintf(pragma, sizeof pragma, "PRAGMA max_page_count = %" PRIu64,
             bytes / sp->page_size);
    (void)sqlite3_exec(sp->db, pragma, NULL, NULL, NULL);
}

/* At most so much of the file does a batch take: a row with its indexes and its place in
 * the queue, and texts, which have pages of their own where they are long. */
size_t spool_rows_size(const struct spool *sp, const struct store_row *rows, size_t n)
{
    size_t bytes = 0;

    for (size_t i = 0; i < n; i++) {
        size_t text = store_row_bytes(&rows[i]);

        bytes += ROW_BYTES + text +
                 (text > sp->page_size / 8 ? LONG_PAGES * sp->page_size : 0);
    }
    return bytes;
}

static bool fits(struct spool *sp, size_t need)
{
    return spool_bytes_used(sp) + need <= sp->max_bytes;
}

static bool disk_is_full(const struct spool *sp, size_t need)
{
    struct statvfs fs;

    return statvfs(sp->path, &fs) == 0 && (uint64_t)fs.f_bavail * fs.f_frsize < 2 * need;
}

static enum dac_err is_full(struct spool *sp)
{
    snprintf(sp->error, sizeof sp->error,
             "spool \"%s\" has reached its limit of %" PRIu64 " bytes (spool_max)",
             sp->path, sp->max_bytes);
    return DAC_E_FULL;
}

void spool_fit(struct spool *sp, size_t *rows, size_t *bytes)
{
    uint64_t used = spool_bytes_used(sp);
    uint64_t half = used < sp->max_bytes ? (sp->max_bytes - used) / 2 : 0;
    uint64_t fit = half / (ROW_BYTES + LONG_PAGES * sp->page_size);

    if (sp->way != WAY_NOTHING)
        return;
    if (*bytes > half)
        *bytes = (size_t)half;
    if (*rows > fit)
        *rows = fit > 0 ? (size_t)fit : 1;
}

enum dac_err spool_put(struct spool *sp, struct store_row *rows, size_t n)
{
    size_t need = spool_rows_size(sp, rows, n);
    /* Of no use far from the limit, and it takes its time. */
    bool near = spool_bytes_used(sp) + need > sp->max_bytes / 2;

    if (!fits(sp, need))
        spool_make_way(sp, sp->max_bytes > need ? sp->max_bytes - need : 0);
    if (!fits(sp, need))
        return is_full(sp);
    if (near)
        limit_file(sp, sp->max_bytes);
    enum dac_err e = spool_put_rows(sp, rows, n, true);

    if (e == DAC_E_CORRUPT && (e = spool_renew(sp)) == DAC_OK)
        e = spool_put_rows(sp, rows, n, true);
    if (near)
        limit_file(sp, sp->max_bytes + SPARE_BYTES);
    if (e == DAC_E_FULL && !disk_is_full(sp, need))
        e = is_full(sp);
    if (e != DAC_OK)
        return e;
    for (size_t i = 0; i < n; i++)
        if (rows[i].result == DAC_OK)
            rows[i].place = STORE_IN_SPOOL;
    sp->rows += n; /* about; counted anew when it is drained */
    if (sp->oldest_us == 0)
        sp->oldest_us = clock_wall_us();
    return DAC_OK;
}

/* --- life --------------------------------------------------------------------------- */

uint64_t spool_rows(const struct spool *sp)
{
    return sp->rows;
}

void spool_stats(struct spool *sp, struct spool_stats *out)
{
    uint64_t used = spool_bytes_used(sp);

    *out = (struct spool_stats){.rows = sp->rows,
                                .bytes = used,
                                .oldest_us = sp->rows > 0 ? sp->oldest_us : 0,
                                .nearly_full = sp->rows > 0 && sp->way >= WAY_HISTORIES &&
                                               used >= sp->max_bytes / 10 * 9};
}

const char *spool_error(const struct spool *sp)
{
    return sp->error;
}

void spool_close(struct spool *sp)
{
    if (!sp)
        return;
    sqlite_finalize_all(sp->stmt, S_N);
    store_close(sp->st);
    free(sp->path);
    free(sp);
}

/* Gives a file that is of no use another name, with what belongs to it. */
static bool rename_away(const char *path)
{
    static const char *const suffixes[] = {"", "-wal", "-shm"};
    char from[PATH_MAX], to[PATH_MAX];
    long long at = (long long)(clock_wall_us() / 1000);

    for (size_t i = 0; i < DAC_ARRAY_LEN(suffixes); i++) {
        snprintf(from, sizeof from, "%s%s", path, suffixes[i]);
        snprintf(to, sizeof to, "%s.aside-%lld%s", path, at, suffixes[i]);
        if (rename(from, to) != 0 && (i == 0 || errno != ENOENT))
            return false;
    }
    log_error(0,
              "spool \"%s\" is of no use and was set aside as \"%s.aside-%lld\"; what is "
              "in it has not reached PostgreSQL",
              path, path, at);
    return true;
}

static enum dac_err make_own(struct spool *sp, char *why, size_t n)
{
    int64_t size = 0;
    sqlite3_stmt *pragma = NULL;
    int rc = sqlite3_exec(sp->db, own_tables, NULL, NULL, NULL);

    if (rc == SQLITE_OK)
        rc = sqlite_prepare_all(sp->db, spool_sql, S_N, sp->stmt);
    if (rc == SQLITE_OK)
        rc = spool_recount(sp);
    if (rc == SQLITE_OK)
        rc = spool_alias_recount(sp);
    if (rc == SQLITE_OK)
        rc = spool_hand_open(sp);
    if (rc == SQLITE_OK)
        rc = sqlite3_prepare_v2(sp->db, "PRAGMA page_size", -1, &pragma, NULL);
    if (rc == SQLITE_OK && sqlite3_step(pragma) == SQLITE_ROW)
        size = sqlite3_column_int64(pragma, 0);
    sqlite3_finalize(pragma);
    sp->page_size = size > 0 ? (uint64_t)size : 4096;
    limit_file(sp, sp->max_bytes + SPARE_BYTES);
    if (rc != SQLITE_OK)
        return sqlite_explain(sp->db, sp->path, rc, "could not use spool", why, n);
    return DAC_OK;
}

static enum dac_err open_once(const struct spool_options *opt, struct spool **out,
                              char *why, size_t n)
{
    const struct store_options store = {
        .sqlite = opt->path, .alive = opt->alive, .arg = opt->arg};
    struct spool *sp = calloc(1, sizeof *sp);
    enum dac_err e = DAC_E_NOMEM;

    snprintf(why, n, "out of memory");
    if (!sp)
        return e;
    sp->opt = *opt;
    sp->max_bytes = opt->max_bytes;
    sp->threads_max = opt->threads_max;
    sp->turns_kept = opt->turns_kept;
    sp->aliases_max = opt->aliases_max;
    sp->loose = sp->stale = true;
    sp->path = strdup(opt->path);
    if (sp->path)
        e = store_sqlite_open(opt->base, &store, &sp->st, why, n);
    if (e == DAC_OK)
        e = store_migrate(sp->st, why, n);
    if (e == DAC_OK) {
        sp->db = sqlite_writer_db(sp->st);
        e = make_own(sp, why, n);
    }
    if (e != DAC_OK) {
        spool_close(sp);
        return e;
    }
    *out = sp;
    return DAC_OK;
}

enum dac_err spool_renew(struct spool *sp)
{
    char why[STORE_ERROR_SIZE];
    struct spool_options opt = sp->opt;
    struct spool *fresh, old;
    enum dac_err e;

    if (opt.as_it_is)
        return DAC_E_CORRUPT;
    log_error(0, "%s", sp->error);
    opt.path = sp->path;
    if (access(sp->path, F_OK) == 0 && !rename_away(sp->path)) {
        snprintf(sp->error, sizeof sp->error, "could not rename spool \"%s\": %s",
                 sp->path, strerror(errno));
        return DAC_E_SYS;
    }
    /* Closing it would remove files by their names, which are those of the new one. */
    (void)sqlite3_db_config(sp->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
    e = open_once(&opt, &fresh, why, sizeof why);
    if (e != DAC_OK) {
        snprintf(sp->error, sizeof sp->error, "%s", why);
        return e;
    }
    old = *sp;
    *sp = *fresh;
    *fresh = old;
    spool_close(fresh);
    return DAC_OK;
}

/* Whether a file is a spool, as far as can be seen without touching it. */
static enum dac_err look_at(const char *path, char *why, size_t n)
{
    sqlite3 *db = NULL;
    sqlite3_stmt *s = NULL;
    bool found = false;
    enum dac_err e = DAC_E_SYS;

    if (access(path, R_OK | W_OK) != 0) {
        snprintf(why, n, "could not open \"%s\": %s", path, strerror(errno));
        return e;
    }
    e = sqlite_connect(path, SQLITE_OPEN_READWRITE, &db, why, n);
    if (e != DAC_OK)
        return e;
    int rc = sqlite3_prepare_v2(
        db, "SELECT 1 FROM sqlite_schema WHERE name = 'spool_queue'", -1, &s, NULL);

    if (rc == SQLITE_OK) {
        rc = sqlite3_step(s);
        found = rc == SQLITE_ROW;
        rc = rc == SQLITE_ROW || rc == SQLITE_DONE ? SQLITE_OK : rc;
    }
    sqlite3_finalize(s);
    if (rc != SQLITE_OK) {
        e = sqlite_explain(db, path, rc, "could not read spool", why, n);
    } else if (!found) {
        snprintf(why, n, "\"%s\" is no spool", path);
        e = DAC_E_INVALID;
    }
    sqlite3_close(db);
    return e;
}

enum dac_err spool_open(const struct spool_options *opt, struct spool **out, char *why,
                        size_t n)
{
    enum dac_err e;

    if (opt->as_it_is && (e = look_at(opt->path, why, n)) != DAC_OK)
        return e;
    e = open_once(opt, out, why, n);
    /* Damaged; or of another program or a newer version. */
    if (!opt->as_it_is &&
        (e == DAC_E_CORRUPT || e == DAC_E_INVALID || e == DAC_E_STATE) &&
        rename_away(opt->path)) {
        log_error(0, "the reason: %s", why);
        e = open_once(opt, out, why, n);
    }
    return e;
}
