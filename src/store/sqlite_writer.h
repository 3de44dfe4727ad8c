/*
 * The steps of a SQLite batch, for a store that adds statements of its own to the same
 * transaction: begin, put each row, commit, or rollback after a failure. Between
 * store_write() calls only. Runs in the recorder.
 */
#ifndef DAC_STORE_SQLITE_WRITER_H
#define DAC_STORE_SQLITE_WRITER_H

#include <sqlite3.h>

#include "store/store.h"

/* Borrowed. */
sqlite3 *sqlite_writer_db(struct store *st);
/* DAC_E_BUSY: another program has held the lock for 2 s. */
enum dac_err sqlite_writer_begin(struct store *st) DAC_CHECK;
/* DAC_OK: row->result says what became of it, and a refused one has left nothing. Other:
 * the batch is lost. */
enum dac_err sqlite_writer_put(struct store *st, struct store_row *row) DAC_CHECK;
/* A row that was refused goes to `rejected`, in the same transaction. Other than DAC_OK:
 * the batch is lost. */
enum dac_err sqlite_writer_set_aside(struct store *st,
                                     const struct store_row *row) DAC_CHECK;
/* DAC_OK: durable. */
enum dac_err sqlite_writer_commit(struct store *st) DAC_CHECK;
/* Without effect outside of a transaction. */
void sqlite_writer_rollback(struct store *st);

#endif
