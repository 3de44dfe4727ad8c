/*
 * How dacctl's commands print what they have gathered: all of it, or a word why not.
 */
#ifndef DAC_TOOLS_DACCTL_PRINT_H
#define DAC_TOOLS_DACCTL_PRINT_H

#include <stdbool.h>

#include "base/bytes.h"

/* Prints it on standard output, and frees it. False: it has said on stderr why not. */
bool dacctl_print(struct buf *out);

#endif
