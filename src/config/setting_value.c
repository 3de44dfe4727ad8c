/*
 * Reads, prints and releases one setting's value, by its type. Declared in
 * config/settings.h.
 */
#include "config/settings.h"

#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "config/address.h"
#include "config/value.h"

#define RATE_MIN "0.0001" /* below it GCRA's interval would not fit its word */

/* Member access by offset; every member has the type that its setting names. */
static void *member(const struct setting *s, void *base)
{
    return (char *)base + s->offset;
}

static const void *const_member(const struct setting *s, const void *base)
{
    return (const char *)base + s->offset;
}

/* "NAME: "VALUE" is FAULT"; a long value is cut, a secret one and a URL (it may hold a
 * password) are left out. */
static enum dac_err invalid(const struct setting *s, const char *value, const char *fault,
                            struct buf *why)
{
    int n = 80;

    if (s->secret || s->type == SETTING_URL)
        buf_printf(why, "%s: the value %s", s->name, fault);
    else
        buf_printf(why, "%s: \"%.*s%s\" %s", s->name,
                   (int)utf8_complete_prefix(value, strnlen(value, (size_t)n)), value,
                   strlen(value) > (size_t)n ? "..." : "", fault);
    return DAC_E_INVALID;
}

void setting_put_number(const struct setting *s, uint64_t v, struct buf *b)
{
    if (s->type == SETTING_DURATION)
        value_put_duration(b, v);
    else if (s->type == SETTING_SIZE)
        value_put_size(b, v);
    else
        buf_printf(b, "%llu", (unsigned long long)v);
}

/* The same for a setting that has a range, with what to choose instead. */
static enum dac_err not_in_range(const struct setting *s, const char *value,
                                 const char *what, struct buf *why)
{
    struct buf fault = BUF_INIT(512);

    buf_printf(&fault, "%s; choose ", what);
    setting_put_range(s, &fault);
    if (s->type == SETTING_RATE)
        buf_puts(&fault, " for no limit");
    if (!buf_cstr(&fault)) {
        buf_free(&fault);
        return DAC_E_NOMEM;
    }
    invalid(s, value, fault.data, why);
    buf_free(&fault);
    return DAC_E_INVALID;
}

/* Integers, durations and sizes. */
static enum dac_err parse_number(const struct setting *s, void *base, const char *value,
                                 struct buf *why)
{
    bool automatic = s->automatic && bytes_ieq(value, strlen(value), s->automatic), ok;
    const char *fault;
    uint64_t v = 0;

    switch (s->type) {
    case SETTING_DURATION:
        ok = value_parse_duration(value, &v);
        fault = "is not a duration like 30s, 100ms or 5m";
        break;
    case SETTING_SIZE:
        ok = value_parse_size(value, &v);
        fault = "is not a size like 4096, 64k or 48m";
        break;
    default:
        ok = bytes_parse_u64(value, strlen(value), UINT64_MAX, &v);
        fault = "is not a whole number";
        break;
    }
    if (!ok && !automatic)
        return not_in_range(s, value, fault, why);
    if (!automatic && (v < s->min || v > s->max))
        return not_in_range(s, value, "is out of range", why);
    if (s->type == SETTING_INT)
        *(uint32_t *)member(s, base) = (uint32_t)v;
    else
        *(uint64_t *)member(s, base) = v;
    return DAC_OK;
}

static enum dac_err parse_rate(const struct setting *s, void *base, const char *value,
                               struct buf *why)
{
    double v;

    if (!value_parse_rate(value, &v))
        return not_in_range(s, value, "is not a number like 10 or 0.5", why);
    if ((v > 0 && v < strtod(RATE_MIN, NULL)) || v > (double)s->max)
        return not_in_range(s, value, "is out of range", why);
    *(double *)member(s, base) = v;
    return DAC_OK;
}

static enum dac_err parse_enum(const struct setting *s, void *base, const char *value,
                               struct buf *why)
{
    char fault[128] = "is not known; choose ";

    for (int i = 0; s->words[i]; i++) {
        size_t used = strlen(fault);

        if (strcmp(value, s->words[i]) == 0) {
            *(int *)member(s, base) = i;
            return DAC_OK;
        }
        snprintf(fault + used, sizeof(fault) - used, "%s%s",
                 i == 0            ? ""
                 : s->words[i + 1] ? ", "
                                   : " or ",
                 s->words[i]);
    }
    return invalid(s, value, fault, why);
}

static bool is_credential(const struct setting *s, const char *value)
{
    return s->credential &&
           strncmp(value, CONFIG_CREDENTIAL, strlen(CONFIG_CREDENTIAL)) == 0;
}

/* What may be a file's name: systemd takes no other. */
static bool credential_valid(const char *name)
{
    size_t n = strlen(name);

    return n > 0 && n <= 255 && !strchr(name, '/') && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0;
}

static enum dac_err parse_text(const struct setting *s, void *base, const char *value,
                               const char *folder, struct buf *why)
{
    char **slot = member(s, base), *copy = NULL;
    const char *fault;
    size_t n;

    if (s->type == SETTING_URL && !url_valid(value, &fault))
        return invalid(s, value, fault, why);
    if (strlen(value) > 4000)
        return invalid(s, value, "is longer than 4000 bytes; shorten it", why);
    if (is_credential(s, value) && !credential_valid(value + strlen(CONFIG_CREDENTIAL)))
        return invalid(s, value,
                       "is no credential's name; write it like credential:perplexity",
                       why);
    if (s->type == SETTING_PATH && *value && *value != '/' && folder &&
        !is_credential(s, value)) {
        if (asprintf(&copy, "%s/%s", folder, value) < 0)
            return DAC_E_NOMEM;
    } else if (*value) {
        copy = strdup(value);
        if (!copy)
            return DAC_E_NOMEM;
    }
    n = copy ? strlen(copy) : 0;
    while (s->type == SETTING_URL && n > 0 && copy[n - 1] == '/')
        copy[--n] = '\0';
    free(*slot);
    *slot = copy;
    return DAC_OK;
}

static void release_list(struct config_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->items[i]);
    free(list->items);
    *list = (struct config_list){0};
}

/* Takes the next item off a list separated by commas; NULL at its end. */
static char *next_item(const char **at, bool *nomem)
{
    const char *s = *at, *end;
    char *item;

    if (!s)
        return NULL;
    end = s + strcspn(s, ",");
    *at = *end ? end + 1 : NULL;
    while (s < end && (*s == ' ' || *s == '\t'))
        s++;
    while (end > s && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    item = strndup(s, (size_t)(end - s));
    *nomem = !item;
    return item;
}

static enum dac_err parse_list(const struct setting *s, void *base, const char *value,
                               struct buf *why)
{
    struct config_list list = {.items = calloc(CONFIG_LIST_MAX, sizeof(char *))};
    bool nomem = !list.items;
    const char *at = value;
    char *item;

    while (!nomem && (item = next_item(&at, &nomem)) != NULL) {
        const char *fault = NULL;

        if (*item == '\0')
            fault = "has an empty item; write items separated by single commas";
        else if (list.count == CONFIG_LIST_MAX)
            fault = "has more than 256 items; name fewer";
        if (fault) {
            free(item);
            release_list(&list);
            return invalid(s, value, fault, why);
        }
        list.items[list.count++] = item;
    }
    if (nomem) {
        release_list(&list);
        return DAC_E_NOMEM;
    }
    release_list(member(s, base));
    *(struct config_list *)member(s, base) = list;
    return DAC_OK;
}

static void release_addresses(struct config_addresses *a)
{
    for (size_t i = 0; i < a->count; i++)
        free(a->items[i].text);
    *a = (struct config_addresses){0};
}

/* Adds one address; *fault is set if it cannot be. */
static enum dac_err add_address(struct config_addresses *a, const char *item,
                                const char **fault)
{
    struct config_address one;
    enum dac_err rc;

    if (a->count == CONFIG_LISTEN_MAX) {
        *fault = "is one address too many; name at most 16";
        return DAC_E_INVALID;
    }
    rc = address_parse(item, &one, fault);
    if (rc != DAC_OK)
        return rc;
    a->items[a->count++] = one;
    for (size_t i = 0; i + 1 < a->count; i++) {
        if (address_equal(&a->items[i], &one)) {
            *fault = "is there twice; name it once";
            return DAC_E_INVALID;
        }
    }
    return DAC_OK;
}

static enum dac_err parse_addresses(const struct setting *s, void *base,
                                    const char *value, struct buf *why)
{
    struct config_addresses *list = calloc(1, sizeof(*list));
    enum dac_err rc = list ? DAC_OK : DAC_E_NOMEM, one;
    const char *at = value, *fault = "";
    bool nomem = false;
    char *item;

    while (rc != DAC_E_NOMEM && (item = next_item(&at, &nomem)) != NULL) {
        one = add_address(list, item, &fault);
        if (one == DAC_E_INVALID) {
            buf_puts(why, rc == DAC_E_INVALID ? "; and " : "");
            invalid(s, item, fault, why);
        }
        if (one != DAC_OK)
            rc = one;
        free(item);
        if (list->count == CONFIG_LISTEN_MAX && one == DAC_E_INVALID)
            break; /* that there are too many is said once */
    }
    if (nomem)
        rc = DAC_E_NOMEM;
    if (rc == DAC_OK) {
        release_addresses(member(s, base));
        *(struct config_addresses *)member(s, base) = *list;
    } else if (list) {
        release_addresses(list);
    }
    free(list);
    return rc;
}

enum dac_err setting_parse(const struct setting *s, void *base, const char *value,
                           const char *folder, struct buf *why)
{
    switch (s->type) {
    case SETTING_BOOL:
        if (!value_parse_bool(value, member(s, base)))
            return invalid(
                s, value, "is not a switch; write 1 or 0, true or false, on or off", why);
        return DAC_OK;
    case SETTING_INT:
    case SETTING_DURATION:
    case SETTING_SIZE:
        return parse_number(s, base, value, why);
    case SETTING_RATE:
        return parse_rate(s, base, value, why);
    case SETTING_STRING:
    case SETTING_PATH:
    case SETTING_URL:
        return parse_text(s, base, value, folder, why);
    case SETTING_LIST:
        return parse_list(s, base, value, why);
    case SETTING_ENUM:
        return parse_enum(s, base, value, why);
    case SETTING_ADDRESSES:
        return parse_addresses(s, base, value, why);
    }
    return DAC_E_INVALID;
}

void setting_release(const struct setting *s, void *base)
{
    switch (s->type) {
    case SETTING_STRING:
    case SETTING_PATH:
    case SETTING_URL:
        free(*(char **)member(s, base));
        *(char **)member(s, base) = NULL;
        break;
    case SETTING_LIST:
        release_list(member(s, base));
        break;
    case SETTING_ADDRESSES:
        release_addresses(member(s, base));
        break;
    default:
        break;
    }
}

/* --- printing ----------------------------------------------------------------------- */

void setting_put_range(const struct setting *s, struct buf *out)
{
    if (s->type == SETTING_ENUM) {
        for (int i = 0; s->words[i]; i++)
            buf_printf(out, "%s%s", i > 0 ? ", " : "", s->words[i]);
    } else if (s->type == SETTING_BOOL) {
        buf_puts(out, "on, off");
    } else if (s->type == SETTING_RATE) {
        buf_printf(out, RATE_MIN " to %llu, or 0", (unsigned long long)s->max);
    } else if (s->max > 0) {
        setting_put_number(s, s->min, out);
        buf_puts(out, " to ");
        setting_put_number(s, s->max, out);
        if (s->automatic)
            buf_printf(out, ", or %s", s->automatic);
    }
}

void setting_put_quoted(struct buf *out, const char *s)
{
    size_t n = strlen(s);

    if (n == 0 || (!strpbrk(s, ";\"") && s[0] != ' ' && s[0] != '\t' && s[n - 1] != ' ' &&
                   s[n - 1] != '\t')) {
        buf_puts(out, s);
        return;
    }
    buf_putc(out, '"');
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            buf_putc(out, '\\');
        buf_putc(out, *s);
    }
    buf_putc(out, '"');
}

/* Prints items separated by commas; the whole is quoted where one needs it. */
static void put_items(struct buf *out, size_t count,
                      const char *(*item)(const void *, size_t), const void *list)
{
    struct buf all = BUF_INIT(CONFIG_LIST_MAX * 4096);

    for (size_t i = 0; i < count; i++) {
        if (i > 0)
            buf_puts(&all, ", ");
        buf_puts(&all, item(list, i));
    }
    if (all.failed || !buf_cstr(&all))
        out->failed = true;
    else
        setting_put_quoted(out, all.data);
    buf_free(&all);
}

static const char *list_item(const void *list, size_t i)
{
    return ((const struct config_list *)list)->items[i];
}

static const char *address_item(const void *list, size_t i)
{
    return ((const struct config_addresses *)list)->items[i].text;
}

void setting_put(const struct setting *s, const void *base, struct buf *out)
{
    const void *m = const_member(s, base);
    const char *text;

    if (s->secret) { /* that it is empty is no secret */
        buf_puts(out, s->type == SETTING_STRING && !*(char *const *)m ? "" : "***");
        return;
    }
    switch (s->type) {
    case SETTING_BOOL:
        buf_puts(out, *(const bool *)m ? "on" : "off");
        break;
    case SETTING_INT:
        setting_put_number(s, *(const uint32_t *)m, out);
        break;
    case SETTING_DURATION:
    case SETTING_SIZE:
        setting_put_number(s, *(const uint64_t *)m, out);
        break;
    case SETTING_RATE:
        buf_printf(out, "%.10g", *(const double *)m);
        break;
    case SETTING_STRING:
    case SETTING_PATH:
    case SETTING_URL:
        text = *(char *const *)m;
        setting_put_quoted(out, text ? text : "");
        break;
    case SETTING_LIST:
        put_items(out, ((const struct config_list *)m)->count, list_item, m);
        break;
    case SETTING_ENUM:
        buf_puts(out, s->words[*(const int *)m]);
        break;
    case SETTING_ADDRESSES:
        put_items(out, ((const struct config_addresses *)m)->count, address_item, m);
        break;
    }
}
