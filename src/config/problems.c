/*
 * The bounded list of configuration problems.
 */
#include "config/problems.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_MAX_BYTES 1024

static void put(struct config_problems *p, bool warning, const char *file, unsigned line,
                const char *fmt, va_list ap) __attribute__((format(printf, 5, 0)));

static void put(struct config_problems *p, bool warning, const char *file, unsigned line,
                const char *fmt, va_list ap)
{
    char text[TEXT_MAX_BYTES];
    struct config_problem *item = &p->items[p->count];

    if (!warning)
        p->errors++;
    if (p->count == CONFIG_PROBLEMS_MAX) {
        p->dropped++;
        return;
    }
    vsnprintf(text, sizeof(text), fmt, ap);
    for (char *c = text; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = '?';
    }
    *item = (struct config_problem){
        .file = strdup(file), .line = line, .warning = warning, .text = strdup(text)};
    if (item->file && item->text) {
        p->count++;
        return;
    }
    free(item->file);
    free(item->text);
    p->dropped++;
}

void problem_add(struct config_problems *p, const char *file, unsigned line,
                 const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    put(p, false, file, line, fmt, ap);
    va_end(ap);
}

void problem_warn(struct config_problems *p, const char *file, unsigned line,
                  const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    put(p, true, file, line, fmt, ap);
    va_end(ap);
}

/* Number of the first one of those up to `i` that is of the same file as that. */
static size_t first_of_file(const struct config_problems *p, size_t i)
{
    size_t k = 0;

    while (strcmp(p->items[k].file, p->items[i].file) != 0)
        k++;
    return k;
}

void problems_sort(struct config_problems *p)
{
    size_t file[CONFIG_PROBLEMS_MAX];

    for (size_t i = 0; i < p->count; i++)
        file[i] = first_of_file(p, i);
    for (size_t i = 1; i < p->count; i++) {
        struct config_problem item = p->items[i];
        size_t of = file[i], at = i;

        while (at > 0 && (file[at - 1] > of ||
                          (file[at - 1] == of && p->items[at - 1].line > item.line))) {
            p->items[at] = p->items[at - 1];
            file[at] = file[at - 1];
            at--;
        }
        p->items[at] = item;
        file[at] = of;
    }
}

void config_problems_print(const struct config_problems *p, FILE *out)
{
    for (size_t i = 0; i < p->count; i++) {
        const struct config_problem *item = &p->items[i];
        const char *kind = item->warning ? "warning: " : "";

        if (item->line > 0)
            fprintf(out, "%s:%u: %s%s\n", item->file, item->line, kind, item->text);
        else
            fprintf(out, "%s: %s%s\n", item->file, kind, item->text);
    }
    if (p->dropped > 0)
        fprintf(out, "and %zu more\n", p->dropped);
}

void config_problems_free(struct config_problems *p)
{
    for (size_t i = 0; i < p->count; i++) {
        free(p->items[i].file);
        free(p->items[i].text);
    }
    *p = (struct config_problems){0};
}
