/*
 * The command line of dacd. It stays in the foreground and logs to standard error; a
 * service manager does the rest.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "base/journal.h"
#include "base/log.h"
#include "config/config.h"
#include "process/child.h"
#include "process/master.h"
#include "process/reload.h"
#include "process/title.h"

extern char **environ;

static const char usage[] =
    "Usage: dacd [-c FILE] [-t] [-V]\n"
    "Runs the DAC chat gateway in the foreground and logs to standard error.\n"
    "\n"
    "  -c FILE  configuration (default " CONFIG_DEFAULT_PATH ")\n"
    "  -t       check the configuration, print the effective one, and exit\n"
    "  -V       print the version and exit\n"
    "  -h       print this and exit\n"
    "\n"
    "Signals: SIGTERM and SIGINT end running streams, then the service; a second one "
    "ends it\n"
    "at once. Exit codes: 0 stopped, 1 not started, 2 it could not go on.\n";

struct arguments {
    const char *config_path; /* NULL: the default */
    bool test;
};

/* Returns -1 to go on, else what to exit with. */
static int parse_arguments(int argc, char **argv, struct arguments *out)
{
    int c;

    while ((c = getopt(argc, argv, "c:tVh")) != -1) {
        switch (c) {
        case 'c':
            out->config_path = optarg;
            break;
        case 't':
            out->test = true;
            break;
        case 'V':
            puts("dacd " DAC_VERSION);
            return EXIT_OK;
        case 'h':
            fputs(usage, stdout);
            return EXIT_OK;
        default:
            fputs(usage, stderr);
            return EXIT_START;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "dacd: unexpected argument \"%s\"\n\n%s", argv[optind], usage);
        return EXIT_START;
    }
    return -1;
}

static int report_test(const struct config *cfg, const char *path)
{
    config_print(cfg, stdout);
    if (cfg->provider_count == 0)
        fprintf(stderr, "%s: no [provider NAME] is configured\n", path);
    fprintf(stderr, "%s: the configuration is good\n", path);
    return fflush(stdout) == 0 ? EXIT_OK : EXIT_START;
}

int main(int argc, char **argv)
{
    struct arguments args = {0};
    struct config_problems *problems;
    struct config *cfg = NULL;
    const char *path;
    enum dac_err e;
    int rc;

    title_init(argc, argv);
    rc = parse_arguments(argc, argv, &args);
    if (rc >= 0)
        return rc;
    if (!args.test)
        (void)journal_open(JOURNAL_SOCKET);
    path = args.config_path ? strdup(args.config_path) : strdup(CONFIG_DEFAULT_PATH);
    problems =
        calloc(1, sizeof(*problems)); /* too large for the stack of a small container */
    if (!path || !problems) {
        fputs("dacd: out of memory\n", stderr);
        return EXIT_START;
    }
    if (args.test)
        e = config_look(path, (const char *const *)environ, &cfg, problems);
    else
        e = config_load(path, (const char *const *)environ, &cfg, problems);
    if (args.test)
        config_problems_print(problems, stderr);
    else
        reload_log_problems(problems);
    config_problems_free(problems);
    free(problems);
    if (e != DAC_OK) {
        log_error(0, "could not use \"%s\": %s", path, dac_err_text(e));
        rc = EXIT_START;
    } else if (args.test) {
        rc = report_test(cfg, path);
    } else {
        log_set_level((enum log_level)cfg->log_level);
        log_set_format((enum log_format)cfg->log_format);
        rc = master_run(path, cfg);
        cfg = NULL; /* taken over */
    }
    config_free(cfg);
    free((void *)path);
    return rc;
}
