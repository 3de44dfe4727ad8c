/*
 * Incremental HTTP/1.1 request parser (RFC 9112), strict where leniency lets two parsers
 * read two different requests: lines end with CRLF only, no folding, no blank before a
 * colon, one Host, one Content-Length or one "Transfer-Encoding: chunked", bounded
 * everything.
 *
 * Pure: no I/O, no clock, no globals. Any split of the same bytes gives the same result.
 * The head stays in one buffer; names and values are NUL-terminated in place.
 *
 * Worker process, and the fuzz target.
 */
#ifndef DAC_HTTP_H1_PARSER_H
#define DAC_HTTP_H1_PARSER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bytes.h"
#include "http/http.h"

#define H1_HEADERS_MAX      100
#define H1_REQUEST_LINE_MAX 8192
#define H1_METHOD_MAX       32
#define H1_CHUNK_EXT_MAX    4096 /* bytes of chunk extensions in one body */
#define H1_EMPTY_LINES_MAX  4    /* ahead of a request line */

enum h1_result {
    H1_MORE, /* all input is used, the request is not whole */
    H1_HEAD, /* the head is whole; said once, feed again (also with no bytes) for the body
              */
    H1_DONE, /* the request is whole; the rest of the input belongs to the next one */
    H1_ERROR, /* see `fault`; the connection cannot go on */
};

enum h1_state {
    H1_ST_START, /* empty lines are skipped */
    H1_ST_REQUEST_LINE,
    H1_ST_HEADERS,
    H1_ST_BODY, /* of known length */
    H1_ST_CHUNK_SIZE,
    H1_ST_CHUNK_EXT,
    H1_ST_CHUNK_SIZE_LF,
    H1_ST_CHUNK_DATA,
    H1_ST_CHUNK_DATA_CR,
    H1_ST_CHUNK_DATA_LF,
    H1_ST_TRAILER_START,
    H1_ST_TRAILER_NAME,
    H1_ST_TRAILER_VALUE,
    H1_ST_TRAILER_LF,
    H1_ST_END_LF,
    H1_ST_DONE,
    H1_ST_FAILED,
};

/* What the client did wrong, ready for a problem answer. */
struct h1_fault {
    int status;
    const char *code; /* static */
    char field[48];   /* header at fault, or "" */
    char detail[200];
};

struct h1_header {
    uint32_t name;  /* offset in `head`, NUL-terminated */
    uint32_t value; /* likewise, blanks trimmed */
    char *joined; /* owned: the values of all headers of this name; made when asked for */
};

/* One request. Owner: its exchange; h1_request_free() releases what it holds. */
struct h1_request {
    enum h1_state state;
    size_t header_max;
    size_t body_max;

    struct buf head;
    uint32_t line; /* where the line being read starts in `head` */
    uint32_t path; /* raw, NUL-terminated; "*" in the asterisk form */
    uint32_t query;
    bool has_query;
    unsigned empty_lines;
    enum http_method method;
    unsigned minor; /* HTTP/1.x */

    unsigned header_count;
    unsigned host_count;
    bool connection_close;
    bool connection_keep_alive;
    bool has_length;
    bool chunked;
    bool expect_continue;
    bool expect_unknown;
    uint64_t content_length;

    struct buf body;
    bool discard;      /* set by the caller: the body is counted and checked, not kept */
    uint64_t body_len; /* bytes of body so far */
    uint64_t left;     /* of the body or the chunk */
    unsigned size_digits; /* of the chunk size being read */
    size_t ext_bytes;
    size_t trailer_bytes;

    struct h1_fault fault;
    struct h1_header headers[H1_HEADERS_MAX];
};

void h1_request_init(struct h1_request *r, size_t header_max, size_t body_max);
void h1_request_free(struct h1_request *r);

/* Reads on; *used (<= n) says how much was taken. After H1_DONE or H1_ERROR nothing more
 * is taken. Nothing is ever read twice. */
enum h1_result h1_feed(struct h1_request *r, const char *data, size_t n, size_t *used);
/* Whether a byte of a request line was seen (empty lines are none). */
bool h1_started(const struct h1_request *r);
/* Whether the client would keep the connection behind this request. */
bool h1_keep_alive(const struct h1_request *r);
/* Whether a body follows the head, which must be whole. */
bool h1_has_body(const struct h1_request *r);

const char *h1_name(const struct h1_request *r, unsigned i);
const char *h1_value(const struct h1_request *r, unsigned i);
/* Value by case-insensitive name, several joined by ", ", or NULL. Borrowed from `r`. */
const char *h1_header(struct h1_request *r, const char *name);
/* How many header lines have this name. */
size_t h1_header_count(const struct h1_request *r, const char *name);

/* The rest is shared by the parser's own files. */

bool h1_is_token_char(unsigned char c);
/* Bytes allowed in a field value: VCHAR, blank, tab, obs-text. */
bool h1_is_value_char(unsigned char c);
/* Sets the fault and the state FAILED; `field` may be NULL. */
enum h1_result h1_fail(struct h1_request *r, int status, const char *code,
                       const char *field, const char *fmt, ...) DAC_PRINTF(5, 6);
enum h1_result h1_feed_body(struct h1_request *r, const char *data, size_t n,
                            size_t *used);
/* Parses line[0..len) of the head, which may be changed in place. */
enum h1_result h1_request_line(struct h1_request *r, char *line, size_t len);
enum h1_result h1_header_line(struct h1_request *r, char *line, size_t len);

#endif
