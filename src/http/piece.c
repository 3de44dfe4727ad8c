/*
 * Pieces of a stream: the payload with HTTP/1.1 chunk framing around it, made once and
 * sent to any number of exchanges. Pure.
 */
#include <string.h>

#include "http/http.h"

#define CHUNK_HEAD 10 /* eight digits and CRLF */

enum dac_err http_piece_begin(struct buf *b)
{
    DAC_ASSERT(b->len == 0);
    return buf_append(b, "00000000\r\n", CHUNK_HEAD);
}

enum dac_err http_piece_end(struct buf *b, struct http_piece *out)
{
    static const char digits[] = "0123456789abcdef";

    *out = (struct http_piece){0};
    if (b->failed)
        return b->len + 2 > b->max ? DAC_E_TOO_LARGE : DAC_E_NOMEM;
    DAC_ASSERT(b->len >= CHUNK_HEAD);
    size_t payload = b->len - CHUNK_HEAD;
    if (payload == 0)
        return DAC_OK;
    if (payload > UINT32_MAX)
        return DAC_E_TOO_LARGE;
    enum dac_err e = buf_append(b, "\r\n", 2);
    if (e != DAC_OK)
        return e;

    /* The size is written right before its CRLF; unused places in front are left out. */
    size_t at = CHUNK_HEAD - 2;
    for (size_t left = payload; left; left >>= 4)
        b->data[--at] = digits[left & 15];
    out->framed = b->data + at;
    out->framed_len = b->len - at;
    out->payload = b->data + CHUNK_HEAD;
    out->payload_len = payload;
    return DAC_OK;
}
