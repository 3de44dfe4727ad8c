/*
 * TLS of the mock provider: a server context from files, or from a CA made on the spot
 * for localhost, so that tests need no certificates of their own.
 */
#ifndef DAC_MOCK_TLS_H
#define DAC_MOCK_TLS_H

#include <openssl/ssl.h>
#include <stdbool.h>

/* A context that offers h2 (unless `h2` is false) and http/1.1 by ALPN; NULL with a
 * message on stderr. The caller frees it. */
SSL_CTX *tls_context(const char *cert_file, const char *key_file, bool h2);
/* Writes ca.pem, cert.pem and key.pem into `dir`: a new CA, and a certificate by it for
 * localhost, 127.0.0.1 and ::1. False with a message on stderr. */
bool tls_make_certificates(const char *dir);

#endif
