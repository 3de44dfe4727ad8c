/*
 * `dacctl migrate`: brings a database up to date as dacd does at its start, for those who
 * want it done by another role or at another time; --dry-run prints the SQL that is
 * missing, --print-roles that of PostgreSQL's roles. Nothing is printed on stdout that is
 * not SQL.
 */
#include <event2/event.h>
#include <stdio.h>

#include "dacctl_store.h"
#include "store/migrations.h"
#include "store/postgres_schema.h"
#include "store/sqlite.h"
#include "store/store.h"

/* Also where there is nothing to do. */
static void print_missing(const struct migration *all, size_t count, int version)
{
    int newest = all[count - 1].number;

    printf("-- The database has version %d, this program's is %d.%s\n", version, newest,
           version == newest ? " Nothing is missing." : "");
    for (size_t i = 0; i < count; i++) {
        if (all[i].number > version)
            printf("\n-- %03d_%s\n\n%s", all[i].number, all[i].name, all[i].sql);
    }
}

static void tell(int version, int applied)
{
    if (applied > 0)
        fprintf(stderr, "dacctl: migrated from version %d to %d\n", version - applied,
                version);
    else
        fprintf(stderr, "dacctl: nothing to do, the database has version %d\n", version);
}

static int migrate_postgres(struct database *d, bool dry_run)
{
    struct postgres_schema schema = {0};
    int rc = 1;

    postgres_schema_begin(&schema, dry_run);
    while (schema.sql != NULL) {
        PGresult *res = PQexec(d->pg, schema.sql);

        postgres_schema_feed(&schema, res);
        PQclear(res);
    }
    if (schema.result != DAC_OK) {
        fprintf(stderr, "dacctl: %s\n", schema.why);
    } else if (dry_run) {
        print_missing(store_migrations_postgres, store_migrations_postgres_count,
                      schema.version);
        rc = 0;
    } else {
        tell(schema.version, schema.applied);
        rc = 0;
    }
    postgres_schema_free(&schema);
    return rc;
}

static int migrate_sqlite(struct database *d, bool dry_run)
{
    struct store_options opt = {.sqlite = d->path};
    struct event_base *base = NULL;
    struct store *st = NULL;
    char why[512] = "out of memory";
    int version = 0;
    int rc = 1;

    if (sqlite_version(d->db, &version) != SQLITE_OK)
        version = 0; /* it was read a moment ago */
    if (dry_run) {
        print_missing(store_migrations_sqlite, store_migrations_sqlite_count, version);
        return 0;
    }
    base = event_base_new();
    if (base != NULL && store_open(base, &opt, &st, why, sizeof(why)) == DAC_OK &&
        store_migrate(st, why, sizeof(why)) == DAC_OK) {
        tell(sqlite_version_newest(), sqlite_version_newest() - version);
        rc = 0;
    } else {
        fprintf(stderr, "dacctl: %s\n", why);
    }
    store_close(st);
    if (base != NULL)
        event_base_free(base);
    return rc;
}

int dacctl_migrate(const struct store_arguments *args)
{
    struct database d;
    int rc;

    if (args->print_roles) {
        printf("%s\n%s", store_sql_postgres_roles, store_sql_postgres_grants);
        return 0;
    }
    if (!database_open(args, &d))
        return 1;
    rc = d.pg != NULL ? migrate_postgres(&d, args->dry_run)
                      : migrate_sqlite(&d, args->dry_run);
    database_close(&d);
    return rc;
}
