/*
 * The numbered migrations, embedded by the build from
 * src/store/migrations/<kind>/NNN_name.sql in ascending order of number, from 1 without a
 * gap. Static text; any process.
 */
#ifndef DAC_STORE_MIGRATIONS_H
#define DAC_STORE_MIGRATIONS_H

#include <stddef.h>

struct migration {
    int number;
    const char *name; /* file name without folder, number and ".sql", e.g. "initial" */
    const char *sql;
};

extern const struct migration store_migrations_sqlite[];
extern const size_t store_migrations_sqlite_count;

#endif
