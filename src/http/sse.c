/*
 * Server-sent events writer: see sse.h. A line end inside data or a comment starts
 * another line of the same kind, so that nothing foreign can end an event early.
 */
#include "http/sse.h"

#include <string.h>

/* Appends s[0..n), with `prefix` behind each line end in it. */
static void put_lines(struct buf *b, const char *prefix, const char *s, size_t n)
{
    while (n > 0) {
        size_t line = 0;
        while (line < n && s[line] != '\n' && s[line] != '\r')
            line++;
        buf_append(b, s, line);
        if (line == n)
            return;
        buf_putc(b, '\n');
        buf_puts(b, prefix);
        if (s[line] == '\r' && line + 1 < n && s[line + 1] == '\n')
            line++;
        s += line + 1;
        n -= line + 1;
    }
}

void sse_put_begin(struct buf *b, const char *event, const char *id)
{
    if (event) {
        buf_puts(b, "event: ");
        buf_puts(b, event);
        buf_putc(b, '\n');
    }
    if (id) {
        buf_puts(b, "id: ");
        buf_puts(b, id);
        buf_putc(b, '\n');
    }
    buf_puts(b, "data: ");
}

void sse_put_end(struct buf *b)
{
    buf_append(b, "\n\n", 2);
}

void sse_put_event(struct buf *b, const char *event, const char *id, const char *data,
                   size_t n)
{
    sse_put_begin(b, event, id);
    put_lines(b, "data: ", data, n);
    sse_put_end(b);
}

void sse_put_comment(struct buf *b, const char *text)
{
    buf_puts(b, ": ");
    put_lines(b, ": ", text, strlen(text));
    sse_put_end(b);
}
