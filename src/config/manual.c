/*
 * The part of dac.conf(5) that lists the settings.
 */
#include "config/describe.h"

#include <string.h>

#include "config/settings.h"

/* Text of a page: what man(7) would take for its own is made plain. */
static void put_text(const char *s, struct buf *out)
{
    if (*s == '.' || *s == '\'')
        buf_puts(out, "\\&");
    for (; *s; s++) {
        if (*s == '\\')
            buf_puts(out, "\\e");
        else if (*s == '-')
            buf_puts(out, "\\-");
        else
            buf_putc(out, *s);
    }
}

static void put_head(const struct setting *s, struct buf *out)
{
    if (setting_of_provider(s))
        buf_puts(out,
                 ".SS [provider NAME]\n"
                 "A request names its provider by NAME, or is served by the first one "
                 "whose\n"
                 ".I models\n"
                 "match.\n");
    else if (s->section)
        buf_printf(out, ".SS [%s]\n", s->section);
    else
        buf_puts(out,
                 ".SS Flags\n"
                 "These stand in the env file or the environment, never in a section.\n");
}

static void put_setting(const struct setting *s, struct buf *out)
{
    static const char *const classes[] = {
        [SETTING_IN_PLACE] = "A reload changes it in place.",
        [SETTING_NEW_WORKERS] = "A reload starts new workers.",
        [SETTING_RESTART] = "A change needs a restart.",
    };
    struct buf range = BUF_INIT(1024);

    buf_puts(out, ".TP\n\\fB");
    put_text(s->name, out);
    buf_puts(out, "\\fR");
    if (s->def && *s->def) {
        buf_puts(out, s->section ? " = " : "=");
        put_text(s->def, out);
    }
    buf_putc(out, '\n');
    put_text(s->help, out);
    buf_puts(out, ".\n");
    setting_put_range(s, &range);
    if (!s->def)
        buf_puts(out, "Must be set.\n");
    if (range.len > 0 && buf_cstr(&range)) {
        buf_puts(out, "Allowed: ");
        put_text(range.data, out);
        buf_puts(out, ".\n");
    }
    buf_printf(out, "%s\n", classes[s->reload]);
    if (s->secret)
        buf_puts(out, "Its value is never shown.\n");
    if (s->env && setting_of_provider(s))
        buf_printf(out, "The flag\n.I NAME%s\nwins over it.\n", s->env);
    out->failed = out->failed || range.failed;
    buf_free(&range);
}

void config_manual(struct buf *out)
{
    const char *section = "";

    for (size_t i = 0; i < setting_count; i++) {
        const struct setting *s = &settings[i];
        const char *of = s->section ? s->section : "flags";

        if (strcmp(section, of) != 0)
            put_head(s, out);
        section = of;
        put_setting(s, out);
    }
}
