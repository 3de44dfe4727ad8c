/*
 * The settings under which transactions run: how long a statement may take, that plans
 * are kept, of the writer that a commit is durable. Where it is the server that is spoken
 * to they are the session's, set once. Behind a pooler in transaction mode a session
 * means nothing and belongs to others as well, so there each transaction begins with
 * them.
 *
 * Which of the two it is, is asked: a pooler makes up the process id that a client is
 * told when it connects.
 */
#ifndef DAC_STORE_POSTGRES_SESSION_H
#define DAC_STORE_POSTGRES_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "store/postgres_conn.h"
#include "store/postgres_value.h"

/* Numbers of the connection's statements: asks for the process id; sets for the session;
 * does so until the end of the transaction. The latter two have the same parameters. */
struct postgres_session_sql {
    size_t pid;
    size_t session;
    size_t local;
};

/* Embedded in its owner, zero-initialised. */
struct postgres_session {
    struct postgres_conn *conn;
    const struct postgres_session_sql *sql;
    bool direct;    /* no pooler in between */
    uint64_t asked; /* the settings that the session was told; 0: none */
    uint64_t has;   /* that it has, for certain; 0: none */
};

/* The connection is up and its statements are prepared. `sql` is static. */
void postgres_session_begin(struct postgres_session *s, struct postgres_conn *c,
                            const struct postgres_session_sql *sql);
/* Begins a transaction: sends nothing if the session has these settings, else a statement
 * that answers to `cb`. `a` has its parameters; `which` is another number for other ones,
 * and not 0. DAC_E_STATE: down; DAC_E_NOMEM: `down` follows. */
enum dac_err postgres_session_set(struct postgres_session *s,
                                  const struct postgres_args *a, uint64_t which,
                                  postgres_result_cb cb, void *arg) DAC_CHECK;

#endif
