/*
 * What there is to say about settings: the value that each has in a configuration and
 * where it came from, and what a setting is, whatever its value. All of it comes from the
 * one table.
 *
 * Secrets are "***" wherever a value is told. Any process.
 */
#ifndef DAC_CONFIG_DESCRIBE_H
#define DAC_CONFIG_DESCRIBE_H

#include "base/bytes.h"
#include "config/config.h"

/* One setting of a configuration. Texts are valid during the call. */
struct config_fact {
    const char *section;  /* "server"; NULL: a flag, which no section has */
    const char *provider; /* whose setting it is; NULL: no provider's */
    const char *name;
    const char *value;    /* as one would write it in the file */
    const char *source;   /* "default", "file", "environment" or "env_file" */
    const char *file;     /* of the last two kinds of file; else NULL */
    unsigned line;        /* in that file, else 0 */
    const char *variable; /* that has set it; else NULL */
    const char *origin;   /* all that as people read it: "dac.conf:12" */
};

/* Tells every setting: those of [server] and so on, provider by provider, then the flags.
 * DAC_E_NOMEM: not all were told. */
enum dac_err config_facts(const struct config *cfg,
                          void (*found)(void *arg, const struct config_fact *f),
                          void *arg) DAC_CHECK;

/* Appends all of them as a JSON array. DAC_E_NOMEM: not all of them. */
enum dac_err config_facts_json(const struct config *cfg, struct buf *out) DAC_CHECK;

/* Appends what `what` is: a setting ("workers", "server.workers", "provider.acme.rps"), a
 * flag or a provider's variable ("ACME_RPS"), a section, or everything (NULL). Returns
 * how many settings that are. 0: nothing is appended, and *near is the nearest name or
 * NULL. */
size_t config_explain(const char *what, bool json, struct buf *out, const char **near);

/* Appends the sample configuration, which can be used as it stands. */
void config_sample(struct buf *out);
/* Appends the list of settings for the manual page, in man(7) macros. */
void config_manual(struct buf *out);

#endif
