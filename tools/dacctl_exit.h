/*
 * What dacctl exits with, the same in every command. Whoever changes these changes
 * dacctl(1) and --help, too.
 */
#ifndef DAC_TOOLS_DACCTL_EXIT_H
#define DAC_TOOLS_DACCTL_EXIT_H

enum dacctl_exit {
    EXIT_DONE = 0, /* or: nothing is wrong, nothing differs */
    EXIT_NOT_DONE =
        1, /* the answer is no: refused, failed, wrong, different, not there */
    EXIT_UNUSABLE = 2,   /* nothing to work on, and nothing was begun; or not written */
    EXIT_STILL_RUNS = 3, /* asked for, and not so yet */
};

#endif
