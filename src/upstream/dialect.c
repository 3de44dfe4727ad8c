/*
 * The table of dialects. Worker process.
 */
#include "upstream/dialect.h"

#include <string.h>

static const struct dialect *const dialects[] = {&dialect_openai};

const struct dialect *dialect_find(const char *name)
{
    for (size_t i = 0; i < DAC_ARRAY_LEN(dialects); i++)
        if (strcmp(dialects[i]->name, name) == 0)
            return dialects[i];
    return NULL;
}
