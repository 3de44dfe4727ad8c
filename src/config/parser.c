/*
 * The line reader below both file forms, and the grammar of each. Each line is copied
 * once into a buffer of its own, in which names and values are cut in place.
 */
#include "config/parser.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

struct parser {
    const struct parser_events *ev;
    void *arg;
    unsigned line;
    bool in_section;
};

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

static char *skip_blanks(char *s)
{
    while (is_blank(*s))
        s++;
    return s;
}

/* Cuts blanks off the end of s. */
static void trim_end(char *s)
{
    size_t n = strlen(s);

    while (n > 0 && is_blank(s[n - 1]))
        s[--n] = '\0';
}

static void problem(struct parser *p, const char *text)
{
    p->ev->problem(p->arg, p->line, text);
}

/* Ends `s` before the first `mark` that stands behind a blank (`start` counts as one). */
static void cut_comment(char *s, char mark, bool start)
{
    for (char *c = s; *c; c++) {
        if (*c == mark && (c == s ? start : is_blank(c[-1]))) {
            *c = '\0';
            return;
        }
    }
}

/* Whether nothing but blanks and a comment follows. */
static bool only_comment(char *s, char mark)
{
    char *c = skip_blanks(s);

    return *c == '\0' || (*c == mark && (c > s));
}

/* Takes the quotes off the value at s in place; returns what stands behind it, or NULL if
 * the quote is not closed. Backslash takes the special meaning from itself and a double
 * quote. */
static char *unquote(char *s)
{
    char quote = *s, *from = s + 1, *to = s;

    while (*from && *from != quote) {
        if (quote == '"' && *from == '\\' && (from[1] == '"' || from[1] == '\\'))
            from++;
        *to++ = *from++;
    }
    if (!*from)
        return NULL;
    *to = '\0';
    return from + 1;
}

/* --- INI ---------------------------------------------------------------------------- */

static void ini_section(struct parser *p, char *s)
{
    char *end = strchr(s, ']'), *kind, *name;

    p->in_section = true;
    if (!end) {
        problem(p, "section has no closing bracket; write it like [server]");
        p->ev->section(p->arg, p->line, "", "");
        return;
    }
    *end = '\0';
    if (!only_comment(end + 1, ';'))
        problem(p, "text behind a section; put it on a line of its own");
    kind = skip_blanks(s + 1);
    trim_end(kind);
    name = kind + strcspn(kind, " \t");
    if (*name) {
        *name = '\0';
        name = skip_blanks(name + 1);
    }
    if (*kind == '\0')
        problem(p, "section has no name; write it like [server]");
    p->ev->section(p->arg, p->line, kind, name);
}

/* Takes the quotes or the comment off a value in place. False: reported. */
static bool ini_value(struct parser *p, char *value, bool behind_blank)
{
    char *rest;

    if (*value != '"') {
        cut_comment(value, ';', behind_blank);
        trim_end(value);
        return true;
    }
    rest = unquote(value);
    if (!rest)
        problem(p, "value has no closing quote; add one, or put \\ before a quote in it");
    else if (!only_comment(rest, ';'))
        problem(p, "text behind the closing quote; put the whole value in one pair");
    else
        return true;
    return false;
}

/* What `s` includes, or NULL if it is another line. */
static char *ini_include(char *s)
{
    char *pattern = s + strlen("include");

    if (strncmp(s, "include", strlen("include")) != 0 ||
        (*pattern != '\0' && !is_blank(*pattern)))
        return NULL;
    return skip_blanks(pattern);
}

static void ini_setting(struct parser *p, char *s)
{
    char *equals = strchr(s, '='), *value;

    if (!equals) {
        problem(
            p,
            "no \"=\" in this line; write \"name = value\", or begin a comment with ;");
        return;
    }
    *equals = '\0';
    trim_end(s);
    if (*s == '\0') {
        problem(p, "no name before \"=\"; write \"name = value\"");
        return;
    }
    value = skip_blanks(equals + 1);
    if (!ini_value(p, value, value > equals + 1))
        return;
    if (!p->in_section) {
        problem(p, "setting before the first section; begin with one like [server]");
        return;
    }
    p->ev->setting(p->arg, p->line, s, value);
}

static void ini_line(struct parser *p, char *s)
{
    char *pattern;

    s = skip_blanks(s);
    if (*s == '\0' || *s == ';' || *s == '#')
        return;
    pattern = ini_include(s);
    if (*s == '[')
        ini_section(p, s);
    else if (!pattern)
        ini_setting(p, s);
    else if (*pattern == '=')
        problem(p, "write \"include PATTERN\" without \"=\"");
    else if (ini_value(p, pattern, true) && *pattern)
        p->ev->include(p->arg, p->line, pattern);
    else if (*pattern == '\0')
        problem(p, "include names no file; write it like \"include conf.d/*.conf\"");
}

/* --- env files ---------------------------------------------------------------------- */

static bool env_name_valid(const char *s)
{
    size_t n =
        strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789");

    return n > 0 && s[n] == '\0' && !(s[0] >= '0' && s[0] <= '9');
}

static void env_line(struct parser *p, char *s)
{
    char *equals, *value;

    s = skip_blanks(s);
    if (*s == '\0' || *s == '#' || *s == ';')
        return;
    if (strncmp(s, "export", 6) == 0 && is_blank(s[6]))
        s = skip_blanks(s + 6);
    equals = strchr(s, '=');
    if (equals)
        *equals = '\0';
    if (!equals || !env_name_valid(s)) {
        problem(p, "not a variable; write NAME=VALUE without blanks around \"=\"");
        return;
    }
    value = skip_blanks(equals + 1);
    if (*value == '"' || *value == '\'') {
        char *rest = unquote(value);

        if (!rest || !only_comment(rest, '#')) {
            problem(
                p, rest ? "text behind the closing quote; put the whole value in one pair"
                        : "value has no closing quote; add one");
            return;
        }
    } else {
        cut_comment(value, '#', false);
        trim_end(value);
    }
    p->ev->setting(p->arg, p->line, s, value);
}

/* --- lines -------------------------------------------------------------------------- */

/* NULL, or what makes this line none that people write. */
static const char *line_fault(const char *s, size_t n)
{
    if (n > PARSER_LINE_MAX)
        return "line is longer than 65536 bytes; make it shorter";
    if (!utf8_valid(s, n))
        return "line is not valid UTF-8; save the file as UTF-8";
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];

        if ((c < 0x20 && c != '\t') || c == 0x7f)
            return "line has a control character; remove it";
    }
    return NULL;
}

static enum dac_err parse_lines(const char *text, size_t n, struct parser *p,
                                void (*take)(struct parser *p, char *line))
{
    char *copy = malloc(PARSER_LINE_MAX + 1);
    size_t at = 0;

    if (!copy)
        return DAC_E_NOMEM;
    if (n >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0)
        at = 3;
    while (at < n) {
        const char *start = text + at, *end = memchr(start, '\n', n - at);
        size_t len = end ? (size_t)(end - start) : n - at;
        const char *fault;

        at += len + 1;
        p->line++;
        if (len > 0 && start[len - 1] == '\r')
            len--;
        fault = line_fault(start, len);
        if (fault) {
            problem(p, fault);
            continue;
        }
        memcpy(copy, start, len);
        copy[len] = '\0';
        take(p, copy);
    }
    free(copy);
    return DAC_OK;
}

enum dac_err parser_ini(const char *text, size_t n, const struct parser_events *ev,
                        void *arg)
{
    struct parser p = {.ev = ev, .arg = arg};

    return parse_lines(text, n, &p, ini_line);
}

enum dac_err parser_env(const char *text, size_t n, const struct parser_events *ev,
                        void *arg)
{
    struct parser p = {.ev = ev, .arg = arg};

    return parse_lines(text, n, &p, env_line);
}
