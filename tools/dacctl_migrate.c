/*
 * `dacctl migrate`: brings a database up to date as dacd does at its start, for those who
 * want it done by another role or at another time; --dry-run prints the SQL that is
 * missing, --print-roles that of PostgreSQL's roles. Nothing is printed on stdout that is
 * not SQL; with --json one object, which has the SQL as strings.
 */
#include <event2/event.h>
#include <stdio.h>
#include <string.h>

#include "base/json.h"
#include "dacctl_exit.h"
#include "dacctl_store.h"
#include "store/migrations.h"
#include "store/postgres_schema.h"
#include "store/sqlite.h"
#include "store/store.h"

#define OUTPUT_MAX (UINT64_C(4) << 20)

static void put_text(struct buf *b, const char *s)
{
    json_put_string(b, s, strlen(s));
}

static int json_missing(const struct migration *all, size_t count, int version)
{
    struct buf b = BUF_INIT(OUTPUT_MAX);
    const char *comma = "";

    buf_printf(&b, "{\"version\":%d,\"newest\":%d,\"missing\":[", version,
               all[count - 1].number);
    for (size_t i = 0; i < count; i++) {
        if (all[i].number <= version)
            continue;
        buf_printf(&b, "%s{\"number\":%d,\"name\":", comma, all[i].number);
        put_text(&b, all[i].name);
        buf_puts(&b, ",\"sql\":");
        put_text(&b, all[i].sql);
        buf_puts(&b, "}");
        comma = ",";
    }
    buf_puts(&b, "]}\n");
    return store_print(&b, EXIT_DONE);
}

static int json_roles(void)
{
    struct buf b = BUF_INIT(OUTPUT_MAX);

    buf_puts(&b, "{\"roles\":");
    put_text(&b, store_sql_postgres_roles);
    buf_puts(&b, ",\"grants\":");
    put_text(&b, store_sql_postgres_grants);
    buf_puts(&b, "}\n");
    return store_print(&b, EXIT_DONE);
}

/* Also where there is nothing to do. */
static int print_missing(const struct migration *all, size_t count, int version,
                         bool json)
{
    int newest = all[count - 1].number;

    if (json)
        return json_missing(all, count, version);
    printf("-- The database has version %d, this program's is %d.%s\n", version, newest,
           version == newest ? " Nothing is missing." : "");
    for (size_t i = 0; i < count; i++) {
        if (all[i].number > version)
            printf("\n-- %03d_%s\n\n%s", all[i].number, all[i].name, all[i].sql);
    }
    return EXIT_DONE;
}

static int tell(int version, int applied, bool json)
{
    struct buf b = BUF_INIT(OUTPUT_MAX);

    if (json) {
        buf_printf(&b, "{\"version\":%d,\"applied\":%d}\n", version, applied);
        return store_print(&b, EXIT_DONE);
    }
    if (applied > 0)
        fprintf(stderr, "dacctl: migrated from version %d to %d\n", version - applied,
                version);
    else
        fprintf(stderr, "dacctl: nothing to do, the database has version %d\n", version);
    return EXIT_DONE;
}

static int migrate_postgres(struct database *d, const struct store_arguments *args)
{
    struct postgres_schema schema = {0};
    int rc;

    postgres_schema_begin(&schema, args->dry_run);
    while (schema.sql != NULL) {
        PGresult *res = PQexec(d->pg, schema.sql);

        postgres_schema_feed(&schema, res);
        PQclear(res);
    }
    if (schema.result != DAC_OK) {
        fprintf(stderr, "dacctl: %s\n", schema.why);
        rc = store_say_no(args, EXIT_NOT_DONE);
    } else if (args->dry_run) {
        rc = print_missing(store_migrations_postgres, store_migrations_postgres_count,
                           schema.version, args->json);
    } else {
        rc = tell(schema.version, schema.applied, args->json);
    }
    postgres_schema_free(&schema);
    return rc;
}

static int migrate_sqlite(struct database *d, const struct store_arguments *args)
{
    struct store_options opt = {.sqlite = d->path};
    struct event_base *base = NULL;
    struct store *st = NULL;
    char why[512] = "out of memory";
    int version = 0;
    int rc;

    if (sqlite_version(d->db, &version) != SQLITE_OK)
        version = 0; /* it was read a moment ago */
    if (args->dry_run)
        return print_missing(store_migrations_sqlite, store_migrations_sqlite_count,
                             version, args->json);
    base = event_base_new();
    if (base != NULL && store_open(base, &opt, &st, why, sizeof(why)) == DAC_OK &&
        store_migrate(st, why, sizeof(why)) == DAC_OK) {
        rc = tell(sqlite_version_newest(), sqlite_version_newest() - version, args->json);
    } else {
        fprintf(stderr, "dacctl: %s\n", why);
        rc = store_say_no(args, EXIT_NOT_DONE);
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

    if (args->print_roles && args->json)
        return json_roles();
    if (args->print_roles) {
        printf("%s\n%s", store_sql_postgres_roles, store_sql_postgres_grants);
        return EXIT_DONE;
    }
    rc = database_open(args, &d);
    if (rc != EXIT_DONE)
        return store_say_no(args, rc);
    rc = d.pg != NULL ? migrate_postgres(&d, args) : migrate_sqlite(&d, args);
    database_close(&d);
    return rc;
}
