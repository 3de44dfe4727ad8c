/*
 * A PostgreSQL server of the tests' own: a new cluster in a temporary folder, run by an
 * ordinary user, reached by a unix socket and by a port of 127.0.0.1. One for a test
 * program, a new database for each test.
 * Everybody is trusted, but for the role "with_password" on the port.
 */
#ifndef DAC_TESTS_POSTGRES_FIXTURE_H
#define DAC_TESTS_POSTGRES_FIXTURE_H

#include <libpq-fe.h>
#include <stdbool.h>
#include <sys/types.h>

extern char px_dir[64]; /* the socket's folder; the cluster is in its folder "data" */
extern int px_port;
/* The present test's database, by the socket. */
extern char px_conninfo[256];

/* Makes the cluster and starts the server; false, with a loud word, if PostgreSQL is not
 * installed. Aborts on any other failure. In the program's own process. */
bool px_init(void);
/* Stops the server and removes everything. */
void px_exit(void);

/* A checked fixture's two halves: a database that is new. */
void px_setup(void);
void px_teardown(void);

/* Starts the server and waits until it answers; as px_init() does. */
void px_start(void);
/* "fast", "immediate"; waits until it is gone. */
void px_stop(const char *mode);
/* Sends a signal to the server and all its children. */
void px_signal_all(int sig);

/* Another way to the server: a port of 127.0.0.1 that takes so many bytes in a second (0:
 * as they come), and at most `limit` of one connection's; then that is at its end for the
 * client, and nothing is taken any more. By a process of its own. */
int px_relay_start(size_t limit, size_t bytes_per_s);
void px_relay_stop(void);

/* Runs SQL on a connection of its own to the test's database; the first column of the
 * first row as a number (0 if there is none), or as text, static, "" for NULL. */
long long px_int(const char *sql);
const char *px_text(const char *sql);
void px_exec(const char *sql);
/* A connection that stays open, to hold a lock. */
PGconn *px_connect(void);

#endif
