/*
 * Flags from the environment and the env file. The env file wins, both win over the file.
 * A variable that is empty counts as not set; one that no setting knows is somebody
 * else's, but in the env file one that looks like a flag's name is warned of.
 */
#include "config/load.h"

#include <errno.h>
#include <string.h>

#include "config/parser.h"
#include "config/problems.h"
#include "config/value.h"

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

/* How many variables a setting has: one for each provider, or one. */
static size_t providers_of(const struct load *l, const struct setting *s)
{
    return s->section ? l->cfg->provider_count : 1;
}

/* Applies NAME = VALUE to whatever it names; `file`: where it stands, NULL: in the
 * environment. False: it names nothing. */
static bool apply(struct load *l, const char *name, const char *value,
                  struct config_origin origin, const char *file)
{
    bool known = false;

    for (size_t i = 0; i < setting_count; i++) {
        const struct setting *s = &settings[i];

        for (size_t k = 0; s->env && k < providers_of(l, s); k++) {
            struct config_provider *p = s->section ? &l->cfg->providers[k] : NULL;
            char full[64], where[96];

            load_variable_name(p ? p->name : "", s->env, full, sizeof(full));
            if (strcmp(full, name) != 0)
                continue;
            known = true;
            /* A provider's setting has the same name with all providers. */
            snprintf(where, sizeof(where), "environment%s%s", p ? " " : "",
                     p ? full : "");
            if (*value)
                load_setting(l, s, p, value, origin, file ? file : where);
        }
    }
    return known;
}

/* Warns of what is no flag, but so near to one that it must have been meant. */
static void check_unknown(struct load *l, unsigned line, const char *name)
{
    for (size_t i = 0; i < setting_count; i++) {
        const struct setting *s = &settings[i];

        for (size_t k = 0; s->env && k < providers_of(l, s); k++) {
            char full[64];

            load_variable_name(s->section ? l->cfg->providers[k].name : "", s->env, full,
                               sizeof(full));
            if (value_distance(name, full) > 2)
                continue;
            problem_warn(l->problems, l->cfg->env_file, line,
                         "unknown flag \"%.60s\" has no effect; did you mean \"%s\"?",
                         name, full);
            return;
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
        (void)apply(l, name, equals + 1, origin, NULL);
    }
}

static void on_variable(void *arg, unsigned line, const char *key, const char *value)
{
    struct load *l = arg;
    struct config_origin origin = {.source = CONFIG_FROM_ENV_FILE, .line = line};

    if (!apply(l, key, value, origin, l->cfg->env_file))
        check_unknown(l, line, key);
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

void load_environ(struct load *l, const char *const *environ)
{
    static const char name[] = "CREDENTIALS_DIRECTORY=";

    for (; environ && *environ; environ++)
        if (strncmp(*environ, name, sizeof(name) - 1) == 0 &&
            (*environ)[sizeof(name) - 1] != '\0')
            l->credentials = *environ + sizeof(name) - 1;
}

void load_variables(struct load *l, const char *const *environ)
{
    apply_environ(l, environ);
    if (l->cfg->env_file)
        apply_env_file(l);
}
