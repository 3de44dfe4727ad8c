/*
 * One connection to PostgreSQL on an event loop, which never waits for it: connecting,
 * pipelining, noticing that it is lost, connecting again. The writer and the readers
 * stand on it; what is sent, and in which transactions, is theirs.
 *
 *   RESOLVING -> CONNECTING -> UP -> (lost, or dropped) -> WAITING -> RESOLVING ...
 *
 * A connection string may say all that libpq knows; it is libpq that reads it, with
 * service files, password files and PG* variables. Host names are resolved by a thread of
 * our own, since libpq would do it inside a call on the loop; libpq then gets addresses,
 * and the names to check certificates and passwords by. Looking up has 5 s, connecting
 * over all hosts 5 s more; the next attempt waits 100 ms to 5 s, growing, with jitter,
 * but not for long where somebody waits for it. Kerberos and LDAP look-ups that a string
 * asks for remain libpq's own and block.
 *
 * Settings of the session are left alone, but for application_name and client_encoding,
 * which a pooler keeps per client: behind pgbouncer in transaction mode a session means
 * nothing. Statements are prepared under names made from their text. Where a pooler loses
 * them (SQLSTATE 26000, 42P05) the connection sends text instead, from then on.
 *
 * Not for use after a fork. One connection belongs to one thread.
 */
#ifndef DAC_STORE_POSTGRES_CONN_H
#define DAC_STORE_POSTGRES_CONN_H

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct event_base;
struct postgres_args;
struct postgres_conn;

/* Parameters and results are binary; `types` are the parameters' OIDs, 0: inferred. */
struct postgres_statement {
    const char *sql;
    int params;
    const Oid *types;
};

/* All strings, `statements` and `arg` are borrowed for the connection's life. Callbacks
 * come from the loop, never from inside a call of this header, and may call everything
 * here but postgres_conn_free(). */
struct postgres_options {
    const char *conninfo;    /* as in [store] postgres */
    const char *application; /* "dac: recorder", as pg_stat_activity shows it */
    const struct postgres_statement *statements;
    size_t statement_count;
    /* Connected; nothing is prepared yet. From here to `down` statements may be sent. */
    void (*up)(void *arg);
    /* The connection that was up is gone, or an attempt to connect has failed. What was
     * sent and has not answered will not answer any more: its outcome is unknown. `why`
     * is for the operator and holds no password. Another attempt follows by itself. */
    void (*down)(void *arg, const char *why);
    void *arg;
};

/* Whether libpq understands the string. `why` tells what is wrong without a word of it,
 * since that may be a password. DAC_E_INVALID, DAC_E_NOMEM. */
enum dac_err postgres_conninfo_check(const char *conninfo, char *why, size_t n) DAC_CHECK;

/* Begins to connect at once. DAC_E_INVALID: the string; DAC_E_NOMEM. */
enum dac_err postgres_conn_new(struct event_base *base,
                               const struct postgres_options *opt,
                               struct postgres_conn **out, char *why, size_t n) DAC_CHECK;
/* Closes without waiting; no callback any more. NULL is allowed. */
void postgres_conn_free(struct postgres_conn *c);
bool postgres_conn_is_up(const struct postgres_conn *c);
/* How often a connection was made after the first one. */
uint64_t postgres_conn_reconnects(const struct postgres_conn *c);
/* Why the last attempt or connection failed; "" if none has. Valid until the next call.
 */
const char *postgres_conn_error(const struct postgres_conn *c);
/* 150003 for 15.3; 0 while down. */
int postgres_conn_server_version(const struct postgres_conn *c);
/* Since when nothing moves (clock_now_ns): no byte came from the server, the kernel took
 * none for it, and none that it holds has gone since this was asked last. */
uint64_t postgres_conn_still_since_ns(struct postgres_conn *c);
/* The process id that the other end named when it was connected to; 0 while down. */
int postgres_conn_backend_pid(const struct postgres_conn *c);
/* The server does what is asked of it: the next failure is answered by a quick attempt.
 */
void postgres_conn_works(struct postgres_conn *c);
/* Somebody waits for it: while it is down the next attempt begins a quarter to half a
 * second after the last one did, if that is sooner. Call it again after each that fails,
 * while that is so. */
void postgres_conn_wanted(struct postgres_conn *c);
/* Closes the connection as if it had been lost, for a reason of the caller's: no answer
 * in time, a server that only reads. The server may still do what it was sent. `down`
 * follows from the loop. Without effect while down. */
void postgres_conn_drop(struct postgres_conn *c, const char *why);

/* The answer to one statement or sync; `res` is borrowed until the callback returns. Its
 * status is PGRES_TUPLES_OK, PGRES_COMMAND_OK, PGRES_FATAL_ERROR, PGRES_PIPELINE_ABORTED
 * (an earlier one since the last sync failed) or PGRES_PIPELINE_SYNC; of a sync it is an
 * error where the commit itself failed. */
typedef void (*postgres_result_cb)(void *arg, PGresult *res);

/* Prepares all statements of the options, once they make sense there (the schema is up to
 * date); behind it they can be run at once. A statement that cannot be prepared drops the
 * connection. */
enum dac_err postgres_prepare(struct postgres_conn *c) DAC_CHECK;
/* Runs statement number `which`. Everything between two postgres_sync() is one
 * transaction, unless it says BEGIN and COMMIT itself. The arguments are copied. `cb`
 * may be NULL. DAC_E_STATE: down. DAC_E_NOMEM: nothing was sent, `down` follows. */
enum dac_err postgres_run(struct postgres_conn *c, size_t which,
                          const struct postgres_args *args, postgres_result_cb cb,
                          void *arg) DAC_CHECK;
/* The same for a statement without parameters or name: "BEGIN". */
enum dac_err postgres_run_text(struct postgres_conn *c, const char *sql,
                               postgres_result_cb cb, void *arg) DAC_CHECK;
/* Ends the pipeline's transaction and sends what has gathered: without it nothing need
 * ever be sent. */
enum dac_err postgres_sync(struct postgres_conn *c, postgres_result_cb cb,
                           void *arg) DAC_CHECK;
/* Several statements in one text, without parameters, results as text: for migrations.
 * `cb` gets the first error or else the last result. Only while nothing else is in flight
 * (DAC_E_STATE), and nothing else may be sent before it has answered. */
enum dac_err postgres_script(struct postgres_conn *c, const char *sql,
                             postgres_result_cb cb, void *arg) DAC_CHECK;
/* Statements, syncs and scripts that have not answered. */
size_t postgres_in_flight(const struct postgres_conn *c);

/* SQLSTATE of a failed result, "" if it has none. */
const char *postgres_sqlstate(const PGresult *res);
/* What to tell the operator about a failed result: SQLSTATE, the server's words, table
 * and constraint; where those words could quote a row they are left out. */
void postgres_explain(const PGresult *res, char *why, size_t n);

#endif
