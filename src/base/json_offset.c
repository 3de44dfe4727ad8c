/*
 * Where a member of a JSON object stands in its text, for errors about what it says. The
 * text was found valid before, so only brackets, quotes and escapes are looked at.
 */
#include <string.h>

#include "base/json.h"

/* Behind the string that begins at s[i]. */
static size_t behind_string(const char *s, size_t n, size_t i)
{
    for (i++; i < n && s[i] != '"'; i++)
        if (s[i] == '\\')
            i++;
    return i + 1;
}

static size_t skip_space(const char *s, size_t n, size_t i)
{
    while (i < n && strchr(" \t\r\n", s[i]))
        i++;
    return i;
}

size_t json_member_offset(const char *text, size_t n, const char *name)
{
    size_t len = strlen(name);
    int depth = 0;

    for (size_t i = 0; i < n;) {
        if (text[i] == '{' || text[i] == '[') {
            depth++;
        } else if (text[i] == '}' || text[i] == ']') {
            depth--;
        } else if (text[i] == '"') {
            size_t end = behind_string(text, n, i);
            size_t colon = skip_space(text, n, end);
            if (depth == 1 && colon < n && text[colon] == ':' && end - i == len + 2 &&
                memcmp(text + i + 1, name, len) == 0)
                return skip_space(text, n, colon + 1);
            i = end;
            continue;
        }
        i++;
    }
    return SIZE_MAX;
}
