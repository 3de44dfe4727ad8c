/*
 * One line per event on standard error, written with a single write(2).
 *
 * Format: "2026-01-31T12:00:00.123Z LEVEL process[pid] message". With JOURNAL_STREAM set
 * the line starts with systemd's "<N>" priority and has no time. As JSON:
 * {"time","level","process","pid","message"}, behind the priority where there is one.
 * What the line is about follows where it is known: " request=ID turn=ID org=NAME
 * trace=ID" (in quotes where blanks, quotes or "=" are in it), or members "request",
 * "turn", "org" and "trace". Control characters in a message are escaped, so a peer
 * cannot forge lines. The caller passes errno as an argument (0: none), and its text is
 * appended: "could not open file "x": No such file or directory". Prompts, answers and
 * keys are never logged, at any level.
 *
 * Where journal_open() found that standard error is the journal's, a line becomes an
 * entry with fields instead: MESSAGE (the line without its priority, in the form that is
 * set), PRIORITY, SYSLOG_IDENTIFIER, DAC_PROCESS, ERRNO, and of what it is about
 * DAC_REQUEST, DAC_TURN, DAC_ORG and DAC_TRACE. What the journal does not take at once
 * goes to standard error.
 *
 * Of lines that say the same but for numbers and names (one `fmt`) a process writes
 * LOG_SAME_MAX in LOG_SAME_NS; then one with the last of the others tells how many there
 * were. Where `fmt` begins with "%s" it says nothing itself, and all are written. One
 * thread only.
 */
#ifndef DAC_BASE_LOG_H
#define DAC_BASE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

enum log_format { LOG_FORMAT_HUMAN, LOG_FORMAT_JSON };

/* A further member of a line as JSON. People read the same in the message. */
struct log_field {
    const char *name;  /* static, [a-z0-9_]+ */
    const char *value; /* NULL: the member is left out */
    bool bare;         /* a number, which has no quotes */
};

/* What a line is about. Strings are borrowed for the call; NULL or "": unknown. */
struct log_about {
    const char *request; /* id of the client's request */
    const char *turn;    /* id of the turn */
    const char *org;
    const char *trace; /* id of the trace that the request belongs to */
    const struct log_field *fields;
    size_t field_count;
};

#define LOG_ABOUT_MAX 128 /* bytes of each that are shown */
#define LOG_FIELD_MAX 64  /* bytes of a field's value that are shown */

#define LOG_SAME_MAX 50
#define LOG_SAME_NS  (10 * UINT64_C(1000000000))

/* How lines look. Any process, any time. */
void log_set_format(enum log_format format);
/* To be called now and then: tells of lines that were left out, if their time is over. */
void log_tick(uint64_t now_ns);
/* Sets the least important level that is written. Any process, any time. */
void log_set_level(enum log_level level);
enum log_level log_get_level(void);
/* Names this process in its lines, e.g. "worker 2". Copied, cut at 31 bytes. */
void log_set_identity(const char *who);
/* The level called `name` ("error", "warn", "info", "debug") or DAC_E_INVALID. */
enum dac_err log_level_parse(const char *name, enum log_level *out) DAC_CHECK;

void log_error(int err, const char *fmt, ...) DAC_PRINTF(2, 3);
void log_warn(int err, const char *fmt, ...) DAC_PRINTF(2, 3);
void log_info(int err, const char *fmt, ...) DAC_PRINTF(2, 3);
void log_debug(int err, const char *fmt, ...) DAC_PRINTF(2, 3);

/* The same, told what they are about (NULL: nothing). */
void log_error_about(const struct log_about *about, int err, const char *fmt, ...)
    DAC_PRINTF(3, 4);
void log_warn_about(const struct log_about *about, int err, const char *fmt, ...)
    DAC_PRINTF(3, 4);
void log_info_about(const struct log_about *about, int err, const char *fmt, ...)
    DAC_PRINTF(3, 4);

#endif
