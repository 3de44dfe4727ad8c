/*
 * libFuzzer target of the HTTP/1.1 request parser. The first byte of the input chooses
 * limits and whether bodies are discarded, the second how the rest is split. Each input
 * is parsed whole and in parts, and both must come to the same; decoded targets and
 * queries are checked for their bounds on the way.
 *
 *   clang -std=c17 -D_GNU_SOURCE -g -O1 -fsanitize=fuzzer,address,undefined -Isrc -I. \
 *       tests/fuzz/fuzz_h1.c src/http/h1_*.c src/http/target.c \
 *       src/base/[a-z]*.c -ljson-c
 */
#include <stdlib.h>
#include <string.h>

#include "http/h1_parser.h"
#include "http/target.h"

#define REQUESTS_MAX 16

/* What one request came to. */
struct outcome {
    enum h1_result result;
    int status;
    enum http_method method;
    unsigned header_count;
    uint64_t body_len;
    uint64_t digest; /* of target, headers and body */
    size_t end;      /* input used so far */
};

static void mix(uint64_t *digest, const void *data, size_t n)
{
    const unsigned char *p = data;

    for (size_t i = 0; i < n; i++)
        *digest = (*digest ^ p[i]) * 1099511628211u;
}

static void require(int ok)
{
    if (!ok)
        abort();
}

/* Decodes what the server would. */
static void use_target(struct h1_request *r, uint64_t *digest)
{
    const char *path = r->head.data + r->path;
    const char *query = r->has_query ? r->head.data + r->query : "";
    size_t n = strlen(path);
    size_t room = 2 * strlen(query) + 2;
    char *decoded = malloc(n + 1);
    char *pairs = malloc(room);

    require(path[0] == '/' || strcmp(path, "*") == 0);
    size_t len = target_decode(decoded, path, n, false);
    require(len <= n && strlen(decoded) == len);
    mix(digest, decoded, len);
    len = target_split_query(pairs, query);
    require(len <= room);
    mix(digest, pairs, len);
    free(decoded);
    free(pairs);
}

static void describe(struct h1_request *r, enum h1_result result, struct outcome *o)
{
    o->result = result;
    o->status = result == H1_ERROR ? r->fault.status : 0;
    require(result != H1_ERROR ||
            (o->status >= 400 && o->status <= 505 && r->fault.code));
    if (result != H1_DONE)
        return;
    o->method = r->method;
    o->header_count = r->header_count;
    o->body_len = r->body_len;
    o->digest = 14695981039346656037u;
    require(r->body_len <= r->body_max && r->head.len <= r->header_max);
    require(r->discard ? r->body.len == 0 : r->body.len == r->body_len);
    use_target(r, &o->digest);
    for (unsigned i = 0; i < r->header_count; i++) {
        const char *value = h1_header(r, h1_name(r, i));
        require(value && strlen(h1_name(r, i)) > 0);
        mix(&o->digest, value, strlen(value));
    }
    mix(&o->digest, r->body.data, r->body.len);
}

static size_t parse_all(const uint8_t *data, size_t n, unsigned flags, size_t step,
                        struct outcome *out)
{
    static struct h1_request r;
    size_t at = 0;
    size_t count = 0;

    while (at < n && count < REQUESTS_MAX) {
        enum h1_result res = H1_MORE;
        size_t part_end = at;
        h1_request_init(&r, flags & 1 ? 256 : 16384, flags & 2 ? 64 : 65536);
        do {
            if (part_end == at)
                part_end = n - at > step ? at + step : n;
            char *copy = malloc(part_end - at); /* of the exact size, for the sanitizer */
            memcpy(copy, data + at, part_end - at);
            size_t used = 0;
            res = h1_feed(&r, copy, part_end - at, &used);
            free(copy);
            require(used <= part_end - at);
            require(res != H1_MORE || used == part_end - at);
            at += used;
            if (res == H1_HEAD && (flags & 4))
                r.discard = true;
        } while (res == H1_HEAD || (res == H1_MORE && at < n));
        describe(&r, res, &out[count]);
        out[count++].end = res == H1_ERROR ? 0 : at;
        h1_request_free(&r);
        if (res != H1_DONE)
            break;
    }
    return count;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct outcome whole[REQUESTS_MAX] = {0};
    struct outcome parts[REQUESTS_MAX] = {0};

    if (n < 2)
        return 0;
    size_t count = parse_all(data + 2, n - 2, data[0], n, whole);
    size_t again = parse_all(data + 2, n - 2, data[0], 1 + data[1] % 64, parts);
    require(count == again);
    for (size_t i = 0; i < count; i++)
        require(memcmp(&whole[i], &parts[i], sizeof(whole[i])) == 0);
    return 0;
}
