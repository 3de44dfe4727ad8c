/*
 * Computes the digests by which flights are found. Two orgs never share one: the org is
 * the first field.
 */
#include "flight/key.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#define CANONICAL_MAX (16u << 20)

static EVP_MD *sha256; /* found once: looking for it takes memory, and time */

/* OpenSSL's first steps, if they find no memory, are never taken again, and what needs
 * them crashes; so this looks whether they were taken. */
enum dac_err key_init(void)
{
    if (!sha256 && OSSL_LIB_CTX_get0_global_default())
        sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    return sha256 ? DAC_OK : DAC_E_NOMEM;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static enum dac_err canonical(struct buf *b, struct json_object *o);

static enum dac_err canonical_object(struct buf *b, struct json_object *o)
{
    size_t n = (size_t)json_object_object_length(o);
    const char **names = calloc(n ? n : 1, sizeof *names);
    enum dac_err e = DAC_OK;
    size_t i = 0;

    if (!names)
        return DAC_E_NOMEM;
    json_object_object_foreach(o, name, unused)
    {
        (void)unused;
        names[i++] = name;
    }
    qsort(names, n, sizeof *names, by_name);
    buf_putc(b, '{');
    for (i = 0; i < n && e == DAC_OK; i++) {
        if (i > 0)
            buf_putc(b, ',');
        json_put_string(b, names[i], strlen(names[i]));
        buf_putc(b, ':');
        e = canonical(b, json_object_object_get(o, names[i]));
    }
    buf_putc(b, '}');
    free(names);
    return e;
}

/* Depth is bounded by the strict parser that made the object. */
static enum dac_err canonical(struct buf *b, struct json_object *o)
{
    enum dac_err e = DAC_OK;

    if (json_object_is_type(o, json_type_object))
        return canonical_object(b, o);
    if (!json_object_is_type(o, json_type_array)) {
        json_put_object(b, o);
        return DAC_OK;
    }
    buf_putc(b, '[');
    for (size_t i = 0; i < json_object_array_length(o) && e == DAC_OK; i++) {
        if (i > 0)
            buf_putc(b, ',');
        e = canonical(b, json_object_array_get_idx(o, i));
    }
    buf_putc(b, ']');
    return e;
}

static void field(EVP_MD_CTX *md, const void *p, size_t n)
{
    uint8_t len[8];
    for (size_t i = 0; i < sizeof len; i++)
        len[i] = (uint8_t)((uint64_t)n >> (8 * i));
    DAC_ASSERT(EVP_DigestUpdate(md, len, sizeof len) == 1);
    DAC_ASSERT(EVP_DigestUpdate(md, p, n) == 1);
}

static void field_text(EVP_MD_CTX *md, const char *s)
{
    field(md, s, strlen(s));
}

static enum dac_err field_json(EVP_MD_CTX *md, struct json_object *o)
{
    struct buf b = BUF_INIT(CANONICAL_MAX);
    enum dac_err e = DAC_OK;

    if (o)
        e = canonical(&b, o);
    if (e == DAC_OK && b.failed)
        e = DAC_E_NOMEM;
    if (e == DAC_OK)
        field(md, b.data ? b.data : "", b.len);
    buf_free(&b);
    return e;
}

static EVP_MD_CTX *digest_begin(void)
{
    EVP_MD_CTX *md = EVP_MD_CTX_new();
    if (md && EVP_DigestInit_ex(md, sha256, NULL) != 1) {
        EVP_MD_CTX_free(md);
        md = NULL;
    }
    return md;
}

/* "thread:<id>", or "chat" for a zero id. */
static void put_scope(const struct id *thread, char out[16 + ID_TEXT_SIZE])
{
    memcpy(out, "chat", 5);
    if (id_is_zero(thread))
        return;
    memcpy(out, "thread:", 7);
    id_format(thread, out + 7);
}

enum dac_err key_of_request(const struct turn_request *r, const char *parent,
                            uint8_t out[SHM_KEY_SIZE])
{
    EVP_MD_CTX *md = digest_begin();
    char scope[16 + ID_TEXT_SIZE];
    enum dac_err e;

    if (!md)
        return DAC_E_NOMEM;
    put_scope(&r->thread_id, scope);
    field_text(md, "dac-key-1");
    field_text(md, r->org);
    field_text(md, scope);
    field_text(md, r->provider);
    field_text(md, r->model);
    field_text(md, parent ? parent : "");
    field(md, r->system.data ? r->system.data : "", r->system.len);
    field(md, r->content.data ? r->content.data : "", r->content.len);
    e = field_json(md, r->messages);
    if (e == DAC_OK)
        e = field_json(md, r->params);
    if (e == DAC_OK)
        DAC_ASSERT(EVP_DigestFinal_ex(md, out, NULL) == 1);
    EVP_MD_CTX_free(md);
    return e;
}

enum dac_err key_of_question(const struct turn_request *r, uint64_t *out)
{
    EVP_MD_CTX *md = digest_begin();
    char scope[16 + ID_TEXT_SIZE];
    uint8_t digest[32];
    enum dac_err e;

    if (!md)
        return DAC_E_NOMEM;
    put_scope(&r->thread_id, scope);
    field_text(md, r->org);
    field_text(md, scope);
    field(md, r->content.data ? r->content.data : "", r->content.len);
    e = field_json(md, r->messages);
    if (e == DAC_OK) {
        DAC_ASSERT(EVP_DigestFinal_ex(md, digest, NULL) == 1);
        memcpy(out, digest, sizeof *out);
        if (*out == 0)
            *out = 1;
    }
    EVP_MD_CTX_free(md);
    return e;
}

/* OpenSSL takes memory for every digest. */
static enum dac_err digest_of(const void *p, size_t n, uint8_t out[32])
{
    return EVP_Digest(p, n, out, NULL, sha256, NULL) == 1 ? DAC_OK : DAC_E_NOMEM;
}

enum dac_err key_private(const struct id *turn, uint8_t out[SHM_KEY_SIZE])
{
    uint8_t in[8 + sizeof turn->b] = "private";
    memcpy(in + 8, turn->b, sizeof turn->b);
    return digest_of(in, sizeof in, out);
}

enum dac_err key_org(const char *org, uint8_t out[16])
{
    uint8_t digest[32];
    enum dac_err e = digest_of(org, strlen(org), digest);
    if (e == DAC_OK)
        memcpy(out, digest, 16);
    return e;
}

enum dac_err key_of_header(const char *value, uint8_t out[32])
{
    return digest_of(value, strlen(value), out);
}

enum dac_err key_of_body(const struct id *thread, struct json_object *body,
                         uint8_t out[32])
{
    EVP_MD_CTX *md = digest_begin();
    char scope[16 + ID_TEXT_SIZE];
    enum dac_err e;

    if (!md)
        return DAC_E_NOMEM;
    put_scope(thread, scope);
    field_text(md, "dac-body-1");
    field_text(md, scope);
    e = field_json(md, body);
    if (e == DAC_OK)
        DAC_ASSERT(EVP_DigestFinal_ex(md, out, NULL) == 1);
    EVP_MD_CTX_free(md);
    return e;
}
