/*
 * Process titles as ps(1) shows them: "dacd: master", "dacd: worker 2".
 */
#ifndef DAC_PROCESS_TITLE_H
#define DAC_PROCESS_TITLE_H

#include "base/err.h"

/* Moves the environment away from behind the arguments, so that a title has room there.
 * Call once, first thing in main(). Without memory titles are left alone. */
void title_init(int argc, char **argv);
/* Shows "dacd: " and the text. Any process, after title_init(). */
void title_set(const char *fmt, ...) DAC_PRINTF(1, 2);

#endif
