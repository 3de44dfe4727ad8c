/*
 * The SQL that the build embeds from src/store/migrations/<kind>/: the numbered
 * migrations NNN_name.sql in ascending order of number, from 1 without a gap, and further
 * files by name. Static text; any process.
 */
#ifndef DAC_STORE_MIGRATIONS_H
#define DAC_STORE_MIGRATIONS_H

#include <stdbool.h>
#include <stddef.h>

struct migration {
    int number;
    const char *name; /* file name without folder, number and ".sql", e.g. "initial" */
    const char *sql;
};

extern const struct migration store_migrations_sqlite[];
extern const size_t store_migrations_sqlite_count;
extern const struct migration store_migrations_postgres[];
extern const size_t store_migrations_postgres_count;

/* Makes the roles dac_service and dac_auditor; by somebody who may create roles. */
extern const char store_sql_postgres_roles[];
/* Gives them their rights, if they exist; by the owner of the tables. */
extern const char store_sql_postgres_grants[];

#define MIGRATION_CHECKSUM_SIZE 65

/* SHA-256 of the text that was or would be run, in hexadecimal digits. False: no memory.
 */
bool migration_checksum(const struct migration *m, char out[MIGRATION_CHECKSUM_SIZE]);

#endif
