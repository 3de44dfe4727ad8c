/*
 * What the steps of config_load() share. Internal to config.
 */
#ifndef DAC_CONFIG_LOAD_H
#define DAC_CONFIG_LOAD_H

#include "config/config.h"
#include "config/settings.h"

struct load {
    struct config *cfg;
    struct config_problems *problems;
    const char *file;     /* the file that is read, else the configuration's path */
    unsigned file_number; /* its number in cfg->files */
    const char *folder; /* where its relative paths start; NULL: the working directory */
    bool nomem;         /* seen once, the load fails in the end */
    bool outside;       /* the service is another process */
    bool again; /* the service runs: what only a restart takes over is not looked up */
    const char *credentials; /* $CREDENTIALS_DIRECTORY, or NULL */

    /* Where the INI parser is. */
    const struct parser_events *events;
    const char *section;              /* NULL: an unknown one, its settings are skipped */
    struct config_provider *provider; /* of a [provider NAME], else NULL */
    struct config *astray; /* owned: has the provider of a section that is none */
    struct config_origin section_at[CONFIG_SETTINGS_MAX]; /* where a section stood last,
                                                           * by the number of its first
                                                           * setting in the table */
};

/* Reads a regular file of at most out->max bytes. Else false, and `why` (of `n` bytes)
 * says what failed, such as "No such file or directory"; *err is its errno or 0. */
bool load_read_file(const char *path, struct buf *out, char *why, size_t n, int *err);

/* Reads one value into cfg or `provider`, notes its origin, reports a bad one. */
void load_setting(struct load *l, const struct setting *s,
                  struct config_provider *provider, const char *value,
                  struct config_origin origin, const char *file);
/* Reads the configuration and what it includes, for l->events. */
void load_files(struct load *l);
/* On a line of the file that is read. */
void load_include(void *arg, unsigned line, const char *pattern);
/* The path of the file that a value or section stands in; for any other origin the
 * configuration's. */
const char *load_file_of(const struct load *l, const struct config_origin *o);
/* Both for problem_add(): where a setting or section stands; line 0 if in no file. */
#define LOAD_AT(l, o)                                                                    \
    load_file_of((l), (o)), ((o)->source == CONFIG_FROM_FILE ? (o)->line : 0)
/* Of the origins of a configuration or a provider that of one setting. */
const struct config_origin *load_origin(const struct config_origin *origins,
                                        const char *section, const char *name);
/* Finds $CREDENTIALS_DIRECTORY. */
void load_environ(struct load *l, const char *const *environ);
/* Applies the environment and the env file. */
void load_variables(struct load *l, const char *const *environ);
/* Derives what was left to us from the other values. */
void load_derived(struct load *l);
/* The same, reads the files that settings name, checks what no single setting decides. */
void load_finish(struct load *l);

/* Reads a provider's key and looks at its roots. */
void load_provider_files(struct load *l, struct config_provider *p);

/* PROVIDER + suffix as its variable is called: "open-ai", "_RPS" is "OPEN_AI_RPS". */
void load_variable_name(const char *provider, const char *suffix, char *out, size_t n);

#endif
