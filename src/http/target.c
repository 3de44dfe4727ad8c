/*
 * Request targets: see target.h. Nothing here allocates.
 */
#include "http/target.h"

#include <string.h>
#include <strings.h>

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

/* A letter, a digit, or one of `marks`. */
static bool is_one_of(char c, const char *marks)
{
    if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
        return true;
    return c != '\0' && strchr(marks, c) != NULL;
}

bool target_authority_valid(const char *s, size_t n)
{
    size_t i = 0;

    if (n > 0 && s[0] == '[') { /* IP literal */
        const char *close = memchr(s, ']', n);
        if (!close || close == s + 1)
            return false;
        size_t host = (size_t)(close - s);
        for (i = 1; i < host; i++)
            if (!is_one_of(s[i], ":.%-_~"))
                return false;
        i = host + 1;
    } else {
        while (i < n && s[i] != ':') {
            if (!is_one_of(s[i], "-._~%!$&'()*+;="))
                return false;
            i++;
        }
        if (i == 0)
            return false;
    }
    if (i == n)
        return true;
    if (s[i++] != ':' || n - i > 5)
        return false;
    for (; i < n; i++)
        if (s[i] < '0' || s[i] > '9')
            return false;
    return true;
}

char *target_path_start(char *s, size_t n)
{
    size_t scheme;

    if (n > 0 && s[0] == '/')
        return s;
    if (n > 7 && strncasecmp(s, "http://", 7) == 0)
        scheme = 7;
    else if (n > 8 && strncasecmp(s, "https://", 8) == 0)
        scheme = 8;
    else
        return NULL;

    size_t end = scheme;
    while (end < n && s[end] != '/' && s[end] != '?')
        end++;
    if (!target_authority_valid(s + scheme, end - scheme))
        return NULL;
    if (end < n && s[end] == '/')
        return s + end;
    s[end - 1] = '/';
    return s + end - 1;
}

const char *target_check(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c <= 0x20 || c >= 0x7f)
            return "has a character that must be percent-encoded";
        if (c == '#')
            return "has a fragment";
        if (c != '%')
            continue;
        int high = i + 2 < n ? hex_value(s[i + 1]) : -1;
        int low = i + 2 < n ? hex_value(s[i + 2]) : -1;
        if (high < 0 || low < 0)
            return "has a bad percent-encoding";
        if (high == 0 && low == 0)
            return "has an encoded NUL";
    }
    return NULL;
}

size_t target_decode(char *to, const char *s, size_t n, bool plus)
{
    char *start = to;

    for (size_t i = 0; i < n; i++) {
        if (s[i] == '%' && i + 2 < n) {
            *to++ = (char)(hex_value(s[i + 1]) << 4 | hex_value(s[i + 2]));
            i += 2;
        } else if (s[i] == '+' && plus) {
            *to++ = ' ';
        } else {
            *to++ = s[i];
        }
    }
    *to = '\0';
    return (size_t)(to - start);
}

size_t target_split_query(char *to, const char *s)
{
    char *start = to;

    while (*s) {
        size_t n = strcspn(s, "&");
        const char *eq = memchr(s, '=', n);
        size_t name = eq ? (size_t)(eq - s) : n;
        if (n > 0) {
            to += target_decode(to, s, name, true) + 1;
            to += target_decode(to, eq ? eq + 1 : s, eq ? n - name - 1 : 0, true) + 1;
        }
        s += n + (s[n] == '&');
    }
    return (size_t)(to - start);
}
