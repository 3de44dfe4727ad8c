/*
 * config_load(): which source of a value wins, how the result is printed, and that no
 * file makes it fail in another way than by problems.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "config/describe.h"
#include "config_fixture.h"

/* --- precedence --------------------------------------------------------------------- */

#define WITH_ENV                                                                         \
    "[server]\nenv_file = dac.env\n[provider open-ai.x]\nbase_url = http://h\nrps = 1\n"

static const struct {
    const char *env_file;
    const char *environ[4];
    bool coalesce, fanout;
    double rps;
    uint32_t burst, concurrency;
} sources[] = {
    {"", {NULL}, true, true, 1, 1, 64},
    {"", {"COALESCE_ENABLED=0", "STREAM_FANOUT_ENABLED=No"}, false, false, 1, 1, 64},
    {"COALESCE_ENABLED=1\n", {"COALESCE_ENABLED=off"}, true, true, 1, 1, 64},
    {"COALESCE_ENABLED=\n", {"COALESCE_ENABLED=off"}, false, true, 1, 1, 64},
    {"", {"COALESCE_ENABLED=", "STREAM_FANOUT_ENABLED"}, true, true, 1, 1, 64},
    {"", {"OPEN_AI_X_RPS=3.5", "OPEN_AI_X_CONCURRENCY=7"}, true, true, 3.5, 4, 7},
    {"OPEN_AI_X_RPS=0\n", {"OPEN_AI_X_RPS=9", "OPEN_AI_X_BURST=5"}, true, true, 0, 5, 64},
    {"# c\n; c\n\nexport  COALESCE_ENABLED='false' # c\n STREAM_FANOUT_ENABLED = no\n",
     {NULL},
     true,
     true,
     -1,
     0,
     0},
    {"# c\n; c\n\nexport  COALESCE_ENABLED='false' # c\n\tSTREAM_FANOUT_ENABLED=no # c\n"
     "OTHER_KEY=\"a b\"\nOPEN_AI_X_RPS=8\nOPEN_AI_X_RPS=2\r\n",
     {NULL},
     false,
     false,
     2,
     2,
     64},
    {"",
     {"PERPLEXITY_RPS=x", "open_ai_x_rps=5", "=x", "OPEN_AI_X_RPM=5"},
     true,
     true,
     1,
     1,
     64},
};

START_TEST(env_file_wins_over_environment_over_file)
{
    const char *environ[5] = {0};
    struct config_problems problems = {0};
    struct config *cfg;
    enum dac_err rc;

    memcpy(environ, sources[_i].environ, sizeof(sources[_i].environ));
    write_text("dac.env", sources[_i].env_file);
    write_text("dac.conf", WITH_ENV);
    rc = config_load("dac.conf", environ, &cfg, &problems);
    ck_assert_int_eq(rc, sources[_i].rps < 0 ? DAC_E_INVALID : DAC_OK);
    if (rc == DAC_OK) {
        ck_assert(cfg->coalesce_enabled == sources[_i].coalesce);
        ck_assert(cfg->stream_fanout_enabled == sources[_i].fanout);
        ck_assert(cfg->providers[0].rps == sources[_i].rps);
        ck_assert_uint_eq(cfg->providers[0].burst, sources[_i].burst);
        ck_assert_uint_eq(cfg->providers[0].concurrency, sources[_i].concurrency);
    }
    config_free(cfg);
    config_problems_free(&problems);
}
END_TEST

/* One row per level: what sets it, what it is then, and where `config show` says that it
 * came from. */
static const struct {
    const char *file, *environ, *env_file;
    const char *rps, *origin;
} levels[] = {
    {"", NULL, "", "0", "default"},
    {"rps = 1\n", NULL, "", "1", "dac.conf:5"},
    {"rps = 1\n", "OPEN_AI_X_RPS=2", "", "2", "environment OPEN_AI_X_RPS"},
    {"rps = 1\n", "OPEN_AI_X_RPS=2", "\nOPEN_AI_X_RPS=3\n", "3", "env file dac.env:2"},
    {"", NULL, "OPEN_AI_X_RPS=3\n", "3", "env file dac.env:1"},
    {"", "OPEN_AI_X_RPS=2", "", "2", "environment OPEN_AI_X_RPS"},
    /* Empty counts as not set. */
    {"rps = 1\n", "OPEN_AI_X_RPS=2", "OPEN_AI_X_RPS=\n", "2",
     "environment OPEN_AI_X_RPS"},
    {"rps = 1\n", "OPEN_AI_X_RPS=", "OPEN_AI_X_RPS=\"\"\n", "1", "dac.conf:5"},
};

struct rate {
    char value[32], origin[64];
};

static void find_rate(void *arg, const struct config_fact *f)
{
    struct rate *rate = arg;

    if (strcmp(f->name, "rps") == 0) {
        ck_assert_str_eq(f->section, "provider");
        ck_assert_str_eq(f->provider, "open-ai.x");
        snprintf(rate->value, sizeof(rate->value), "%s", f->value);
        snprintf(rate->origin, sizeof(rate->origin), "%s", f->origin);
    }
}

START_TEST(each_level_wins_over_those_below_and_is_named)
{
    const char *const environ[] = {levels[_i].environ, NULL};
    struct rate rate = {0};
    struct config *cfg;
    char text[256];

    write_text("dac.env", levels[_i].env_file);
    snprintf(
        text, sizeof(text),
        "[server]\nenv_file = dac.env\n[provider open-ai.x]\nbase_url = http://h\n%s",
        levels[_i].file);
    cfg = load_good(text, environ);
    ck_assert_int_eq(config_facts(cfg, find_rate, &rate), DAC_OK);
    ck_assert_str_eq(rate.value, levels[_i].rps);
    ck_assert_str_eq(rate.origin, levels[_i].origin);
    config_free(cfg);
}
END_TEST

START_TEST(bad_variables_name_their_source)
{
    const char *const environ[] = {"COALESCE_ENABLED=maybe", "OPEN_AI_X_BURST=\x1b",
                                   NULL};
    struct config_problems problems = {0};
    struct config *cfg;
    char *printed;

    write_text("dac.env", "\nOPEN_AI_X_RPS=fast\nNOT A VARIABLE\nX='y\nZ=\"a\"b\n");
    write_text("dac.conf", WITH_ENV);
    ck_assert_int_eq(config_load("dac.conf", environ, &cfg, &problems), DAC_E_INVALID);
    printed = problem_text(&problems);
    ck_assert_str_eq(
        printed,
        "environment: COALESCE_ENABLED: \"maybe\" is not a switch; write 1 or 0, true or "
        "false, on or off\n"
        "environment OPEN_AI_X_BURST: burst: \"?\" is not a whole number; choose 1 to "
        "100000, or auto\n"
        "dac.env:2: rps: \"fast\" is not a number like 10 or 0.5; choose 0.0001 to "
        "100000, or 0 for no limit\n"
        "dac.env:3: not a variable; write NAME=VALUE without blanks around \"=\"\n"
        "dac.env:4: value has no closing quote; add one\n"
        "dac.env:5: text behind the closing quote; put the whole value in one pair\n");
    free(printed);
    config_problems_free(&problems);
}
END_TEST

START_TEST(flags_that_nobody_knows_are_warned_of_where_they_are_near)
{
    const char *const environ[] = {"COALESE_ENABLED=0", NULL};
    struct config_problems problems = {0};
    struct config *cfg;
    char *printed;

    write_text("dac.env", "COALESE_ENABLED=0\nOPEN_AI_X_RSP=\nOPEN_AI_RPS=5\nLANG=C\n"
                          "OPEN_AI_API_KEY=x\nPATH=/bin\nRPS=1\n");
    write_text("dac.conf", WITH_ENV);
    ck_assert_int_eq(config_load("dac.conf", environ, &cfg, &problems), DAC_OK);
    printed = problem_text(&problems);
    ck_assert_str_eq(
        printed, "dac.env:1: warning: unknown flag \"COALESE_ENABLED\" has no effect; "
                 "did you mean \"COALESCE_ENABLED\"?\n"
                 "dac.env:2: warning: unknown flag \"OPEN_AI_X_RSP\" has no effect; "
                 "did you mean \"OPEN_AI_X_RPS\"?\n"
                 "dac.env:3: warning: unknown flag \"OPEN_AI_RPS\" has no effect; "
                 "did you mean \"OPEN_AI_X_RPS\"?\n");
    ck_assert(cfg->coalesce_enabled);
    free(printed);
    config_free(cfg);
    config_problems_free(&problems);
}
END_TEST

/* Lines that systemd's EnvironmentFile= reads in the same way (systemd.exec(5)). */
static const struct {
    const char *line;
    const char *rps;
} env_lines[] = {
    {"OPEN_AI_X_RPS=7", "7"},
    {"OPEN_AI_X_RPS=7\n", "7"},
    {"OPEN_AI_X_RPS=7\r\n", "7"},
    {"  OPEN_AI_X_RPS=7\n", "7"},
    {"OPEN_AI_X_RPS= 7\n", "7"},
    {"OPEN_AI_X_RPS=7  \n", "7"},
    {"OPEN_AI_X_RPS=\"7\"\n", "7"},
    {"OPEN_AI_X_RPS='7'\n", "7"},
    {"OPEN_AI_X_RPS=7\nOPEN_AI_X_RPS=8\n", "8"},
    {"# OPEN_AI_X_RPS=7\n", "1"},
    {"; OPEN_AI_X_RPS=7\n", "1"},
    {"\n\n\tOPEN_AI_X_RPS=7\n\n", "7"},
    {"OTHER=\"a # b; c\"\nOPEN_AI_X_RPS=7\n", "7"},
    {"OTHER='it \"is\" $HOME'\nOPEN_AI_X_RPS=7\n", "7"},
    {"OTHER=a=b\nOPEN_AI_X_RPS=7\n", "7"},
    {"OTHER=\nOPEN_AI_X_RPS=7\n", "7"},
};

START_TEST(env_file_is_read_as_systemd_does)
{
    struct rate rate = {0};
    struct config *cfg;

    write_text("dac.env", env_lines[_i].line);
    cfg = load_good(WITH_ENV, NULL);
    ck_assert_int_eq(config_facts(cfg, find_rate, &rate), DAC_OK);
    ck_assert_str_eq(rate.value, env_lines[_i].rps);
    config_free(cfg);
}
END_TEST

/* --- printing ----------------------------------------------------------------------- */

static char *printed_config(const struct config *cfg)
{
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);

    config_print(cfg, f);
    fclose(f);
    return text;
}

/* The line that begins with `name`, up to its comment. */
static void check_line(const char *text, const char *expected)
{
    ck_assert_msg(strstr(text, expected) != NULL, "no \"%s\" in:\n%s", expected, text);
}

START_TEST(print_masks_keys_and_reads_back)
{
    const char *const environ[] = {"COALESCE_ENABLED=0", NULL};
    struct config *cfg, *again;
    char *first, *second;

    write_text("key", "sk-verysecret");
    cfg = load_good(NO_ENV "workers = 3\nname = x\nlisten = [::]:1, unix:/a;b\n"
                           "header_timeout = 90s\nkeepalive_timeout = 2h\n"
                           "[memory]\nshm_size = 65537k\n"
                           "[store]\nsqlite = \"/a ; \\\"b\\\\\"\n"
                           "[provider p]\nbase_url = http://h\napi_key_file = key\n"
                           "models = a*, b\nrps = 0.25\n",
                    environ);
    first = printed_config(cfg);
    ck_assert_ptr_null(strstr(first, "verysecret"));
    check_line(first, "\nlisten = \"[::]:1, unix:/a;b\" ");
    check_line(first, "\nheader_timeout = 90s                     ; dac.conf:6\n");
    check_line(first, "\nkeepalive_timeout = 2h ");
    check_line(first, "\nshm_size = 65537k ");
    check_line(first, "\nsqlite = \"/a ; \\\"b\\\\\" ");
    check_line(first, "\nbody_timeout = 30s                       ; default\n");
    check_line(first, "\nmodels = a*, b ");
    check_line(first, "\nrps = 0.25 ");
    check_line(first, "\n; API key: ***\n");
    check_line(
        first,
        "\n; COALESCE_ENABLED = off                 ; environment COALESCE_ENABLED\n");

    again = load_good(first, environ);
    ck_assert_str_eq(again->sqlite, cfg->sqlite);
    ck_assert_str_eq(again->listen.items[1].text, "unix:/a;b");
    ck_assert_str_eq(again->providers[0].api_key, "sk-verysecret");
    ck_assert_uint_eq(again->shm_size_bytes, cfg->shm_size_bytes);
    second = printed_config(again);
    ck_assert_ptr_nonnull(strstr(second, "\nrps = 0.25 "));
    free(first);
    free(second);
    config_free(cfg);
    config_free(again);
}
END_TEST

/* --- junk --------------------------------------------------------------------------- */

/* Lines put together from pieces that mean something, and bytes changed at random. */
START_TEST(survives_junk)
{
    static const char *const pieces[] = {
        "[server]", "[provider ", "p]",       "listen",
        "=",        " = ",        "\n",       "\n",
        "models",   "a,b",        "\"",       "\\\"",
        " ;",       "#",          "[::1]:1",  "unix:/",
        "http://h", "rps",        "1.5",      "s",
        "ms",       "10",         "k",        ",",
        "\0",       "\xff",       "\t",       "env_file",
        "\r\n",     "[",          "]",        "burst",
        "base_url", "auto",       "name",     "9999999999999999999999",
        "-",        "workers",    "[flight]",
    };

    srand(11);
    for (int round = 0; round < 3000; round++) {
        struct config_problems problems = {0};
        char text[2048];
        size_t n = 0;
        struct config *cfg;
        enum dac_err rc;

        for (int k = rand() % 60; k > 0; k--) {
            const char *p = pieces[(size_t)rand() % DAC_ARRAY_LEN(pieces)];
            size_t len = *p ? strlen(p) : 1; /* the NUL itself */

            memcpy(text + n, p, len);
            n += len;
        }
        for (int k = rand() % 3; k > 0 && n > 0; k--)
            text[(size_t)rand() % n] = (char)rand();
        write_bytes(round % 2 ? "dac.conf" : "dac.env", text, n);
        if (round % 2 == 0)
            write_text("dac.conf", WITH_ENV);
        rc = config_load("dac.conf", NULL, &cfg, &problems);
        ck_assert(rc == (problems.errors > 0 ? DAC_E_INVALID : DAC_OK));
        if (rc == DAC_OK)
            free(printed_config(cfg));
        config_free(cfg);
        config_problems_free(&problems);
    }
}
END_TEST

int main(void)
{
    Suite *s = suite_create("config_sources");
    TCase *tc = tcase_create("sources");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(tc, enter_folder, leave_folder);
    tcase_set_timeout(tc, 60);
    tcase_add_loop_test(tc, env_file_wins_over_environment_over_file, 0,
                        (int)DAC_ARRAY_LEN(sources));
    tcase_add_loop_test(tc, each_level_wins_over_those_below_and_is_named, 0,
                        (int)DAC_ARRAY_LEN(levels));
    tcase_add_test(tc, bad_variables_name_their_source);
    tcase_add_test(tc, flags_that_nobody_knows_are_warned_of_where_they_are_near);
    tcase_add_loop_test(tc, env_file_is_read_as_systemd_does, 0,
                        (int)DAC_ARRAY_LEN(env_lines));
    tcase_add_test(tc, print_masks_keys_and_reads_back);
    tcase_add_test(tc, survives_junk);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
