/*
 * Configurations of several files: what an include reads, in which order, who wins, and
 * where problems are said to be.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "config/config.h"
#include "tests/unit/config_fixture.h"

static const char *const parts[] = {"conf.d/10-a.conf", "conf.d/20-b.conf",
                                    "conf.d/30-c.conf", "conf.d/loop.conf"};

static void enter_parts(void)
{
    enter_folder();
    ck_assert_int_eq(mkdir("conf.d", 0700), 0);
}

static void leave_parts(void)
{
    for (size_t i = 0; i < DAC_ARRAY_LEN(parts); i++)
        unlink(parts[i]);
    ck_assert_int_eq(rmdir("conf.d"), 0);
    leave_folder();
}

/* What config_load() finds wrong with `text`, which must be something. */
static void assert_refused(const char *text, const char *expected)
{
    struct config_problems problems = {0};
    struct config *cfg;
    char *printed;

    write_text("dac.conf", text);
    ck_assert_int_eq(config_load("dac.conf", NULL, &cfg, &problems), DAC_E_INVALID);
    ck_assert_ptr_null(cfg);
    printed = problem_text(&problems);
    ck_assert_str_eq(printed, expected);
    free(printed);
    config_problems_free(&problems);
}

START_TEST(later_files_win_in_the_order_of_their_names)
{
    write_text("conf.d/20-b.conf", "[flight]\nerror_ttl = 4s\nresult_ttl = 7s\n");
    write_text("conf.d/10-a.conf", "[flight]\nerror_ttl = 3s\n[server]\nworkers = 3\n");
    struct config *cfg =
        load_good("[flight]\nerror_ttl = 1s\ninclude conf.d/*.conf\n"
                  "chat_result_ttl = 5s ; the section goes on behind the include\n",
                  NULL);

    ck_assert_uint_eq(cfg->error_ttl_ns, 4 * NS_PER_S);
    ck_assert_uint_eq(cfg->result_ttl_ns, 7 * NS_PER_S);
    ck_assert_uint_eq(cfg->chat_result_ttl_ns, 5 * NS_PER_S);
    ck_assert_uint_eq(cfg->workers, 3);
    ck_assert_uint_eq(cfg->files.count, 3);
    ck_assert_str_eq(cfg->files.items[0], "dac.conf");
    ck_assert_str_eq(cfg->files.items[1], "conf.d/10-a.conf");
    config_free(cfg);
}
END_TEST

START_TEST(what_stands_behind_an_include_wins_over_it)
{
    write_text("conf.d/10-a.conf", "[server]\nworkers = 3\n");
    struct config *cfg = load_good(
        "include \"conf.d/10-a.conf\" ; a comment\n[server]\nworkers = 5\n", NULL);

    ck_assert_uint_eq(cfg->workers, 5);
    config_free(cfg);
}
END_TEST

START_TEST(a_provider_may_be_spread_over_files)
{
    write_text("conf.d/10-a.conf", "[provider p]\nrps = 3\n[provider q]\n"
                                   "base_url = http://q\n");
    struct config *cfg =
        load_good("[provider p]\nbase_url = http://p\ninclude conf.d/*.conf\n", NULL);

    ck_assert_uint_eq(cfg->provider_count, 2);
    ck_assert_str_eq(cfg->providers[0].base_url, "http://p");
    ck_assert(cfg->providers[0].rps == 3.0);
    ck_assert_str_eq(cfg->providers[1].name, "q");
    config_free(cfg);
}
END_TEST

START_TEST(paths_start_at_the_folder_of_their_file)
{
    char expected[128];

    write_text("conf.d/10-a.conf", "[store]\nsqlite = data/x.db\n");
    struct config *cfg = load_good("include conf.d/*.conf\n", NULL);

    snprintf(expected, sizeof(expected), "conf.d/data/x.db");
    ck_assert_str_eq(cfg->sqlite, expected);
    config_free(cfg);
}
END_TEST

START_TEST(a_pattern_may_match_nothing)
{
    config_free(load_good("include conf.d/*.conf\ninclude nowhere/*.conf\n", NULL));
}
END_TEST

START_TEST(problems_name_their_file)
{
    write_text("conf.d/10-a.conf",
               "[server]\nworkers = 0\n[flight]\nabandon_grace = 2m\n");
    write_text("conf.d/20-b.conf", "[server]\nworkrs = 2\nworkers = 2\nworkers = 3\n");
    assert_refused(
        "[server]\nbody_max = 1\ninclude conf.d/*.conf\nheader_max = 1\n",
        "dac.conf:2: body_max: \"1\" is out of range; choose 1k to 64m\n"
        "dac.conf:4: header_max: \"1\" is out of range; choose 1k to 1m\n"
        "conf.d/10-a.conf:2: workers: \"0\" is out of range; choose 1 to 28, or "
        "auto\n"
        "conf.d/10-a.conf:4: abandon_grace: 2m is longer than "
        "abandon_grace_max, which is 60s; make it at most that\n"
        "conf.d/20-b.conf:2: unknown setting \"workrs\" in [server]; did you "
        "mean \"workers\"?\n"
        "conf.d/20-b.conf:4: workers: is set twice, first on line 3; keep "
        "one\n");
}
END_TEST

START_TEST(what_cannot_be_included)
{
    write_text("conf.d/loop.conf", "include ../dac.conf\ninclude loop.conf\n");
    assert_refused(
        "include gone.conf\ninclude\ninclude \"open\ninclude conf.d/loop.conf\n"
        "include conf.d/*.conf\ninclude = x\ninclude ; nothing\n"
        "include conf.d\n",
        "dac.conf:1: include: there is no file \"gone.conf\"; create it or "
        "remove this line\n"
        "dac.conf:2: include names no file; write it like \"include "
        "conf.d/*.conf\"\n"
        "dac.conf:3: value has no closing quote; add one, or put \\ before a "
        "quote in it\n"
        "dac.conf:5: include: \"conf.d/loop.conf\" is read already; include "
        "it once\n"
        "dac.conf:6: write \"include PATTERN\" without \"=\"\n"
        "dac.conf:7: include names no file; write it like \"include "
        "conf.d/*.conf\"\n"
        "dac.conf:8: include: could not read \"conf.d\": not a regular file; put a "
        "file there that dacd can read\n"
        "conf.d/loop.conf:1: include: \"conf.d/../dac.conf\" is read already; "
        "include it once\n"
        "conf.d/loop.conf:2: include: \"conf.d/loop.conf\" is read already; "
        "include it once\n");
}
END_TEST

START_TEST(print_names_files)
{
    char *text = NULL;
    size_t n;
    FILE *f;

    write_text("conf.d/10-a.conf", "[server]\n\nworkers = 3\n");
    struct config *cfg =
        load_good("[server]\nbody_max = 2m\ninclude conf.d/*.conf\n", NULL);

    f = open_memstream(&text, &n);
    config_print(cfg, f);
    fclose(f);
    ck_assert_ptr_nonnull(strstr(text, " ; conf.d/10-a.conf:3\n"));
    ck_assert_ptr_nonnull(strstr(text, " ; dac.conf:2\n"));
    free(text);
    config_free(cfg);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("config_include");
    TCase *tc = tcase_create("include");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(tc, enter_parts, leave_parts);
    tcase_add_test(tc, later_files_win_in_the_order_of_their_names);
    tcase_add_test(tc, what_stands_behind_an_include_wins_over_it);
    tcase_add_test(tc, a_provider_may_be_spread_over_files);
    tcase_add_test(tc, paths_start_at_the_folder_of_their_file);
    tcase_add_test(tc, a_pattern_may_match_nothing);
    tcase_add_test(tc, problems_name_their_file);
    tcase_add_test(tc, what_cannot_be_included);
    tcase_add_test(tc, print_names_files);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
