/*
 * See arena.h. Small pieces share chunks of 4 KiB; a piece that does not fit has its own.
 * The bound on the sum is the caller's (a page of rows has one).
 */
#include "store/arena.h"

#include <stdlib.h>
#include <string.h>

#define ARENA_CHUNK 4096

struct arena_chunk {
    struct arena_chunk *older;
    size_t size;
    size_t used;
    char bytes[];
};

char *arena_copy(struct arena *a, const void *s, size_t n)
{
    struct arena_chunk *c = a->newest;

    if (c == NULL || c->size - c->used < n + 1) {
        size_t size = n + 1 > ARENA_CHUNK ? n + 1 : ARENA_CHUNK;

        c = malloc(sizeof(*c) + size);
        if (c == NULL)
            return NULL;
        c->size = size;
        c->used = 0;
        c->older = a->newest;
        a->newest = c;
    }
    char *p = c->bytes + c->used;

    if (n > 0)
        memcpy(p, s, n);
    p[n] = '\0';
    c->used += n + 1;
    return p;
}

void arena_free(struct arena *a)
{
    while (a->newest != NULL) {
        struct arena_chunk *c = a->newest;

        a->newest = c->older;
        free(c);
    }
}
