/*
 * One line of a request's head: the request line, or a header with the meaning of those
 * that decide about framing and the connection. Pure functions over the parser's state.
 */
#include <string.h>
#include <strings.h>

#include "http/h1_parser.h"
#include "http/target.h"

static const struct {
    const char *name;
    enum http_method method;
} methods[] = {
    {"GET", HTTP_GET},         {"HEAD", HTTP_HEAD},   {"POST", HTTP_POST},
    {"PUT", HTTP_PUT},         {"PATCH", HTTP_PATCH}, {"DELETE", HTTP_DELETE},
    {"OPTIONS", HTTP_OPTIONS},
};

static bool is_blank(char c)
{
    return c == ' ' || c == '\t';
}

/* "HTTP/1.1" and its relatives. A higher minor version speaks 1.1 to us. */
static enum h1_result parse_version(struct h1_request *r, const char *s, size_t n)
{
    if (n != 8 || memcmp(s, "HTTP/", 5) != 0 || s[5] < '0' || s[5] > '9' || s[6] != '.' ||
        s[7] < '0' || s[7] > '9')
        return h1_fail(r, 400, "bad_request_line", NULL,
                       "the request line does not end with an HTTP version");
    if (s[5] != '1')
        return h1_fail(r, 505, "bad_version", NULL, "HTTP/%c.%c is not spoken here", s[5],
                       s[7]);
    r->minor = s[7] == '0' ? 0 : 1;
    return H1_MORE;
}

static enum h1_result parse_method(struct h1_request *r, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!h1_is_token_char((unsigned char)s[i]))
            return h1_fail(r, 400, "bad_request_line", NULL,
                           "byte %zu of the request line does not belong in a method", i);
    for (size_t i = 0; i < DAC_ARRAY_LEN(methods); i++) {
        if (strlen(methods[i].name) == n && memcmp(methods[i].name, s, n) == 0) {
            r->method = methods[i].method;
            return H1_MORE;
        }
    }
    return h1_fail(r, 501, "unknown_method", NULL, "the method %.*s is not known here",
                   (int)(n > H1_METHOD_MAX ? H1_METHOD_MAX : n), s);
}

/* origin-form, absolute-form, or "*" for OPTIONS; RFC 9112, section 3.2. */
static enum h1_result parse_target(struct h1_request *r, char *s, size_t n)
{
    const char *why;
    char *path = s;
    char *end = s + n;

    if (n == 1 && s[0] == '*') {
        if (r->method != HTTP_OPTIONS)
            return h1_fail(r, 400, "bad_target", NULL,
                           "the target * is for OPTIONS only");
    } else {
        path = target_path_start(s, n);
        if (!path)
            return h1_fail(r, 400, "bad_target", NULL,
                           "the request target is neither a path nor an http URL");
        why = target_check(path, (size_t)(end - path));
        if (why)
            return h1_fail(r, 400, "bad_target", NULL, "the request target %s", why);
    }
    *end = '\0';
    r->path = (uint32_t)(path - r->head.data);
    char *query = strchr(path, '?');
    if (query) {
        *query = '\0';
        r->query = (uint32_t)(query + 1 - r->head.data);
        r->has_query = true;
    }
    return H1_MORE;
}

enum h1_result h1_request_line(struct h1_request *r, char *line, size_t len)
{
    char *end = line + len;
    char *sp1 = memchr(line, ' ', len);
    char *sp2 = sp1 ? memchr(sp1 + 1, ' ', (size_t)(end - sp1 - 1)) : NULL;

    if (!sp2 || sp2 == sp1 + 1)
        return h1_fail(r, 400, "bad_request_line", NULL,
                       "the request line is not a method, a target and a version");
    enum h1_result res = parse_version(r, sp2 + 1, (size_t)(end - sp2 - 1));
    if (res == H1_MORE)
        res = parse_method(r, line, (size_t)(sp1 - line));
    if (res == H1_MORE)
        res = parse_target(r, sp1 + 1, (size_t)(sp2 - sp1 - 1));
    return res;
}

/* --- headers with a meaning here -----------------------------------------------------
 */

static enum h1_result on_host(struct h1_request *r, const char *v)
{
    if (++r->host_count > 1)
        return h1_fail(r, 400, "bad_host", "Host", "more than one Host header");
    if (!target_authority_valid(v, strlen(v)) && *v != '\0')
        return h1_fail(r, 400, "bad_host", "Host", "the Host header is no host and port");
    return H1_MORE;
}

static enum h1_result on_content_length(struct h1_request *r, const char *v)
{
    if (r->has_length)
        return h1_fail(r, 400, "bad_framing", "Content-Length",
                       "more than one Content-Length header");
    if (!bytes_parse_u64(v, strlen(v), INT64_MAX, &r->content_length))
        return h1_fail(r, 400, "bad_framing", "Content-Length",
                       "Content-Length is not a number of bytes");
    r->has_length = true;
    return H1_MORE;
}

static enum h1_result on_transfer_encoding(struct h1_request *r, const char *v)
{
    if (r->minor == 0)
        return h1_fail(r, 400, "bad_framing", "Transfer-Encoding",
                       "Transfer-Encoding does not exist in HTTP/1.0");
    if (r->chunked)
        return h1_fail(r, 400, "bad_framing", "Transfer-Encoding",
                       "more than one Transfer-Encoding header");
    if (strcasecmp(v, "chunked") != 0)
        return h1_fail(r, 501, "unknown_coding", "Transfer-Encoding",
                       "the only transfer coding known here is chunked");
    r->chunked = true;
    return H1_MORE;
}

static enum h1_result on_connection(struct h1_request *r, const char *v)
{
    while (*v) {
        size_t n = strcspn(v, ",");
        size_t len = n;
        const char *token = v;
        while (len && is_blank(token[0])) {
            token++;
            len--;
        }
        while (len && is_blank(token[len - 1]))
            len--;
        if (bytes_ieq(token, len, "close"))
            r->connection_close = true;
        else if (bytes_ieq(token, len, "keep-alive"))
            r->connection_keep_alive = true;
        v += n + (v[n] == ',');
    }
    return H1_MORE;
}

static enum h1_result on_expect(struct h1_request *r, const char *v)
{
    if (strcasecmp(v, "100-continue") == 0)
        r->expect_continue = true;
    else
        r->expect_unknown = true;
    return H1_MORE;
}

static const struct {
    const char *name;
    enum h1_result (*on)(struct h1_request *r, const char *value);
} known[] = {
    {"Host", on_host},
    {"Content-Length", on_content_length},
    {"Transfer-Encoding", on_transfer_encoding},
    {"Connection", on_connection},
    {"Expect", on_expect},
};

/* Splits "name: value" in place. */
static enum h1_result split(struct h1_request *r, char *line, size_t len, char **value)
{
    size_t at = r->line;
    size_t i = 0;

    if (is_blank(line[0]))
        return h1_fail(r, 400, "bad_header", NULL,
                       "a folded header line at byte %zu of the head", at);
    while (i < len && h1_is_token_char((unsigned char)line[i]))
        i++;
    if (i == 0 || i == len || line[i] != ':') {
        if (i > 0 && i < len && is_blank(line[i]))
            return h1_fail(
                r, 400, "bad_header", NULL,
                "a blank between a header's name and its colon, at byte %zu of "
                "the head",
                at + i);
        return h1_fail(r, 400, "bad_header", NULL,
                       "the line at byte %zu of the head is no header", at);
    }
    line[i++] = '\0';
    while (i < len && is_blank(line[i]))
        i++;
    while (len > i && is_blank(line[len - 1]))
        len--;
    for (size_t k = i; k < len; k++)
        if (!h1_is_value_char((unsigned char)line[k]))
            return h1_fail(
                r, 400, "bad_header", line,
                "a control character in the header %.40s, at byte %zu of the head", line,
                at + k);
    line[len] = '\0';
    *value = line + i;
    return H1_MORE;
}

enum h1_result h1_header_line(struct h1_request *r, char *line, size_t len)
{
    char *value = NULL;
    enum h1_result res = split(r, line, len, &value);

    if (res != H1_MORE)
        return res;
    if (r->header_count == H1_HEADERS_MAX)
        return h1_fail(r, 431, "headers_too_large", NULL, "more than %d headers",
                       H1_HEADERS_MAX);
    r->headers[r->header_count++] = (struct h1_header){
        .name = (uint32_t)(line - r->head.data),
        .value = (uint32_t)(value - r->head.data),
    };
    for (size_t i = 0; i < DAC_ARRAY_LEN(known); i++)
        if (strcasecmp(line, known[i].name) == 0)
            return known[i].on(r, value);
    return H1_MORE;
}
