/*
 * UUID version 7: 48 bits of wall clock in milliseconds, 12 bits that ascend inside one
 * millisecond (RFC 9562, section 6.2, method 1), 62 random bits. A clock that is set back
 * does not make ids descend: the highest stamp given out so far is only ever raised. Any
 * process, any thread; after a fork the random part keeps the processes apart.
 */
#include "base/ids.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/random.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/err.h"

/* Milliseconds << 12 | counter of the newest id. */
static _Atomic uint64_t newest;

void random_bytes(void *p, size_t n)
{
    char *at = p;

    while (n > 0) {
        ssize_t got = getrandom(at, n > 256 ? 256 : n, 0);

        if (got < 0 && errno == EINTR)
            continue;
        DAC_ASSERT(got > 0);
        at += got;
        n -= (size_t)got;
    }
}

/* The next stamp: later than every one before. A new millisecond starts at a random
 * counter whose top bit is 0, so that at least 2,048 more fit before the stamp runs
 * ahead. */
static uint64_t next_stamp(uint64_t random)
{
    uint64_t stamp = (uint64_t)(clock_wall_us() / 1000) << 12 | (random & 0x7ff);
    uint64_t last = atomic_load_explicit(&newest, memory_order_relaxed);

    do {
        if (stamp <= last)
            stamp = last + 1;
    } while (!atomic_compare_exchange_weak_explicit(
        &newest, &last, stamp, memory_order_relaxed, memory_order_relaxed));
    return stamp;
}

struct id id_new(void)
{
    struct id id;
    uint8_t seed[2];
    uint64_t stamp, ms;

    random_bytes(seed, sizeof(seed));
    random_bytes(id.b + 8, 8);
    stamp = next_stamp((uint64_t)seed[0] << 8 | seed[1]);
    ms = stamp >> 12;
    for (int i = 0; i < 6; i++)
        id.b[i] = (uint8_t)(ms >> (40 - 8 * i));
    id.b[6] = (uint8_t)(0x70 | ((stamp >> 8) & 0x0f));
    id.b[7] = (uint8_t)stamp;
    id.b[8] = (uint8_t)(0x80 | (id.b[8] & 0x3f));
    return id;
}

void id_format(const struct id *id, char out[ID_TEXT_SIZE])
{
    static const int group[] = {4, 2, 2, 2, 6};
    const uint8_t *p = id->b;

    for (size_t i = 0; i < DAC_ARRAY_LEN(group); i++) {
        bytes_hex(p, (size_t)group[i], out);
        p += group[i];
        out += 2 * group[i];
        *out++ = '-';
    }
    out[-1] = '\0';
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

bool id_parse(const char *s, size_t n, struct id *out)
{
    struct id id;
    size_t at = 0;

    if (n != ID_TEXT_LEN)
        return false;
    for (size_t i = 0; i < n;) {
        int high, low;

        if (i == 8 || i == 13 || i == 18 || i == 23) {
            if (s[i++] != '-')
                return false;
            continue;
        }
        high = hex_value(s[i]);
        low = hex_value(s[i + 1]);
        if (high < 0 || low < 0)
            return false;
        id.b[at++] = (uint8_t)(high << 4 | low);
        i += 2;
    }
    *out = id;
    return true;
}

bool id_equal(const struct id *a, const struct id *b)
{
    return memcmp(a->b, b->b, sizeof(a->b)) == 0;
}

bool id_is_zero(const struct id *id)
{
    static const struct id zero;

    return id_equal(id, &zero);
}
