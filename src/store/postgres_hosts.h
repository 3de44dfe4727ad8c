/*
 * The servers that a connection string names, as addresses: asked of libpq (which knows
 * service files and PG* variables), host names resolved by a thread, so that no loop
 * waits for a name server. For postgres_conn.c only.
 */
#ifndef DAC_STORE_POSTGRES_HOSTS_H
#define DAC_STORE_POSTGRES_HOSTS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct event_base;
struct postgres_hosts;

/* Reads the servers out of `conninfo`. DAC_E_INVALID: libpq does not understand it, and
 * `why` says so without quoting it. */
enum dac_err postgres_hosts_new(struct event_base *base, const char *conninfo,
                                struct postgres_hosts **out, char *why,
                                size_t n) DAC_CHECK;
/* A thread that still asks a name server ends by itself. */
void postgres_hosts_free(struct postgres_hosts *h);

/* `why` NULL: the addresses are known. */
typedef void (*postgres_hosts_cb)(void *arg, const char *why);
/* Resolves anew; cb from the loop, unless postgres_hosts_stop() comes first. One thread
 * at most: where an earlier one is not done, its answer is taken. What was known already
 * stands until an answer with addresses comes. */
void postgres_hosts_resolve(struct postgres_hosts *h, postgres_hosts_cb cb, void *arg);
void postgres_hosts_stop(struct postgres_hosts *h);

/* How many addresses there are; 0: libpq's default, a local socket. */
size_t postgres_hosts_count(const struct postgres_hosts *h);
/* What the string says about the time for one server, in seconds; 0: nothing. */
unsigned postgres_hosts_timeout_s(const struct postgres_hosts *h);
/* Lists for libpq's parameters host, hostaddr and port, beginning with address number
 * `first`; owned by h until it is resolved or listed again. False: no memory. All NULL if
 * there are no addresses. */
struct postgres_host_lists {
    const char *host;
    const char *hostaddr;
    const char *port;
};
bool postgres_hosts_lists(struct postgres_hosts *h, size_t first,
                          struct postgres_host_lists *out);

/* The password file that the string or libpq's rules name, if libpq is going to leave it
 * out since others than its owner may read it; NULL: it is in order, or none. libpq says
 * so on stderr at each attempt, unless it is not given the file. */
const char *postgres_hosts_open_passfile(const struct postgres_hosts *h);

/* libpq's complaint about a connection string, without the quoted parts of it. */
void postgres_hosts_blank(const char *message, char *out, size_t n);

#endif
