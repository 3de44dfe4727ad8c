/*
 * See migrations.h. The texts themselves are made by the build. Runs in the recorder and
 * in dacctl.
 */
#include "store/migrations.h"

#include <openssl/evp.h>
#include <string.h>

#include "base/bytes.h"

bool migration_checksum(const struct migration *m, char out[MIGRATION_CHECKSUM_SIZE])
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned int n = 0;

    if (EVP_Digest(m->sql, strlen(m->sql), digest, &n, EVP_sha256(), NULL) != 1)
        return false;
    bytes_hex(digest, n, out);
    return true;
}
