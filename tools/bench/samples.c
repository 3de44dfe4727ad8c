/*
 * Percentiles by sorting, and the report in its two forms.
 */
#include "tools/bench/samples.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/err.h"

#define SAMPLES_MAX ((size_t)64 << 20)

void samples_add(struct samples *s, uint64_t ns)
{
    if (s->n == s->cap) {
        size_t cap = s->cap ? s->cap * 2 : 1024;
        uint64_t *v = cap <= SAMPLES_MAX ? realloc(s->v, cap * sizeof(*v)) : NULL;

        if (!v) {
            fprintf(stderr, "dac-bench: no room for more than %zu measurements\n", s->n);
            exit(1);
        }
        s->v = v;
        s->cap = cap;
    }
    s->v[s->n++] = ns;
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

uint64_t samples_quantile(struct samples *s, double q)
{
    size_t rank;

    if (s->n == 0)
        return 0;
    qsort(s->v, s->n, sizeof(*s->v), compare);
    rank = (size_t)(q * (double)s->n + 0.999999);
    if (rank < 1)
        rank = 1;
    return s->v[(rank < s->n ? rank : s->n) - 1];
}

void samples_free(struct samples *s)
{
    free(s->v);
    *s = (struct samples){0};
}

void report_add(struct report *r, const char *group, const char *name, double value,
                const char *unit)
{
    struct report_row *row;

    DAC_ASSERT(r->n < REPORT_ROWS);
    row = &r->rows[r->n++];
    snprintf(row->group, sizeof(row->group), "%s", group);
    snprintf(row->name, sizeof(row->name), "%s", name);
    snprintf(row->unit, sizeof(row->unit), "%s", unit);
    row->value = value;
}

void report_quantiles(struct report *r, const char *group, struct samples *s)
{
    static const struct {
        const char *name;
        double q;
    } wanted[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"max", 1.0}};

    report_add(r, group, "n", (double)s->n, "");
    for (size_t i = 0; i < DAC_ARRAY_LEN(wanted) && s->n > 0; i++)
        report_add(r, group, wanted[i].name,
                   (double)samples_quantile(s, wanted[i].q) / (double)NS_PER_MS, "ms");
}

static void print_table(const struct report *r)
{
    const char *group = "";

    for (size_t i = 0; i < r->n; i++) {
        const struct report_row *row = &r->rows[i];
        bool whole = row->value == (double)(int64_t)row->value;

        if (strcmp(group, row->group) != 0)
            printf("%s\n", row->group);
        group = row->group;
        printf("    %-28s %14.*f %s\n", row->name, whole ? 0 : 3, row->value, row->unit);
    }
}

static void print_json(const struct report *r)
{
    const char *group = NULL;

    printf("{");
    for (size_t i = 0; i < r->n; i++) {
        const struct report_row *row = &r->rows[i];
        bool same = group && strcmp(group, row->group) == 0;

        if (!same)
            printf("%s\"%s\": {", group ? "}, " : "", row->group);
        printf("%s\"%s%s%s\": %.9g", same ? ", " : "", row->name, *row->unit ? "_" : "",
               row->unit, row->value);
        group = row->group;
    }
    printf("%s}\n", group ? "}" : "");
}

void report_print(const struct report *r, bool json)
{
    if (json)
        print_json(r);
    else
        print_table(r);
}
