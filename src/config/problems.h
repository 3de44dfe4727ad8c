/*
 * Collects what is wrong with a configuration. Internal to config.
 */
#ifndef DAC_CONFIG_PROBLEMS_H
#define DAC_CONFIG_PROBLEMS_H

#include "config/config.h"

/* Adds one; `line` 0 means the file as a whole. Control characters become '?'. Without
 * memory it is still counted. */
void problem_add(struct config_problems *p, const char *file, unsigned line,
                 const char *fmt, ...) DAC_PRINTF(4, 5);
void problem_warn(struct config_problems *p, const char *file, unsigned line,
                  const char *fmt, ...) DAC_PRINTF(4, 5);
/* Puts those of one file in the order of its lines; files stay in the order they came in.
 */
void problems_sort(struct config_problems *p);

#endif
