/*
 * 128-bit identifiers of threads, turns and messages: UUID version 7 (RFC 9562), so they
 * sort by the time they were made. Text form: 36 characters, lower case.
 */
#ifndef DAC_BASE_IDS_H
#define DAC_BASE_IDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ID_TEXT_LEN  36
#define ID_TEXT_SIZE 37

struct id {
    uint8_t b[16];
};

/* A new id from the wall clock and getrandom(2). Ids made by one process ascend strictly.
 */
struct id id_new(void);
void id_format(const struct id *id, char out[ID_TEXT_SIZE]);
/* Whether s[0..n) is the text form (any case); writes *out. */
bool id_parse(const char *s, size_t n, struct id *out);
bool id_equal(const struct id *a, const struct id *b);
bool id_is_zero(const struct id *id);

/* Fills `p` with `n` random bytes; aborts if the system has none. */
void random_bytes(void *p, size_t n);

#endif
