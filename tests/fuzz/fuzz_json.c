/*
 * libFuzzer target of the JSON readers. What the strict check lets through must be built,
 * and written and read again be the same; what is built leniently must be written as
 * valid UTF-8 that is read again.
 *
 *   clang -std=c17 -D_GNU_SOURCE -g -O1 -fsanitize=fuzzer,address,undefined -Isrc -I. \
 *       tests/fuzz/fuzz_json.c src/base/[a-z]*.c -ljson-c
 */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/json_build.h"
#include "base/json_check.h"

static void require(int ok)
{
    if (!ok)
        abort();
}

/* Written and read once more, it is written as before. */
static void read_again(const struct buf *written)
{
    struct buf again = BUF_INIT(64u << 20);
    struct json_object *o = NULL;
    size_t at;

    require(utf8_valid(written->data, written->len));
    require(json_build(written->data, written->len, &o, &at) == DAC_OK);
    json_put_object(&again, o);
    require(again.len == written->len &&
            memcmp(again.data, written->data, again.len) == 0);
    json_object_put(o);
    buf_free(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *text = (const char *)data;
    struct buf written = BUF_INIT(64u << 20);
    struct json_error err = {0};
    struct json_object *o = NULL;
    size_t at;
    enum dac_err strict = json_check(text, size, &err);
    enum dac_err e = json_build(text, size, &o, &at);

    require(at <= size);
    if (strict == DAC_OK)
        require(e == DAC_OK);
    if (e == DAC_OK) {
        json_put_object(&written, o);
        require(!written.failed);
        read_again(&written);
    } else {
        require(o == NULL);
    }
    json_object_put(o);
    buf_free(&written);
    return 0;
}
