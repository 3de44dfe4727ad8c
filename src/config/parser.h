/*
 * Reads the two file forms line by line and hands over what it finds: INI and env files.
 * Knows no settings. Internal to config.
 *
 * INI: "[kind]" or "[kind name]"; "key = value"; lines that begin with ; or # are
 * comments; a comment may follow a value or section as " ;" (blank first). A value in
 * double quotes keeps everything up to the closing quote, with \" and \\ for these two.
 * "include PATTERN" may stand on any line.
 *
 * Env file: "KEY=VALUE", "export KEY=VALUE"; # and ; begin comment lines, " #" ends a
 * value that is not in single or double quotes. As in a shell a later line wins, but
 * nothing is expanded.
 */
#ifndef DAC_CONFIG_PARSER_H
#define DAC_CONFIG_PARSER_H

#include <stddef.h>

#include "base/err.h"

#define PARSER_LINE_MAX 65536

/* All strings are borrowed during the call and NUL-terminated; line numbers start at 1.
 */
struct parser_events {
    void (*section)(void *arg, unsigned line, const char *kind, const char *name);
    void (*setting)(void *arg, unsigned line, const char *key, const char *value);
    void (*problem)(void *arg, unsigned line, const char *text);
    void (*include)(void *arg, unsigned line, const char *pattern);
};

/* `name` is "" where a section has none. Lines with a problem are skipped. DAC_E_NOMEM.
 */
enum dac_err parser_ini(const char *text, size_t n, const struct parser_events *ev,
                        void *arg) DAC_CHECK;
/* Calls `setting` and `problem` only. */
enum dac_err parser_env(const char *text, size_t n, const struct parser_events *ev,
                        void *arg) DAC_CHECK;

#endif
