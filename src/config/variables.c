/*
 * Flags from the environment and the env file. The env file wins, both win over the file.
 * A variable that is empty counts as not set; one that no setting knows is somebody
 * else's.
 */
#include "config/load.h"

#include <errno.h>
#include <string.h>

#include "config/parser.h"
#include "config/problems.h"

#define ENV_FILE_MAX_BYTES (256 << 10)

void load_variable_name(const char *provider, const char *suffix, char *out, size_t n)
{
    snprintf(out, n, "%s%s", provider, suffix);
    for (char *c = out; *c; c++) {
        if (*c >= 'a' && *c <= 'z')
            *c = (char)(*c - ('a' - 'A'));
        else if (*c == '-' || *c == '.')
            *c = '_';
    }
}

/* Applies NAME = VALUE to whatever it names. */
static void apply(struct load *l, const char *name, const char *value,
                  struct config_origin origin, const char *file)
{
    if (*value == '\0')
        return;
    for (size_t i = 0; i < setting_count; i++) {
        const struct setting *s = &settings[i];

        if (!s->env)
            continue;
        if (!s->section && strcmp(s->env, name) == 0)
            load_setting(l, s, NULL, value, origin, file);
        for (size_t k = 0; s->section && k < l->cfg->provider_count; k++) {
            struct config_provider *p = &l->cfg->providers[k];
            char full[64];

            load_variable_name(p->name, s->env, full, sizeof(full));
            if (strcmp(full, name) == 0)
                load_setting(l, s, p, value, origin, file);
        }
    }
}

static void apply_environ(struct load *l, const char *const *environ)
{
    struct config_origin origin = {.source = CONFIG_FROM_ENV};

    for (; environ && *environ; environ++) {
        const char *equals = strchr(*environ, '=');
        char name[64];
        size_t n = equals ? (size_t)(equals - *environ) : 0;

        if (n == 0 || n >= sizeof(name))
            continue;
        memcpy(name, *environ, n);
        name[n] = '\0';
        apply(l, name, equals + 1, origin, "environment");
    }
}

static void on_variable(void *arg, unsigned line, const char *key, const char *value)
{
    struct load *l = arg;
    struct config_origin origin = {.source = CONFIG_FROM_ENV_FILE, .line = line};

    apply(l, key, value, origin, l->cfg->env_file);
}

static void on_problem(void *arg, unsigned line, const char *text)
{
    struct load *l = arg;

    problem_add(l->problems, l->cfg->env_file, line, "%s", text);
}

static void apply_env_file(struct load *l)
{
    static const struct parser_events events = {.setting = on_variable,
                                                .problem = on_problem};
    const struct setting *s = setting_find("server", "env_file");
    const struct config_origin *origin = &l->cfg->origin[s - settings];
    bool is_default = origin->source == CONFIG_FROM_DEFAULT;
    struct buf text = BUF_INIT(ENV_FILE_MAX_BYTES);
    char why[160];
    int err;

    if (load_read_file(l->cfg->env_file, &text, why, sizeof(why), &err)) {
        if (parser_env(text.data, text.len, &events, l) != DAC_OK)
            l->nomem = true;
    } else if (!is_default) {
        problem_add(
            l->problems, load_file_of(l, origin), origin->line,
            "env_file: could not read \"%s\": %s; create it or leave env_file empty",
            l->cfg->env_file, why);
    } else if (err != ENOENT && err != ENOTDIR) {
        problem_warn(l->problems, l->cfg->env_file, 0,
                     "could not read the default env_file: %s; its flags are not used",
                     why);
    }
    buf_free(&text);
}

void load_variables(struct load *l, const char *const *environ)
{
    apply_environ(l, environ);
    if (l->cfg->env_file)
        apply_env_file(l);
}
