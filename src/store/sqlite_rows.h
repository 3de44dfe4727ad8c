/*
 * The SQLite writer's connection and what it runs for each row of a batch, inside a
 * transaction that sqlite_writer.c begins and ends. For these two files only. Runs in the
 * recorder.
 */
#ifndef DAC_STORE_SQLITE_ROWS_H
#define DAC_STORE_SQLITE_ROWS_H

#include <sqlite3.h>

#include "store/internal.h"
#include "store/sqlite_checkpoint.h"

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
    W_ALIAS,
    W_N
};

extern const char *const sqlite_rows_sql[W_N];

struct sqlite_store {
    struct store core; /* first */
    sqlite3 *db;
    char *path;              /* owned */
    sqlite3_stmt *stmt[W_N]; /* prepared by the migration */
    bool prepared;
    struct sqlite_checkpoint *checkpoint; /* owned */
    int wal_pages;                        /* length of the log after the last commit */
    int wal_due_pages; /* length at which the next checkpoint is worth it */
};

/* Writes what failed, and why, as the store's error. A damaged database concerns the
 * batch, never the row, so it is not DAC_E_CORRUPT, which a caller takes as a word about
 * what it wanted to store. */
enum dac_err sqlite_rows_fail(struct sqlite_store *s, int rc, const char *what);
/* Runs a statement to its end and resets it. SQLITE_OK, or what went wrong. */
int sqlite_rows_run(struct sqlite_store *s, int which);
/* As sqlite_writer_put() and sqlite_writer_set_aside() document. */
enum dac_err sqlite_rows_put(struct sqlite_store *s, struct store_row *row) DAC_CHECK;
enum dac_err sqlite_rows_set_aside(struct sqlite_store *s,
                                   const struct store_row *row) DAC_CHECK;

#endif
