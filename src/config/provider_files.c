/*
 * The files that a provider's settings name: its key, which a credential of systemd may
 * hold, and its roots. What is in them is checked here, so that a reload finds out before
 * anything changes; the key is never told.
 */
#include "config/load.h"

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "config/problems.h"

#define KEY_MAX_BYTES   4096
#define ROOTS_MAX_BYTES (16u << 20)

/* --- the key ------------------------------------------------------------------------ */

/* Whether text[0..n) can stand in a header as it is. */
static bool key_valid(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (text[i] <= ' ' || text[i] >= 0x7f)
            return false;
    }
    return true;
}

static size_t key_length(const char *text, size_t n)
{
    while (n > 0 && strchr(" \t\r\n", text[n - 1]) && text[n - 1] != '\0')
        n--;
    return n;
}

/* Whether somebody seems to have put a key where its file's name belongs: a long word
 * that has a digit in it and no ending, as files have one. */
static bool looks_like_key(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t n = strlen(name);

    return n >= 40 || (n >= 16 && !strchr(name, '.') && strpbrk(name, "0123456789"));
}

/* What `dacd -t` prints, and the log, must not tell it. */
static void key_unreadable(struct load *l, const struct config_origin *at,
                           const char *path, const char *why)
{
    if (looks_like_key(path))
        problem_add(l->problems, LOAD_AT(l, at),
                    "api_key_file: could not read what it names: %s; put the key into a "
                    "file and name that, never the key itself",
                    why);
    else
        problem_add(
            l->problems, LOAD_AT(l, at),
            "api_key_file: could not read \"%s\": %s; create it with the key in it", path,
            why);
}

/* Takes the key out of the file `path`; `text` is its own buffer. */
static void take_key(struct load *l, struct config_provider *p, const char *path,
                     struct buf *text)
{
    const struct config_origin *at = load_origin(p->origin, "provider", "api_key_file");
    size_t n;

    n = key_length(text->data, text->len);
    if (n == 0) {
        problem_add(l->problems, LOAD_AT(l, at),
                    "api_key_file: \"%s\" is empty; put the key into it", path);
    } else if (!key_valid(text->data, n)) {
        problem_add(
            l->problems, LOAD_AT(l, at),
            "api_key_file: \"%s\" has more in it than one key; put the key alone on "
            "one line",
            path);
    } else {
        p->api_key = buf_cstr(text) ? strndup(text->data, n) : NULL;
        if (!p->api_key)
            l->nomem = true;
    }
}

static void read_key_file(struct load *l, struct config_provider *p, const char *path)
{
    const struct config_origin *at = load_origin(p->origin, "provider", "api_key_file");
    struct buf text = BUF_INIT(KEY_MAX_BYTES);
    struct stat st;
    char why[160];
    int err;

    if (!load_read_file(path, &text, why, sizeof(why), &err)) {
        key_unreadable(l, at, path, why);
    } else {
        take_key(l, p, path, &text);
        if (stat(path, &st) == 0 && (st.st_mode & S_IROTH))
            problem_warn(l->problems, LOAD_AT(l, at),
                         "api_key_file: every user can read \"%s\"; chmod it to 0640",
                         path);
    }
    if (text.data)
        explicit_bzero(text.data, text.cap);
    buf_free(&text);
}

/* Without the folder that systemd gives the service there is none to read; who only looks
 * from outside is told so. */
static void read_credential(struct load *l, struct config_provider *p, const char *name)
{
    const struct config_origin *at = load_origin(p->origin, "provider", "api_key_file");
    struct buf path = BUF_INIT(8192);

    if (!l->credentials && l->outside) {
        problem_warn(l->problems, LOAD_AT(l, at),
                     "api_key_file: credential \"%s\" is given to the service alone; it "
                     "was not looked at",
                     name);
        return;
    }
    if (!l->credentials) {
        problem_add(l->problems, LOAD_AT(l, at),
                    "api_key_file: there is no credential \"%s\", since this is not "
                    "started by systemd; name a file, or add LoadCredential=%s:FILE to "
                    "the unit",
                    name, name);
        return;
    }
    buf_printf(&path, "%s/%s", l->credentials, name);
    if (!buf_cstr(&path)) {
        l->nomem = true;
    } else if (access(path.data, F_OK) != 0) {
        problem_add(l->problems, LOAD_AT(l, at),
                    "api_key_file: the service was given no credential \"%s\"; add "
                    "LoadCredential=%s:FILE to its unit and restart it",
                    name, name);
    } else {
        read_key_file(l, p, path.data);
    }
    buf_free(&path);
}

static void read_key(struct load *l, struct config_provider *p)
{
    const size_t n = strlen(CONFIG_CREDENTIAL);

    if (strncmp(p->api_key_file, CONFIG_CREDENTIAL, n) == 0)
        read_credential(l, p, p->api_key_file + n);
    else
        read_key_file(l, p, p->api_key_file);
}

/* --- roots -------------------------------------------------------------------------- */

/* How many certificates OpenSSL reads of a PEM text, as it does for a file of roots; -1:
 * it stops at one that it cannot read, the number of which is in *at. */
static int count_certificates(const struct buf *text, int *at)
{
    BIO *bio = BIO_new_mem_buf(text->data, (int)text->len);
    int n = 0;
    X509 *one;

    ERR_clear_error();
    while (bio && (one = PEM_read_bio_X509_AUX(bio, NULL, NULL, NULL)) != NULL) {
        X509_free(one);
        n++;
    }
    *at = n + 1;
    if (ERR_GET_REASON(ERR_peek_last_error()) != PEM_R_NO_START_LINE)
        n = -1;
    ERR_clear_error();
    BIO_free(bio);
    return n;
}

/* The roots themselves are read by who needs them; here it matters that they can be, and
 * whether they are others than at the last loading. */
static void read_roots(struct load *l, struct config_provider *p)
{
    const struct config_origin *at = load_origin(p->origin, "provider", "ca_file");
    struct buf text = BUF_INIT(ROOTS_MAX_BYTES);
    unsigned char sum[EVP_MAX_MD_SIZE];
    int err, n, bad = 0;
    char why[160];

    if (!load_read_file(p->ca_file, &text, why, sizeof(why), &err)) {
        problem_add(l->problems, LOAD_AT(l, at),
                    "ca_file: could not read \"%s\": %s; name a PEM file", p->ca_file,
                    why);
        goto out;
    }
    n = text.len > 0 ? count_certificates(&text, &bad) : 0;
    if (n < 0)
        problem_add(l->problems, LOAD_AT(l, at),
                    "ca_file: certificate %d in \"%s\" cannot be read; name a PEM file "
                    "of whole certificates",
                    bad, p->ca_file);
    else if (n == 0)
        problem_add(l->problems, LOAD_AT(l, at),
                    "ca_file: \"%s\" has no certificate in it; name a PEM file of "
                    "trusted roots",
                    p->ca_file);
    else if (EVP_Q_digest(NULL, "SHA256", NULL, text.data, text.len, sum, NULL) != 1)
        l->nomem = true;
    else
        memcpy(&p->ca_digest, sum, sizeof(p->ca_digest));
out:
    buf_free(&text);
}

void load_provider_files(struct load *l, struct config_provider *p)
{
    if (p->api_key_file)
        read_key(l, p);
    if (p->ca_file)
        read_roots(l, p);
}
