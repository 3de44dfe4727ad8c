/*
 * config_load(): reads the file, lets the environment and the env file override it,
 * checks the whole, and hands over a struct or all problems. Runs in the master and in
 * `dacd -t`.
 */
#include "config/load.h"

#include <stdlib.h>
#include <string.h>

#include "config/parser.h"
#include "config/problems.h"

/* --- one setting -------------------------------------------------------------------- */

static struct config_origin *origin_of(struct load *l, const struct setting *s,
                                       struct config_provider *provider)
{
    return provider ? &provider->origin[s - settings] : &l->cfg->origin[s - settings];
}

void load_setting(struct load *l, const struct setting *s,
                  struct config_provider *provider, const char *value,
                  struct config_origin origin, const char *file)
{
    struct buf why = BUF_INIT(4096);
    void *base = provider ? (void *)provider : (void *)l->cfg;
    enum dac_err rc = setting_parse(s, base, value, l->folder, &why);

    *origin_of(l, s, provider) = origin;
    if (rc == DAC_E_INVALID && buf_cstr(&why))
        problem_add(l->problems, file, origin.line, "%s", why.data);
    else if (rc != DAC_OK)
        l->nomem = true;
    buf_free(&why);
}

/* Gives the settings of one provider, or all others, their defaults. */
static void load_defaults(struct load *l, struct config_provider *provider)
{
    for (size_t i = 0; i < setting_count; i++) {
        const struct setting *s = &settings[i];

        if (s->def && setting_of_provider(s) == (provider != NULL))
            load_setting(l, s, provider, s->def, (struct config_origin){0}, l->file);
    }
}

/* --- the file ----------------------------------------------------------------------- */

/* "[server], [memory] and [provider NAME]", as the table has them. */
static void put_sections(struct buf *out)
{
    const char *last = "";

    for (size_t i = 0; i < setting_count; i++) {
        const char *section = settings[i].section;

        if (!section || strcmp(section, last) == 0 || setting_of_provider(&settings[i]))
            continue;
        buf_printf(out, "%s[%s]", *last ? ", " : "", section);
        last = section;
    }
    buf_puts(out, " and [provider NAME]");
}

/* A [provider] that cannot be used has settings that can be wrong, too: they are read
 * for nobody. */
static void enter_astray(struct load *l, const char *name)
{
    struct config_provider *p;

    config_free(l->astray);
    l->astray = calloc(1, sizeof(*l->astray));
    if (!l->astray || !(l->astray->providers[0].name = strdup(name))) {
        l->nomem = true;
        return;
    }
    l->astray->provider_count = 1;
    p = &l->astray->providers[0];
    load_defaults(l, p);
    l->section = "provider";
    l->provider = p;
}

/* What is below is read as if the section had the name that is near. */
static void unknown_section(struct load *l, unsigned line, const char *kind,
                            const char *name)
{
    const char *near = setting_suggest_section(kind);
    struct buf all = BUF_INIT(1024);

    put_sections(&all);
    if (near)
        problem_add(l->problems, l->file, line,
                    "unknown section [%.60s]; did you mean [%s%s]?", kind, near,
                    strcmp(near, "provider") == 0 ? " NAME" : "");
    else
        problem_add(l->problems, l->file, line, "unknown section [%.60s]; there are %s",
                    kind, buf_cstr(&all) ? all.data : "others");
    buf_free(&all);
    if (near && strcmp(near, "provider") == 0)
        enter_astray(l, name);
    else
        l->section = near;
}

static bool provider_name_valid(const char *name)
{
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    size_t n = strlen(name);

    return n > 0 && n <= CONFIG_PROVIDER_NAME_MAX && strchr(letters, name[0]) &&
           strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                        "0123456789._-") == n;
}

/* Whether this was said in the file that is read: another file may add to it. */
static bool is_here(const struct load *l, const struct config_origin *o)
{
    return o->source == CONFIG_FROM_FILE && o->file == l->file_number;
}

static struct config_origin here(const struct load *l, unsigned line)
{
    return (struct config_origin){
        .source = CONFIG_FROM_FILE, .file = l->file_number, .line = line};
}

static void section_twice(struct load *l, unsigned line, unsigned first)
{
    problem_add(l->problems, l->file, line,
                "this section is there twice; move its settings to line %u", first);
}

static void enter_provider(struct load *l, unsigned line, const char *name)
{
    struct config *cfg = l->cfg;
    struct config_provider *p;

    if (*name == '\0') {
        problem_add(l->problems, l->file, line,
                    "[provider] has no name; write [provider NAME]");
        enter_astray(l, name);
        return;
    }
    if (!provider_name_valid(name)) {
        problem_add(l->problems, l->file, line,
                    "provider name \"%.60s\" is not valid; use a letter, then up to 30 "
                    "letters, digits, \".\", \"_\" or \"-\"",
                    name);
        enter_astray(l, name);
        return;
    }
    p = (struct config_provider *)config_provider_find(cfg, name);
    if (p && is_here(l, &p->section)) {
        section_twice(l, line, p->section.line);
    } else if (p) {
        p->section = here(l, line);
    } else if (cfg->provider_count == CONFIG_PROVIDERS_MAX) {
        problem_add(l->problems, l->file, line,
                    "[provider %s] is one too many; there can be %d", name,
                    CONFIG_PROVIDERS_MAX);
        enter_astray(l, name);
        return;
    } else {
        p = &cfg->providers[cfg->provider_count];
        p->name = strdup(name);
        if (!p->name) {
            l->nomem = true;
            return;
        }
        cfg->provider_count++;
        p->section = here(l, line);
        load_defaults(l, p);
    }
    l->section = "provider";
    l->provider = p;
}

static void on_section(void *arg, unsigned line, const char *kind, const char *name)
{
    struct load *l = arg;

    l->section = NULL;
    l->provider = NULL;
    if (*kind == '\0')
        return;
    if (strcmp(kind, "provider") == 0) {
        enter_provider(l, line, name);
        return;
    }
    for (size_t i = 0; i < setting_count; i++) {
        if (!settings[i].section || strcmp(settings[i].section, kind) != 0)
            continue;
        l->section = settings[i].section;
        if (*name)
            problem_add(l->problems, l->file, line,
                        "section [%s] takes no name; write [%s]", kind, kind);
        if (is_here(l, &l->section_at[i]))
            section_twice(l, line, l->section_at[i].line);
        else
            l->section_at[i] = here(l, line);
        return;
    }
    unknown_section(l, line, kind, name);
}

/* Says where a misplaced setting belongs, or what an unknown one may have been meant to
 * be. */
static void unknown_setting(struct load *l, unsigned line, const char *key)
{
    const char *name = l->provider ? l->provider->name : "", *blank = *name ? " " : "";
    const char *near = setting_suggest(l->section, key);

    for (size_t i = 0; i < setting_count; i++) {
        const struct setting *s = &settings[i];

        if (strcmp(s->name, key) != 0)
            continue;
        if (s->section)
            problem_add(l->problems, l->file, line,
                        "\"%s\" is no setting of [%s%s%s]; move it to [%s%s]", key,
                        l->section, blank, name, s->section,
                        strcmp(s->section, "provider") == 0 ? " NAME" : "");
        else
            problem_add(l->problems, l->file, line,
                        "\"%s\" is a flag; set it in env_file or the environment", key);
        return;
    }
    if (near)
        problem_add(l->problems, l->file, line,
                    "unknown setting \"%.60s\" in [%s%s%s]; did you mean \"%s\"?", key,
                    l->section, blank, name, near);
    else
        problem_add(l->problems, l->file, line,
                    "unknown setting \"%.60s\" in [%s%s%s]; remove it (\"dacctl config "
                    "explain %s\" tells those that there are)",
                    key, l->section, blank, name, l->section);
}

static void on_setting(void *arg, unsigned line, const char *key, const char *value)
{
    struct load *l = arg;
    struct config_origin *origin;
    const struct setting *s;

    if (!l->section)
        return;
    s = setting_find(l->section, key);
    if (!s) {
        unknown_setting(l, line, key);
        return;
    }
    origin = origin_of(l, s, l->provider);
    if (is_here(l, origin)) {
        problem_add(l->problems, l->file, line,
                    "%s: is set twice, first on line %u; keep one", key, origin->line);
        return;
    }
    load_setting(l, s, l->provider, value, here(l, line), l->file);
}

static void on_problem(void *arg, unsigned line, const char *text)
{
    struct load *l = arg;

    problem_add(l->problems, l->file, line, "%s", text);
}

static const struct parser_events events = {on_section, on_setting, on_problem,
                                            load_include};

/* --- the whole ---------------------------------------------------------------------- */

enum purpose { FOR_THE_START, FOR_A_RELOAD, FROM_OUTSIDE };

static enum dac_err load(const char *path, const char *const *environ,
                         enum purpose purpose, struct config **out,
                         struct config_problems *problems)
{
    struct load l = {.problems = problems,
                     .file = path ? path : CONFIG_DEFAULT_PATH,
                     .outside = purpose == FROM_OUTSIDE,
                     .again = purpose == FOR_A_RELOAD};
    size_t errors = problems->errors;
    enum dac_err rc = DAC_OK;

    *out = NULL;
    l.cfg = calloc(1, sizeof(*l.cfg));
    if (!l.cfg)
        return DAC_E_NOMEM;
    l.events = &events;
    l.cfg->path = strdup(l.file);
    if (!l.cfg->path) {
        free(l.cfg);
        return DAC_E_NOMEM;
    }

    load_environ(&l, environ);
    load_defaults(&l, NULL);
    load_files(&l);
    load_variables(&l, environ);
    load_finish(&l);
    problems_sort(problems);
    config_free(l.astray);

    if (l.nomem)
        rc = DAC_E_NOMEM;
    else if (problems->errors > errors)
        rc = DAC_E_INVALID;
    if (rc == DAC_OK)
        *out = l.cfg;
    else
        config_free(l.cfg);
    return rc;
}

enum dac_err config_load(const char *path, const char *const *environ,
                         struct config **out, struct config_problems *problems)
{
    return load(path, environ, FOR_THE_START, out, problems);
}

enum dac_err config_look(const char *path, const char *const *environ,
                         struct config **out, struct config_problems *problems)
{
    return load(path, environ, FROM_OUTSIDE, out, problems);
}

enum dac_err config_load_again(const char *path, const char *const *environ,
                               struct config **out, struct config_problems *problems)
{
    return load(path, environ, FOR_A_RELOAD, out, problems);
}

/* A provider that has nothing but its name. */
static void add_defaults(struct load *l, const char *name)
{
    struct config_provider *p = &l->cfg->providers[l->cfg->provider_count];

    p->name = strdup(name);
    if (!p->name) {
        l->nomem = true;
        return;
    }
    p->slot = (uint32_t)l->cfg->provider_count++;
    load_defaults(l, p);
}

enum dac_err config_defaults(const struct config *like, struct config **out)
{
    struct config_problems none = {0}; /* a default is never one */
    struct load l = {.problems = &none, .file = ""};

    *out = NULL;
    l.cfg = calloc(1, sizeof(*l.cfg));
    if (!l.cfg)
        return DAC_E_NOMEM;
    l.cfg->path = strdup("(defaults)");
    l.nomem = !l.cfg->path;
    load_defaults(&l, NULL);
    for (size_t i = 0; like && i < like->provider_count; i++)
        add_defaults(&l, like->providers[i].name);
    load_derived(&l);
    DAC_ASSERT(none.errors == 0);
    if (l.nomem) {
        config_free(l.cfg);
        return DAC_E_NOMEM;
    }
    *out = l.cfg;
    return DAC_OK;
}
