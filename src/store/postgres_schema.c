/*
 * See postgres_schema.h. Runs in the recorder and in dacctl.
 */
#include "store/postgres_schema.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/migrations.h"

#define TEXT_MAX       (4u << 20)
#define ROUNDS_MAX     5 /* how often another program may be quicker */
#define SERVER_OLDEST  120000
#define STATE_QUICKER  "DAC01" /* SQLSTATE of our own: another program has migrated */
#define STATE_DENIED   "42501"
#define STATE_COLUMN   "42703"
#define STATE_READONLY "25006"
#define STATE_EXISTS   "42P07"

enum { STEP_LOOK, STEP_VERSIONS, STEP_APPLY };

static const char look[] =
    "SELECT current_setting('server_version_num')::int, "
    "current_setting('server_encoding'), coalesce(current_schema(), ''), "
    "current_user::text, to_regclass('schema_migrations') IS NOT NULL";

static const char versions[] =
    "SELECT version, name, coalesce(checksum, '') FROM schema_migrations "
    "ORDER BY version";

/* The isolation is set because each statement must see what was committed while the lock
 * was waited for. %d: the version that was found. */
static const char lock[] =
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE;\n"
    "SET LOCAL statement_timeout = 0;\n"
    "SET LOCAL lock_timeout = 0;\n"
    "SET LOCAL client_min_messages = warning;\n"
    "SELECT pg_advisory_xact_lock(4918848519562217298);\n"
    "DO $dac$ DECLARE v int := 0; BEGIN\n"
    "IF to_regclass('schema_migrations') IS NOT NULL THEN\n"
    "SELECT coalesce(max(version), 0) INTO v FROM schema_migrations;\n"
    "END IF;\n"
    "IF v <> %d THEN\n"
    "RAISE EXCEPTION 'another program has migrated' USING ERRCODE = '" STATE_QUICKER
    "';\n"
    "END IF; END $dac$;\n";

int postgres_schema_newest(void)
{
    return store_migrations_postgres[store_migrations_postgres_count - 1].number;
}

/* --- ending ------------------------------------------------------------------------- */

static void end(struct postgres_schema *s, enum dac_err e)
{
    s->sql = NULL;
    s->result = e;
}

static void fail(struct postgres_schema *s, enum dac_err e, const char *fmt, ...)
    DAC_PRINTF(3, 4);

static void fail(struct postgres_schema *s, enum dac_err e, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(s->why, sizeof(s->why), fmt, ap);
    va_end(ap);
    end(s, e);
}

static const char *field(const PGresult *res, int code)
{
    const char *text = PQresultErrorField(res, code);

    return text != NULL ? text : "";
}

static void fail_by(struct postgres_schema *s, const PGresult *res, const char *doing)
{
    const char *state = field(res, PG_DIAG_SQLSTATE);
    const char *text = field(res, PG_DIAG_MESSAGE_PRIMARY);

    if (strcmp(state, STATE_DENIED) == 0 && s->step == STEP_VERSIONS)
        fail(s, DAC_E_DENIED,
             "%s: role \"%s\" may not read it: give it the role dac_service (dacctl "
             "migrate --print-roles shows how)",
             doing, s->role);
    else if (strcmp(state, STATE_DENIED) == 0)
        fail(s, DAC_E_DENIED,
             "%s: role \"%s\" may not do that (%s): run dacctl migrate as the database's "
             "owner",
             doing, s->role, text);
    else if (strcmp(state, STATE_COLUMN) == 0 && s->step == STEP_VERSIONS)
        fail(s, DAC_E_STATE,
             "%s: its table schema_migrations belongs to another program: use a database "
             "or a schema of its own",
             doing);
    else if (strcmp(state, STATE_EXISTS) == 0)
        fail(s, DAC_E_STATE,
             "%s: it holds something of another program (%s): use a database or a schema "
             "of its own",
             doing, text);
    else if (strcmp(state, STATE_READONLY) == 0)
        fail(s, DAC_E_SYS,
             "%s: the server only reads: is it a standby, or is "
             "default_transaction_read_only set?",
             doing);
    else
        fail(s, DAC_E_SYS, "%s: %s%s%s%s", doing, text[0] != '\0' ? text : "no answer",
             state[0] != '\0' ? " (SQLSTATE " : "", state, state[0] != '\0' ? ")" : "");
}

/* --- applying ----------------------------------------------------------------------- */

static void add_migration(struct buf *text, const struct migration *m)
{
    char sum[MIGRATION_CHECKSUM_SIZE];

    if (!migration_checksum(m, sum)) {
        text->failed = true;
        return;
    }
    buf_puts(text, m->sql);
    /* Neither name nor checksum holds a quote: they are this program's. */
    buf_printf(text,
               "\n;INSERT INTO schema_migrations (version, name, applied_at, checksum) "
               "VALUES (%d, '%s', now(), '%s');\n",
               m->number, m->name, sum);
}

static void apply(struct postgres_schema *s)
{
    buf_reset(&s->text);
    buf_printf(&s->text, lock, s->version);
    for (size_t i = 0; i < store_migrations_postgres_count; i++) {
        const struct migration *m = &store_migrations_postgres[i];

        if (m->number > s->version)
            add_migration(&s->text, m);
    }
    buf_puts(&s->text, store_sql_postgres_grants);
    s->step = STEP_APPLY;
    s->sql = s->text.failed ? NULL : buf_cstr(&s->text);
    if (s->sql == NULL)
        fail(s, DAC_E_NOMEM, "out of memory");
}

/* The version is known. */
static void decide(struct postgres_schema *s)
{
    if (s->version == postgres_schema_newest() || s->dry_run)
        end(s, DAC_OK);
    else
        apply(s);
}

/* --- looking ------------------------------------------------------------------------ */

static void begin_round(struct postgres_schema *s)
{
    s->step = STEP_LOOK;
    s->version = 0;
    s->sql = look;
}

static void feed_look(struct postgres_schema *s, const PGresult *res)
{
    int server = atoi(PQgetvalue(res, 0, 0));

    snprintf(s->role, sizeof(s->role), "%s", PQgetvalue(res, 0, 3));
    if (server < SERVER_OLDEST) {
        fail(s, DAC_E_STATE, "the server is PostgreSQL %d; %d or newer is needed",
             server / 10000, SERVER_OLDEST / 10000);
    } else if (strcmp(PQgetvalue(res, 0, 1), "UTF8") != 0) {
        fail(s, DAC_E_STATE,
             "the database has the encoding %s, which cannot hold every text: create it "
             "with ENCODING 'UTF8'",
             PQgetvalue(res, 0, 1));
    } else if (PQgetvalue(res, 0, 4)[0] == 't') {
        s->step = STEP_VERSIONS;
        s->sql = versions;
    } else if (PQgetvalue(res, 0, 2)[0] == '\0') {
        fail(s, DAC_E_STATE,
             "role \"%s\" has no schema to create tables in: its search_path names none "
             "that exists",
             s->role);
    } else {
        decide(s);
    }
}

/* Whether row `i` of schema_migrations is migration `m` as this program has it. */
static bool is_known(const PGresult *res, int i, const struct migration *m)
{
    char sum[MIGRATION_CHECKSUM_SIZE];
    const char *found = PQgetvalue(res, i, 2);

    if (atoi(PQgetvalue(res, i, 0)) != m->number ||
        strcmp(PQgetvalue(res, i, 1), m->name) != 0)
        return false;
    return found[0] == '\0' || !migration_checksum(m, sum) || strcmp(found, sum) == 0;
}

static void feed_versions(struct postgres_schema *s, const PGresult *res)
{
    int rows = PQntuples(res);
    int newest = postgres_schema_newest();

    s->version = rows > 0 ? atoi(PQgetvalue(res, rows - 1, 0)) : 0;
    if (s->version > newest) {
        fail(s, DAC_E_STATE,
             "the database has version %d, this program knows versions up to %d: it was "
             "migrated by a newer release; install that, or restore a backup",
             s->version, newest);
        return;
    }
    for (int i = 0; i < rows; i++) {
        const struct migration *m = &store_migrations_postgres[i];

        if (i < newest && is_known(res, i, m))
            continue;
        fail(s, DAC_E_STATE,
             "the database's migration %s_%s is not this program's: it was made by a "
             "program that was never released, or by another one",
             PQgetvalue(res, i, 0), PQgetvalue(res, i, 1));
        return;
    }
    decide(s);
}

static void feed_apply(struct postgres_schema *s)
{
    s->applied = postgres_schema_newest() - s->version;
    s->version = postgres_schema_newest();
    end(s, DAC_OK);
}

/* --- the machine -------------------------------------------------------------------- */

void postgres_schema_begin(struct postgres_schema *s, bool dry_run)
{
    postgres_schema_free(s);
    memset(s, 0, sizeof(*s));
    s->text = BUF_INIT(TEXT_MAX);
    s->dry_run = dry_run;
    begin_round(s);
}

void postgres_schema_feed(struct postgres_schema *s, const PGresult *res)
{
    static const char *const doing[] = {
        [STEP_LOOK] = "could not look at the database",
        [STEP_VERSIONS] = "could not read the database's version",
        [STEP_APPLY] = "could not migrate the database",
    };
    ExecStatusType status = PQresultStatus(res);
    int columns = s->step == STEP_LOOK ? 5 : 3;

    if (s->step == STEP_APPLY &&
        (status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK)) {
        feed_apply(s);
    } else if (s->step != STEP_APPLY && status == PGRES_TUPLES_OK &&
               PQnfields(res) == columns && (columns == 3 || PQntuples(res) == 1)) {
        if (s->step == STEP_LOOK)
            feed_look(s, res);
        else
            feed_versions(s, res);
    } else if (strcmp(field(res, PG_DIAG_SQLSTATE), STATE_QUICKER) == 0 &&
               ++s->rounds < ROUNDS_MAX) {
        begin_round(s);
    } else {
        fail_by(s, res, doing[s->step]);
    }
}

void postgres_schema_free(struct postgres_schema *s)
{
    buf_free(&s->text);
    s->sql = NULL;
}
