/*
 * What an operator can do about a connection that PostgreSQL or libpq refuses. For
 * postgres_conn.c only.
 */
#ifndef DAC_STORE_POSTGRES_ADVICE_H
#define DAC_STORE_POSTGRES_ADVICE_H

#include <libpq-fe.h>
#include <stddef.h>

/* What libpq says about its connection (NULL: it could not be made), of all servers that
 * it tried, on one line, without its guesses, with advice behind it. `passfile` is one
 * that was left out, NULL: none was. */
void postgres_failure(const PGconn *pg, const char *passfile, char *why, size_t n);

#endif
