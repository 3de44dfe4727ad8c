/*
 * dacctl's commands on the database, which need no service and no segment. They return
 * what to exit with, and say on stderr what went wrong and how far they are; with `json`
 * stdout has one object, or nothing where there was no database to work on.
 */
#ifndef DAC_TOOLS_DACCTL_STORE_H
#define DAC_TOOLS_DACCTL_STORE_H

#include <libpq-fe.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"

struct store_arguments {
    const char *conf;     /* configuration file; NULL: the usual one */
    const char *database; /* connection string or SQLite file; NULL: the configured one */
    const char *file;     /* what the command is about; NULL: it takes none */
    const char *older_than;
    bool all;
    bool dry_run;
    bool print_roles;
    bool json;
};

/* Exactly one of pg and db is set while it is open. */
struct database {
    PGconn *pg;
    sqlite3 *db;
    char *path; /* owned; of the SQLite file */
};

/* Whether a name is a libpq connection string, not a file. */
bool database_is_conninfo(const char *s);
/* Opens what the arguments or the configuration name. Returns EXIT_DONE, or what to exit
 * with, and has said why: EXIT_UNUSABLE, EXIT_NOT_DONE if another release made it. An
 * SQLite file that is not there is not made. */
int database_open(const struct store_arguments *args, struct database *out);
void database_close(struct database *d);
/* Runs one statement whose parameters are $1 and $2 (NULL: it has none of that number).
 * *n: the rows it changed, or the number it has selected. False: it has said why, as
 * "could not <doing>: ...". */
bool database_run(struct database *d, const char *doing, const char *sql, const char *p1,
                  const char *p2, int64_t *n);

/* Prints an object that was built, and frees it. What to exit with: `rc`, or
 * EXIT_UNUSABLE where that cannot be (it has said why). */
int store_print(struct buf *b, int rc);

/* Returns `rc`. With --json an answer that is no is told as an object, too. */
int store_say_no(const struct store_arguments *args, int rc);

int dacctl_migrate(const struct store_arguments *args);
int dacctl_prune(const struct store_arguments *args);
int dacctl_spool(const struct store_arguments *args);

#endif
