/*
 * Brings a PostgreSQL database up to date: the numbered migrations that it lacks, in one
 * transaction under an advisory lock of that transaction, so that several programs may
 * start at once, also behind a pooler. Called by the recorder's writer whenever it has
 * connected.
 */
#ifndef DAC_STORE_POSTGRES_MIGRATE_H
#define DAC_STORE_POSTGRES_MIGRATE_H

#include "base/err.h"
#include "store/postgres_conn.h"
#include "store/postgres_schema.h"

/* DAC_OK: the schema is the one of this program. DAC_E_STATE: it never will be, because
 * the database is from a newer release or of another program; `why` is a sentence for the
 * operator. Other: it could not be read or changed; another attempt may succeed. Not
 * called where the connection goes down first: then the connection's `down` is. */
typedef void (*postgres_migrate_cb)(void *arg, enum dac_err e, const char *why);

/* One run; embedded in its owner, zero-initialised. */
struct postgres_migration {
    struct postgres_schema schema;
    struct postgres_conn *conn;
    postgres_migrate_cb cb;
    void *arg;
};

/* The connection is up and nothing is in flight on it. `cb` comes from the loop. `m` may
 * be used again once `cb` was called or the connection went down. */
void postgres_migrate(struct postgres_migration *m, struct postgres_conn *c,
                      postgres_migrate_cb cb, void *arg);
/* Frees what a run has; not while one is under way. */
void postgres_migrate_free(struct postgres_migration *m);

#endif
