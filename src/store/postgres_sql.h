/*
 * The statements of the PostgreSQL writer and their parameters: one function for each,
 * which puts rows of a batch into it. For postgres_writer.c only.
 *
 * Threads and turns of a batch go in by one statement each, a single one as values, many
 * as arrays. Another pair of statements asks which of them are not there under their org;
 * it is needed only where fewer rows went in than were sent. Look-ups of single ids are
 * written as subqueries, not joins: a plan that is kept from when a table was small must
 * not read it whole when it is large.
 */
#ifndef DAC_STORE_POSTGRES_SQL_H
#define DAC_STORE_POSTGRES_SQL_H

#include "store/postgres_conn.h"
#include "store/postgres_value.h"
#include "store/store.h"

enum {
    W_PID,
    W_SESSION,
    W_LIMITS,
    W_THREAD,
    W_THREADS,
    W_THREADS_MISSING,
    W_TURN,
    W_TURNS,
    W_TURNS_MISSING,
    W_COUNTS,
    W_TITLE,
    W_DELETE,
    W_REJECTED,
    W_ASIDE,
    W_ALIAS,
    W_N
};

extern const struct postgres_statement postgres_writer_sql[W_N];

/* Each takes the rows whose result is DAC_OK and whose kind is its own. */
void postgres_put_limits(struct postgres_args *a, uint64_t timeout_ns);
/* These two return which statement it is: one for a single row, which is cheaper, or the
 * one of many. Its command tag says how many threads, or messages, are new: *expected if
 * all of them are; if there are fewer, those that are missing have to be looked for. */
int postgres_put_threads(struct postgres_args *a, const struct store_row *rows, size_t n,
                         size_t *expected) DAC_CHECK;
int postgres_put_turns(struct postgres_args *a, const struct store_row *rows, size_t n,
                       size_t *expected) DAC_CHECK;
/* Their ids and orgs: of W_THREADS_MISSING and W_TURNS_MISSING, which answer with the
 * place of a row among those of its kind, from 1, and whether the id exists. */
void postgres_put_ids(struct postgres_args *a, const struct store_row *rows, size_t n,
                      enum store_row_kind kind);
/* Single rows of the other kinds. */
void postgres_put_counts(struct postgres_args *a, const struct store_counts *c);
void postgres_put_title(struct postgres_args *a, const struct store_change *c);
void postgres_put_delete(struct postgres_args *a, const struct store_change *c);
/* Of a STORE_REJECTED row; touches no row if the thread or turn is stored. */
void postgres_put_aside(struct postgres_args *a, const struct store_rejected *j);
/* Answers with a row if its turn is stored, whatever the key stands for. */
void postgres_put_alias(struct postgres_args *a, const struct store_alias *s);
/* A refused row; `sqlstate` may be "". */
void postgres_put_rejected(struct postgres_args *a, const struct store_row *row,
                           const char *sqlstate);

#endif
