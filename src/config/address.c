/*
 * Reads listen addresses with inet_pton(3) and checks URLs (RFC 3986) without a library,
 * so that what curl will later make of one is not left to chance.
 */
#include "config/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/un.h>

#include "base/bytes.h"

static bool is_alnum(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static enum dac_err parse_unix(const char *path, struct config_address *out,
                               const char **why)
{
    struct sockaddr_un *un = (struct sockaddr_un *)&out->addr;
    size_t n = strlen(path);

    if (path[0] != '/' || path[n - 1] == '/') {
        *why = "has no absolute path; write it like unix:/run/dac/dac.sock";
        return DAC_E_INVALID;
    }
    if (n >= sizeof(un->sun_path)) {
        *why = "has a path of more than 107 bytes; use a shorter one";
        return DAC_E_INVALID;
    }
    un->sun_family = AF_UNIX;
    memcpy(un->sun_path, path, n + 1);
    out->len = (socklen_t)sizeof(*un);
    return DAC_OK;
}

static enum dac_err parse_ip(const char *s, struct config_address *out, const char **why)
{
    const char *colon = strrchr(s, ':');
    bool six = s[0] == '[';
    size_t n = colon ? (size_t)(colon - s) : 0;
    char host[INET6_ADDRSTRLEN];
    uint64_t port;

    *why = "is not an address; write it like 127.0.0.1:8000, [::1]:8000 or unix:/path";
    if (!colon || n == 0 || (six && (n < 3 || s[n - 1] != ']')))
        return DAC_E_INVALID;
    if (six) {
        s++;
        n -= 2;
    }
    if (n >= sizeof(host))
        return DAC_E_INVALID;
    memcpy(host, s, n);
    host[n] = '\0';
    if (six) {
        struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&out->addr;

        if (inet_pton(AF_INET6, host, &in6->sin6_addr) != 1)
            return DAC_E_INVALID;
        in6->sin6_family = AF_INET6;
        out->len = (socklen_t)sizeof(*in6);
    } else {
        struct sockaddr_in *in = (struct sockaddr_in *)&out->addr;

        if (inet_pton(AF_INET, host, &in->sin_addr) != 1)
            return DAC_E_INVALID;
        in->sin_family = AF_INET;
        out->len = (socklen_t)sizeof(*in);
    }
    if (!bytes_parse_u64(colon + 1, strlen(colon + 1), 65535, &port) || port == 0) {
        *why = "has no port from 1 to 65535 behind its last colon";
        return DAC_E_INVALID;
    }
    if (six)
        ((struct sockaddr_in6 *)&out->addr)->sin6_port = htons((uint16_t)port);
    else
        ((struct sockaddr_in *)&out->addr)->sin_port = htons((uint16_t)port);
    return DAC_OK;
}

enum dac_err address_parse(const char *s, struct config_address *out, const char **why)
{
    enum dac_err rc;

    *out = (struct config_address){0};
    if (strncmp(s, "unix:", 5) == 0)
        rc = parse_unix(s + 5, out, why);
    else
        rc = parse_ip(s, out, why);
    if (rc != DAC_OK)
        return rc;
    out->text = strdup(s);
    return out->text ? DAC_OK : DAC_E_NOMEM;
}

bool address_equal(const struct config_address *a, const struct config_address *b)
{
    return a->len == b->len && memcmp(&a->addr, &b->addr, a->len) == 0;
}

void address_instance_name(const struct config_address *a, char out[CONFIG_NAME_MAX + 1])
{
    const char *tail;

    if (a->addr.ss_family == AF_UNIX)
        tail = strrchr(a->text, '/') + 1;
    else
        tail = strrchr(a->text, ':') + 1;
    snprintf(out, CONFIG_NAME_MAX + 1, "dac-%s", tail);
    for (char *c = out; *c; c++) {
        if (!is_alnum(*c) && *c != '.' && *c != '_' && *c != '-')
            *c = '-';
    }
}

/* Checks host[:port] in s[0..n). */
static bool authority_valid(const char *s, size_t n, const char **why)
{
    char host[INET6_ADDRSTRLEN];
    struct in6_addr in6;
    const char *colon;
    size_t host_len;
    uint64_t port;

    if (memchr(s, '@', n)) {
        *why = "must not have a user or password; put the key into api_key_file";
        return false;
    }
    *why = "has no valid host";
    if (n > 0 && s[0] == '[') {
        const char *end = memchr(s, ']', n);

        if (!end || (size_t)(end - s) > sizeof(host))
            return false;
        memcpy(host, s + 1, (size_t)(end - s) - 1);
        host[end - s - 1] = '\0';
        if (inet_pton(AF_INET6, host, &in6) != 1)
            return false;
        host_len = (size_t)(end - s) + 1;
    } else {
        colon = memchr(s, ':', n);
        host_len = colon ? (size_t)(colon - s) : n;
        if (host_len == 0 || host_len > 253)
            return false;
        for (size_t i = 0; i < host_len; i++) {
            if (!is_alnum(s[i]) && s[i] != '.' && s[i] != '-' && s[i] != '_')
                return false;
        }
    }
    if (host_len == n)
        return true;
    *why = "has no valid port";
    return s[host_len] == ':' &&
           bytes_parse_u64(s + host_len + 1, n - host_len - 1, 65535, &port) && port > 0;
}

bool url_valid(const char *s, const char **why)
{
    size_t n;

    if (strncasecmp(s, "https://", 8) == 0) {
        s += 8;
    } else if (strncasecmp(s, "http://", 7) == 0) {
        s += 7;
    } else {
        *why = "must begin with http:// or https://";
        return false;
    }
    if (strpbrk(s, "?#")) {
        *why = "must not have a query or fragment";
        return false;
    }
    for (const char *c = s; *c; c++) {
        if (*c <= ' ' || *c >= 0x7f || strchr("\\\"<>^`{|}", *c)) {
            *why = "has a character that a URL cannot have";
            return false;
        }
    }
    n = strcspn(s, "/");
    return authority_valid(s, n, why);
}
