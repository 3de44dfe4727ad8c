/*
 * The error codes that functions return, and the assertion that stays on in production.
 *
 * Three classes of failure, and one way to treat each: an expected one is returned as
 * enum dac_err; bad input is collected with its place and reported whole; an impossible
 * one fails DAC_ASSERT, which logs where and ends this process (the master starts
 * another). What a peer sent or what another process wrote is never "impossible".
 */
#ifndef DAC_BASE_ERR_H
#define DAC_BASE_ERR_H

enum dac_err {
    DAC_OK = 0,
    DAC_E_NOMEM,     /* allocation failed */
    DAC_E_SYS,       /* a system call failed; errno says how */
    DAC_E_INVALID,   /* input breaks its own rules */
    DAC_E_NOT_FOUND, /* no such object */
    DAC_E_EXISTS,    /* the object is there already */
    DAC_E_FULL,      /* a bounded table, pool or buffer has no room */
    DAC_E_BUSY,      /* a lock was not had in time; try again later */
    DAC_E_AGAIN,     /* nothing there yet, or it would block */
    DAC_E_TIMEOUT,   /* the time allowed is over */
    DAC_E_TOO_LARGE, /* above a configured bound */
    DAC_E_CLOSED,    /* the other side is gone */
    DAC_E_STATE,     /* the object is not in a state that allows this */
    DAC_E_CORRUPT,   /* shared or stored data breaks an invariant */
    DAC_E_DENIED,    /* not allowed */
    DAC_E_COUNT
};

#define DAC_CHECK        __attribute__((warn_unused_result))
#define DAC_PRINTF(f, a) __attribute__((format(printf, f, a)))
#define DAC_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

/* A short English text of `e`, e.g. "out of memory"; static, never NULL. */
const char *dac_err_text(enum dac_err e);

/* Logs the failed condition and ends the process with abort(). */
_Noreturn void dac_assert_fail(const char *cond, const char *file, int line,
                               const char *func);

#define DAC_ASSERT(cond)                                                                 \
    do {                                                                                 \
        if (__builtin_expect(!(cond), 0))                                                \
            dac_assert_fail(#cond, __FILE__, __LINE__, __func__);                        \
    } while (0)

#endif
