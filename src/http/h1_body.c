/*
 * The body of a request: of known length or chunked. Chunk sizes are bounded before they
 * are added up; extensions and trailers are checked, bounded and ignored. Pure.
 */
#include <string.h>

#include "http/h1_parser.h"

static enum h1_result bad_chunk(struct h1_request *r, const char *what)
{
    return h1_fail(r, 400, "bad_chunk", "Transfer-Encoding",
                   "%s, behind %llu bytes of body", what,
                   (unsigned long long)r->body_len);
}

static enum h1_result too_large(struct h1_request *r)
{
    return h1_fail(r, 413, "body_too_large", NULL, "the body is longer than %zu bytes",
                   r->body_max);
}

/* Takes what is there of the body or chunk. */
static enum h1_result take_data(struct h1_request *r, const char *data, size_t n,
                                size_t *used)
{
    size_t take = n - *used;

    if (r->left > r->body_max - r->body_len)
        return too_large(r);
    if (take > r->left)
        take = (size_t)r->left;
    if (!r->discard && buf_append(&r->body, data + *used, take) != DAC_OK)
        return h1_fail(r, 503, "no_memory", NULL, "out of memory");
    *used += take;
    r->body_len += take;
    r->left -= take;
    return H1_MORE;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

static enum h1_result chunk_size(struct h1_request *r, char c)
{
    int digit = hex_digit(c);

    if (digit >= 0) {
        if (++r->size_digits > 16)
            return bad_chunk(r, "a chunk size of more than 16 digits");
        r->left = r->left << 4 | (unsigned)digit;
        if (r->left > r->body_max - r->body_len)
            return too_large(r);
        return H1_MORE;
    }
    if (r->size_digits == 0 || (c != ';' && c != '\r'))
        return bad_chunk(r, "a bad chunk size");
    r->state = c == ';' ? H1_ST_CHUNK_EXT : H1_ST_CHUNK_SIZE_LF;
    return H1_MORE;
}

static enum h1_result chunk_ext(struct h1_request *r, char c)
{
    if (c == '\r')
        r->state = H1_ST_CHUNK_SIZE_LF;
    else if (!h1_is_value_char((unsigned char)c))
        return bad_chunk(r, "a control character in a chunk extension");
    else if (++r->ext_bytes > H1_CHUNK_EXT_MAX)
        return bad_chunk(r, "too long chunk extensions");
    return H1_MORE;
}

static enum h1_result trailer(struct h1_request *r, char c)
{
    unsigned char u = (unsigned char)c;

    if (++r->trailer_bytes > r->header_max)
        return h1_fail(r, 431, "headers_too_large", NULL,
                       "trailers of more than %zu bytes", r->header_max);
    switch (r->state) {
    case H1_ST_TRAILER_START:
        if (c == '\r')
            r->state = H1_ST_END_LF;
        else if (h1_is_token_char(u))
            r->state = H1_ST_TRAILER_NAME;
        else
            return bad_chunk(r, "a line that is no trailer");
        break;
    case H1_ST_TRAILER_NAME:
        if (c == ':')
            r->state = H1_ST_TRAILER_VALUE;
        else if (!h1_is_token_char(u))
            return bad_chunk(r, "a line that is no trailer");
        break;
    default:
        if (c == '\r')
            r->state = H1_ST_TRAILER_LF;
        else if (!h1_is_value_char(u))
            return bad_chunk(r, "a control character in a trailer");
    }
    return H1_MORE;
}

/* One byte of the chunk framing, everything but data. */
static enum h1_result frame_byte(struct h1_request *r, char c)
{
    switch (r->state) {
    case H1_ST_CHUNK_SIZE:
        return chunk_size(r, c);
    case H1_ST_CHUNK_EXT:
        return chunk_ext(r, c);
    case H1_ST_CHUNK_SIZE_LF:
        if (c != '\n')
            return bad_chunk(r, "a lone CR behind a chunk size");
        r->size_digits = 0;
        r->state = r->left ? H1_ST_CHUNK_DATA : H1_ST_TRAILER_START;
        return H1_MORE;
    case H1_ST_CHUNK_DATA_CR:
        if (c != '\r')
            return bad_chunk(r, "a chunk that is longer than its size");
        r->state = H1_ST_CHUNK_DATA_LF;
        return H1_MORE;
    case H1_ST_CHUNK_DATA_LF:
        if (c != '\n')
            return bad_chunk(r, "a lone CR behind a chunk");
        r->state = H1_ST_CHUNK_SIZE;
        return H1_MORE;
    case H1_ST_TRAILER_LF:
        if (c != '\n')
            return bad_chunk(r, "a lone CR in a trailer");
        r->state = H1_ST_TRAILER_START;
        return H1_MORE;
    case H1_ST_END_LF:
        if (c != '\n')
            return bad_chunk(r, "a lone CR behind the last chunk");
        r->state = H1_ST_DONE;
        return H1_DONE;
    default:
        return trailer(r, c);
    }
}

enum h1_result h1_feed_body(struct h1_request *r, const char *data, size_t n,
                            size_t *used)
{
    enum h1_result res = H1_MORE;

    while (*used < n && res == H1_MORE) {
        if (r->state == H1_ST_BODY || r->state == H1_ST_CHUNK_DATA) {
            res = take_data(r, data, n, used);
            if (res == H1_MORE && r->left == 0) {
                if (r->state == H1_ST_BODY) {
                    r->state = H1_ST_DONE;
                    res = H1_DONE;
                } else {
                    r->state = H1_ST_CHUNK_DATA_CR;
                }
            }
        } else {
            res = frame_byte(r, data[(*used)++]);
        }
    }
    return res;
}
