/*
 * The reader's questions in PostgreSQL's SQL, the same as those of sqlite_query.h: each
 * is one statement, so it sees one moment. What a page or a history may hold is decided
 * by the server, which sends no text beyond it. Runs in the workers.
 */
#ifndef DAC_STORE_POSTGRES_QUERY_H
#define DAC_STORE_POSTGRES_QUERY_H

#include "store/internal.h"
#include "store/postgres_conn.h"
#include "store/postgres_value.h"

enum {
    PQ_LIMIT, /* in front of each question: its timeout and plans, in this transaction */
    PQ_SESSION, /* the same once, where the session is the reader's own */
    PQ_PID,     /* whether it is */
    PQ_THREAD,
    PQ_THREADS,
    PQ_THREADS_AFTER,
    PQ_MESSAGES,
    PQ_MESSAGES_AFTER,
    PQ_HISTORY,
    PQ_TURN,
    PQ_ALIAS,
    PQ_N
};

extern const struct postgres_statement postgres_query_statements[PQ_N];

/* Which statement answers q; its parameters go into `args`, which is empty. */
int postgres_query_build(const struct store_query *q, struct postgres_args *args);
/* Fills q's rows from the statement's rows; the query's result, as its callback
 * documents. */
enum dac_err postgres_query_take(struct store_query *q, const PGresult *res);

#endif
