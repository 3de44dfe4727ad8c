/*
 * What one does with a loaded configuration: find a provider, release.
 */
#include "config/config.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#include "config/settings.h"

void config_free(struct config *cfg)
{
    if (!cfg)
        return;
    for (size_t i = 0; i < setting_count; i++) {
        if (!setting_of_provider(&settings[i])) {
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
