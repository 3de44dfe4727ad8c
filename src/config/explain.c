/*
 * `dacctl config explain`: what a setting is, from the table alone.
 */
#include "config/describe.h"

#include <limits.h>
#include <string.h>

#include "base/json.h"
#include "config/settings.h"
#include "config/value.h"

static const char *const types[] = {
    [SETTING_BOOL] = "switch",
    [SETTING_INT] = "whole number",
    [SETTING_RATE] = "number",
    [SETTING_DURATION] = "duration",
    [SETTING_SIZE] = "size",
    [SETTING_STRING] = "text",
    [SETTING_PATH] = "path; a relative one starts at the folder of the file it stands in",
    [SETTING_URL] = "http or https URL",
    [SETTING_LIST] = "list, separated by commas",
    [SETTING_ENUM] = "word",
    [SETTING_ADDRESSES] = "addresses, separated by commas",
};

/* NULL: of a type that has none. */
static const char *unit_of(const struct setting *s)
{
    if (s->type == SETTING_DURATION)
        return "a number and one of ms, s, m, h, d: 100ms, 1.5s";
    if (s->type == SETTING_SIZE)
        return "bytes, or a number and one of k, m, g: 64k, 8m";
    if (s->type == SETTING_RATE)
        return "calls per second: 10, 0.5";
    return NULL;
}

static const struct {
    const char *json, *text;
} classes[] = {
    [SETTING_IN_PLACE] = {"in_place", "in place: a reload changes it in running "
                                      "processes"},
    [SETTING_NEW_WORKERS] = {"new_workers", "new workers: a reload starts those that "
                                            "have it; the old ones end their streams"},
    [SETTING_RESTART] = {"restart", "restart: only a restart of the service changes it"},
};

/* As one names it: "server.workers", "provider.NAME.rps", "COALESCE_ENABLED". */
static void put_name(const struct setting *s, struct buf *out)
{
    if (s->section)
        buf_printf(out, "%s%s.", s->section, setting_of_provider(s) ? ".NAME" : "");
    buf_puts(out, s->name);
}

static void put_variable(const struct setting *s, struct buf *out)
{
    buf_printf(out, "%s%s", setting_of_provider(s) ? "NAME" : "", s->env);
}

static void put_line(const char *head, const char *text, struct buf *out)
{
    if (text && *text)
        buf_printf(out, "  %-9s %s\n", head, text);
}

static void put_text(const struct setting *s, struct buf *out)
{
    struct buf range = BUF_INIT(1024), variable = BUF_INIT(128);

    setting_put_range(s, &range);
    put_name(s, out);
    buf_printf(out, "\n  %s\n\n", s->help);
    put_line("type", types[s->type], out);
    put_line("default",
             !s->def   ? "none, it must be set"
             : *s->def ? s->def
                       : "empty",
             out);
    put_line("range", buf_cstr(&range), out);
    put_line("unit", unit_of(s), out);
    put_line("change", classes[s->reload].text, out);
    if (s->env) {
        put_variable(s, &variable);
        put_line("variable", buf_cstr(&variable), out);
    }
    if (s->secret)
        put_line("secret", "its value is never shown", out);
    if (range.failed || variable.failed)
        out->failed = true;
    buf_free(&range);
    buf_free(&variable);
}

static const char *or_null(const char *s)
{
    return s && *s ? s : NULL;
}

static void put_json(const struct setting *s, struct buf *out)
{
    struct buf range = BUF_INIT(1024), variable = BUF_INIT(128);

    setting_put_range(s, &range);
    if (s->env)
        put_variable(s, &variable);
    buf_puts(out, "{\"name\":");
    json_put_string(out, s->name, strlen(s->name));
    json_put_member(out, "section", or_null(s->section));
    json_put_member(out, "type", types[s->type]);
    buf_puts(out, ",\"default\":");
    if (s->def)
        json_put_string(out, s->def, strlen(s->def));
    else
        buf_puts(out, "null");
    json_put_member(out, "range", or_null(buf_cstr(&range)));
    json_put_member(out, "unit", or_null(unit_of(s)));
    json_put_member(out, "reload", classes[s->reload].json);
    json_put_member(out, "variable", or_null(buf_cstr(&variable)));
    buf_printf(out, ",\"secret\":%s", s->secret ? "true" : "false");
    json_put_member(out, "help", s->help);
    buf_putc(out, '}');
    if (range.failed || variable.failed)
        out->failed = true;
    buf_free(&range);
    buf_free(&variable);
}

/* Whether `what` ends as the variable of a provider's setting does. */
static bool is_variable(const struct setting *s, const char *what)
{
    size_t n = strlen(what), end = s->env ? strlen(s->env) : 0;

    if (!s->env)
        return false;
    if (!setting_of_provider(s))
        return strcmp(s->env, what) == 0;
    return n > end && strcmp(what + n - end, s->env) == 0;
}

/* A provider's name may have dots in it: what counts is before the first and behind the
 * last. */
static bool is_meant(const struct setting *s, const char *what)
{
    const char *first = what ? strchr(what, '.') : NULL;
    size_t n = first ? (size_t)(first - what) : 0;

    if (!what)
        return true;
    if (!first)
        return strcmp(s->name, what) == 0 || is_variable(s, what) ||
               (s->section && strcmp(s->section, what) == 0);
    if (!s->section || strncmp(s->section, what, n) != 0 || s->section[n] != '\0')
        return false;
    if (strchr(first + 1, '.') && !setting_of_provider(s))
        return false;
    return strcmp(s->name, strrchr(what, '.') + 1) == 0;
}

/* The nearest setting or section, if one is near. */
static const char *nearest(const char *what)
{
    const char *dot = strrchr(what, '.'), *name = dot ? dot + 1 : what;
    const char *best = dot ? NULL : setting_suggest_section(what);
    unsigned least = best ? value_distance(what, best) : UINT_MAX;

    for (size_t i = 0; i < setting_count; i++) {
        const char *near = settings[i].section
                               ? setting_suggest(settings[i].section, name)
                               : settings[i].name;
        unsigned d = near ? value_distance(name, near) : UINT_MAX;

        if (d < least && (settings[i].section || d <= 3)) {
            least = d;
            best = near;
        }
    }
    return best;
}

size_t config_explain(const char *what, bool json, struct buf *out, const char **near)
{
    size_t n = 0;

    *near = NULL;
    for (size_t i = 0; i < setting_count; i++) {
        if (!is_meant(&settings[i], what))
            continue;
        if (json)
            buf_puts(out, n == 0 ? "{\"settings\":[" : ",");
        else if (n > 0)
            buf_putc(out, '\n');
        if (json)
            put_json(&settings[i], out);
        else
            put_text(&settings[i], out);
        n++;
    }
    if (n > 0 && json)
        buf_puts(out, "]}\n");
    if (n == 0)
        *near = nearest(what);
    return n;
}
