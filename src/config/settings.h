/*
 * The one table of all settings, and how a value of each type is read into the struct and
 * written out of it. The parser, the printed configuration and the manual come from this.
 * Internal to config.
 */
#ifndef DAC_CONFIG_SETTINGS_H
#define DAC_CONFIG_SETTINGS_H

#include "base/bytes.h"
#include "config/config.h"

/* The type of the member that a setting fills. */
enum setting_type {
    SETTING_BOOL,     /* bool */
    SETTING_INT,      /* uint32_t */
    SETTING_RATE,     /* double */
    SETTING_DURATION, /* uint64_t, nanoseconds */
    SETTING_SIZE,     /* uint64_t, bytes */
    SETTING_STRING,   /* char *, NULL if empty */
    SETTING_PATH, /* char *, NULL if empty; relative ones start at the file's folder */
    SETTING_URL,  /* char * */
    SETTING_LIST, /* struct config_list */
    SETTING_ENUM, /* int, index of the word */
    SETTING_ADDRESSES, /* struct config_addresses */
};

/* What it takes for a changed value to have effect. */
enum setting_reload {
    SETTING_IN_PLACE,    /* SIGHUP, in running processes */
    SETTING_NEW_WORKERS, /* SIGHUP, in new workers; the old ones serve what they have */
    SETTING_RESTART,     /* a restart of the service */
};

struct setting {
    const char
        *section; /* "server", "memory", "store", "flight", "provider"; NULL: no file */
    const char *name; /* in its section */
    const char
        *env; /* variable that overrides it; of a provider: what follows its name */
    enum setting_type type;
    size_t offset;         /* in struct config, or in struct config_provider */
    const char *def;       /* as one would write it; NULL: must be set */
    uint64_t min, max;     /* inclusive, in the member's unit */
    const char *automatic; /* word that stores 0 and lets config_load() choose; or NULL */
    const char *const *words; /* of SETTING_ENUM, NULL-terminated */
    bool credential; /* of SETTING_PATH: may be CONFIG_CREDENTIAL and a name instead */
    enum setting_reload reload;
    bool secret; /* its value is never shown */
    const char *help;
};

extern const struct setting settings[];
extern const size_t setting_count;

/* The setting `name` of a section, or NULL. */
const struct setting *setting_find(const char *section, const char *name);
/* Whether a setting of this section exists ("provider" too). */
bool setting_section_exists(const char *section);
/* Whether a [provider NAME] has it, not the configuration as a whole. */
bool setting_of_provider(const struct setting *s);
/* The nearest name that a typist may have meant, or NULL. */
const char *setting_suggest(const char *section, const char *name);
const char *setting_suggest_section(const char *section);

/* Reads `value` into the member of `base` (a struct config or config_provider), releasing
 * what it held. `folder` is where relative paths start. On DAC_E_INVALID the member is
 * unchanged and `why` says what is wrong and how to mend it, beginning with the setting's
 * name. */
enum dac_err setting_parse(const struct setting *s, void *base, const char *value,
                           const char *folder, struct buf *why) DAC_CHECK;
/* Appends the value as it may stand in a file; secrets as "***". */
void setting_put(const struct setting *s, const void *base, struct buf *out);
/* The same for a number that is no member: a bound of the range. */
void setting_put_number(const struct setting *s, uint64_t v, struct buf *b);
/* Releases what the member owns. */
void setting_release(const struct setting *s, void *base);

/* Appends which values there are, such as "1 to 28, or auto"; nothing where any text will
 * do. */
void setting_put_range(const struct setting *s, struct buf *out);

/* Appends `s` so that the parser reads it back: in quotes if it needs them. */
void setting_put_quoted(struct buf *out, const char *s);

#endif
