/*
 * What becomes of a changed configuration in a service that runs: which settings differ
 * between two, what it takes for each to have effect, and the values that running
 * processes take over as they are.
 *
 * The master compares and publishes; every process applies to its own copy.
 */
#ifndef DAC_CONFIG_LIVE_H
#define DAC_CONFIG_LIVE_H

#include "config/config.h"

#define CONFIG_LIVE_MAX 48 /* words */

enum config_reload {
    CONFIG_IN_PLACE,    /* running processes take it over */
    CONFIG_NEW_WORKERS, /* new workers have it; the old ones end what they have begun */
    CONFIG_RESTART,     /* only another start of the service */
};

/* One difference. Texts are valid during the call; secrets are "***". */
struct config_change {
    const char *name; /* "server.workers", "provider.acme.rps", "provider.acme" */
    enum config_reload reload;
    const char *from, *to;
};

/* Tells each difference, in the order of the settings table, then provider by provider;
 * returns how many there are. What a setting names counts too: a key file with another
 * key in it is a change. Where there is no memory for it, everything is told to be one
 * change that takes new workers, called "configuration". */
size_t config_diff(const struct config *from, const struct config *to,
                   void (*found)(void *arg, const struct config_change *), void *arg);

/* Gives `cfg` the values of `old` where only a restart changes them, so that it says what
 * is in effect. DAC_E_NOMEM: `cfg` is not to be used. */
enum dac_err config_keep_fixed(struct config *cfg, const struct config *old) DAC_CHECK;

/* The settings that change in place, but for those of providers, as words whose meaning
 * is this program's alone. Returns how many. */
size_t config_live_words(const struct config *cfg, uint64_t words[CONFIG_LIVE_MAX]);
/* The opposite: into a configuration that one process has for itself. */
void config_live_apply(struct config *cfg, const uint64_t words[CONFIG_LIVE_MAX]);

#endif
