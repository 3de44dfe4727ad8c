/*
 * The growing buffer and small functions on byte strings. Growth doubles up to the
 * maximum; one byte more than `max` may be allocated, for the NUL of buf_cstr(). Any
 * process.
 */
#include "base/bytes.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BUF_FIRST_CAP 256

/* Makes cap at least len + n + 1. */
static enum dac_err buf_grow(struct buf *b, size_t n)
{
    size_t need, cap;
    char *p;

    if (n > b->max || b->len > b->max - n) {
        b->failed = true;
        return DAC_E_TOO_LARGE;
    }
    if (b->max == SIZE_MAX && b->len + n == SIZE_MAX) {
        b->failed = true;
        return DAC_E_NOMEM;
    }
    need = b->len + n + 1;
    if (need <= b->cap)
        return DAC_OK;
    cap = b->cap ? b->cap : BUF_FIRST_CAP;
    while (cap < need)
        cap = cap > SIZE_MAX / 2 ? need : cap * 2;
    if (b->max < SIZE_MAX && cap > b->max + 1)
        cap = b->max + 1;
    p = realloc(b->data, cap);
    if (!p) {
        b->failed = true;
        return DAC_E_NOMEM;
    }
    b->data = p;
    b->cap = cap;
    return DAC_OK;
}

enum dac_err buf_append(struct buf *b, const void *data, size_t n)
{
    enum dac_err e = buf_grow(b, n);

    if (e != DAC_OK)
        return e;
    if (n > 0)
        memcpy(b->data + b->len, data, n);
    b->len += n;
    return DAC_OK;
}

enum dac_err buf_puts(struct buf *b, const char *s)
{
    return buf_append(b, s, strlen(s));
}

enum dac_err buf_putc(struct buf *b, char c)
{
    return buf_append(b, &c, 1);
}

enum dac_err buf_printf(struct buf *b, const char *fmt, ...)
{
    char small[256];
    va_list ap;
    int n;
    enum dac_err e;

    va_start(ap, fmt);
    n = vsnprintf(small, sizeof(small), fmt, ap);
    va_end(ap);
    if (n < 0) {
        b->failed = true;
        return DAC_E_INVALID;
    }
    if ((size_t)n < sizeof(small))
        return buf_append(b, small, (size_t)n);

    e = buf_grow(b, (size_t)n);
    if (e != DAC_OK)
        return e;
    va_start(ap, fmt);
    vsnprintf(b->data + b->len, (size_t)n + 1, fmt, ap);
    va_end(ap);
    b->len += (size_t)n;
    return DAC_OK;
}

char *buf_reserve(struct buf *b, size_t n)
{
    if (buf_grow(b, n) != DAC_OK)
        return NULL;
    return b->data + b->len;
}

void buf_consume(struct buf *b, size_t n)
{
    DAC_ASSERT(n <= b->len);
    if (n == 0)
        return;
    b->len -= n;
    if (b->len > 0)
        memmove(b->data, b->data + n, b->len);
}

void buf_reset(struct buf *b)
{
    b->len = 0;
    b->failed = false;
}

const char *buf_cstr(struct buf *b)
{
    if (buf_grow(b, 0) != DAC_OK)
        return NULL;
    b->data[b->len] = '\0';
    return b->data;
}

void buf_free(struct buf *b)
{
    free(b->data);
    b->data = NULL;
    b->len = 0;
    b->cap = 0;
    b->failed = false;
}

bool bytes_parse_u64(const char *s, size_t n, uint64_t max, uint64_t *out)
{
    uint64_t v = 0;

    if (n == 0)
        return false;
    for (size_t i = 0; i < n; i++) {
        unsigned digit = (unsigned)(unsigned char)s[i] - '0';

        if (digit > 9 || digit > max || v > (max - digit) / 10)
            return false;
        v = v * 10 + digit;
    }
    *out = v;
    return true;
}

static unsigned char lower(unsigned char c)
{
    return c >= 'A' && c <= 'Z' ? (unsigned char)(c + ('a' - 'A')) : c;
}

bool bytes_ieq(const char *s, size_t n, const char *lit)
{
    for (size_t i = 0; i < n; i++) {
        if (lit[i] == '\0' || lower((unsigned char)s[i]) != lower((unsigned char)lit[i]))
            return false;
    }
    return lit[n] == '\0';
}

void bytes_hex(const uint8_t *p, size_t n, char *out)
{
    static const char digits[] = "0123456789abcdef";

    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digits[p[i] >> 4];
        out[2 * i + 1] = digits[p[i] & 15];
    }
    out[2 * n] = '\0';
}
