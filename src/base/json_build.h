/*
 * Builds json-c's objects from a text, every allocation checked: json-c's own tokener
 * loses members or crashes where one fails. Internal to base and to readers of foreign
 * streams; requests go through json_parse_strict().
 */
#ifndef DAC_BASE_JSON_BUILD_H
#define DAC_BASE_JSON_BUILD_H

#include "base/json.h"

/* Keeps to the grammar of RFC 8259 and is lenient as to what strings hold: control
 * characters and ill-formed UTF-8 stay, a lone surrogate becomes U+FFFD, of a key that
 * stands twice the last one counts; an integer outside 64 bits keeps its text as a
 * double. On DAC_OK *out is a new reference, NULL for null. DAC_E_INVALID: *at is the
 * byte where it was noticed. DAC_E_NOMEM. Time and memory O(n). */
enum dac_err json_build(const char *text, size_t n, struct json_object **out,
                        size_t *at) DAC_CHECK;

#endif
