/*
 * The reader's questions in SQL: runs one whole query on a connection and fills its rows.
 * Every statement is reset before it returns, so no lock outlives the call. Runs in the
 * workers.
 */
#ifndef DAC_STORE_SQLITE_QUERY_H
#define DAC_STORE_SQLITE_QUERY_H

#include <sqlite3.h>

#include "store/internal.h"

enum {
    R_BEGIN,
    R_END,
    R_THREAD,
    R_THREAD_AT,
    R_THREADS,
    R_THREAD_LIVES,
    R_TURN_AT,
    R_MESSAGE_AT,
    R_TURNS_FROM,
    R_TURNS_UNTIL,
    R_MESSAGES,
    R_TURN,
    R_ALIAS,
    R_N
};

extern const char *const sqlite_query_sql[R_N];

/* DAC_E_BUSY: nothing was read, try again. Otherwise the query's result, as its callback
 * documents. *code: SQLite's own of a failure, or SQLITE_OK if it was not SQLite that
 * failed. */
enum dac_err sqlite_query_run(sqlite3_stmt *const stmts[R_N], struct store_query *q,
                              int *code);

#endif
