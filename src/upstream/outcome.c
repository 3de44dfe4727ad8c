/*
 * Endings in words. The provider's own message is quoted for people, since it is usually
 * the only one that says what to do; it is foreign text, so it is cleaned first, and our
 * key is struck out of it. Worker process.
 */
#include "upstream/outcome.h"

#include <curl/curl.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/json_build.h"

#define RETRY_AFTER_MAX_S UINT64_C(86400)
#define KEY_PREFIX        8
#define QUOTE_MAX         4096

void outcome_set(struct upstream_end *end, enum upstream_outcome outcome,
                 const char *code, const char *message)
{
    *end = (struct upstream_end){.outcome = outcome};
    end->retryable = outcome == UPSTREAM_RATE_LIMITED || outcome == UPSTREAM_OVERLOADED ||
                     outcome == UPSTREAM_BAD || outcome == UPSTREAM_TIMEOUT;
    snprintf(end->code, sizeof(end->code), "%s", code);
    snprintf(end->message, sizeof(end->message), "%s", message);
}

/* Puts "***" for each word that begins like the key. */
static void strike_out(struct buf *out, const char *s, size_t n, const char *key)
{
    size_t prefix = key ? strlen(key) : 0;

    if (prefix > KEY_PREFIX)
        prefix = KEY_PREFIX;
    for (size_t i = 0; i < n;) {
        if (prefix == 0 || n - i < prefix || memcmp(s + i, key, prefix) != 0) {
            buf_putc(out, s[i++]);
            continue;
        }
        buf_puts(out, "***");
        while (i < n && (unsigned char)s[i] > ' ' && !strchr("\"'`,;", s[i]))
            i++;
    }
}

void outcome_quote(struct upstream_end *end, const char *quote, const char *key)
{
    struct buf clean = BUF_INIT(4 * QUOTE_MAX);
    struct buf out = BUF_INIT(16 * QUOTE_MAX);
    size_t used = strlen(end->message);
    size_t room = sizeof(end->message) - 1 - used;

    utf8_put_storable(&clean, quote, strnlen(quote, QUOTE_MAX));
    for (size_t i = 0; i < clean.len; i++)
        if ((unsigned char)clean.data[i] < ' ' || clean.data[i] == 0x7f)
            clean.data[i] = ' ';
    buf_puts(&out, ": ");
    strike_out(&out, clean.data, clean.len, key);
    if (clean.len > 0 && !clean.failed && !out.failed && room > 8) {
        size_t n = out.len > room ? utf8_complete_prefix(out.data, room) : out.len;
        memcpy(end->message + used, out.data, n);
        end->message[used + n] = '\0';
    }
    buf_free(&clean);
    buf_free(&out);
}

static const char *string_member(struct json_object *o, const char *name)
{
    struct json_object *v;

    if (!json_object_object_get_ex(o, name, &v) ||
        !json_object_is_type(v, json_type_string))
        return NULL;
    return json_object_get_string(v);
}

const char *outcome_error_text(struct json_object *o)
{
    struct json_object *e;
    const char *s;

    if (!json_object_is_type(o, json_type_object))
        return NULL;
    if (json_object_object_get_ex(o, "error", &e) && e) {
        if (json_object_is_type(e, json_type_string))
            return json_object_get_string(e);
        s = json_object_is_type(e, json_type_object) ? string_member(e, "message") : NULL;
        return s ? s : "";
    }
    s = string_member(o, "object");
    if (s && strcmp(s, "error") == 0) {
        s = string_member(o, "message");
        return s ? s : "";
    }
    return NULL;
}

/* A new reference, or NULL. */
static struct json_object *parse_body(const char *body, size_t n)
{
    struct json_object *o = NULL;
    size_t at;

    return n > 0 && json_build(body, n, &o, &at) == DAC_OK ? o : NULL;
}

bool outcome_error_in(const char *body, size_t n, char *out, size_t size)
{
    struct json_object *o = parse_body(body, n);
    const char *s = outcome_error_text(o);

    if (s)
        snprintf(out, size, "%s", s);
    json_object_put(o);
    return s != NULL;
}

/* With a status, {"message": …} and {"detail": …} are errors too. */
static void quote_body(struct upstream_end *end, const char *body, size_t n,
                       const char *key)
{
    struct json_object *o = parse_body(body, n);
    const char *s = outcome_error_text(o);

    if (!s && json_object_is_type(o, json_type_object)) {
        s = string_member(o, "message");
        if (!s)
            s = string_member(o, "detail");
    }
    if (s)
        outcome_quote(end, s, key);
    json_object_put(o);
}

static const struct status_rule {
    int hundred;
    int status; /* 0: any of the hundred */
    enum upstream_outcome outcome;
    const char *code;
    const char *text;
} status_rules[] = {
    {3, 0, UPSTREAM_BAD, "redirect", "the provider answered with a redirect"},
    {4, 401, UPSTREAM_AUTH, "provider_auth", "the provider does not accept our key"},
    {4, 402, UPSTREAM_AUTH, "provider_auth", "the provider wants to be paid"},
    {4, 403, UPSTREAM_AUTH, "provider_auth", "the provider does not let us"},
    {4, 407, UPSTREAM_BAD, "provider_error", "a proxy stands before the provider"},
    {4, 408, UPSTREAM_BAD, "provider_error", "the provider gave up waiting for us"},
    {4, 429, UPSTREAM_RATE_LIMITED, "rate_limited", "the provider limits our rate"},
    {4, 0, UPSTREAM_REFUSED, "provider_refused", "the provider refused the request"},
    {5, 503, UPSTREAM_OVERLOADED, "overloaded", "the provider is overloaded"},
    {5, 529, UPSTREAM_OVERLOADED, "overloaded", "the provider is overloaded"},
    {5, 0, UPSTREAM_BAD, "provider_error", "the provider failed"},
};

void outcome_from_status(struct upstream_end *end, int status, const char *body, size_t n,
                         const char *key)
{
    const struct status_rule *rule = NULL;
    char text[96];

    for (size_t i = 0; i < DAC_ARRAY_LEN(status_rules) && !rule; i++) {
        const struct status_rule *r = &status_rules[i];
        if (r->hundred == status / 100 && (r->status == 0 || r->status == status))
            rule = r;
    }
    snprintf(text, sizeof(text), "%s (%d)",
             rule ? rule->text : "the provider answered with an unknown status", status);
    outcome_set(end, rule ? rule->outcome : UPSTREAM_BAD,
                rule ? rule->code : "provider_error", text);
    end->http_status = status;
    if (status / 100 == 3)
        end->retryable = false;
    else
        quote_body(end, body, n, key);
}

static const struct curl_rule {
    CURLcode error;
    enum upstream_outcome outcome;
    bool final; /* the next attempt would end the same way */
    const char *code;
    const char *text;
} curl_rules[] = {
    {CURLE_COULDNT_RESOLVE_HOST, UPSTREAM_BAD, false, "connect_failed",
     "the provider could not be reached"},
    {CURLE_COULDNT_CONNECT, UPSTREAM_BAD, false, "connect_failed",
     "the provider could not be reached"},
    {CURLE_INTERFACE_FAILED, UPSTREAM_BAD, false, "connect_failed",
     "the provider could not be reached"},
    {CURLE_OPERATION_TIMEDOUT, UPSTREAM_TIMEOUT, false, "connect_timeout",
     "the provider could not be reached in time"},
    {CURLE_SSL_CONNECT_ERROR, UPSTREAM_BAD, false, "tls_failed",
     "no secure connection to the provider"},
    {CURLE_PEER_FAILED_VERIFICATION, UPSTREAM_BAD, true, "tls_failed",
     "no secure connection to the provider"},
    {CURLE_SSL_CACERT_BADFILE, UPSTREAM_BAD, true, "tls_failed",
     "no secure connection to the provider"},
    {CURLE_SSL_CIPHER, UPSTREAM_BAD, true, "tls_failed",
     "no secure connection to the provider"},
    {CURLE_WEIRD_SERVER_REPLY, UPSTREAM_BAD, false, "malformed_stream",
     "the provider does not speak HTTP"},
    {CURLE_UNSUPPORTED_PROTOCOL, UPSTREAM_BAD, false, "malformed_stream",
     "the provider does not speak HTTP"},
    {CURLE_OUT_OF_MEMORY, UPSTREAM_BAD, false, "no_memory", "out of memory"},
};

void outcome_from_curl(struct upstream_end *end, int curl_code)
{
    static const struct curl_rule other = {
        CURLE_OK, UPSTREAM_BAD, false, "cut_off",
        "the connection broke before the provider answered"};
    const struct curl_rule *rule = &other;

    for (size_t i = 0; i < DAC_ARRAY_LEN(curl_rules); i++)
        if ((int)curl_rules[i].error == curl_code)
            rule = &curl_rules[i];
    outcome_set(end, rule->outcome, rule->code, rule->text);
    outcome_quote(end, curl_easy_strerror((CURLcode)curl_code), NULL);
    if (rule->final)
        end->retryable = false;
}

uint64_t outcome_retry_after(const char *s, size_t n, int64_t wall_us)
{
    char text[64];
    uint64_t seconds;
    time_t when;

    while (n > 0 && (*s == ' ' || *s == '\t')) {
        s++;
        n--;
    }
    while (n > 0 && (unsigned char)s[n - 1] <= ' ')
        n--;
    if (!bytes_parse_u64(s, n, UINT64_MAX, &seconds)) {
        if (n == 0 || n >= sizeof(text))
            return 0;
        memcpy(text, s, n);
        text[n] = '\0';
        when = curl_getdate(text, NULL);
        if (when == (time_t)-1 || (int64_t)when <= wall_us / 1000000)
            return 0;
        seconds = (uint64_t)when - (uint64_t)(wall_us / 1000000);
    }
    return (seconds > RETRY_AFTER_MAX_S ? RETRY_AFTER_MAX_S : seconds) * 1000;
}
