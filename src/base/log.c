/*
 * Builds one log line in a fixed buffer and hands it to the journal or writes it with one
 * write(2), below PIPE_BUF so that lines of several processes on one pipe never mix. A
 * message that does not fit is cut and ends in "...". What is said too often is counted.
 * Keeps errno. Any process; not for signal handlers.
 */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/journal.h"
#include "base/json.h"

#define LINE_MAX_BYTES 4096
#define TEXT_MAX_BYTES 3072
#define SAME_MESSAGES  16 /* that are counted at a time */
#define SAME_TEXT_MAX  256

/* What a line can be about, in the order it is told. */
static const struct {
    const char *name;
    const char *field; /* of the journal's */
    size_t at;         /* of the pointer in struct log_about */
} abouts[] = {
    {"request", "DAC_REQUEST", offsetof(struct log_about, request)},
    {"turn", "DAC_TURN", offsetof(struct log_about, turn)},
    {"org", "DAC_ORG", offsetof(struct log_about, org)},
    {"trace", "DAC_TRACE", offsetof(struct log_about, trace)},
};

#define ABOUTS DAC_ARRAY_LEN(abouts)
/* Of all that a line is about: a byte becomes four where it is escaped, and a backslash
 * before that two. Fields have what is left, and are left out where that is too little.
 */
#define TAIL_ABOUT_BYTES (ABOUTS * (LOG_ABOUT_MAX * 5 + 16))
#define TAIL_MAX_BYTES   (TAIL_ABOUT_BYTES + 512)

static const struct {
    const char *name;   /* in configuration */
    const char *label;  /* in lines */
    const char *prefix; /* systemd's priority */
} levels[] = {
    [LOG_LEVEL_ERROR] = {"error", "ERROR", "<3>"},
    [LOG_LEVEL_WARN] = {"warn", "WARN", "<4>"},
    [LOG_LEVEL_INFO] = {"info", "INFO", "<6>"},
    [LOG_LEVEL_DEBUG] = {"debug", "DEBUG", "<7>"},
};

static _Atomic int current_level = LOG_LEVEL_INFO;
static _Atomic int current_format = LOG_FORMAT_HUMAN;
static char identity[32] = "dacd";

/* A message that was written lately; see below. */
static struct same {
    const char *fmt; /* NULL: free */
    enum log_level level;
    int err;
    uint64_t since_ns;
    uint32_t written;
    uint32_t left_out;
    char last[SAME_TEXT_MAX];              /* of those that were left out */
    char about[ABOUTS][LOG_ABOUT_MAX + 1]; /* what that was about */
} same[SAME_MESSAGES];

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&current_level, (int)level, memory_order_relaxed);
}

enum log_level log_get_level(void)
{
    return (enum log_level)atomic_load_explicit(&current_level, memory_order_relaxed);
}

void log_set_format(enum log_format format)
{
    atomic_store_explicit(&current_format, (int)format, memory_order_relaxed);
}

/* A child tells its own repeats, not those of who forked it. */
void log_set_identity(const char *who)
{
    snprintf(identity, sizeof(identity), "%s", who);
    memset(same, 0, sizeof(same));
}

enum dac_err log_level_parse(const char *name, enum log_level *out)
{
    for (size_t i = 0; i < DAC_ARRAY_LEN(levels); i++) {
        if (strcmp(levels[i].name, name) == 0) {
            *out = (enum log_level)i;
            return DAC_OK;
        }
    }
    return DAC_E_INVALID;
}

/* Length of the well-formed, printable character at s, 0 if there is none: then the byte
 * is escaped. The C1 controls (U+0080 to U+009F) move a terminal's cursor as the C0 ones
 * do. */
static size_t printable(const char *s, size_t n)
{
    unsigned char c = (unsigned char)s[0];

    if (c < 0x80)
        return c >= 0x20 && c != 0x7f;
    if (c == 0xc2 && n > 1 && (unsigned char)s[1] < 0xa0)
        return 0;
    for (size_t len = 2; len <= 4 && len <= n; len++) {
        if (utf8_valid(s, len))
            return len;
    }
    return 0;
}

/* Appends `n` bytes with control characters escaped; returns the new length, at most
 * `max`. */
static size_t put_escaped(char *line, size_t len, size_t max, const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        size_t whole = printable(s + i, n - i);

        if (whole > 0) {
            if (len + whole > max)
                break;
            memcpy(line + len, s + i, whole);
            len += whole;
            i += whole;
            continue;
        }
        if (len + 4 > max)
            break;
        if (s[i] == '\n')
            len += (size_t)sprintf(line + len, "\\n");
        else
            len += (size_t)sprintf(line + len, "\\x%02x", (unsigned char)s[i]);
        i++;
    }
    return len;
}

/* Appends what is escaped for people already as the inside of a JSON string, up to `max`
 * and "...". */
static size_t put_quoted(char *line, size_t len, size_t max, const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        size_t whole = printable(s + i, n - i);

        if (len + whole + 1 > max)
            return len + (size_t)sprintf(line + len, "...");
        if (s[i] == '"' || s[i] == '\\')
            line[len++] = '\\';
        memcpy(line + len, s + i, whole);
        len += whole;
        i += whole;
    }
    return len;
}

/* --- what a line is about ------------------------------------------------------------
 */

/* NULL where that is unknown. */
static const char *about_value(const struct log_about *about, size_t i)
{
    const char *value = NULL;

    if (about != NULL)
        memcpy(&value, (const char *)about + abouts[i].at, sizeof(value));
    return value != NULL && value[0] != '\0' ? value : NULL;
}

/* Appends one value, cut at `max` bytes; in quotes where that or its bytes ask for it. */
static size_t put_value(char *tail, size_t len, const char *value, size_t max,
                        bool quotes)
{
    char text[LOG_ABOUT_MAX * 4 + 1]; /* sprintf() ends what it writes */
    size_t n = strnlen(value, max + 1);

    if (n > max)
        n = utf8_complete_prefix(value, max);
    n = put_escaped(text, 0, sizeof(text) - 1, value, n);
    if (!quotes && !memchr(text, ' ', n) && !memchr(text, '"', n) &&
        !memchr(text, '=', n)) {
        memcpy(tail + len, text, n);
        return len + n;
    }
    tail[len++] = '"';
    len = put_quoted(tail, len, TAIL_MAX_BYTES, text, n);
    tail[len++] = '"';
    return len;
}

static size_t put_fields(char *tail, size_t len, const struct log_about *about)
{
    for (size_t i = 0; about != NULL && i < about->field_count; i++) {
        const struct log_field *f = &about->fields[i];

        if (f->value == NULL ||
            len + strlen(f->name) + LOG_FIELD_MAX * 5 + 8 > TAIL_MAX_BYTES)
            continue;
        len += (size_t)sprintf(tail + len, ",\"%s\":", f->name);
        if (f->bare)
            len += (size_t)sprintf(tail + len, "%.*s", LOG_FIELD_MAX, f->value);
        else
            len = put_value(tail, len, f->value, LOG_FIELD_MAX, true);
    }
    return len;
}

/* Writes the tail of a line, which tells what it is about; returns its length. */
static size_t put_about(char tail[TAIL_MAX_BYTES], const struct log_about *about,
                        bool json)
{
    size_t len = 0;

    for (size_t i = 0; i < ABOUTS; i++) {
        const char *value = about_value(about, i);

        if (value == NULL)
            continue;
        len += (size_t)sprintf(tail + len, json ? ",\"%s\":" : " %s=", abouts[i].name);
        len = put_value(tail, len, value, LOG_ABOUT_MAX, json);
    }
    return json ? put_fields(tail, len, about) : len;
}

/* --- writing -------------------------------------------------------------------------
 */

static size_t put_head(char *line, enum log_level level)
{
    char time[32];

    if (getenv("JOURNAL_STREAM"))
        return (size_t)snprintf(line, 128, "%s%s %s[%d] ", levels[level].prefix,
                                levels[level].label, identity, (int)getpid());
    clock_format_rfc3339(clock_wall_us(), time);
    return (size_t)snprintf(line, 128, "%s %s %s[%d] ", time, levels[level].label,
                            identity, (int)getpid());
}

/* The whole line but its end; `msg` is escaped for people. */
static size_t put_json(char *line, enum log_level level, const struct log_about *about,
                       const char *msg, size_t n)
{
    char time[32], tail[TAIL_MAX_BYTES];
    size_t tail_len = put_about(tail, about, true);
    size_t len;

    clock_format_rfc3339(clock_wall_us(), time);
    len = (size_t)snprintf(
        line, 256,
        "%s{\"time\":\"%s\",\"level\":\"%s\",\"process\":\"%s\",\"pid\":%d,"
        "\"message\":\"",
        getenv("JOURNAL_STREAM") ? levels[level].prefix : "", time, levels[level].name,
        identity, (int)getpid());
    len = put_quoted(line, len, LINE_MAX_BYTES - 16 - tail_len, msg, n);
    line[len++] = '"';
    memcpy(line + len, tail, tail_len);
    len += tail_len;
    line[len++] = '}';
    return len;
}

static size_t put_human(char *line, enum log_level level, const struct log_about *about,
                        const char *msg, size_t n)
{
    char tail[TAIL_MAX_BYTES];
    size_t tail_len = put_about(tail, about, false);
    size_t len = put_head(line, level);
    size_t room = LINE_MAX_BYTES - 8 - tail_len - len;
    bool cut = n > room;

    if (cut)
        n = utf8_complete_prefix(msg, room - 4);
    memcpy(line + len, msg, n);
    len += n;
    if (cut) {
        memcpy(line + len, "...", 3);
        len += 3;
    }
    memcpy(line + len, tail, tail_len);
    return len + tail_len;
}

/* Whether the journal has it, with fields. The message is what standard error would have
 * got but for the priority, so that one reads the same whichever way it went. */
static bool tell_journal(enum log_level level, const struct log_about *about, int err,
                         const char *line, size_t len)
{
    const char *prefix = levels[level].prefix;
    struct journal_entry e;
    char number[16];
    size_t n = line[0] == '<' ? strlen(prefix) : 0;

    journal_begin(&e);
    journal_put(&e, "MESSAGE", line + n, len - n);
    journal_put(&e, "PRIORITY", prefix + 1, 1);
    journal_put(&e, "SYSLOG_IDENTIFIER", "dacd", 4);
    journal_put(&e, "DAC_PROCESS", identity, strlen(identity));
    for (size_t i = 0; i < ABOUTS; i++) {
        const char *value = about_value(about, i);

        if (value != NULL)
            journal_put(&e, abouts[i].field, value, strnlen(value, LOG_ABOUT_MAX));
    }
    if (err != 0) {
        n = (size_t)snprintf(number, sizeof(number), "%d", err);
        journal_put(&e, "ERRNO", number, n);
    }
    return journal_send(&e);
}

/* `msg` is escaped, n bytes of it, with the text of `err`. */
static void write_line(enum log_level level, const struct log_about *about, int err,
                       const char *msg, size_t n)
{
    char line[LINE_MAX_BYTES];
    size_t len;

    if (atomic_load_explicit(&current_format, memory_order_relaxed) == LOG_FORMAT_JSON)
        len = put_json(line, level, about, msg, n);
    else
        len = put_human(line, level, about, msg, n);
    if (journal_is_open() && tell_journal(level, about, err, line, len))
        return;
    line[len++] = '\n';
    while (write(STDERR_FILENO, line, len) < 0 && errno == EINTR)
        ;
}

/* --- repeats -------------------------------------------------------------------------
 *
 * A message is known by its format's address. Where all places are taken the one that
 * began first makes way: then its count begins anew, and nothing is lost.
 */

/* 1234567 as 1,234,567. */
static const char *grouped(uint32_t n, char out[16])
{
    if (n >= 1000000)
        snprintf(out, 16, "%u,%03u,%03u", n / 1000000, n / 1000 % 1000, n % 1000);
    else if (n >= 1000)
        snprintf(out, 16, "%u,%03u", n / 1000, n % 1000);
    else
        snprintf(out, 16, "%u", n);
    return out;
}

static void tell_left_out(struct same *s)
{
    const struct log_about about = {.request = s->about[0],
                                    .turn = s->about[1],
                                    .org = s->about[2],
                                    .trace = s->about[3]};
    char msg[SAME_TEXT_MAX + 64], number[16];
    int n;

    if (s->left_out > 1)
        n = snprintf(msg, sizeof(msg), "%s ... and %s more like this", s->last,
                     grouped(s->left_out - 1, number));
    else
        n = snprintf(msg, sizeof(msg), "%s", s->last);
    if (s->left_out > 0)
        write_line(s->level, &about, s->err, msg, (size_t)n);
    *s = (struct same){0};
}

static struct same *find_same(const char *fmt, enum log_level level, uint64_t now_ns)
{
    struct same *at = &same[0];

    for (size_t i = 0; i < SAME_MESSAGES; i++) {
        if (same[i].fmt == fmt) {
            at = &same[i];
            break;
        }
        if (at->fmt && (!same[i].fmt || same[i].since_ns < at->since_ns))
            at = &same[i];
    }
    if (at->fmt != fmt || now_ns - at->since_ns >= LOG_SAME_NS) {
        tell_left_out(at);
        *at = (struct same){.fmt = fmt, .level = level, .since_ns = now_ns};
    }
    return at;
}

/* Whether this one is left out for now. */
static bool is_one_too_many(enum log_level level, const struct log_about *about, int err,
                            const char *fmt, const char *msg, size_t n)
{
    struct same *s;

    if (fmt[0] == '%' && fmt[1] == 's')
        return false;
    s = find_same(fmt, level, clock_now_ns());
    if (s->written < LOG_SAME_MAX) {
        s->written++;
        return false;
    }
    if (n >= SAME_TEXT_MAX)
        n = utf8_complete_prefix(msg, SAME_TEXT_MAX - 1);
    memcpy(s->last, msg, n);
    s->last[n] = '\0';
    s->err = err;
    for (size_t i = 0; i < ABOUTS; i++) {
        const char *value = about_value(about, i);

        snprintf(s->about[i], sizeof(s->about[i]), "%s", value ? value : "");
    }
    s->left_out++;
    return true;
}

void log_tick(uint64_t now_ns)
{
    for (size_t i = 0; i < SAME_MESSAGES; i++)
        if (same[i].fmt && now_ns - same[i].since_ns >= LOG_SAME_NS)
            tell_left_out(&same[i]);
}

__attribute__((destructor)) static void tell_all_left_out(void)
{
    for (size_t i = 0; i < SAME_MESSAGES; i++)
        tell_left_out(&same[i]);
    journal_flush();
}

/* --- a line ---------------------------------------------------------------------------
 */

static void log_line(enum log_level level, const struct log_about *about, int err,
                     const char *fmt, va_list ap) __attribute__((format(printf, 4, 0)));

static void log_line(enum log_level level, const struct log_about *about, int err,
                     const char *fmt, va_list ap)
{
    char msg[LINE_MAX_BYTES], text[TEXT_MAX_BYTES], reason[128];
    const size_t max = LINE_MAX_BYTES - 8;
    int saved = errno;
    size_t len;
    int n;

    if (level > log_get_level())
        return;
    n = vsnprintf(text, sizeof(text), fmt, ap);
    if (n < 0)
        n = snprintf(text, sizeof(text), "message could not be formatted");
    if ((size_t)n >= sizeof(text)) {
        n = (int)utf8_complete_prefix(text, sizeof(text) - 4);
        memcpy(text + n, "...", 4);
        n += 3;
    }
    len = put_escaped(msg, 0, max, text, (size_t)n);
    if (err != 0) {
        const char *why = strerror_r(err, reason, sizeof(reason));

        len = put_escaped(msg, len, max, ": ", 2);
        len = put_escaped(msg, len, max, why, strlen(why));
    }
    if (!is_one_too_many(level, about, err, fmt, msg, len))
        write_line(level, about, err, msg, len);
    errno = saved;
}

void log_error(int err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_line(LOG_LEVEL_ERROR, NULL, err, fmt, ap);
    va_end(ap);
}

void log_warn(int err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_line(LOG_LEVEL_WARN, NULL, err, fmt, ap);
    va_end(ap);
}

void log_info(int err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_line(LOG_LEVEL_INFO, NULL, err, fmt, ap);
    va_end(ap);
}

void log_debug(int err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_line(LOG_LEVEL_DEBUG, NULL, err, fmt, ap);
    va_end(ap);
}

void log_error_about(const struct log_about *about, int err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_line(LOG_LEVEL_ERROR, about, err, fmt, ap);
    va_end(ap);
}

void log_warn_about(const struct log_about *about, int err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_line(LOG_LEVEL_WARN, about, err, fmt, ap);
    va_end(ap);
}

void log_info_about(const struct log_about *about, int err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_line(LOG_LEVEL_INFO, about, err, fmt, ap);
    va_end(ap);
}
