/*
 * The sample configuration: every setting of the table with its default, in a file that
 * can be used as it stands.
 */
#include "config/describe.h"

#include <string.h>

#include "config/settings.h"

#define COMMENT_COLUMN 36
#define LINE_MAX_BYTES 98

static const char head[] =
    "; A configuration that works as it stands: dac-mock plays the provider.\n"
    ";\n"
    ";   sudo install -d -o \"$USER\" /var/lib/dac\n"
    ";   ./dac-mock --listen 127.0.0.1:9090 &\n"
    ";   ./dacd -c etc/dac.conf.sample\n"
    ";\n"
    "; Every setting is here; commented lines show the defaults. In parentheses: what is "
    "allowed, and\n"
    "; what a change takes where a reload does not do it in place: \"new workers\" that "
    "a "
    "reload starts,\n"
    "; while the old ones end their streams, or a \"restart\" of the service.\n"
    ";\n"
    "; `dacd -t -c FILE` checks a configuration and shows every problem at once; `dacctl "
    "config show`\n"
    "; tells where each value came from, `dacctl config diff FILE` what a reload would "
    "do.\n"
    "; Durations are written 100ms, 10s, 5m; sizes 64k, 8m, 1g. \"include "
    "conf.d/*.conf\" "
    "reads further\n"
    "; files, in the order of their names; what is read later wins. dac.conf(5) has the "
    "rest.\n";

/* What is set rather than shown, so that the sample works. */
static const struct {
    const char *section, *name, *value;
} active[] = {
    {"server", "listen", "127.0.0.1:8000"},
    {"store", "sqlite", "/var/lib/dac/dac.db"},
    {"provider", "base_url", "http://127.0.0.1:9090/v1"},
};

static const char *active_value(const struct setting *s)
{
    for (size_t i = 0; s->section && i < DAC_ARRAY_LEN(active); i++)
        if (strcmp(active[i].section, s->section) == 0 &&
            strcmp(active[i].name, s->name) == 0)
            return active[i].value;
    return NULL;
}

/* "processes that serve clients; auto is one per core (1 to 28, or auto; new workers)" */
static void put_comment(const struct setting *s, struct buf *out)
{
    static const char *const classes[] = {
        [SETTING_IN_PLACE] = "",
        [SETTING_NEW_WORKERS] = "new workers",
        [SETTING_RESTART] = "restart",
    };
    struct buf notes = BUF_INIT(1024);

    if (!s->def)
        buf_puts(&notes, "must be set");
    setting_put_range(s, &notes);
    if (notes.len > 0 && *classes[s->reload])
        buf_puts(&notes, "; ");
    buf_puts(&notes, classes[s->reload]);
    buf_puts(out, s->help);
    if (notes.len > 0)
        buf_printf(out, " (%s)", buf_cstr(&notes) ? notes.data : "");
    out->failed = out->failed || notes.failed;
    buf_free(&notes);
}

/* Bytes up to where a line may be broken: not in the notes at the end if they fit one. */
static size_t word_length(const char *at)
{
    size_t n = strlen(at);

    if (*at == '(' && n <= LINE_MAX_BYTES - COMMENT_COLUMN - strlen("; "))
        return n;
    return strcspn(at, " ");
}

/* Puts `text` behind what stands in the line of `out` that begins at `start`, as a
 * comment of as many lines as it takes, each of which begins in the same column. */
static void put_wrapped(const char *text, size_t start, struct buf *out)
{
    size_t used = out->len - start;
    const char *at = text;

    buf_printf(out, "%*s; ", used < COMMENT_COLUMN ? (int)(COMMENT_COLUMN - used) : 1,
               "");
    for (;;) {
        size_t n = word_length(at);

        buf_append(out, at, n);
        at += n;
        while (*at == ' ')
            at++;
        if (*at == '\0')
            break;
        if (out->len - start + 1 + word_length(at) <= LINE_MAX_BYTES) {
            buf_putc(out, ' ');
            continue;
        }
        buf_putc(out, '\n');
        start = out->len;
        buf_printf(out, "%*s; ", COMMENT_COLUMN, "");
    }
    buf_putc(out, '\n');
}

static void put_setting(const struct setting *s, struct buf *out)
{
    const char *value = active_value(s);
    struct buf comment = BUF_INIT(4096);
    size_t start = out->len;

    buf_printf(out, "%s%s%s",
               value        ? ""
               : s->section ? "; "
                            : ";   ",
               s->name, s->section ? " =" : "=");
    if (!value)
        value = s->def ? s->def : "";
    buf_printf(out, "%s%s", s->section && *value ? " " : "", value);
    put_comment(s, &comment);
    if (buf_cstr(&comment))
        put_wrapped(comment.data, start, out);
    out->failed = out->failed || comment.failed;
    buf_free(&comment);
}

void config_sample(struct buf *out)
{
    const char *section = "";

    buf_puts(out, head);
    for (size_t i = 0; i < setting_count; i++) {
        const struct setting *s = &settings[i];
        size_t start;

        if (strcmp(section, s->section ? s->section : "flags") != 0) {
            section = s->section ? s->section : "flags";
            buf_putc(out, '\n');
            start = out->len;
            if (setting_of_provider(s)) {
                buf_puts(out, "[provider perplexity]");
                put_wrapped("the name that requests give as \"provider\"", start, out);
            } else if (s->section) {
                buf_printf(out, "[%s]\n", section);
            } else {
                buf_puts(out,
                         "; Flags stand in env_file or the environment, not here. "
                         "So may PERPLEXITY_RPS, PERPLEXITY_BURST\n"
                         "; and PERPLEXITY_CONCURRENCY, which win over this file.\n");
            }
        }
        put_setting(s, out);
    }
}
