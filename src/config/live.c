/*
 * See live.h. Values are compared as they would be printed, which is what an operator
 * sees as a difference; secrets, and what is in files, by themselves.
 */
#include "config/live.h"

#include <stdlib.h>
#include <string.h>

#include "config/settings.h"
#include "shm/layout.h"

_Static_assert(CONFIG_LIVE_MAX == SHM_LIVE_MAX, "one word of the segment for each");
_Static_assert((int)CONFIG_IN_PLACE == SETTING_IN_PLACE &&
                   (int)CONFIG_NEW_WORKERS == SETTING_NEW_WORKERS &&
                   (int)CONFIG_RESTART == SETTING_RESTART,
               "the same classes");

#define VALUE_MAX (1u << 20)

/* --- differences -------------------------------------------------------------------- */

struct diff {
    void (*found)(void *arg, const struct config_change *);
    void *arg;
    size_t n;
    bool nomem;
};

static void tell(struct diff *d, const char *name, enum config_reload reload,
                 const char *from, const char *to)
{
    const struct config_change c = {
        .name = name, .reload = reload, .from = from, .to = to};

    d->n++;
    if (d->found)
        d->found(d->arg, &c);
}

static bool is_same(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

/* What the member of a setting of text points to. */
static const char *text_of(const struct setting *s, const void *base)
{
    return *(char *const *)(const void *)((const char *)base + s->offset);
}

static void compare(struct diff *d, const struct setting *s, const char *section,
                    const void *from, const void *to)
{
    struct buf a = BUF_INIT(VALUE_MAX), b = BUF_INIT(VALUE_MAX), name = BUF_INIT(256);

    setting_put(s, from, &a);
    setting_put(s, to, &b);
    buf_printf(&name, "%s%s%s", section, *section ? "." : "", s->name);
    if (!buf_cstr(&a) || !buf_cstr(&b) || !buf_cstr(&name))
        d->nomem = true;
    else if (s->secret ? !is_same(text_of(s, from), text_of(s, to))
                       : strcmp(a.data, b.data) != 0)
        tell(d, name.data, (enum config_reload)s->reload, a.data, b.data);
    buf_free(&a);
    buf_free(&b);
    buf_free(&name);
}

static void compare_provider(struct diff *d, const struct config_provider *from,
                             const struct config_provider *to)
{
    char section[sizeof("provider.") + CONFIG_PROVIDER_NAME_MAX], name[80];

    snprintf(section, sizeof(section), "provider.%s", to->name);
    for (size_t i = 0; i < setting_count; i++)
        if (setting_of_provider(&settings[i]))
            compare(d, &settings[i], section, from, to);
    if (!is_same(from->api_key, to->api_key)) {
        snprintf(name, sizeof(name), "%s API key", section);
        tell(d, name, CONFIG_NEW_WORKERS, from->api_key ? "***" : "",
             to->api_key ? "***" : "");
    }
    if (is_same(from->ca_file, to->ca_file) && from->ca_digest != to->ca_digest) {
        snprintf(name, sizeof(name), "%s roots in ca_file", section);
        tell(d, name, CONFIG_NEW_WORKERS, "others", "others");
    }
}

static void compare_providers(struct diff *d, const struct config *from,
                              const struct config *to)
{
    char name[sizeof("provider.") + CONFIG_PROVIDER_NAME_MAX];
    const struct config_provider *other;
    bool moved = false;

    for (size_t i = 0; i < from->provider_count; i++) {
        snprintf(name, sizeof(name), "provider.%s", from->providers[i].name);
        if (!config_provider_find(to, from->providers[i].name))
            tell(d, name, CONFIG_NEW_WORKERS, "there", "gone");
    }
    for (size_t i = 0; i < to->provider_count; i++) {
        snprintf(name, sizeof(name), "provider.%s", to->providers[i].name);
        other = config_provider_find(from, to->providers[i].name);
        if (!other)
            tell(d, name, CONFIG_NEW_WORKERS, "gone", "there");
        else
            compare_provider(d, other, &to->providers[i]);
        moved = moved || (other && other != &from->providers[i]);
    }
    if (moved && from->provider_count == to->provider_count)
        tell(d, "order of providers", CONFIG_NEW_WORKERS, "", "");
}

/* A name that nobody has given follows the address; in effect it stays. */
static bool is_derived(const struct setting *s, size_t i, const struct config *from,
                       const struct config *to)
{
    return s->offset == offsetof(struct config, name) &&
           from->origin[i].source == CONFIG_FROM_DEFAULT &&
           to->origin[i].source == CONFIG_FROM_DEFAULT;
}

size_t config_diff(const struct config *from, const struct config *to,
                   void (*found)(void *arg, const struct config_change *), void *arg)
{
    struct diff d = {.found = found, .arg = arg};

    for (size_t i = 0; i < setting_count; i++) {
        const struct setting *s = &settings[i];

        if (!setting_of_provider(s) && !is_derived(s, i, from, to))
            compare(&d, s, s->section ? s->section : "", from, to);
    }
    compare_providers(&d, from, to);
    if (d.nomem)
        tell(&d, "configuration", CONFIG_NEW_WORKERS, "", "");
    return d.n;
}

/* --- what stays --------------------------------------------------------------------- */

static size_t member_size(const struct setting *s)
{
    switch (s->type) {
    case SETTING_BOOL:
        return sizeof(bool);
    case SETTING_INT:
        return sizeof(uint32_t);
    case SETTING_RATE:
        return sizeof(double);
    case SETTING_DURATION:
    case SETTING_SIZE:
        return sizeof(uint64_t);
    case SETTING_ENUM:
        return sizeof(int);
    case SETTING_STRING:
    case SETTING_PATH:
    case SETTING_URL:
    case SETTING_LIST:
    case SETTING_ADDRESSES:
        break;
    }
    return 0;
}

static bool is_text(const struct setting *s)
{
    return s->type == SETTING_STRING || s->type == SETTING_PATH || s->type == SETTING_URL;
}

static enum dac_err keep(const struct setting *s, struct config *cfg,
                         const struct config *old)
{
    const char *from = (const char *)old + s->offset;
    char *to = (char *)cfg + s->offset;
    char **text = (char **)(void *)to;

    if (!is_text(s)) {
        DAC_ASSERT(member_size(s) > 0); /* no list is fixed */
        memcpy(to, from, member_size(s));
        return DAC_OK;
    }
    setting_release(s, cfg);
    *text = text_of(s, old) ? strdup(text_of(s, old)) : NULL;
    return text_of(s, old) && !*text ? DAC_E_NOMEM : DAC_OK;
}

enum dac_err config_keep_fixed(struct config *cfg, const struct config *old)
{
    for (size_t i = 0; i < setting_count; i++) {
        enum dac_err e;

        if (settings[i].reload != SETTING_RESTART || setting_of_provider(&settings[i]))
            continue;
        e = keep(&settings[i], cfg, old);
        if (e != DAC_OK)
            return e;
    }
    cfg->uid = old->uid;
    cfg->gid = old->gid;
    return DAC_OK;
}

/* --- words -------------------------------------------------------------------------- */

static bool is_live(const struct setting *s)
{
    return s->reload == SETTING_IN_PLACE && !setting_of_provider(s) && member_size(s) > 0;
}

size_t config_live_words(const struct config *cfg, uint64_t words[CONFIG_LIVE_MAX])
{
    size_t n = 0;

    for (size_t i = 0; i < setting_count; i++) {
        if (!is_live(&settings[i]))
            continue;
        DAC_ASSERT(n < CONFIG_LIVE_MAX);
        words[n] = 0;
        memcpy(&words[n++], (const char *)cfg + settings[i].offset,
               member_size(&settings[i]));
    }
    return n;
}

void config_live_apply(struct config *cfg, const uint64_t words[CONFIG_LIVE_MAX])
{
    size_t n = 0;

    for (size_t i = 0; i < setting_count; i++)
        if (is_live(&settings[i]))
            memcpy((char *)cfg + settings[i].offset, &words[n++],
                   member_size(&settings[i]));
}
