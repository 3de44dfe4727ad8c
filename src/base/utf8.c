/*
 * Well-formed UTF-8 as RFC 3629 and table 3-7 of the Unicode standard have it: no
 * overlong forms, no surrogates, nothing above U+10FFFF. Replacement follows the
 * standard's advice: one U+FFFD per maximal part of an ill-formed sequence. Declared in
 * base/json.h. Any process.
 */
#include "base/json.h"

#include <string.h>

#define REPLACEMENT "\xef\xbf\xbd"

enum utf8_kind { UTF8_WHOLE, UTF8_BAD, UTF8_SHORT };

/* Looks at the sequence at s[0..n), n > 0. Returns its length: of the character if whole,
 * of the maximal ill-formed part if bad, of what is there if the text ends inside it. */
static size_t utf8_scan(const unsigned char *s, size_t n, enum utf8_kind *kind)
{
    unsigned char low = 0x80, high = 0xbf;
    size_t len;

    *kind = UTF8_WHOLE;
    if (s[0] < 0x80)
        return 1;
    if (s[0] < 0xc2 || s[0] > 0xf4) {
        *kind = UTF8_BAD;
        return 1;
    }
    if (s[0] < 0xe0) {
        len = 2;
    } else if (s[0] < 0xf0) {
        len = 3;
        low = s[0] == 0xe0 ? 0xa0 : 0x80;
        high = s[0] == 0xed ? 0x9f : 0xbf;
    } else {
        len = 4;
        low = s[0] == 0xf0 ? 0x90 : 0x80;
        high = s[0] == 0xf4 ? 0x8f : 0xbf;
    }
    for (size_t i = 1; i < len; i++) {
        if (i >= n) {
            *kind = UTF8_SHORT;
            return i;
        }
        if (s[i] < low || s[i] > high) {
            *kind = UTF8_BAD;
            return i;
        }
        low = 0x80;
        high = 0xbf;
    }
    return len;
}

bool utf8_valid(const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;
    enum utf8_kind kind;

    for (size_t i = 0; i < n;) {
        i += utf8_scan(p + i, n - i, &kind);
        if (kind != UTF8_WHOLE)
            return false;
    }
    return true;
}

size_t utf8_complete_prefix(const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;
    enum utf8_kind kind;

    /* Only the last three bytes can start a character that is not over. */
    for (size_t back = 1; back <= 3 && back <= n; back++) {
        if ((p[n - back] & 0xc0) == 0x80)
            continue;
        utf8_scan(p + n - back, back, &kind);
        return kind == UTF8_SHORT ? n - back : n;
    }
    return n;
}

void utf8_put_storable(struct buf *b, const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;
    size_t start = 0, i = 0;

    while (i < n) {
        enum utf8_kind kind;
        size_t len = utf8_scan(p + i, n - i, &kind);

        if (kind == UTF8_WHOLE && p[i] != 0) {
            i += len;
            continue;
        }
        buf_append(b, s + start, i - start);
        buf_puts(b, REPLACEMENT);
        i += len;
        start = i;
    }
    buf_append(b, s + start, n - start);
}

/* How many bytes at p go out as they are: a whole character that needs no escape, or 0.
 */
static size_t plain(const unsigned char *p, size_t n)
{
    enum utf8_kind kind;
    size_t len;

    if (p[0] < 0x80)
        return p[0] >= 0x20 && p[0] != '"' && p[0] != '\\';
    len = utf8_scan(p, n, &kind);
    if (kind != UTF8_WHOLE)
        return 0;
    if (len == 3 && p[0] == 0xe2 && p[1] == 0x80 && (p[2] == 0xa8 || p[2] == 0xa9))
        return 0;
    return len;
}

/* Writes the character at p in its escaped form; returns how many bytes of p it was. */
static size_t put_escape(struct buf *b, const unsigned char *p, size_t n)
{
    static const char short_form[0x20] = {
        ['\b'] = 'b', ['\t'] = 't', ['\n'] = 'n', ['\f'] = 'f', ['\r'] = 'r'};
    enum utf8_kind kind;
    size_t len;

    if (p[0] == '"' || p[0] == '\\') {
        char two[2] = {'\\', (char)p[0]};

        buf_append(b, two, 2);
        return 1;
    }
    if (p[0] < 0x20) {
        char two[2] = {'\\', short_form[p[0]]};

        if (two[1])
            buf_append(b, two, 2);
        else
            buf_printf(b, "\\u%04x", (unsigned)p[0]);
        return 1;
    }
    len = utf8_scan(p, n, &kind);
    if (kind == UTF8_WHOLE)
        buf_puts(b, p[2] == 0xa8 ? "\\u2028" : "\\u2029");
    else
        buf_puts(b, REPLACEMENT);
    return len;
}

void json_put_escaped(struct buf *b, const char *s, size_t n)
{
    const unsigned char *p = (const unsigned char *)s;
    size_t start = 0, i = 0;

    while (i < n) {
        size_t len = plain(p + i, n - i);

        if (len > 0) {
            i += len;
            continue;
        }
        buf_append(b, s + start, i - start);
        i += put_escape(b, p + i, n - i);
        start = i;
    }
    buf_append(b, s + start, n - start);
}
