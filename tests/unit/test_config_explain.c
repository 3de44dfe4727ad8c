/*
 * What a setting is, told from the table: by every name that people give it.
 */
#include <json-c/json.h>

#include "config/describe.h"
#include "config/live.h"
#include "config/settings.h"
#include "config_fixture.h"

static const struct {
    const char *what;
    size_t n;
    const char *text; /* of the answer, or the nearest name */
} asked[] = {
    {"workers", 1,
     "server.workers\n"
     "  processes that serve clients; auto is one per core\n"
     "\n"
     "  type      whole number\n"
     "  default   auto\n"
     "  range     1 to 28, or auto\n"
     "  change    new workers: a reload starts those that have it; the old ones end "
     "their "
     "streams\n"},
    {"server.workers", 1, "server.workers\n"},
    {"shm_size", 1,
     "  range     4m to 64g\n"
     "  unit      bytes, or a number and one of k, m, g: 64k, 8m\n"
     "  change    restart: only a restart of the service changes it\n"},
    {"provider.rps", 1, "provider.NAME.rps\n"},
    {"provider.acme.v1.rps", 1, "\n  variable  NAME_RPS\n"},
    {"ACME_RPS", 1, "provider.NAME.rps\n"},
    {"base_url", 1, "\n  default   none, it must be set\n"},
    {"postgres", 1, "\n  secret    its value is never shown\n"},
    {"log_level", 1, "\n  range     error, warn, info, debug\n"},
    {"STREAM_FANOUT_ENABLED", 1, "\n  variable  STREAM_FANOUT_ENABLED\n"},
    {"memory", 2, "memory.max_flights\n"},
    {"wrokers", 0, "workers"},
    {"server.wrokers", 0, "workers"},
    {"fligth", 0, "flight"},
    {"COALESCE_ENABLE", 0, "COALESCE_ENABLED"},
    {"server.rps", 0, "rps"},
    {"server.a.workers", 0, "workers"},
    {"something_else", 0, NULL},
    {"_RPS", 0, "rps"},
    {"", 0, NULL},
    {".", 0, NULL},
};

START_TEST(settings_are_found_by_their_names)
{
    struct buf out = BUF_INIT(1 << 20);
    const char *near;
    size_t n = config_explain(asked[_i].what, false, &out, &near);

    ck_assert_uint_eq(n, asked[_i].n);
    if (n > 0)
        ck_assert_msg(strstr(buf_cstr(&out), asked[_i].text) != NULL, "%s", out.data);
    else if (asked[_i].text == NULL)
        ck_assert_ptr_null(near);
    else
        ck_assert_str_eq(near, asked[_i].text);
    ck_assert(!out.failed && (n > 0 || out.len == 0));
    buf_free(&out);
}
END_TEST

START_TEST(all_settings_as_json)
{
    struct buf out = BUF_INIT(1 << 20);
    struct json_object *all, *list;
    const char *near;

    ck_assert_uint_eq(config_explain(NULL, true, &out, &near), setting_count);
    all = json_tokener_parse(buf_cstr(&out));
    ck_assert(json_object_object_get_ex(all, "settings", &list));
    ck_assert_uint_eq(json_object_array_length(list), setting_count);
    for (size_t i = 0; i < setting_count; i++) {
        struct json_object *one = json_object_array_get_idx(list, i), *v;

        ck_assert(json_object_object_get_ex(one, "name", &v));
        ck_assert_str_eq(json_object_get_string(v), settings[i].name);
        ck_assert(json_object_object_get_ex(one, "help", &v));
        ck_assert_str_eq(json_object_get_string(v), settings[i].help);
        ck_assert(json_object_object_get_ex(one, "reload", &v) && v != NULL);
        ck_assert(json_object_object_get_ex(one, "default", &v));
        ck_assert((v == NULL) == (settings[i].def == NULL));
    }
    json_object_put(all);
    buf_free(&out);
}
END_TEST

/* The defaults are those of an empty file, and a provider's those of an empty section;
 * what the machine's own env file says is left out. */
START_TEST(defaults_are_those_of_an_empty_file)
{
    struct config *empty = load_good(NO_ENV, NULL), *none, *of_provider;
    struct config *cfg = load_good(NO_ENV "[provider a]\nbase_url = http://h\n", NULL);

    ck_assert_int_eq(config_defaults(NULL, &none), DAC_OK);
    ck_assert_uint_eq(config_diff(none, empty, NULL, NULL), 1); /* env_file */
    ck_assert_int_eq(config_defaults(cfg, &of_provider), DAC_OK);
    ck_assert_uint_eq(config_diff(of_provider, cfg, NULL, NULL), 2); /* and base_url */
    config_free(empty);
    config_free(none);
    config_free(of_provider);
    config_free(cfg);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("config_explain");
    TCase *tc = tcase_create("explain");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(tc, enter_folder, leave_folder);
    tcase_add_loop_test(tc, settings_are_found_by_their_names, 0,
                        (int)DAC_ARRAY_LEN(asked));
    tcase_add_test(tc, all_settings_as_json);
    tcase_add_test(tc, defaults_are_those_of_an_empty_file);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
