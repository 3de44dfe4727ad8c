/*
 * A spec says how the mock provider behaves in one call: when the first token comes, how
 * many follow, and what goes wrong. It is written as words ("ttft=200ms tokens=50 cut=3")
 * or as a JSON object ({"ttft": "200ms", "tokens": 50}); both know the same keys, listed
 * in one table.
 *
 * Specs are laid over each other: only the keys that were named in the upper one count.
 */
#ifndef DAC_MOCK_SPEC_H
#define DAC_MOCK_SPEC_H

#include <json-c/json.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

#define SPEC_BARRIERS  4
#define SPEC_NAME_SIZE 48
#define SPEC_ERR_SIZE  200
/* Stands for "never" in the positions that count tokens. */
#define SPEC_NEVER UINT64_MAX

enum spec_headers { SPEC_HEADERS_EARLY, SPEC_HEADERS_LATE };
enum spec_eol { SPEC_EOL_LF, SPEC_EOL_CRLF, SPEC_EOL_CR };
enum spec_cut { SPEC_CUT_CLOSE, SPEC_CUT_RST };
enum spec_junk { SPEC_JUNK_DATA, SPEC_JUNK_LINE, SPEC_JUNK_RAW };
enum spec_role { SPEC_ROLE_LATE, SPEC_ROLE_EARLY, SPEC_ROLE_NULL, SPEC_ROLE_NONE };
enum spec_usage { SPEC_USAGE_ASKED, SPEC_USAGE_ALWAYS, SPEC_USAGE_NEVER };

struct spec_barrier {
    char name[SPEC_NAME_SIZE];
    uint64_t at; /* waits before the token of this index; SPEC_NEVER: take barrier_at */
};

/* Times are nanoseconds, positions are "after so many content tokens". Strings are owned.
 */
struct spec {
    uint64_t set; /* bit i: row i of the key table was named */
    uint64_t ttft, gap, split_gap, ping, cut_delay;
    uint64_t tokens, token_size, split, huge_line, reasoning, citations;
    uint64_t cut, stall, junk, error_event, barrier_at;
    uint64_t status;
    uint64_t crlf, comments, no_done, no_finish, empty, wrong_type, utf8, tool_calls,
        close, hold, delay_headers;
    uint64_t headers, eol, cut_mode, junk_kind, role, usage; /* the enums above */
    char *text, *body, *content_type, *retry_after, *redirect, *finish, *model;
    struct spec_barrier barriers[SPEC_BARRIERS];
    size_t barrier_count;
};

void spec_init(struct spec *s);
void spec_free(struct spec *s);
/* Copies into `dst` the keys that `src` names. DAC_E_NOMEM. */
enum dac_err spec_overlay(struct spec *dst, const struct spec *src) DAC_CHECK;

/* Whether some layer named this key. */
bool spec_names(const struct spec *s, const char *key);

/* Reads `n` bytes of words over `s`. DAC_E_INVALID: `err` says which word and why, `s`
 * may have taken the words before it. */
enum dac_err spec_parse_words(struct spec *s, const char *text, size_t n,
                              char err[SPEC_ERR_SIZE]) DAC_CHECK;
/* The same from a JSON object. Keys in `skip` (NULL-terminated, may be NULL) are ignored.
 */
enum dac_err spec_parse_json(struct spec *s, struct json_object *o,
                             const char *const *skip, char err[SPEC_ERR_SIZE]) DAC_CHECK;
/* Finds "[mock …]" in a message. Returns the words inside and their length, or NULL. */
const char *spec_find_directive(const char *text, size_t n, size_t *len);
/* Reads a duration: digits with ns, us, ms, s or m; none means ms. */
bool spec_parse_duration(const char *s, size_t n, uint64_t *ns);
/* Prints the key table for people. */
void spec_print_help(FILE *to);

#endif
