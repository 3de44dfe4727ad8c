/*
 * The settings under which the writer's transactions run: how long a statement may take,
 * that a commit is durable, that plans are kept. Where it is the server that is spoken to
 * they are the session's, set once. Behind a pooler in transaction mode a session means
 * nothing and belongs to others as well, so there each transaction begins with them.
 *
 * Which of the two it is, is asked: a pooler makes up the process id that a client is
 * told when it connects.
 */
#ifndef DAC_STORE_POSTGRES_SESSION_H
#define DAC_STORE_POSTGRES_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "store/postgres_conn.h"
#include "store/postgres_value.h"

/* Embedded in the writer, zero-initialised. */
struct postgres_session {
    struct postgres_conn *conn;
    bool direct;         /* no pooler in between */
    uint64_t asked_ns;   /* the timeout that the session was told; 0: none */
    uint64_t timeout_ns; /* that it has, for certain; 0: none */
};

/* The connection is up and its statements are prepared. */
void postgres_session_begin(struct postgres_session *s, struct postgres_conn *c);
/* Begins a transaction, whose statements are to take no longer than `timeout_ns`; sends
 * nothing if the session has these settings, else a statement that answers to `cb`. `a`
 * is scratch memory. DAC_E_STATE: down; DAC_E_NOMEM: `down` follows. */
enum dac_err postgres_session_limit(struct postgres_session *s, struct postgres_args *a,
                                    uint64_t timeout_ns, postgres_result_cb cb,
                                    void *arg) DAC_CHECK;

#endif
