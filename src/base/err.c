/*
 * Texts of the error codes, and what a failed DAC_ASSERT does. Any process.
 */
#include "base/err.h"

#include <stdlib.h>

#include "base/journal.h"
#include "base/log.h"

static const char *const texts[DAC_E_COUNT] = {
    [DAC_OK] = "success",
    [DAC_E_NOMEM] = "out of memory",
    [DAC_E_SYS] = "system call failed",
    [DAC_E_INVALID] = "invalid input",
    [DAC_E_NOT_FOUND] = "not found",
    [DAC_E_EXISTS] = "already exists",
    [DAC_E_FULL] = "no room left",
    [DAC_E_BUSY] = "busy",
    [DAC_E_AGAIN] = "not ready yet",
    [DAC_E_TIMEOUT] = "timed out",
    [DAC_E_TOO_LARGE] = "too large",
    [DAC_E_CLOSED] = "closed by the other side",
    [DAC_E_STATE] = "not possible in this state",
    [DAC_E_CORRUPT] = "corrupt data",
    [DAC_E_DENIED] = "not allowed",
};

const char *dac_err_text(enum dac_err e)
{
    if ((unsigned)e >= DAC_E_COUNT || !texts[e])
        return "unknown error";
    return texts[e];
}

_Noreturn void dac_assert_fail(const char *cond, const char *file, int line,
                               const char *func)
{
    log_error(0, "assertion \"%s\" failed in %s() at %s:%d", cond, func, file, line);
    journal_flush();
    abort();
}
