/*
 * What a failed result says to the operator, as postgres_conn.h documents: never a word
 * of a row. In the recorder and the workers; no state.
 */
#include <stdio.h>
#include <string.h>

#include "store/postgres_conn.h"

const char *postgres_sqlstate(const PGresult *res)
{
    const char *s = PQresultErrorField(res, PG_DIAG_SQLSTATE);

    return s != NULL ? s : "";
}

/* Classes whose words may quote the data: 22 (invalid values) and P0 (raised by a trigger
 * of the operator's). */
static bool may_quote(const char *sqlstate)
{
    return strncmp(sqlstate, "22", 2) == 0 || strncmp(sqlstate, "P0", 2) == 0;
}

void postgres_explain(const PGresult *res, char *why, size_t n)
{
    const char *state = postgres_sqlstate(res);
    const char *words = PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY);
    const char *table = PQresultErrorField(res, PG_DIAG_TABLE_NAME);
    const char *column = PQresultErrorField(res, PG_DIAG_COLUMN_NAME);
    const char *constraint = PQresultErrorField(res, PG_DIAG_CONSTRAINT_NAME);
    size_t k = 0;

    if (words == NULL || may_quote(state))
        words = words == NULL ? "no answer" : "a value is refused";
    k += (size_t)snprintf(why, n, "PostgreSQL: %s", words);
    if (state[0] != '\0' && k < n)
        k += (size_t)snprintf(why + k, n - k, " (SQLSTATE %s)", state);
    if (table != NULL && k < n)
        k += (size_t)snprintf(why + k, n - k, ", table %s", table);
    if (column != NULL && k < n)
        k += (size_t)snprintf(why + k, n - k, ", column %s", column);
    if (constraint != NULL && k < n)
        snprintf(why + k, n - k, ", constraint %s", constraint);
}
