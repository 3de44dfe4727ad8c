/*
 * What one does with a loaded configuration: find a provider, print, release.
 */
#include "config/config.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "config/settings.h"

static bool is_provider_setting(const struct setting *s)
{
    return s->section && strcmp(s->section, "provider") == 0;
}

void config_free(struct config *cfg)
{
    if (!cfg)
        return;
    for (size_t i = 0; i < setting_count; i++) {
        if (!is_provider_setting(&settings[i])) {
            setting_release(&settings[i], cfg);
            continue;
        }
        for (size_t k = 0; k < cfg->provider_count; k++)
            setting_release(&settings[i], &cfg->providers[k]);
    }
    for (size_t k = 0; k < cfg->provider_count; k++) {
        struct config_provider *p = &cfg->providers[k];

        free(p->name);
        if (p->api_key)
            explicit_bzero(p->api_key, strlen(p->api_key));
        free(p->api_key);
    }
    for (size_t i = 0; i < cfg->files.count; i++)
        free(cfg->files.items[i]);
    free(cfg->files.items);
    free(cfg->path);
    free(cfg);
}

const struct config_provider *config_provider_find(const struct config *cfg,
                                                   const char *name)
{
    for (size_t i = 0; i < cfg->provider_count; i++) {
        if (strcmp(cfg->providers[i].name, name) == 0)
            return &cfg->providers[i];
    }
    return NULL;
}

const struct config_provider *config_provider_at(const struct config *cfg, uint32_t slot)
{
    for (size_t i = 0; i < cfg->provider_count; i++) {
        if (cfg->providers[i].slot == slot)
            return &cfg->providers[i];
    }
    return NULL;
}

bool config_model_matches(const struct config_provider *p, const char *model)
{
    for (size_t i = 0; i < p->models.count; i++) {
        if (fnmatch(p->models.items[i], model, 0) == 0)
            return true;
    }
    return false;
}

const struct config_provider *config_provider_for_model(const struct config *cfg,
                                                        const char *model)
{
    for (size_t i = 0; i < cfg->provider_count; i++) {
        if (config_model_matches(&cfg->providers[i], model))
            return &cfg->providers[i];
    }
    return NULL;
}

/* --- printing ----------------------------------------------------------------------- */

static void put_origin(const struct config *cfg, const struct config_origin *o, FILE *out)
{
    switch (o->source) {
    case CONFIG_FROM_DEFAULT:
        fprintf(out, "default");
        break;
    case CONFIG_FROM_FILE:
        if (o->file > 0)
            fprintf(out, "%s ", cfg->files.items[o->file]);
        fprintf(out, "line %u", o->line);
        break;
    case CONFIG_FROM_ENV:
        fprintf(out, "environment");
        break;
    case CONFIG_FROM_ENV_FILE:
        fprintf(out, "env_file line %u", o->line);
        break;
    }
}

/* Prints "name = value ; origin", or as a comment what no file can set. */
static void print_setting(const struct config *cfg, const struct setting *s,
                          const void *base, const struct config_origin *o, FILE *out)
{
    struct buf line = BUF_INIT(2 << 20);

    buf_printf(&line, "%s%s = ", s->section ? "" : "; ", s->name);
    setting_put(s, base, &line);
    fprintf(out, "%-40s ; ", line.failed ? "" : buf_cstr(&line));
    put_origin(cfg, o, out);
    fputc('\n', out);
    buf_free(&line);
}

static void print_provider(const struct config *cfg, const struct config_provider *p,
                           FILE *out)
{
    fprintf(out, "\n[provider %s]\n", p->name);
    for (size_t i = 0; i < setting_count; i++) {
        if (is_provider_setting(&settings[i]))
            print_setting(cfg, &settings[i], p, &p->origin[i], out);
    }
    fprintf(out, "; API key: %s\n", p->api_key ? "***" : "none");
}

void config_print(const struct config *cfg, FILE *out)
{
    const char *section = "";

    fprintf(out, "; %s\n", cfg->path);
    for (size_t i = 0; i < setting_count; i++) {
        const struct setting *s = &settings[i];

        if (!s->section || is_provider_setting(s))
            continue;
        if (strcmp(section, s->section) != 0) {
            section = s->section;
            fprintf(out, "\n[%s]\n", section);
        }
        print_setting(cfg, s, cfg, &cfg->origin[i], out);
    }
    for (size_t i = 0; i < cfg->provider_count; i++)
        print_provider(cfg, &cfg->providers[i], out);

    fprintf(out, "\n; flags, from env_file or the environment\n");
    for (size_t i = 0; i < setting_count; i++) {
        if (!settings[i].section)
            print_setting(cfg, &settings[i], cfg, &cfg->origin[i], out);
    }
}

static void describe_range(const struct setting *s, FILE *out)
{
    struct buf text = BUF_INIT(256);

    if (s->type == SETTING_ENUM) {
        for (int i = 0; s->words[i]; i++)
            buf_printf(&text, "%s%s", i > 0 ? ", " : "", s->words[i]);
    } else if (s->type == SETTING_BOOL) {
        buf_puts(&text, "on, off");
    } else if (s->max > 0) {
        setting_put_number(s, s->min, &text);
        buf_puts(&text, " to ");
        setting_put_number(s, s->max, &text);
        if (s->automatic)
            buf_printf(&text, ", or %s", s->automatic);
    }
    if (buf_cstr(&text))
        fputs(text.data, out);
    buf_free(&text);
}

void config_describe(FILE *out)
{
    static const char *const reload[] = {
        [SETTING_IN_PLACE] = "reload",
        [SETTING_NEW_WORKERS] = "reload, new workers",
        [SETTING_RESTART] = "restart",
    };

    fprintf(out, "| section | setting | default | range | takes effect | meaning |\n");
    fprintf(out, "|---|---|---|---|---|---|\n");
    for (size_t i = 0; i < setting_count; i++) {
        const struct setting *s = &settings[i];

        if (!s->section)
            fprintf(out, "| environment | `%s` | ", s->name);
        else if (is_provider_setting(s))
            fprintf(out, "| provider NAME | `%s` | ", s->name);
        else
            fprintf(out, "| %s | `%s` | ", s->section, s->name);
        if (!s->def)
            fprintf(out, "must be set | ");
        else if (*s->def)
            fprintf(out, "`%s` | ", s->def);
        else
            fprintf(out, "| ");
        describe_range(s, out);
        fprintf(out, " | %s | %s |\n", reload[s->reload], s->help);
    }
}
