/*
 * See postgres_migrate.h. Runs in the recorder.
 */
#include "store/postgres_migrate.h"

#include "base/log.h"

static void next(struct postgres_migration *m);

static void answered(void *arg, PGresult *res)
{
    struct postgres_migration *m = arg;

    postgres_schema_feed(&m->schema, res);
    next(m);
}

static void next(struct postgres_migration *m)
{
    const struct postgres_schema *s = &m->schema;

    if (s->sql != NULL) {
        /* What could not be sent is a lost connection, whose `down` follows. */
        if (postgres_script(m->conn, s->sql, answered, m) != DAC_OK)
            postgres_conn_drop(m->conn, "could not send a migration");
        return;
    }
    if (s->applied > 0)
        log_info(0, "database migrated from version %d to %d", s->version - s->applied,
                 s->version);
    m->cb(m->arg, s->result, s->why);
}

void postgres_migrate(struct postgres_migration *m, struct postgres_conn *c,
                      postgres_migrate_cb cb, void *arg)
{
    m->conn = c;
    m->cb = cb;
    m->arg = arg;
    postgres_schema_begin(&m->schema, false);
    next(m);
}

void postgres_migrate_free(struct postgres_migration *m)
{
    postgres_schema_free(&m->schema);
}
