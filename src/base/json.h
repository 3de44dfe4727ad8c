/*
 * Strict JSON (RFC 8259 with I-JSON's exclusions) on top of json-c, and JSON text
 * writing.
 *
 * json_parse_strict() first checks the text by itself, since json-c lets several through
 * that two parsers read differently: duplicate keys, NaN and Infinity, lone surrogates,
 * NUL (raw or \u0000), invalid UTF-8, comments, trailing commas, numbers out of a
 * double's range, bytes behind the value, more than 64 levels. Only then json-c builds
 * the objects.
 */
#ifndef DAC_BASE_JSON_H
#define DAC_BASE_JSON_H

#include <json-c/json.h>
#include <stddef.h>

#include "base/bytes.h"

#define JSON_DEPTH_MAX 64

struct json_error {
    size_t offset;   /* byte of the text where it was noticed */
    char field[128]; /* path of the member, e.g. "messages[2].content"; "" at top level */
    char message[160]; /* what is wrong, e.g. "duplicate key" */
};

/* Parses `n` bytes. On DAC_OK *out is a new reference for the caller (json_object_put).
 * On DAC_E_INVALID `err` says what and where. DAC_E_NOMEM. */
enum dac_err json_parse_strict(const char *text, size_t n, struct json_object **out,
                               struct json_error *err) DAC_CHECK;

/* Byte at which the value of top-level member `name` begins in a valid object's text, or
 * SIZE_MAX. A name written with escapes is not found. */
size_t json_member_offset(const char *text, size_t n, const char *name);

/* Appends `n` bytes of UTF-8 as a JSON string with its quotes. Escapes what JSON demands
 * and U+2028, U+2029; invalid UTF-8 becomes U+FFFD. One line always. */
void json_put_string(struct buf *b, const char *s, size_t n);
/* The same without the quotes. */
void json_put_escaped(struct buf *b, const char *s, size_t n);
/* Appends `,"name":"text"`, or null where `text` is NULL; `name` needs no escapes. */
void json_put_member(struct buf *b, const char *name, const char *text);
/* Appends `o` as compact JSON on one line. */
void json_put_object(struct buf *b, struct json_object *o);

/* Appends `n` bytes made storable: NUL and invalid UTF-8 (lone surrogates too) become
 * U+FFFD, one per maximal ill-formed part. */
void utf8_put_storable(struct buf *b, const char *s, size_t n);
/* Length of the longest prefix of s[0..n) that does not end inside a character. An
 * ill-formed sequence counts as complete. */
size_t utf8_complete_prefix(const char *s, size_t n);
/* Whether s[0..n) is well-formed UTF-8 (RFC 3629). */
bool utf8_valid(const char *s, size_t n);

#endif
