/*
 * The decoder of server-sent events. A line that lies whole in the piece is read where it
 * is; only a line cut by the piece's end is carried over. The data of an event is copied
 * only if its blank line is not right behind it. Worker process; also tests and fuzzing.
 */
#include "upstream/sse_decoder.h"

#include <string.h>

static const char byte_order_mark[] = "\xEF\xBB\xBF";

struct source { /* of one feed */
    const char *p;
    const char *end;
    sse_event_fn fn;
    void *arg;
    bool stopped;
};

void sse_decoder_init(struct sse_decoder *d, size_t event_max)
{
    *d = (struct sse_decoder){
        .event_max = event_max, .line = BUF_INIT(event_max), .data = BUF_INIT(event_max)};
}

static void shrink(struct buf *b, size_t keep)
{
    if (b->cap > keep)
        buf_free(b);
    buf_reset(b);
}

void sse_decoder_reset(struct sse_decoder *d, size_t keep)
{
    shrink(&d->line, keep);
    shrink(&d->data, keep);
    d->name[0] = '\0';
    d->bom = 0;
    d->skip_lf = false;
}

void sse_decoder_free(struct sse_decoder *d)
{
    buf_free(&d->line);
    buf_free(&d->data);
}

bool sse_decoder_pending(const struct sse_decoder *d)
{
    return d->line.len > 0 || d->data.len > 0;
}

static void emit(struct sse_decoder *d, struct source *s, const char *data, size_t n)
{
    struct sse_event ev = {.name = d->name, .data = data, .len = n};

    s->stopped = !s->fn(s->arg, &ev);
    d->name[0] = '\0';
}

/* Whether the source goes on with a blank line; it is taken then. */
static bool take_blank(struct sse_decoder *d, struct source *s)
{
    const char *p = s->p;

    if (p < s->end && d->skip_lf && *p == '\n')
        p++;
    if (p == s->end || (*p != '\n' && *p != '\r'))
        return false;
    d->skip_lf = *p == '\r';
    s->p = p + 1;
    return true;
}

static enum dac_err data_line(struct sse_decoder *d, struct source *s, const char *v,
                              size_t n)
{
    if (d->data.len == 0 && take_blank(d, s)) {
        emit(d, s, v, n);
        return DAC_OK;
    }
    if (n >= d->event_max - d->data.len)
        return DAC_E_TOO_LARGE;
    buf_append(&d->data, v, n);
    buf_putc(&d->data, '\n');
    return d->data.failed ? DAC_E_NOMEM : DAC_OK;
}

static enum dac_err read_line(struct sse_decoder *d, struct source *s, const char *l,
                              size_t n)
{
    const char *colon;
    const char *v;
    size_t name_len;
    size_t len;

    if (n == 0) {
        if (d->data.len > 0)
            emit(d, s, d->data.data, d->data.len - 1);
        d->name[0] = '\0';
        buf_reset(&d->data);
        return DAC_OK;
    }
    colon = memchr(l, ':', n);
    name_len = colon ? (size_t)(colon - l) : n;
    v = colon ? colon + 1 : l + n;
    if (v < l + n && *v == ' ')
        v++;
    len = (size_t)(l + n - v);
    if (name_len == 4 && memcmp(l, "data", 4) == 0)
        return data_line(d, s, v, len);
    if (name_len == 5 && memcmp(l, "event", 5) == 0) {
        if (len > SSE_NAME_MAX)
            len = SSE_NAME_MAX;
        memcpy(d->name, v, len);
        d->name[len] = '\0';
    }
    return DAC_OK;
}

static const char *line_end(const char *p, const char *end)
{
    const char *lf = memchr(p, '\n', (size_t)(end - p));
    const char *cr = memchr(p, '\r', (size_t)((lf ? lf : end) - p));

    return cr ? cr : lf;
}

/* Skips the mark. What only began like one is a line's begin: it is put in `line`. */
static void skip_mark(struct sse_decoder *d, struct source *s)
{
    while (d->bom < 3 && s->p < s->end) {
        if (*s->p != byte_order_mark[d->bom]) {
            buf_append(&d->line, byte_order_mark, d->bom);
            d->bom = 3;
            return;
        }
        d->bom++;
        s->p++;
    }
}

static enum dac_err carried_line(struct sse_decoder *d, struct source *s)
{
    enum dac_err e = read_line(d, s, d->line.data, d->line.len);

    buf_reset(&d->line);
    return e;
}

enum dac_err sse_decoder_feed(struct sse_decoder *d, const char *p, size_t n,
                              sse_event_fn fn, void *arg)
{
    struct source s = {.p = p, .end = p + n, .fn = fn, .arg = arg};
    enum dac_err e = DAC_OK;

    if (d->bom < 3)
        skip_mark(d, &s);
    if (d->line.failed)
        return DAC_E_NOMEM;
    while (e == DAC_OK && s.p < s.end && !s.stopped) {
        const char *start = s.p;
        const char *eol;
        size_t len;

        if (d->skip_lf && *start == '\n')
            start++;
        d->skip_lf = false;
        eol = line_end(start, s.end);
        len = (size_t)((eol ? eol : s.end) - start);
        if (d->line.len + d->data.len + len > d->event_max)
            return DAC_E_TOO_LARGE;
        if (eol)
            d->skip_lf = *eol == '\r';
        s.p = eol ? eol + 1 : s.end;
        if (eol && d->line.len == 0) {
            e = read_line(d, &s, start, len);
            continue;
        }
        buf_append(&d->line, start, len);
        if (d->line.failed)
            return DAC_E_NOMEM;
        if (eol)
            e = carried_line(d, &s);
    }
    return e;
}
