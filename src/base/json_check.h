/*
 * The strict check of a JSON text that runs before json-c reads it: one pass, no
 * recursion, no object built. Internal to base; json_parse_strict() is the way in.
 */
#ifndef DAC_BASE_JSON_CHECK_H
#define DAC_BASE_JSON_CHECK_H

#include "base/json.h"

/* DAC_OK, DAC_E_INVALID with `err` filled, or DAC_E_NOMEM. Time is O(n log n), memory
 * O(n). */
enum dac_err json_check(const char *text, size_t n, struct json_error *err) DAC_CHECK;

#endif
