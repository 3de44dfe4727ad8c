/*
 * dacctl's command on the configuration, which needs no service.
 */
#ifndef DAC_TOOLS_DACCTL_CONFIG_H
#define DAC_TOOLS_DACCTL_CONFIG_H

#include <stdbool.h>
#include <stddef.h>

/* `words[0..n)` stand behind "config": show, explain [NAME], diff [FILE], sample. `conf`
 * is the configuration file, NULL the usual one. Returns what to exit with, and has said
 * on stderr what went wrong. */
int dacctl_config(const char *conf, char *const *words, int n, bool json);

/* The name of the instance that is configured in `conf`, into `name`. False: the file
 * cannot be used, and it has been said why. */
bool dacctl_config_instance(const char *conf, char *name, size_t size);

#endif
