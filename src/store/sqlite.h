/*
 * What the SQLite writer and reader share: connecting, the check of the file's version,
 * error codes, texts for the operator, and how times look in the database. Each process
 * opens its own connection after its fork.
 */
#ifndef DAC_STORE_SQLITE_H
#define DAC_STORE_SQLITE_H

#include <sqlite3.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/ids.h"
#include "store/store.h"

#define SQLITE_APPLICATION_ID 0x44414331 /* "DAC1", shown by file(1) */
#define SQLITE_LOCK_WAIT_MS   2000

/* Opens `path` with foreign keys, a lock wait of SQLITE_LOCK_WAIT_MS and no mutex.
 * `flags` are those of sqlite3_open_v2(). On failure *db is NULL and `why` says what to
 * do. */
enum dac_err sqlite_connect(const char *path, int flags, sqlite3 **db, char *why,
                            size_t n);

/* Writes `what` and the reason of `rc` on `path` for the operator, with advice. `db` may
 * be NULL. Returns the error that `rc` stands for. */
enum dac_err sqlite_explain(sqlite3 *db, const char *path, int rc, const char *what,
                            char *why, size_t n);
enum dac_err sqlite_map(int rc);

/* The database's version in *version: 0 is empty, and -1 belongs to another program. */
int sqlite_version(sqlite3 *db, int *version);
/* Refuses a version above `newest` and a foreign database. */
enum dac_err sqlite_version_check(const char *path, int version, int newest, char *why,
                                  size_t n);
/* The number of the newest migration this program has. */
int sqlite_version_newest(void);

/* Prepares statement i from sql[i]. Returns SQLite's code; those prepared stay. */
int sqlite_prepare_all(sqlite3 *db, const char *const *sql, size_t n, sqlite3_stmt **out);
void sqlite_finalize_all(sqlite3_stmt **stmts, size_t n);

/* Binding and reading; each returns 0, or not 0 without memory, so that a row of them is
 * or-ed together. Texts and strings must live until the statement is reset. */
int sqlite_bind_id(sqlite3_stmt *s, int i, const struct id *id); /* copied; zero: NULL */
int sqlite_bind_time(sqlite3_stmt *s, int i, int64_t us);        /* copied */
int sqlite_bind_text(sqlite3_stmt *s, int i, const struct store_text *t);
int sqlite_bind_str(sqlite3_stmt *s, int i, const char *str); /* NULL: NULL */
bool sqlite_read_id(sqlite3_stmt *s, int i, struct id *id);   /* NULL: zero */
bool sqlite_read_time(sqlite3_stmt *s, int i, int64_t *us);
bool sqlite_read_digest(sqlite3_stmt *s, int i,
                        uint8_t out[32]); /* false: not 32 bytes */
/* The eight columns from i on are ttft_ms, latency_ms, queue_wait_ms, prompt_tokens,
 * completion_tokens, followers, hits and generation; -1 stands for a time or a number of
 * tokens that is NULL. */
void sqlite_read_figures(sqlite3_stmt *s, int i, struct store_turn *t);

/* "YYYY-MM-DD HH:MM:SS.ffffff", UTC: it sorts, and SQLite's date functions take it. */
#define SQLITE_TIME_LEN 26
void sqlite_time_format(int64_t us, char out[SQLITE_TIME_LEN + 1]);
bool sqlite_time_parse(const char *s, size_t n, int64_t *us);

#endif
