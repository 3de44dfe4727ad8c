/*
 * In a build for coverage (--enable-coverage) only: gcov writes down what a process ran
 * when exit() ends it. Tests end processes by raise() and _exit(); the linker leads both
 * here (--wrap), so that what these processes ran counts. Any process that is ended by
 * another's kill() loses its counts. Promises nothing about speed.
 */
#include "config.h"

#ifdef DAC_COVERAGE

#include <signal.h>
#include <unistd.h>

void __gcov_dump(void);
void __gcov_reset(void);
int __real_raise(int sig);
void __real__exit(int status) __attribute__((noreturn));
int __wrap_raise(int sig);
void __wrap__exit(int status) __attribute__((noreturn));

int __wrap_raise(int sig)
{
    __gcov_dump();
    __gcov_reset(); /* it may be a stop that is followed by more */
    return __real_raise(sig);
}

void __wrap__exit(int status)
{
    __gcov_dump();
    __real__exit(status);
}

#else
typedef int coverage_is_off;
#endif
