/*
 * A configuration's effective values, each with where it came from: one by one for
 * programs, and as a file that can be read again.
 */
#include "config/describe.h"

#include <string.h>

#include "base/json.h"
#include "config/load.h"
#include "config/settings.h"

#define VALUE_MAX  (2u << 20)
#define ORIGIN_MAX 8192

static const char *const sources[] = {
    [CONFIG_FROM_DEFAULT] = "default",
    [CONFIG_FROM_FILE] = "file",
    [CONFIG_FROM_ENV] = "environment",
    [CONFIG_FROM_ENV_FILE] = "env_file",
};

static void put_origin(struct buf *out, const struct config_fact *f,
                       const struct config_origin *o)
{
    switch (o->source) {
    case CONFIG_FROM_DEFAULT:
        buf_puts(out, "default");
        break;
    case CONFIG_FROM_FILE:
        buf_printf(out, "%s:%u", f->file, f->line);
        break;
    case CONFIG_FROM_ENV:
        buf_printf(out, "environment %s", f->variable);
        break;
    case CONFIG_FROM_ENV_FILE:
        buf_printf(out, "env file %s:%u", f->file, f->line);
        break;
    }
}

struct telling {
    const struct config *cfg;
    void (*found)(void *arg, const struct config_fact *f);
    void *arg;
    bool nomem;
};

/* `p` is NULL for what is no provider's. */
static void tell(struct telling *t, const struct setting *s,
                 const struct config_provider *p)
{
    const struct config_origin *o =
        p ? &p->origin[s - settings] : &t->cfg->origin[s - settings];
    struct buf value = BUF_INIT(VALUE_MAX), origin = BUF_INIT(ORIGIN_MAX);
    struct config_fact f = {.section = s->section,
                            .provider = p ? p->name : NULL,
                            .name = s->name,
                            .source = sources[o->source],
                            .line = o->line};
    char variable[64];

    if (o->source == CONFIG_FROM_FILE)
        f.file = t->cfg->files.items[o->file];
    if (o->source == CONFIG_FROM_ENV_FILE)
        f.file = t->cfg->env_file;
    if (o->source == CONFIG_FROM_ENV || o->source == CONFIG_FROM_ENV_FILE) {
        load_variable_name(p ? p->name : "", s->env, variable, sizeof(variable));
        f.variable = variable;
    }
    setting_put(s, p ? (const void *)p : (const void *)t->cfg, &value);
    put_origin(&origin, &f, o);
    f.value = buf_cstr(&value);
    f.origin = buf_cstr(&origin);
    if (value.failed || origin.failed || !f.value || !f.origin)
        t->nomem = true;
    else
        t->found(t->arg, &f);
    buf_free(&value);
    buf_free(&origin);
}

enum dac_err config_facts(const struct config *cfg,
                          void (*found)(void *arg, const struct config_fact *f),
                          void *arg)
{
    struct telling t = {.cfg = cfg, .found = found, .arg = arg};

    for (size_t i = 0; i < setting_count; i++)
        if (settings[i].section && !setting_of_provider(&settings[i]))
            tell(&t, &settings[i], NULL);
    for (size_t k = 0; k < cfg->provider_count; k++)
        for (size_t i = 0; i < setting_count; i++)
            if (setting_of_provider(&settings[i]))
                tell(&t, &settings[i], &cfg->providers[k]);
    for (size_t i = 0; i < setting_count; i++)
        if (!settings[i].section)
            tell(&t, &settings[i], NULL);
    return t.nomem ? DAC_E_NOMEM : DAC_OK;
}

struct facts {
    struct buf *out;
    bool more;
};

static void put_fact(void *arg, const struct config_fact *f)
{
    struct facts *facts = arg;
    struct buf *out = facts->out;

    buf_puts(out, facts->more ? ",{\"name\":" : "{\"name\":");
    facts->more = true;
    json_put_string(out, f->name, strlen(f->name));
    json_put_member(out, "section", f->section);
    json_put_member(out, "provider", f->provider);
    json_put_member(out, "value", f->value);
    json_put_member(out, "source", f->source);
    json_put_member(out, "file", f->file);
    if (f->line > 0)
        buf_printf(out, ",\"line\":%u", f->line);
    else
        buf_puts(out, ",\"line\":null");
    json_put_member(out, "variable", f->variable);
    buf_putc(out, '}');
}

enum dac_err config_facts_json(const struct config *cfg, struct buf *out)
{
    struct facts facts = {.out = out};
    enum dac_err e;

    buf_putc(out, '[');
    e = config_facts(cfg, put_fact, &facts);
    buf_putc(out, ']');
    return out->failed ? DAC_E_NOMEM : e;
}

/* --- as a file ---------------------------------------------------------------------- */

struct printing {
    const struct config *cfg;
    FILE *out;
    char section[32 + CONFIG_PROVIDER_NAME_MAX]; /* whose head was printed last */
};

/* What no section shows of a provider: whether there is a key. */
static void end_provider(const struct printing *p)
{
    const struct config_provider *of;

    if (strncmp(p->section, "provider ", 9) != 0)
        return;
    of = config_provider_find(p->cfg, p->section + 9);
    fprintf(p->out, "; API key: %s\n",
            of && of->api_key        ? "***"
            : of && of->api_key_file ? "the service's alone"
                                     : "none");
}

static void print_head(struct printing *p, const struct config_fact *f)
{
    char section[sizeof(p->section)];

    snprintf(section, sizeof(section), "%s%s%s", f->section ? f->section : "flags",
             f->provider ? " " : "", f->provider ? f->provider : "");
    if (strcmp(section, p->section) == 0)
        return;
    end_provider(p);
    memcpy(p->section, section, sizeof(section));
    if (f->section)
        fprintf(p->out, "\n[%s]\n", section);
    else
        fprintf(p->out, "\n; flags, from env_file or the environment\n");
}

/* "name = value ; origin", or as a comment what no file can set. */
static void print_fact(void *arg, const struct config_fact *f)
{
    struct printing *p = arg;
    int n;

    print_head(p, f);
    n = fprintf(p->out, "%s%s = %s", f->section ? "" : "; ", f->name, f->value);
    fprintf(p->out, "%*s ; %s\n", n < 40 ? 40 - n : 0, "", f->origin);
}

void config_print(const struct config *cfg, FILE *out)
{
    struct printing p = {.cfg = cfg, .out = out};

    fprintf(out, "; %s\n", cfg->path);
    if (config_facts(cfg, print_fact, &p) != DAC_OK)
        fprintf(out, "; and more, for which there was no memory\n");
}
