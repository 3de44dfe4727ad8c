/*
 * See postgres_advice.h. Of a connection that fails libpq tells no code, only words: the
 * server's are recognised where it speaks English, libpq's always, since no locale is set
 * in our processes. Words that already say what to do are not here.
 */
#include "store/postgres_advice.h"

#include <stdio.h>
#include <string.h>

#include "base/bytes.h"

#define ADVICE_SIZE 192 /* kept free for it */

static const struct {
    const char *words;
    const char *advice;
} table[] = {
    {"server does not support SSL",
     "set ssl = on in its postgresql.conf, or another sslmode in the string"},
    {"certificate verify failed",
     "sslrootcert must name the file of the authority that issued the server's "
     "certificate"},
    {"does not match host name",
     "host must be a name in the certificate, or sslmode verify-ca"},
    {"valid client certificate",
     "name one that the server's ssl_ca_file knows in sslcert, its key in sslkey"},
    {"certificate authentication failed",
     "the name in sslcert's certificate must be the role, or be mapped to it in "
     "pg_ident.conf"},
    {"could not open certificate file",
     "the service's user must be able to look for it; sslcert names another one"},
    {"channel binding required, but SSL not in use",
     "it needs TLS: sslmode=require, or a better one"},
    {"no password supplied",
     "give password in the string, or a line for this server in the passfile"},
    {"password authentication failed",
     "look at the role's password in the string or in the passfile"},
    {"Peer authentication failed",
     "map the service's user to the role in pg_ident.conf, or connect as that user's "
     "role"},
    {"no pg_hba.conf entry",
     "add a line for this host, role and database to pg_hba.conf, or change sslmode if "
     "it lacks encryption"},
    {"unsupported startup parameter",
     "a pooler knows no options: leave them out, or name options in pgbouncer's "
     "ignore_startup_parameters if they may be lost"},
    {"session is read-only",
     "none of the servers takes writes: is the primary among the hosts?"},
    {"server is in hot standby mode",
     "none of the servers takes writes: is the primary among the hosts?"},
    {"too many connections for",
     "a service needs one connection a worker and two for its recorder"},
    {"too many clients already",
     "a service needs one connection a worker and two for its recorder: raise "
     "max_connections, or put pgbouncer in between"},
    {"remaining connection slots are reserved",
     "a service needs one connection a worker and two for its recorder: raise "
     "max_connections, or put pgbouncer in between"},
};

static const char *advice_on(const char *text)
{
    for (size_t i = 0; i < DAC_ARRAY_LEN(table); i++) {
        if (strstr(text, table[i].words) != NULL)
            return table[i].advice;
    }
    return NULL;
}

/* libpq's lines, one for each server it tried, but for its guesses, which begin with a
 * tab.
 */
static size_t copy_lines(const char *text, char *out, size_t n)
{
    size_t k = 0;

    while (*text != '\0') {
        size_t len = strcspn(text, "\n");

        if (len > 0 && text[0] != '\t' && k < n)
            k += (size_t)snprintf(out + k, n - k, "%s%.*s", k > 0 ? "; " : "", (int)len,
                                  text);
        text += len + (text[len] == '\n');
    }
    return k < n ? k : n - 1;
}

void postgres_failure(const PGconn *pg, const char *passfile, char *why, size_t n)
{
    const char *text = pg != NULL ? PQerrorMessage(pg) : "";
    const char *advice = advice_on(text);
    size_t k = copy_lines(text, why, n - ADVICE_SIZE);

    if (k == 0)
        k = (size_t)snprintf(why, n, "the connection to PostgreSQL was lost");
    if (passfile != NULL && pg != NULL && PQconnectionNeedsPassword(pg) == 1)
        snprintf(why + k, n - k,
                 ": \"%s\" is left out, since others may read it: chmod 0600", passfile);
    else if (advice != NULL)
        snprintf(why + k, n - k, ": %s", advice);
}
