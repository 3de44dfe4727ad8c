/*
 * struct buf: a growing byte buffer whose maximum is fixed at creation. An append that
 * would pass the maximum, or that finds no memory, changes nothing and is remembered in
 * `failed`, so a chain of appends is checked once at its end.
 *
 * Owner: whoever holds the struct; buf_free() releases the bytes and leaves an empty
 * buffer.
 */
#ifndef DAC_BASE_BYTES_H
#define DAC_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct buf {
    char *data; /* owned; not NUL-terminated by itself, see buf_cstr() */
    size_t len; /* bytes in use */
    size_t cap; /* bytes allocated */
    size_t max; /* len never passes this */
    bool failed;
};

#define BUF_INIT(maximum) ((struct buf){.max = (maximum)})

/* Appends `n` bytes. DAC_E_TOO_LARGE above the maximum, DAC_E_NOMEM; both set `failed`.
 */
enum dac_err buf_append(struct buf *b, const void *data, size_t n);
enum dac_err buf_puts(struct buf *b, const char *s);
enum dac_err buf_putc(struct buf *b, char c);
enum dac_err buf_printf(struct buf *b, const char *fmt, ...) DAC_PRINTF(2, 3);
/* Makes room for `n` more bytes and returns where they go, or NULL (then `failed` is
 * set). The caller writes there and adds to `len` itself. */
char *buf_reserve(struct buf *b, size_t n);
/* Drops the first `n` bytes (n <= len). */
void buf_consume(struct buf *b, size_t n);
/* Empties without releasing memory; clears `failed`. */
void buf_reset(struct buf *b);
/* The bytes with a NUL behind them (not counted in len), or NULL without memory. */
const char *buf_cstr(struct buf *b);
void buf_free(struct buf *b);

/* Strict decimal: whole string is digits and <= max. */
bool bytes_parse_u64(const char *s, size_t n, uint64_t max, uint64_t *out);
/* Case-insensitive ASCII comparison of a slice with a NUL-terminated string. */
bool bytes_ieq(const char *s, size_t n, const char *lit);
/* Lower-case hex of `n` bytes into out[2n+1]. */
void bytes_hex(const uint8_t *p, size_t n, char *out);

#endif
