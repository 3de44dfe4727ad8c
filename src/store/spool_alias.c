/*
 * The idempotency keys that the spool remembers, so that they are known while PostgreSQL
 * is away. Those in the queue are all of them here; of the others the last aliases_max
 * that were stored. That a turn is not in this file says nothing, for PostgreSQL may have
 * it. Runs in the recorder.
 */
#include <stdio.h>

#include "store/spool_internal.h"
#include "store/sqlite.h"

#define TRIM_AT_ONCE 2048 /* keys that one tidying forgets */

static int bind_key(sqlite3_stmt *s, const struct store_alias *a)
{
    return sqlite_bind_str(s, 1, a->org) |
           sqlite3_bind_blob(s, 2, a->key_digest, sizeof a->key_digest, SQLITE_STATIC);
}

/* Runs a statement that takes keys away. The number of those left may be too low where
 * they could not be counted after a failure. */
static int take_away(struct spool *sp, int which)
{
    int rc = spool_run(sp, which);
    uint64_t gone = rc == SQLITE_OK ? (uint64_t)sqlite3_changes(sp->db) : 0;

    sp->aliases -= gone < sp->aliases ? gone : sp->aliases;
    return rc;
}

/* Makes room for a key that is used again after its time. */
static int drop_dead(struct spool *sp, const struct store_alias *a)
{
    sqlite3_stmt *s = sp->stmt[S_ALIAS_DEAD];

    if ((bind_key(s, a) |
         sqlite3_bind_int64(s, 3, a->created_us - STORE_ALIAS_LIFE_US)) != 0)
        return SQLITE_NOMEM;
    return take_away(sp, S_ALIAS_DEAD);
}

static int insert(struct spool *sp, const struct store_alias *a)
{
    sqlite3_stmt *s = sp->stmt[S_ALIAS];
    int rc;

    if ((bind_key(s, a) |
         sqlite3_bind_blob(s, 3, a->body_digest, sizeof a->body_digest, SQLITE_STATIC) |
         sqlite_bind_id(s, 4, &a->turn) | sqlite3_bind_int64(s, 5, a->created_us)) != 0)
        return SQLITE_NOMEM;
    rc = spool_run(sp, S_ALIAS);
    if (rc == SQLITE_OK)
        sp->aliases += (uint64_t)sqlite3_changes(sp->db);
    return rc;
}

int spool_alias_put(struct spool *sp, struct store_row *row)
{
    const struct store_alias *a = &row->u.alias;
    char text[ID_TEXT_SIZE];
    int64_t refused = 0;
    int rc;

    if (sqlite_bind_id(sp->stmt[S_ALIAS_REFUSED], 1, &a->turn) != 0)
        return SQLITE_NOMEM;
    rc = spool_read_number(sp, S_ALIAS_REFUSED, &refused, NULL);
    if (rc == SQLITE_OK && refused > 0) {
        id_format(&a->turn, text);
        store_row_refuse(row, DAC_E_NOT_FOUND, "turn %s is not stored", text);
        return SQLITE_OK;
    }
    if (rc == SQLITE_OK)
        rc = drop_dead(sp, a);
    return rc == SQLITE_OK ? insert(sp, a) : rc;
}

int spool_alias_drop(struct spool *sp, const struct store_alias *a)
{
    sqlite3_stmt *s = sp->stmt[S_ALIAS_DROP];

    if ((bind_key(s, a) | sqlite_bind_id(s, 3, &a->turn)) != 0)
        return SQLITE_NOMEM;
    return take_away(sp, S_ALIAS_DROP);
}

int spool_alias_recount(struct spool *sp)
{
    int64_t n = 0;
    int rc = spool_read_number(sp, S_ALIAS_COUNT, &n, NULL);

    if (rc == SQLITE_OK)
        sp->aliases = (uint64_t)n;
    return rc;
}

/* With a margin, so that it is not each batch that has to trim. */
bool spool_alias_crowded(const struct spool *sp)
{
    return sp->rows == 0 && sp->aliases > sp->aliases_max + sp->aliases_max / 64;
}

void spool_alias_trim(struct spool *sp)
{
    uint64_t n = sp->aliases - sp->aliases_max;

    if (n > TRIM_AT_ONCE)
        n = TRIM_AT_ONCE;
    if (sqlite3_bind_int64(sp->stmt[S_ALIAS_TRIM], 1, (int64_t)n) == SQLITE_OK)
        (void)take_away(sp, S_ALIAS_TRIM);
}
