/*
 * What the tests of config_load() share: a folder per test, files in it, problems as
 * text.
 */
#ifndef DAC_TESTS_CONFIG_FIXTURE_H
#define DAC_TESTS_CONFIG_FIXTURE_H

#include <check.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/config.h"

/* The test never reads the machine's own default env file. */
#define NO_ENV "[server]\nenv_file =\n"

static char folder[64];

/* Each test runs in a folder of its own; paths in problems are then short. */
static void enter_folder(void)
{
    snprintf(folder, sizeof(folder), "/tmp/dac-config-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    ck_assert_int_eq(chdir(folder), 0);
}

static void leave_folder(void)
{
    static const char *const files[] = {"dac.conf", "dac.env", "key", "ca.pem"};

    for (size_t i = 0; i < DAC_ARRAY_LEN(files); i++)
        unlink(files[i]);
    ck_assert_int_eq(chdir("/"), 0);
    ck_assert_int_eq(rmdir(folder), 0);
}

static void write_bytes(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "w");

    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(data, 1, n, f), n);
    ck_assert_int_eq(fclose(f), 0);
    ck_assert_int_eq(chmod(path, 0600), 0);
}

static void write_text(const char *path, const char *text)
{
    write_bytes(path, text, strlen(text));
}

/* A certificate that has been in no file before. */
static inline void write_certificate(const char *path)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *x = X509_new();
    FILE *f = fopen(path, "w");

    ASN1_INTEGER_set(X509_get_serialNumber(x), 1);
    X509_gmtime_adj(X509_getm_notBefore(x), -60);
    X509_gmtime_adj(X509_getm_notAfter(x), 3600);
    X509_set_pubkey(x, key);
    ck_assert_int_gt(X509_sign(x, key, EVP_sha256()), 0);
    ck_assert_int_eq(PEM_write_X509(f, x), 1);
    ck_assert_int_eq(fclose(f), 0);
    X509_free(x);
    EVP_PKEY_free(key);
}

/* What is printed of the problems; for the caller to free. */
static inline char *problem_text(const struct config_problems *problems)
{
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);

    config_problems_print(problems, f);
    fclose(f);
    return text;
}

/* Loads `text` as dac.conf, which must be good. */
static inline struct config *load_good(const char *text, const char *const *environ)
{
    struct config_problems problems = {0};
    struct config *cfg;
    char *printed;

    write_text("dac.conf", text);
    if (config_load("dac.conf", environ, &cfg, &problems) != DAC_OK) {
        printed = problem_text(&problems);
        ck_abort_msg("%s", printed);
    }
    config_problems_free(&problems);
    return cfg;
}

#endif
