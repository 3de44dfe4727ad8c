/*
 * `dacctl config`: what a configuration says and where each value came from (show), what
 * a setting is (explain), what a reload would do about another file (diff), and a sample
 * of all settings. It reads files and its own environment, as `dacd -t` does, and asks
 * nobody.
 */
#include "dacctl_config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/json.h"
#include "config/config.h"
#include "config/describe.h"
#include "config/live.h"
#include "dacctl_exit.h"
#include "dacctl_print.h"

#define OUTPUT_MAX (UINT64_C(64) << 20)

/* --- reading ------------------------------------------------------------------------ */

static void put_problems(const struct config_problems *p, struct buf *out)
{
    buf_puts(out, "\"problems\":[");
    for (size_t i = 0; i < p->count; i++) {
        const struct config_problem *item = &p->items[i];

        buf_printf(out, "%s{\"line\":", i > 0 ? "," : "");
        if (item->line > 0)
            buf_printf(out, "%u", item->line);
        else
            buf_puts(out, "null");
        json_put_member(out, "file", item->file);
        json_put_member(out, "level", item->warning ? "warning" : "error");
        json_put_member(out, "text", item->text);
        buf_puts(out, "}");
    }
    buf_puts(out, "]");
}

/* Reads a configuration; its problems go to stderr, or into `json`. NULL: it cannot be
 * used. */
static struct config *load(const char *conf, struct buf *json)
{
    struct config_problems problems = {0};
    struct config *cfg;
    enum dac_err e = config_look(conf, (const char *const *)environ, &cfg, &problems);

    if (json)
        put_problems(&problems, json);
    else
        config_problems_print(&problems, stderr);
    if (e != DAC_OK)
        fprintf(stderr, "dacctl: the configuration \"%s\" cannot be used: %s\n",
                conf ? conf : CONFIG_DEFAULT_PATH, dac_err_text(e));
    config_problems_free(&problems);
    return cfg;
}

bool dacctl_config_instance(const char *conf, char *name, size_t size)
{
    struct config *cfg = load(conf, NULL);

    if (!cfg) {
        fputs("dacctl: -n NAME chooses an instance without it\n", stderr);
        return false;
    }
    snprintf(name, size, "%s", cfg->name);
    config_free(cfg);
    return true;
}

/* --- show --------------------------------------------------------------------------- */

static int show_json(const char *conf)
{
    struct buf out = BUF_INIT(OUTPUT_MAX);
    struct config *cfg;

    buf_putc(&out, '{');
    cfg = load(conf, &out);
    json_put_member(&out, "file", conf ? conf : CONFIG_DEFAULT_PATH);
    if (cfg) {
        buf_puts(&out, ",\"settings\":");
        if (config_facts_json(cfg, &out) != DAC_OK)
            out.failed = true;
    }
    buf_puts(&out, "}\n");
    int rc = dacctl_print(&out) && cfg ? EXIT_DONE : EXIT_UNUSABLE;

    config_free(cfg);
    return rc;
}

static int show(const char *conf, const char *word, bool json)
{
    struct config *cfg;
    bool ok;

    (void)word;
    if (json)
        return show_json(conf);
    cfg = load(conf, NULL);
    if (!cfg)
        return EXIT_UNUSABLE;
    config_print(cfg, stdout);
    config_free(cfg);
    ok = fflush(stdout) == 0;
    if (!ok)
        fprintf(stderr, "dacctl: could not write: %s\n", strerror(errno));
    return ok ? EXIT_DONE : EXIT_UNUSABLE;
}

/* --- explain ------------------------------------------------------------------------ */

static int explain(const char *conf, const char *word, bool json)
{
    struct buf out = BUF_INIT(OUTPUT_MAX);
    const char *near;

    (void)conf;
    if (config_explain(word, json, &out, &near) > 0)
        return dacctl_print(&out) ? EXIT_DONE : EXIT_UNUSABLE;
    if (json) {
        buf_puts(&out, "{\"settings\":[]");
        json_put_member(&out, "nearest", near);
        buf_puts(&out, "}\n");
        (void)dacctl_print(&out);
    }
    buf_free(&out);
    if (near)
        fprintf(stderr, "dacctl: there is no setting \"%.100s\"; did you mean \"%s\"?\n",
                word, near);
    else
        fprintf(stderr,
                "dacctl: there is no setting \"%.100s\"; \"dacctl config explain\" tells "
                "all\n",
                word);
    return EXIT_NOT_DONE;
}

/* --- sample, manual ----------------------------------------------------------------- */

static int write_all(void (*put)(struct buf *out))
{
    struct buf out = BUF_INIT(OUTPUT_MAX);

    put(&out);
    return dacctl_print(&out) ? EXIT_DONE : EXIT_UNUSABLE;
}

static int sample(const char *conf, const char *word, bool json)
{
    struct buf text = BUF_INIT(OUTPUT_MAX), out = BUF_INIT(OUTPUT_MAX);
    bool ok;

    (void)conf;
    (void)word;
    if (!json)
        return write_all(config_sample);
    config_sample(&text);
    buf_puts(&out, "{\"sample\":");
    json_put_string(&out, text.data, text.len);
    buf_puts(&out, "}\n");
    out.failed |= text.failed;
    buf_free(&text);
    ok = dacctl_print(&out);
    return ok ? EXIT_DONE : EXIT_UNUSABLE;
}

/* For `make manual`. */
static int manual(const char *conf, const char *word, bool json)
{
    (void)conf;
    (void)word;
    (void)json;
    return write_all(config_manual);
}

/* --- diff --------------------------------------------------------------------------- */

static const struct {
    const char *json, *text;
} classes[] = {
    [CONFIG_IN_PLACE] = {"in_place", "in place"},
    [CONFIG_NEW_WORKERS] = {"new_workers", "new workers"},
    [CONFIG_RESTART] = {"restart", "restart"},
};

struct changes {
    struct buf *out;
    bool json;
    size_t of[DAC_ARRAY_LEN(classes)];
    bool more;
};

static void put_change(void *arg, const struct config_change *c)
{
    struct changes *all = arg;

    all->of[c->reload]++;
    if (all->json) {
        buf_puts(all->out, all->more ? ",{\"name\":" : "{\"name\":");
        json_put_string(all->out, c->name, strlen(c->name));
        json_put_member(all->out, "from", c->from);
        json_put_member(all->out, "to", c->to);
        json_put_member(all->out, "reload", classes[c->reload].json);
        buf_putc(all->out, '}');
    } else {
        buf_printf(all->out, "%-11s  %s: %s -> %s\n", classes[c->reload].text, c->name,
                   *c->from ? c->from : "(empty)", *c->to ? c->to : "(empty)");
    }
    all->more = true;
}

/* What a reload that went from one to the other would do in all. */
static void put_sum(const struct changes *all, struct buf *out)
{
    buf_putc(out, '\n');
    if (all->of[CONFIG_IN_PLACE] > 0)
        buf_printf(out, "A reload changes %zu in running processes.\n",
                   all->of[CONFIG_IN_PLACE]);
    if (all->of[CONFIG_NEW_WORKERS] > 0)
        buf_printf(out,
                   "A reload starts new workers for %zu; the old ones end their streams "
                   "first.\n",
                   all->of[CONFIG_NEW_WORKERS]);
    if (all->of[CONFIG_RESTART] > 0)
        buf_printf(out, "Only a restart of the service changes %zu.\n",
                   all->of[CONFIG_RESTART]);
}

static int compare(const struct config *from, const struct config *to, bool is_reload,
                   bool json)
{
    struct buf out = BUF_INIT(OUTPUT_MAX);
    struct changes all = {.out = &out, .json = json};

    if (json)
        buf_puts(&out, "{\"changes\":[");
    size_t n = config_diff(from, to, put_change, &all);

    if (json)
        buf_puts(&out, "]}\n");
    else if (n > 0 && is_reload)
        put_sum(&all, &out);
    if (!dacctl_print(&out))
        return EXIT_UNUSABLE;
    return n > 0 ? EXIT_NOT_DONE : EXIT_DONE;
}

/* From the configuration to `other`, or from the defaults to the configuration. */
static int diff(const char *conf, const char *other, bool json)
{
    struct config *a = load(conf, NULL), *b = NULL;
    int rc = EXIT_UNUSABLE;

    if (other)
        b = load(other, NULL);
    else if (a && config_defaults(a, &b) != DAC_OK)
        fputs("dacctl: out of memory\n", stderr);
    if (a && b)
        rc = other ? compare(a, b, true, json) : compare(b, a, false, json);
    config_free(a);
    config_free(b);
    return rc;
}

/* --- the command -------------------------------------------------------------------- */

static const struct {
    const char *name;
    int (*run)(const char *conf, const char *word, bool json);
    bool takes_word;
} commands[] = {{"show", show, false},
                {"explain", explain, true},
                {"diff", diff, true},
                {"sample", sample, false},
                {"manual", manual, false}};

int dacctl_config(const char *conf, char *const *words, int n, bool json)
{
    for (size_t i = 0; n > 0 && i < DAC_ARRAY_LEN(commands); i++) {
        if (strcmp(words[0], commands[i].name) != 0)
            continue;
        if (n > 1 + commands[i].takes_word) {
            fprintf(stderr, "dacctl: config %s takes %s behind it\n", words[0],
                    commands[i].takes_word ? "one word" : "nothing");
            return EXIT_UNUSABLE;
        }
        return commands[i].run(conf, n > 1 ? words[1] : NULL, json);
    }
    fputs("dacctl: config is followed by one of show, explain, diff, sample\n", stderr);
    return EXIT_UNUSABLE;
}
