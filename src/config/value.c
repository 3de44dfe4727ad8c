/*
 * Parsing and printing of values with units, and the distance that suggestions go by.
 */
#include "config/value.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

struct unit {
    const char *name;
    uint64_t factor;
};

/* Largest first. */
static const struct unit durations[] = {
    {"d", 86400 * NS_PER_S},
    {"h", 3600 * NS_PER_S},
    {"m", 60 * NS_PER_S},
    {"s", NS_PER_S},
    {"ms", NS_PER_MS},
    {"us", NS_PER_US},
    {"ns", 1},
};

static const struct unit sizes[] = {
    {"g", UINT64_C(1) << 30},
    {"m", UINT64_C(1) << 20},
    {"k", UINT64_C(1) << 10},
    {"", 1},
};

static const struct unit *find_unit(const struct unit *table, size_t count,
                                    const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (bytes_ieq(name, strlen(name), table[i].name))
            return &table[i];
    }
    return NULL;
}

/* Adds .digits of one unit; what is smaller than the base unit is refused. */
static bool parse_fraction(const char *s, size_t n, uint64_t factor, uint64_t *out)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < n; i++) {
        uint64_t digit = (uint64_t)(s[i] - '0');

        if (digit != 0 && (factor == 0 || factor % 10 != 0))
            return false;
        factor /= 10;
        sum += digit * factor;
    }
    *out = sum;
    return true;
}

bool value_parse_duration(const char *s, uint64_t *out)
{
    size_t whole = strspn(s, "0123456789"), part = 0;
    const char *rest = s + whole;
    const struct unit *u;
    uint64_t v, fraction = 0;

    if (strcmp(s, "0") == 0) {
        *out = 0;
        return true;
    }
    if (*rest == '.') {
        part = strspn(rest + 1, "0123456789");
        if (part == 0)
            return false;
        rest += 1 + part;
    }
    u = find_unit(durations, DAC_ARRAY_LEN(durations), rest);
    if (!u || !bytes_parse_u64(s, whole, UINT64_MAX, &v))
        return false;
    if (!parse_fraction(s + whole + 1, part, u->factor, &fraction))
        return false;
    if (v > (UINT64_MAX - fraction) / u->factor)
        return false;
    *out = v * u->factor + fraction;
    return true;
}

bool value_parse_size(const char *s, uint64_t *out)
{
    size_t digits = strspn(s, "0123456789");
    const struct unit *u = find_unit(sizes, DAC_ARRAY_LEN(sizes), s + digits);
    uint64_t v;

    if (!u || !bytes_parse_u64(s, digits, UINT64_MAX / u->factor, &v))
        return false;
    *out = v * u->factor;
    return true;
}

bool value_parse_rate(const char *s, double *out)
{
    size_t whole = strspn(s, "0123456789"), n = whole;

    if (s[n] == '.') {
        size_t part = strspn(s + n + 1, "0123456789");

        if (part == 0)
            return false;
        n += 1 + part;
    }
    if (whole == 0 || s[n] != '\0' || n > 32)
        return false;
    *out = strtod(s, NULL);
    return true;
}

bool value_parse_bool(const char *s, bool *out)
{
    static const struct {
        const char *word;
        bool value;
    } words[] = {
        {"1", true},  {"true", true},   {"yes", true}, {"on", true},
        {"0", false}, {"false", false}, {"no", false}, {"off", false},
    };

    for (size_t i = 0; i < DAC_ARRAY_LEN(words); i++) {
        if (bytes_ieq(s, strlen(s), words[i].word)) {
            *out = words[i].value;
            return true;
        }
    }
    return false;
}

static void put_unit(struct buf *b, uint64_t v, const struct unit *table, size_t count)
{
    size_t i = 0;

    while (i + 1 < count && v % table[i].factor != 0)
        i++;
    buf_printf(b, "%llu%s", (unsigned long long)(v / table[i].factor), table[i].name);
}

void value_put_duration(struct buf *b, uint64_t ns)
{
    if (ns == 0)
        buf_puts(b, "0s");
    else if (ns < 120 * NS_PER_S && ns % NS_PER_S == 0)
        put_unit(b, ns, durations + 3, 1); /* "60s" reads better than "1m" */
    else
        put_unit(b, ns, durations, DAC_ARRAY_LEN(durations));
}

void value_put_size(struct buf *b, uint64_t bytes)
{
    if (bytes == 0)
        buf_puts(b, "0");
    else
        put_unit(b, bytes, sizes, DAC_ARRAY_LEN(sizes));
}

static unsigned min2(unsigned a, unsigned b)
{
    return a < b ? a : b;
}

static char fold(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c + ('a' - 'A')) : c;
}

unsigned value_distance(const char *a, const char *b)
{
    unsigned row[3][64];
    size_t na = strlen(a), nb = strlen(b);

    if (na > 63 || nb > 63)
        return UINT_MAX;
    for (unsigned j = 0; j <= nb; j++)
        row[0][j] = j;
    for (size_t i = 1; i <= na; i++) {
        unsigned *now = row[i % 3], *above = row[(i + 2) % 3], *two = row[(i + 1) % 3];

        now[0] = (unsigned)i;
        for (size_t j = 1; j <= nb; j++) {
            char ca = fold(a[i - 1]), cb = fold(b[j - 1]);

            now[j] = min2(min2(above[j], now[j - 1]) + 1, above[j - 1] + (ca != cb));
            if (i > 1 && j > 1 && ca == fold(b[j - 2]) && fold(a[i - 2]) == cb)
                now[j] = min2(now[j], two[j - 2] + 1);
        }
    }
    return row[na % 3][nb];
}
