/*
 * The configuration of one instance: what a file, an env file and the environment say,
 * checked whole and turned into one plain struct.
 *
 * config_load() either gives a struct that holds only values in range, or every problem
 * there is, each with its place and what to do about it; nothing is applied in part. The
 * struct never changes after that: a reload loads another one. Names, defaults, ranges
 * and help of all settings: the table in config/settings.c.
 *
 * Any process; load in the master, before workers are forked. Not thread-safe while
 * loading.
 */
#ifndef DAC_CONFIG_CONFIG_H
#define DAC_CONFIG_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/log.h"

#define CONFIG_DEFAULT_PATH      "/etc/dac/dac.conf"
#define CONFIG_PROVIDERS_MAX     16
#define CONFIG_PROVIDER_NAME_MAX 31
#define CONFIG_NAME_MAX          48
#define CONFIG_LISTEN_MAX        16
#define CONFIG_LIST_MAX          256
#define CONFIG_SETTINGS_MAX      64
#define CONFIG_FILES_MAX         64
#define CONFIG_CREDENTIAL        "credential:" /* begins the name of one of systemd's */

/* Where the value of a setting came from. */
struct config_origin {
    enum {
        CONFIG_FROM_DEFAULT,
        CONFIG_FROM_FILE,
        CONFIG_FROM_ENV,
        CONFIG_FROM_ENV_FILE
    } source;
    unsigned file; /* CONFIG_FROM_FILE: number in config.files */
    unsigned line; /* of that file or the env file, else 0 */
};

struct config_list {
    char **items; /* owned, each NUL-terminated and not empty */
    size_t count;
};

struct config_address {
    char *text; /* owned; as configured: "127.0.0.1:8000", "[::]:8000",
                   "unix:/run/dac.sock" */
    struct sockaddr_storage addr;
    socklen_t len;
};

struct config_addresses {
    struct config_address items[CONFIG_LISTEN_MAX];
    size_t count;
};

enum config_http2 {
    CONFIG_HTTP2_AUTO, /* offered by ALPN over TLS */
    CONFIG_HTTP2_OFF,
};

enum config_fetcher_death {
    CONFIG_DEATH_RESTART,
    CONFIG_DEATH_FAIL,
};

/* One [provider NAME]. */
struct config_provider {
    char *name;                  /* owned; 1 to 31 of A-Z a-z 0-9 . _ - */
    uint32_t slot;               /* its number everywhere: that of its pacer. After the
                                  * loading its place in config.providers; the master's
                                  * affair then */
    int dialect;                 /* index of its word; 0: "openai" */
    char *base_url;              /* owned; http or https, no slash at its end */
    char *api_key_file;          /* owned; NULL: none; else a path, or CONFIG_CREDENTIAL
                                  * and the name of one */
    char *api_key;               /* owned, secret; read from there; NULL: none */
    char *ca_file;               /* owned; NULL: the system's roots */
    uint64_t ca_digest;          /* of what is in it; other roots, another digest */
    struct config_list models;   /* globs; at least one */
    uint64_t connect_timeout_ns; /* to a connection that is ready to send */
    uint64_t first_token_timeout_ns; /* from the start of a call to its first content */
    uint64_t stall_timeout_ns;       /* between two pieces of content */
    uint64_t retry_deadline_ns;      /* one retry before the first content, inside this */
    double rps;                      /* calls started per second; 0: no limit */
    uint32_t burst;                  /* calls at once after a pause; at least 1 */
    uint32_t concurrency;            /* calls at the same time; 1 to 256 */
    int http2;                       /* enum config_http2 */
    bool trace;                      /* told which trace a call belongs to */

    struct config_origin section; /* where it first stands */
    struct config_origin origin[CONFIG_SETTINGS_MAX];
};

/* Owns everything that it points to; config_free() releases it. Strings that may be empty
 * in the file are NULL here. Times are nanoseconds, sizes are bytes. */
struct config {
    char *path;               /* the file it was read from */
    struct config_list files; /* that one, and those it includes, in their order */

    /* [server] */
    char *name;                       /* never NULL; names the shared-memory segment */
    char *user;                       /* to become when started as root; NULL: stay */
    uid_t uid;                        /* of user, when started as root */
    gid_t gid;                        /* its primary group */
    struct config_addresses listen;   /* at least one */
    uint32_t workers;                 /* 1 to 28 */
    char *env_file;                   /* NULL: none */
    uint64_t header_timeout_ns;       /* first byte to end of the head */
    uint64_t body_timeout_ns;         /* end of the head to end of the body */
    uint64_t body_max_bytes;          /* of a request */
    uint64_t header_max_bytes;        /* request line and all headers together */
    uint64_t keepalive_timeout_ns;    /* idle between two requests */
    uint64_t client_stall_timeout_ns; /* a client that takes nothing */
    uint64_t drain_timeout_ns;        /* for running streams when the service stops */
    uint32_t max_connections;         /* of clients, over all workers */
    uint64_t watchdog_timeout_ns;     /* a process without a heartbeat is killed */
    int log_level;                    /* enum log_level */
    int log_format;                   /* enum log_format */
    int log_requests;                 /* enum http_log_requests */
    bool core_dumps;                  /* of a process that crashes */
    char *control;                    /* the master's socket; NULL: /run/dac/NAME.sock */

    /* [memory] */
    uint64_t shm_size_bytes; /* of the segment */
    uint32_t max_flights;    /* in the segment */

    /* [store] */
    char *postgres;             /* libpq connection string; NULL: SQLite; a secret */
    char *sqlite;               /* never NULL */
    char *spool;                /* takes over while PostgreSQL is away; never NULL */
    uint64_t spool_max_bytes;   /* of that file */
    uint32_t thread_cache;      /* threads that it keeps readable */
    uint64_t commit_timeout_ns; /* how long one batch may take PostgreSQL */
    uint64_t done_timeout_ns;   /* how long an answer's end waits for its commit */

    /* [flight] */
    uint64_t result_ttl_ns; /* a finished answer serves the same question, in a thread */
    uint64_t chat_result_ttl_ns; /* the same for stateless chat */
    uint64_t flight_max_bytes;   /* of one answer; below shm_size_bytes */
    uint64_t error_ttl_ns;       /* a failed flight answers newcomers */
    uint64_t abandon_grace_ns;   /* between the last client's leaving and the abort */
    uint64_t
        abandon_grace_max_ns; /* what a client may ask for; at least abandon_grace_ns */
    uint64_t reconnect_grace_ns; /* a flight waits for the clients of a dead worker */
    int on_fetcher_death;        /* enum config_fetcher_death */
    uint32_t takeover_max;       /* of one flight */

    /* Flags, from the env file or the environment only. */
    bool coalesce_enabled;
    bool stream_fanout_enabled;

    struct config_provider providers[CONFIG_PROVIDERS_MAX]; /* in the order of the file */
    size_t provider_count;                                  /* 0 is allowed */

    struct config_origin
        origin[CONFIG_SETTINGS_MAX]; /* by number in the settings table */
};

/* --- problems ----------------------------------------------------------------------- */

#define CONFIG_PROBLEMS_MAX 100

struct config_problem {
    char *file;    /* owned; a path, or "environment [NAME]" */
    unsigned line; /* 0: the file as a whole */
    bool warning;  /* does not keep the configuration from being used */
    char *text;    /* owned; names the setting and the fix; one line, never a secret */
};

/* Start with {0}. In the order of the file; at most CONFIG_PROBLEMS_MAX are kept. */
struct config_problems {
    struct config_problem items[CONFIG_PROBLEMS_MAX];
    size_t count;   /* kept */
    size_t dropped; /* further ones */
    size_t errors;  /* of all, those that are not warnings */
};

/* Writes "FILE:LINE: text", one line each. */
void config_problems_print(const struct config_problems *p, FILE *out);
void config_problems_free(struct config_problems *p);

/* --- loading and asking ---------------------------------------------------------------
 */

/* Reads `path` (NULL: CONFIG_DEFAULT_PATH), the env file it names and `environ`
 * (NULL-terminated "NAME=VALUE" strings; NULL: none). On DAC_OK *out is owned by the
 * caller, and `problems` may hold warnings. DAC_E_INVALID: *out is NULL and `problems`
 * says everything. DAC_E_NOMEM. */
enum dac_err config_load(const char *path, const char *const *environ,
                         struct config **out, struct config_problems *problems) DAC_CHECK;
/* The same for a service that runs: nothing is asked of others, such as who `user` is,
 * which only a restart takes over (config_keep_fixed()). */
enum dac_err config_load_again(const char *path, const char *const *environ,
                               struct config **out,
                               struct config_problems *problems) DAC_CHECK;
/* The same for who looks at the configuration of a service from outside: a credential
 * that only the service is given is a warning, and its key is left out. */
enum dac_err config_look(const char *path, const char *const *environ,
                         struct config **out, struct config_problems *problems) DAC_CHECK;
void config_free(struct config *cfg);

/* The configuration of an empty file in an empty environment; with `like`, its providers,
 * of whom only the names are known. On DAC_OK *out is owned by the caller. DAC_E_NOMEM.
 */
enum dac_err config_defaults(const struct config *like, struct config **out) DAC_CHECK;

/* The provider called `name`, or NULL. */
const struct config_provider *config_provider_find(const struct config *cfg,
                                                   const char *name);
/* The provider whose number is `slot`, or NULL. */
const struct config_provider *config_provider_at(const struct config *cfg, uint32_t slot);
/* Whether one of the provider's globs matches (fnmatch(3); "*" matches slashes, too). */
bool config_model_matches(const struct config_provider *p, const char *model);
/* The first provider that matches, or NULL. */
const struct config_provider *config_provider_for_model(const struct config *cfg,
                                                        const char *model);

/* Writes the effective values as a file that could be read again, each with where it came
 * from; secrets are masked. More of the kind: config/describe.h. */
void config_print(const struct config *cfg, FILE *out);

#endif
