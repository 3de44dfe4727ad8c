/*
 * The server context of the mock provider, and its certificates for tests: EC P-256,
 * valid for a year, never meant to guard anything.
 */
#include "tools/mock/tls.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/ids.h"

static const unsigned char alpn_h2[] = "\x02h2\x08http/1.1";
static const unsigned char alpn_h1[] = "\x08http/1.1";

static int choose_alpn(SSL *ssl, const unsigned char **out, unsigned char *out_len,
                       const unsigned char *in, unsigned in_len, void *arg)
{
    const unsigned char *ours = arg;
    unsigned char *chosen = NULL;
    unsigned ours_len = (unsigned)strlen((const char *)ours);

    (void)ssl;
    if (SSL_select_next_proto(&chosen, out_len, ours, ours_len, in, in_len) !=
        OPENSSL_NPN_NEGOTIATED)
        return SSL_TLSEXT_ERR_NOACK;
    *out = chosen;
    return SSL_TLSEXT_ERR_OK;
}

static void complain(const char *what, const char *about)
{
    char text[256];

    ERR_error_string_n(ERR_get_error(), text, sizeof(text));
    fprintf(stderr, "dac-mock: %s \"%s\": %s\n", what, about, text);
}

SSL_CTX *tls_context(const char *cert_file, const char *key_file, bool h2)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());

    if (!ctx) {
        complain("could not make a TLS context for", cert_file);
        return NULL;
    }
    SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE |
                              SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                              SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_alpn_select_cb(ctx, choose_alpn,
                               (void *)(uintptr_t)(h2 ? alpn_h2 : alpn_h1));
    if (SSL_CTX_use_certificate_chain_file(ctx, cert_file) != 1 ||
        SSL_CTX_use_PrivateKey_file(ctx, key_file, SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_check_private_key(ctx) != 1) {
        complain("could not use the certificate or key", cert_file);
        SSL_CTX_free(ctx);
        return NULL;
    }
    return ctx;
}

static bool add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509_EXTENSION *ext;
    bool ok;

    X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
    ext = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    ok = ext && X509_add_ext(cert, ext, -1) == 1;
    X509_EXTENSION_free(ext);
    return ok;
}

/* A certificate of `name` for `key`, signed with `ca_key`; issuer NULL: itself. */
static X509 *make_certificate(const char *name, EVP_PKEY *key, X509 *issuer,
                              EVP_PKEY *ca_key)
{
    X509 *cert = X509_new();
    X509_NAME *subject = cert ? X509_get_subject_name(cert) : NULL;
    uint32_t serial;
    bool ok;

    if (!cert)
        return NULL;
    random_bytes(&serial, sizeof(serial));
    ok = X509_set_version(cert, 2) == 1 &&
         ASN1_INTEGER_set_uint64(X509_get_serialNumber(cert), serial) == 1 &&
         X509_gmtime_adj(X509_getm_notBefore(cert), -3600) &&
         X509_gmtime_adj(X509_getm_notAfter(cert), 365L * 86400) &&
         X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8,
                                    (const unsigned char *)name, -1, -1, 0) == 1 &&
         X509_set_issuer_name(cert, issuer ? X509_get_subject_name(issuer) : subject) ==
             1 &&
         X509_set_pubkey(cert, key) == 1;
    if (ok && !issuer)
        ok = add_extension(cert, cert, NID_basic_constraints, "critical,CA:TRUE") &&
             add_extension(cert, cert, NID_key_usage, "critical,keyCertSign,cRLSign") &&
             add_extension(cert, cert, NID_subject_key_identifier, "hash");
    else if (ok)
        ok = add_extension(cert, issuer, NID_subject_alt_name,
                           "DNS:localhost,IP:127.0.0.1,IP:::1") &&
             add_extension(cert, issuer, NID_ext_key_usage, "serverAuth") &&
             add_extension(cert, issuer, NID_authority_key_identifier, "keyid:always");
    if (ok && X509_sign(cert, ca_key, EVP_sha256()) > 0)
        return cert;
    X509_free(cert);
    return NULL;
}

static bool write_pem(const char *dir, const char *name, X509 *cert, EVP_PKEY *key)
{
    char path[4096];
    FILE *f;
    int ok;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "w");
    if (!f) {
        fprintf(stderr, "dac-mock: could not write \"%s\": %s\n", path, strerror(errno));
        return false;
    }
    if (key)
        fchmod(fileno(f), 0600);
    ok = cert ? PEM_write_X509(f, cert) : PEM_write_PrivateKey(f, key, 0, 0, 0, 0, 0);
    return fclose(f) == 0 && ok == 1;
}

bool tls_make_certificates(const char *dir)
{
    EVP_PKEY *ca_key = EVP_EC_gen("P-256"), *key = EVP_EC_gen("P-256");
    X509 *ca = NULL, *cert = NULL;
    bool ok = false;

    mkdir(dir, 0755);
    if (ca_key && key)
        ca = make_certificate("dac-mock test CA", ca_key, NULL, ca_key);
    if (ca)
        cert = make_certificate("localhost", key, ca, ca_key);
    if (cert)
        ok = write_pem(dir, "ca.pem", ca, NULL) &&
             write_pem(dir, "cert.pem", cert, NULL) &&
             write_pem(dir, "key.pem", NULL, key);
    if (!ok)
        complain("could not make certificates in", dir);
    X509_free(cert);
    X509_free(ca);
    EVP_PKEY_free(key);
    EVP_PKEY_free(ca_key);
    return ok;
}
