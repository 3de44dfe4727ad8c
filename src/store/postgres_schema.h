/*
 * What a PostgreSQL database needs to have this program's schema: a machine that says
 * what to run next and is fed with the answers, so that it works on an event loop (the
 * recorder) as well as with blocking calls (dacctl). It holds no connection.
 *
 *   look: which server, is there a schema? -> read its version -> apply what it lacks
 *
 * What is applied is one text of several statements without BEGIN, so the server makes
 * one transaction of it, all or nothing; it first takes an advisory lock of that
 * transaction, then looks whether another program was quicker.
 */
#ifndef DAC_STORE_POSTGRES_SCHEMA_H
#define DAC_STORE_POSTGRES_SCHEMA_H

#include <libpq-fe.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/bytes.h"
#include "base/err.h"

struct postgres_schema {
    const char *sql; /* to be run next, results as text; NULL: ended */
    enum dac_err result;
    char why[512]; /* of a failure, for the operator; no content of rows */
    int version;   /* found in the database; 0: it has no schema */
    int applied;   /* how many migrations this run has applied */
    /* private */
    int step;
    int rounds;
    bool dry_run;
    char role[64];
    struct buf text;
};

/* `s` is zero-initialised or was used before.
 * dry_run: ends when the version is known, with DAC_OK also if something is missing. */
void postgres_schema_begin(struct postgres_schema *s, bool dry_run);
/* The answer to `sql`: its first error, or else its last result. */
void postgres_schema_feed(struct postgres_schema *s, const PGresult *res);
void postgres_schema_free(struct postgres_schema *s);

/* The number of the newest migration this program has. */
int postgres_schema_newest(void);

#endif
