/*
 * See migrations.h. The texts themselves are made by the build. Runs in the recorder and
 * in dacctl.
 */
#include "store/migrations.h"

#include <openssl/evp.h>
#include <string.h>

bool migration_checksum(const struct migration *m, char out[MIGRATION_CHECKSUM_SIZE])
{
    static const char digits[] = "0123456789abcdef";
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int n = 0;

    if (EVP_Digest(m->sql, strlen(m->sql), digest, &n, EVP_sha256(), NULL) != 1)
        return false;
    for (unsigned int i = 0; i < n; i++) {
        out[2 * i] = digits[digest[i] >> 4];
        out[2 * i + 1] = digits[digest[i] & 15];
    }
    out[2 * n] = '\0';
    return true;
}
