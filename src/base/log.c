/*
 * Builds one log line in a fixed buffer and writes it with one write(2), below PIPE_BUF
 * so that lines of several processes on one pipe never mix. A message that does not fit
 * is cut and ends in "...". Keeps errno. Any process; not for signal handlers.
 */
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/json.h"

#define LINE_MAX_BYTES 4096
#define TEXT_MAX_BYTES 3072

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
static char identity[32] = "dacd";

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&current_level, (int)level, memory_order_relaxed);
}

enum log_level log_get_level(void)
{
    return (enum log_level)atomic_load_explicit(&current_level, memory_order_relaxed);
}

void log_set_identity(const char *who)
{
    snprintf(identity, sizeof(identity), "%s", who);
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

/* Appends `n` bytes with control characters escaped; returns the new length, which leaves
 * at least 4 bytes of the line free. */
static size_t put_escaped(char *line, size_t len, const char *s, size_t n)
{
    const size_t max = LINE_MAX_BYTES - 8;

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

static void log_line(enum log_level level, int err, const char *fmt, va_list ap)
    __attribute__((format(printf, 3, 0)));

static void log_line(enum log_level level, int err, const char *fmt, va_list ap)
{
    char line[LINE_MAX_BYTES], text[TEXT_MAX_BYTES], reason[128];
    int saved = errno;
    size_t len;
    int n;

    if (level > log_get_level())
        return;
    len = put_head(line, level);
    n = vsnprintf(text, sizeof(text), fmt, ap);
    if (n < 0)
        n = snprintf(text, sizeof(text), "message could not be formatted");
    if ((size_t)n >= sizeof(text)) {
        n = (int)utf8_complete_prefix(text, sizeof(text) - 4);
        memcpy(text + n, "...", 4);
        n += 3;
    }
    len = put_escaped(line, len, text, (size_t)n);
    if (err != 0) {
        const char *why = strerror_r(err, reason, sizeof(reason));

        len = put_escaped(line, len, ": ", 2);
        len = put_escaped(line, len, why, strlen(why));
    }
    line[len++] = '\n';
    while (write(STDERR_FILENO, line, len) < 0 && errno == EINTR)
        ;
    errno = saved;
}

void log_error(int err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_line(LOG_LEVEL_ERROR, err, fmt, ap);
    va_end(ap);
}

void log_warn(int err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_line(LOG_LEVEL_WARN, err, fmt, ap);
    va_end(ap);
}

void log_info(int err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_line(LOG_LEVEL_INFO, err, fmt, ap);
    va_end(ap);
}

void log_debug(int err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    log_line(LOG_LEVEL_DEBUG, err, fmt, ap);
    va_end(ap);
}
