/*
 * What a changed configuration takes: differences and their classes, values that stay,
 * and those that go to running processes as words.
 */
#include "config_fixture.h"

#include "config/live.h"

#define BASE                                                                             \
    NO_ENV "listen = 127.0.0.1:8000\nworkers = 2\n"                                      \
           "[memory]\nshm_size = 48m\n"                                                  \
           "[provider a]\nbase_url = http://h\nrps = 2\n"                                \
           "[provider b]\nbase_url = http://h\n"

struct changes {
    char text[2048];
};

static void note(void *arg, const struct config_change *c)
{
    static const char *const classes[] = {"in place", "new workers", "restart"};
    struct changes *out = arg;
    size_t n = strlen(out->text);

    snprintf(out->text + n, sizeof(out->text) - n, "%s: %s -> %s (%s)\n", c->name,
             c->from, c->to, classes[c->reload]);
}

static struct config *changed(const char *from, const char *to)
{
    char *text = strdup(BASE), *at = strstr(text, from), *both;
    struct config *cfg;

    ck_assert_ptr_nonnull(at);
    both = malloc(strlen(BASE) + strlen(to) + 1);
    sprintf(both, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    cfg = load_good(both, NULL);
    free(both);
    free(text);
    return cfg;
}

static const struct {
    const char *from, *to, *want;
} rows[] = {
    {"workers = 2", "workers = 2", ""},
    {"workers = 2", "workers = 3", "server.workers: 2 -> 3 (new workers)\n"},
    {"workers = 2", "workers = 2\nlog_level = debug",
     "server.log_level: info -> debug (in place)\n"},
    {"workers = 2", "workers = 2\nkeepalive_timeout = 1m", ""},
    {"shm_size = 48m", "shm_size = 64m", "memory.shm_size: 48m -> 64m (restart)\n"},
    {"127.0.0.1:8000", "127.0.0.1:8001",
     "server.listen: 127.0.0.1:8000 -> 127.0.0.1:8001 (new workers)\n"},
    {"rps = 2", "rps = 2.5\nconcurrency = 3",
     "provider.a.rps: 2 -> 2.5 (in place)\n"
     "provider.a.burst: 2 -> 3 (in place)\n"
     "provider.a.concurrency: 64 -> 3 (in place)\n"},
    {"[provider b]\nbase_url = http://h\n", "",
     "provider.b: there -> gone (new workers)\n"},
    {"[provider b]", "[provider c]",
     "provider.b: there -> gone (new workers)\n"
     "provider.c: gone -> there (new workers)\n"},
    {"[memory]", "[store]\npostgres = host=/nowhere password=secret\n[memory]",
     "store.postgres:  -> *** (restart)\n"},
};

START_TEST(differences_say_what_they_take)
{
    struct config *from = load_good(BASE, NULL),
                  *to = changed(rows[_i].from, rows[_i].to);
    struct changes c = {0};
    size_t n = config_diff(from, to, note, &c), lines = 0;

    ck_assert_str_eq(c.text, rows[_i].want);
    for (const char *s = c.text; *s; s++)
        lines += *s == '\n';
    ck_assert_uint_eq(n, lines);
    config_free(from);
    config_free(to);
}
END_TEST

START_TEST(order_of_providers_counts)
{
    static const char swapped[] = NO_ENV
        "listen = 127.0.0.1:8000\nworkers = 2\n[memory]\nshm_size = 48m\n"
        "[provider b]\nbase_url = http://h\n[provider a]\nbase_url = http://h\nrps = 2\n";
    struct config *from = load_good(BASE, NULL), *to = load_good(swapped, NULL);
    struct changes c = {0};

    ck_assert_uint_eq(config_diff(from, to, note, &c), 1);
    ck_assert_ptr_nonnull(strstr(c.text, "order of providers"));
    config_free(from);
    config_free(to);
}
END_TEST

/* Files that keep their name: a key that was renewed, roots that were. */
START_TEST(what_is_in_files_counts)
{
    static const char text[] = NO_ENV
        "[provider a]\nbase_url = https://h\napi_key_file = key\nca_file = ca.pem\n";
    struct config *from, *to;
    struct changes c = {0};

    write_text("key", "first-secret\n");
    write_certificate("ca.pem");
    from = load_good(text, NULL);
    to = load_good(text, NULL);
    ck_assert_uint_eq(config_diff(from, to, note, &c), 0);
    config_free(to);
    write_text("key", "second-secret\n");
    write_certificate("ca.pem");
    to = load_good(text, NULL);
    ck_assert_uint_eq(config_diff(from, to, note, &c), 2);
    ck_assert_ptr_nonnull(strstr(c.text, "API key: *** -> *** (new workers)"));
    ck_assert_ptr_nonnull(strstr(c.text, "ca_file"));
    ck_assert_ptr_null(strstr(c.text, "secret"));
    config_free(from);
    config_free(to);
}
END_TEST

START_TEST(what_only_a_restart_changes_stays)
{
    struct config *old = load_good(BASE, NULL), *cfg;

    cfg = load_good(NO_ENV "name = other\nlisten = 127.0.0.1:9000\nworkers = 5\n"
                           "[memory]\nshm_size = 64m\nmax_flights = 99\n"
                           "[store]\nsqlite = /elsewhere.db\npostgres = host=/nowhere\n",
                    NULL);
    ck_assert_int_eq(config_keep_fixed(cfg, old), DAC_OK);
    ck_assert_str_eq(cfg->name, "dac-8000");
    ck_assert_uint_eq(cfg->shm_size_bytes, 48u << 20);
    ck_assert_uint_eq(cfg->max_flights, 4096);
    ck_assert_str_eq(cfg->sqlite, "/var/lib/dac/dac.db");
    ck_assert_ptr_null(cfg->postgres);
    ck_assert_uint_eq(cfg->workers, 5);
    ck_assert_str_eq(cfg->listen.items[0].text, "127.0.0.1:9000");
    config_free(old);
    config_free(cfg);
}
END_TEST

START_TEST(words_carry_what_changes_in_place)
{
    static const char *const off[] = {"COALESCE_ENABLED=0", NULL};
    struct config *from, *to = load_good(BASE, NULL);
    uint64_t words[CONFIG_LIVE_MAX];
    struct changes c = {0};

    from = load_good(NO_ENV "log_level = error\nmax_connections = 7\nworkers = 4\n"
                            "[flight]\nresult_ttl = 90s\non_fetcher_death = fail\n"
                            "[store]\ndone_timeout = 3s\n",
                     off);
    ck_assert_uint_le(config_live_words(from, words), CONFIG_LIVE_MAX);
    config_live_apply(to, words);
    ck_assert_int_eq(to->log_level, LOG_LEVEL_ERROR);
    ck_assert_uint_eq(to->max_connections, 7);
    ck_assert_uint_eq(to->result_ttl_ns, UINT64_C(90000000000));
    ck_assert_uint_eq(to->done_timeout_ns, UINT64_C(3000000000));
    ck_assert_int_eq(to->on_fetcher_death, CONFIG_DEATH_FAIL);
    ck_assert(!to->coalesce_enabled);
    ck_assert(to->stream_fanout_enabled);
    ck_assert_uint_eq(to->workers, 2); /* not in place */
    config_diff(from, to, note, &c);
    ck_assert_ptr_null(strstr(c.text, "server.log_level"));
    ck_assert_ptr_null(strstr(c.text, "flight."));
    config_free(from);
    config_free(to);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("config_live");
    TCase *t = tcase_create("config_live");
    SRunner *r = srunner_create(s);
    int failed;

    tcase_add_checked_fixture(t, enter_folder, leave_folder);
    tcase_add_loop_test(t, differences_say_what_they_take, 0,
                        sizeof(rows) / sizeof(rows[0]));
    tcase_add_test(t, order_of_providers_counts);
    tcase_add_test(t, what_is_in_files_counts);
    tcase_add_test(t, what_only_a_restart_changes_stays);
    tcase_add_test(t, words_carry_what_changes_in_place);
    suite_add_tcase(s, t);
    srunner_run_all(r, CK_NORMAL);
    failed = srunner_ntests_failed(r);
    srunner_free(r);
    return failed != 0;
}
