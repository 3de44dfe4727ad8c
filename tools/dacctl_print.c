/*
 * See dacctl_print.h. A buffer that had no memory for all of it is not printed at all:
 * half an object is none.
 */
#include "dacctl_print.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

bool dacctl_print(struct buf *out)
{
    bool ok = !out->failed;

    if (!ok) {
        fputs("dacctl: out of memory\n", stderr);
    } else if ((out->len > 0 && fwrite(out->data, 1, out->len, stdout) != out->len) ||
               fflush(stdout) != 0) {
        fprintf(stderr, "dacctl: could not write: %s\n", strerror(errno));
        ok = false;
    }
    buf_free(out);
    return ok;
}
