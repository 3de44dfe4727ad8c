/*
 * dacctl: looks at an instance from outside. It maps the segment read-only, so it can
 * disturb nobody, and needs no answer from anyone: it works on a service that stands
 * still, or is dead. What changes something is asked of the master. Those
 * about the database or the configuration need no instance at all.
 */
#include <errno.h>
#include <getopt.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "config.h"
#include "dacctl.h"
#include "dacctl_config.h"
#include "dacctl_exit.h"
#include "dacctl_print.h"
#include "dacctl_store.h"

#define OUTPUT_MAX (UINT64_C(64) << 20)
#define SHM_FOLDER "/dev/shm/"

static const char usage[] =
    "Usage: dacctl [-n NAME | -c FILE] [--json] COMMAND [TURN]\n"
    "       dacctl [-c FILE | -d DATABASE] [--json] migrate [--dry-run | "
    "--print-roles]\n"
    "       dacctl [-c FILE | -d DATABASE] [--json] prune --older-than AGE [--dry-run]\n"
    "       dacctl [-c FILE | -d DATABASE] [--json] spool SPOOL [--all] [--dry-run]\n"
    "       dacctl [-c FILE | -n NAME] [--json] config show\n"
    "       dacctl [-c FILE] [--json] config explain [NAME] | diff [FILE] | sample\n"
    "Looks at a dacd from outside, read-only; asks its master for changes; looks after "
    "its\n"
    "database.\n"
    "\n"
    "  status    one screen: problems first, then processes, flights, memory, store, "
    "providers\n"
    "  top       the same with rates, again each second\n"
    "  counters  what was counted since the start\n"
    "  pacer     each provider's limits: tokens left, calls by worker, who waits, "
    "pauses\n"
    "  turns tail   the last turns, and each one that ends from now on\n"
    "  flights   one line per flight in memory\n"
    "  check     every structure, of a dead instance's memory too: says what is wrong\n"
    "  reload    has the configuration read again, and says what came of it\n"
    "  drain     stops the service once its streams have ended; waits for it\n"
    "  cancel    stops TURN, whosever it is\n"
    "  migrate   brings the database up to date, as dacd does when it starts\n"
    "  prune     deletes what ended longer ago than AGE (90d), in small batches\n"
    "  spool     moves what waits in a spool that was set aside to the database\n"
    "  config    show: every setting's value and where it came from, in the file; with\n"
    "            -n what is in effect there. explain NAME: what a setting is.\n"
    "            diff FILE: what a reload would do if FILE took the place of -c's\n"
    "            (without FILE: what differs from the defaults). sample: a\n"
    "            configuration to begin with, all settings in it\n"
    "\n"
    "  -n, --name NAME      the instance ([server] name; default: that of -c's FILE, or\n"
    "                       the only one that runs)\n"
    "      --json           one JSON object instead of tables, of top and turns tail "
    "one a\n"
    "                       line; progress and problems are on standard error\n"
    "  -c, --config FILE    the configuration (default: as for dacd)\n"
    "  -d, --database NAME  another one: a libpq connection string or an SQLite file\n"
    "      --all            also what the spool only keeps, and of a damaged one what "
    "can\n"
    "                       be read\n"
    "      --dry-run        print the SQL that is missing; count what would be deleted "
    "or\n"
    "                       moved\n"
    "      --print-roles    print the SQL that makes PostgreSQL's roles, and do nothing\n"
    "      --older-than AGE a number and one of s, m, h, d\n"
    "  -V, --version        print the version and exit\n"
    "  -h, --help           print this and exit\n"
    "\n"
    "Exit codes, the same of every command:\n"
    "  0  done. check: nothing is wrong; config diff: nothing differs; reload: it is in\n"
    "     effect, or waits for old workers to end\n"
    "  1  not done, or the answer is no. check: something is wrong; config diff: "
    "something\n"
    "     differs; config explain: there is no such setting; reload: refused, nothing "
    "has\n"
    "     changed; cancel: there is no such turn; migrate: refused, nothing has "
    "changed;\n"
    "     prune, spool: it did not get to the end, and may be run again\n"
    "  2  nothing was begun: the command line is wrong; there is no such instance,\n"
    "     configuration, database or spool, or it cannot be used; the master cannot be\n"
    "     reached. Or the output could not be written\n"
    "  3  cancel: the turn runs on\n";

static const struct command {
    const char *name;
    int (*run)(struct shm *shm, const char *name, bool json, struct buf *out);
    int (*run_on_store)(const struct store_arguments *args); /* instead of `run` */
    const char *takes; /* what stands behind it, NULL: nothing */
    bool takes_word;   /* `run` gets that, not the instance's name */
} commands[] = {
    {"status", dacctl_status, NULL, NULL, false},
    {"top", dacctl_top, NULL, NULL, false},
    {"counters", dacctl_counters, NULL, NULL, false},
    {"pacer", dacctl_pacer, NULL, NULL, false},
    {"turns", dacctl_turns, NULL, "the word tail", true},
    {"flights", dacctl_flights, NULL, NULL, false},
    {"check", dacctl_check, NULL, NULL, false},
    {"reload", dacctl_reload, NULL, NULL, true},
    {"drain", dacctl_drain, NULL, NULL, true},
    {"cancel", dacctl_cancel, NULL, "the id of one turn", true},
    {"migrate", NULL, dacctl_migrate, NULL, false},
    {"prune", NULL, dacctl_prune, NULL, false},
    {"spool", NULL, dacctl_spool, "one file", false},
    {"config", NULL, NULL, NULL, false}, /* has commands of its own */
};

/* config show, of an instance instead of a file. */
static const struct command running_config = {"config show", dacctl_running_config, NULL,
                                              NULL, false};

struct arguments {
    const char *name; /* NULL: the only instance */
    bool json;
    const char *word; /* what stands behind the command; "": nothing */
    struct store_arguments store;
    const struct command *command;
    char **words; /* of config, which takes more than one */
    int word_count;
};

static bool is_config(const struct command *c)
{
    return !c->run && !c->run_on_store;
}

static const struct command *find_command(const char *name)
{
    for (size_t i = 0; i < DAC_ARRAY_LEN(commands); i++) {
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    }
    return NULL;
}

/* Returns -1 to go on, else what to exit with. */
static int parse_arguments(int argc, char **argv, struct arguments *out)
{
    static const struct option options[] = {{"name", required_argument, NULL, 'n'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"config", required_argument, NULL, 'c'},
                                            {"database", required_argument, NULL, 'd'},
                                            {"all", no_argument, NULL, 'a'},
                                            {"dry-run", no_argument, NULL, 'y'},
                                            {"print-roles", no_argument, NULL, 'r'},
                                            {"older-than", required_argument, NULL, 'o'},
                                            {"version", no_argument, NULL, 'V'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    int c;

    while ((c = getopt_long(argc, argv, "n:c:d:Vh", options, NULL)) != -1) {
        switch (c) {
        case 'n':
            out->name = optarg;
            break;
        case 'j':
            out->json = out->store.json = true;
            break;
        case 'c':
            out->store.conf = optarg;
            break;
        case 'd':
            out->store.database = optarg;
            break;
        case 'a':
            out->store.all = true;
            break;
        case 'y':
            out->store.dry_run = true;
            break;
        case 'r':
            out->store.print_roles = true;
            break;
        case 'o':
            out->store.older_than = optarg;
            break;
        case 'V':
            puts("dacctl " DAC_VERSION);
            return EXIT_DONE;
        case 'h':
            fputs(usage, stdout);
            return EXIT_DONE;
        default:
            fputs(usage, stderr);
            return EXIT_UNUSABLE;
        }
    }
    if (optind == argc) {
        fprintf(stderr, "dacctl: a command is needed\n\n%s", usage);
        return EXIT_UNUSABLE;
    }
    out->command = find_command(argv[optind]);
    if (!out->command) {
        fprintf(stderr, "dacctl: unknown command \"%s\"\n\n%s", argv[optind], usage);
        return EXIT_UNUSABLE;
    }
    if (is_config(out->command)) {
        out->words = argv + optind + 1;
        out->word_count = argc - optind - 1;
        return -1;
    }
    if (optind + 1 + (out->command->takes != NULL) != argc) {
        fprintf(stderr, "dacctl: %s takes %s\n\n%s", out->command->name,
                out->command->takes ? out->command->takes : "nothing behind it", usage);
        return EXIT_UNUSABLE;
    }
    out->word = out->command->takes ? argv[optind + 1] : "";
    out->store.file = out->word;
    return -1;
}

/* The only instance's name into `name`; else says what there is. */
static bool only_instance(char *name, size_t n)
{
    glob_t found = {0};
    bool ok = false;
    int rc = glob(SHM_FOLDER "dac-*", 0, NULL, &found);

    if (rc == GLOB_NOMATCH || (rc == 0 && found.gl_pathc == 0)) {
        fputs("dacctl: no instance runs here (none in " SHM_FOLDER
              "dac-*; -n names one that is called otherwise)\n",
              stderr);
    } else if (rc != 0) {
        fprintf(stderr, "dacctl: could not read " SHM_FOLDER ": %s\n", strerror(errno));
    } else if (found.gl_pathc > 1) {
        fputs("dacctl: several instances; choose one with -n:\n", stderr);
        for (size_t i = 0; i < found.gl_pathc; i++)
            fprintf(stderr, "  %s\n", found.gl_pathv[i] + strlen(SHM_FOLDER));
    } else {
        ok = (size_t)snprintf(name, n, "%s", found.gl_pathv[0] + strlen(SHM_FOLDER)) < n;
    }
    globfree(&found);
    return ok;
}

static int run(const struct arguments *args, const char *name)
{
    struct buf out = BUF_INIT(OUTPUT_MAX);
    struct shm shm;
    char why[256] = "";
    int rc;

    if (segment_attach(name, &shm, why, sizeof(why)) != DAC_OK) {
        fprintf(stderr, "dacctl: %s\n", why);
        return EXIT_UNUSABLE;
    }
    rc = args->command->run(&shm, args->command->takes_word ? args->word : name,
                            args->json, &out);
    if (!dacctl_print(&out))
        rc = EXIT_UNUSABLE;
    segment_detach(&shm);
    return rc;
}

int main(int argc, char **argv)
{
    struct arguments args = {0};
    char name[SHM_NAME_SIZE];
    int rc = parse_arguments(argc, argv, &args);

    if (rc >= 0)
        return rc;
    if (is_config(args.command) && args.name) {
        if (args.word_count != 1 || strcmp(args.words[0], "show") != 0) {
            fputs("dacctl: of an instance (-n) there is config show alone\n", stderr);
            return EXIT_UNUSABLE;
        }
        args.command = &running_config;
    }
    if (is_config(args.command))
        return dacctl_config(args.store.conf, args.words, args.word_count, args.json);
    if (args.command->run_on_store)
        return args.command->run_on_store(&args.store);
    if (args.name) {
        if (strlen(args.name) >= sizeof(name) || strchr(args.name, '/')) {
            fprintf(stderr, "dacctl: \"%s\" is no name of an instance\n", args.name);
            return EXIT_UNUSABLE;
        }
        snprintf(name, sizeof(name), "%s", args.name);
    } else if (args.store.conf) {
        if (!dacctl_config_instance(args.store.conf, name, sizeof(name)))
            return EXIT_UNUSABLE;
    } else if (!only_instance(name, sizeof(name))) {
        return EXIT_UNUSABLE;
    }
    return run(&args, name);
}
