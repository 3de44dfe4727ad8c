/*
 * config_load(): what files mean, and which problems they have, word by word.
 */
#include <arpa/inet.h>
#include <check.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "base/clock.h"
#include "config_fixture.h"

/* --- good files --------------------------------------------------------------------- */

START_TEST(defaults_are_those_of_the_manual)
{
    struct config *cfg = load_good(NO_ENV, NULL);

    ck_assert_str_eq(cfg->name, "dac-8000");
    ck_assert_ptr_null(cfg->user);
    ck_assert_ptr_null(cfg->env_file);
    ck_assert_uint_eq(cfg->listen.count, 1);
    ck_assert_str_eq(cfg->listen.items[0].text, "127.0.0.1:8000");
    ck_assert(cfg->workers >= 1 && cfg->workers <= 28);
    ck_assert_uint_eq(cfg->header_timeout_ns, 10 * NS_PER_S);
    ck_assert_uint_eq(cfg->body_timeout_ns, 30 * NS_PER_S);
    ck_assert_uint_eq(cfg->body_max_bytes, 1 << 20);
    ck_assert_uint_eq(cfg->header_max_bytes, 16 << 10);
    ck_assert_uint_eq(cfg->keepalive_timeout_ns, 60 * NS_PER_S);
    ck_assert_uint_eq(cfg->client_stall_timeout_ns, 30 * NS_PER_S);
    ck_assert_uint_eq(cfg->drain_timeout_ns, 60 * NS_PER_S);
    ck_assert_uint_eq(cfg->max_connections, 10000);
    ck_assert_uint_eq(cfg->watchdog_timeout_ns, 5 * NS_PER_S);
    ck_assert_int_eq(cfg->log_level, LOG_LEVEL_INFO);
    ck_assert_uint_eq(cfg->shm_size_bytes, 48 << 20);
    ck_assert_uint_eq(cfg->max_flights, 4096);
    ck_assert_str_eq(cfg->sqlite, "/var/lib/dac/dac.db");
    ck_assert_uint_eq(cfg->done_timeout_ns, 10 * NS_PER_S);
    ck_assert_uint_eq(cfg->commit_timeout_ns, 2 * NS_PER_S);
    ck_assert_ptr_null(cfg->postgres);
    ck_assert_uint_eq(cfg->result_ttl_ns, 30 * NS_PER_S);
    ck_assert_uint_eq(cfg->chat_result_ttl_ns, 0);
    ck_assert_uint_eq(cfg->flight_max_bytes, 8 << 20);
    ck_assert_uint_eq(cfg->error_ttl_ns, 2 * NS_PER_S);
    ck_assert_uint_eq(cfg->abandon_grace_ns, 100 * NS_PER_MS);
    ck_assert_uint_eq(cfg->abandon_grace_max_ns, 60 * NS_PER_S);
    ck_assert_uint_eq(cfg->reconnect_grace_ns, 10 * NS_PER_S);
    ck_assert(cfg->coalesce_enabled && cfg->stream_fanout_enabled);
    ck_assert_uint_eq(cfg->provider_count, 0);
    config_free(cfg);
}
END_TEST

START_TEST(provider_defaults_and_lookup)
{
    struct config *cfg = load_good(NO_ENV "[provider a]\n"
                                          "base_url = https://api.example.com/v1//\n"
                                          "models = gpt-4*, o?-mini , exact\n"
                                          "rps = 2.5\n"
                                          "[provider b.b]\n"
                                          "base_url = http://[::1]:8080\n",
                                   NULL);
    const struct config_provider *a = &cfg->providers[0], *b = &cfg->providers[1];

    ck_assert_uint_eq(cfg->provider_count, 2);
    ck_assert_str_eq(a->base_url, "https://api.example.com/v1");
    ck_assert_str_eq(b->base_url, "http://[::1]:8080");
    ck_assert_int_eq(a->dialect, 0);
    ck_assert_int_eq(a->http2, CONFIG_HTTP2_AUTO);
    ck_assert(!a->trace);
    ck_assert_ptr_null(a->api_key);
    ck_assert_ptr_null(a->ca_file);
    ck_assert_uint_eq(a->connect_timeout_ns, 5 * NS_PER_S);
    ck_assert_uint_eq(a->first_token_timeout_ns, 60 * NS_PER_S);
    ck_assert_uint_eq(a->stall_timeout_ns, 30 * NS_PER_S);
    ck_assert_uint_eq(a->retry_deadline_ns, 20 * NS_PER_S);
    ck_assert(a->rps > 2.49 && a->rps < 2.51);
    ck_assert_uint_eq(a->burst, 3);
    ck_assert_uint_eq(a->concurrency, 64);
    ck_assert(b->rps == 0);
    ck_assert_uint_eq(b->burst, 1);

    ck_assert_ptr_eq(config_provider_find(cfg, "b.b"), b);
    ck_assert_ptr_null(config_provider_find(cfg, "b"));
    ck_assert(config_model_matches(a, "gpt-4/x") && config_model_matches(a, "o3-mini"));
    ck_assert(!config_model_matches(a, "exact2") && !config_model_matches(a, ""));
    ck_assert_ptr_eq(config_provider_for_model(cfg, "exact"), a);
    ck_assert_ptr_eq(config_provider_for_model(cfg, "other"), b);
    config_free(cfg);
}
END_TEST

START_TEST(values_as_people_write_them)
{
    struct config *cfg =
        load_good("\xef\xbb\xbf# comment\r\n"
                  "; another\r\n"
                  "  [server] ; the first\r\n"
                  "name=a.b_c-1\t; with a comment\r\n"
                  "env_file = ; empty, with a comment\r\n"
                  "listen = [::1]:9000 ,127.0.0.1:9001,unix:/x.sock ; 3\r\n"
                  "header_timeout = 1.5s\n"
                  "  drain_timeout   =   0  \n"
                  "body_max = 64K\n"
                  "[ store ]\n"
                  "sqlite = \"/a \\\"b\\\" ; c\\\\d\" ; quoted\n"
                  "[provider p]\n"
                  "models = a;b,#c # d\n"
                  "base_url = HTTPS://h_1.example-x:65535/a/b%20c\n"
                  "rps = 0.001\n"
                  "http2 = off\n"
                  "trace = on",
                  NULL);

    ck_assert_str_eq(cfg->name, "a.b_c-1");
    ck_assert_ptr_null(cfg->env_file);
    ck_assert_uint_eq(cfg->listen.count, 3);
    ck_assert_int_eq(cfg->listen.items[0].addr.ss_family, AF_INET6);
    ck_assert_uint_eq(
        ntohs(((struct sockaddr_in6 *)&cfg->listen.items[0].addr)->sin6_port), 9000);
    ck_assert_uint_eq(ntohs(((struct sockaddr_in *)&cfg->listen.items[1].addr)->sin_port),
                      9001);
    ck_assert_uint_eq(
        ntohl(((struct sockaddr_in *)&cfg->listen.items[1].addr)->sin_addr.s_addr),
        INADDR_LOOPBACK);
    ck_assert_str_eq(((struct sockaddr_un *)&cfg->listen.items[2].addr)->sun_path,
                     "/x.sock");
    ck_assert_uint_eq(cfg->header_timeout_ns, 1500 * NS_PER_MS);
    ck_assert_uint_eq(cfg->drain_timeout_ns, 0);
    ck_assert_uint_eq(cfg->body_max_bytes, 65536);
    ck_assert_str_eq(cfg->sqlite, "/a \"b\" ; c\\d");
    ck_assert_uint_eq(cfg->providers[0].models.count, 2);
    ck_assert_str_eq(cfg->providers[0].models.items[0], "a;b");
    ck_assert_str_eq(cfg->providers[0].models.items[1], "#c # d");
    ck_assert_uint_eq(cfg->providers[0].burst, 1);
    ck_assert_int_eq(cfg->providers[0].http2, CONFIG_HTTP2_OFF);
    ck_assert(cfg->providers[0].trace);
    config_free(cfg);
}
END_TEST

static const struct {
    const char *listen;
    const char *name;
} names[] = {
    {"[::]:8443, 127.0.0.1:1", "dac-8443"},
    {"unix:/run/dac/chat.sock", "dac-chat.sock"},
    {"unix:/run/d\xc3\xa9j\xc3\xa0 vu", "dac-d--j---vu"},
    {"unix:/run/0123456789012345678901234567890123456789012345678901234567890123456789",
     "dac-01234567890123456789012345678901234567890123"},
};

START_TEST(name_comes_from_the_first_address)
{
    char text[512];
    struct config *cfg;

    snprintf(text, sizeof(text), NO_ENV "listen = %s\n", names[_i].listen);
    cfg = load_good(text, NULL);
    ck_assert_str_eq(cfg->name, names[_i].name);
    config_free(cfg);
}
END_TEST

START_TEST(relative_paths_start_at_the_file)
{
    struct config_problems problems = {0};
    struct config *cfg;
    char path[128], expected[128];

    write_text("key", "sk-1234\r\n");
    write_text("dac.conf", NO_ENV "[store]\nsqlite = data/x.db\n[provider p]\n"
                                  "base_url = http://h\napi_key_file = key\n");
    snprintf(path, sizeof(path), "%s/dac.conf", folder);
    ck_assert_int_eq(chdir("/"), 0);
    ck_assert_int_eq(config_load(path, NULL, &cfg, &problems), DAC_OK);
    ck_assert_int_eq(chdir(folder), 0);
    ck_assert_uint_eq(problems.count, 0);
    snprintf(expected, sizeof(expected), "%s/data/x.db", folder);
    ck_assert_str_eq(cfg->sqlite, expected);
    ck_assert_str_eq(cfg->providers[0].api_key, "sk-1234");
    ck_assert_str_eq(cfg->path, path);
    config_free(cfg);
}
END_TEST

/* --- bad files ---------------------------------------------------------------------- */

#define P(text) NO_ENV "[provider p]\n" text "base_url = http://h\n"

static const struct {
    const char *text;
    const char *problems;
} bad[] = {
    {NO_ENV "header_timout = 1s\n",
     "dac.conf:3: unknown setting \"header_timout\" in [server]; did you mean "
     "\"header_timeout\"?\n"},
    {NO_ENV "xyzzy = 1\n",
     "dac.conf:3: unknown setting \"xyzzy\" in [server]; remove it (\"dacctl config "
     "explain server\" tells those that there are)\n"},
    {NO_ENV "result_ttl = 1s\nrps = 1\nCOALESCE_ENABLED = 0\n",
     "dac.conf:3: \"result_ttl\" is no setting of [server]; move it to [flight]\n"
     "dac.conf:4: \"rps\" is no setting of [server]; move it to [provider NAME]\n"
     "dac.conf:5: \"COALESCE_ENABLED\" is a flag; set it in env_file or the "
     "environment\n"},
    {P("bsae_url = x\nlisten = 1\n"),
     "dac.conf:4: unknown setting \"bsae_url\" in [provider p]; did you mean "
     "\"base_url\"?\n"
     "dac.conf:5: \"listen\" is no setting of [provider p]; move it to [server]\n"},
    {NO_ENV "[sever]\nname = 1\n[flihgt]\n[povider x]\n[redis]\nx = 1\n",
     "dac.conf:3: unknown section [sever]; did you mean [server]?\n"
     "dac.conf:5: unknown section [flihgt]; did you mean [flight]?\n"
     "dac.conf:6: unknown section [povider]; did you mean [provider NAME]?\n"
     "dac.conf:7: unknown section [redis]; there are [server], [memory], [store], "
     "[flight] and [provider NAME]\n"},
    {NO_ENV "[sever]\nworkers = many\n[povider x]\nrps = x\nlisten = 1\n[provider a b]\n"
            "burst = y\n[provider]\nbrust = 1\n[redis]\nworkers = none\n",
     "dac.conf:3: unknown section [sever]; did you mean [server]?\n"
     "dac.conf:4: workers: \"many\" is not a whole number; choose 1 to 28, or auto\n"
     "dac.conf:5: unknown section [povider]; did you mean [provider NAME]?\n"
     "dac.conf:6: rps: \"x\" is not a number like 10 or 0.5; choose 0.0001 to 100000, or "
     "0 for no limit\n"
     "dac.conf:7: \"listen\" is no setting of [provider x]; move it to [server]\n"
     "dac.conf:8: provider name \"a b\" is not valid; use a letter, then up to 30 "
     "letters, digits, \".\", \"_\" or \"-\"\n"
     "dac.conf:9: burst: \"y\" is not a whole number; choose 1 to 100000, or auto\n"
     "dac.conf:10: [provider] has no name; write [provider NAME]\n"
     "dac.conf:11: unknown setting \"brust\" in [provider]; did you mean \"burst\"?\n"
     "dac.conf:12: unknown section [redis]; there are [server], [memory], [store], "
     "[flight] and [provider NAME]\n"},
    {"a = 1\nword\n= 2\n[]\nb = 2\n[server\nc = 3\n[server] d\nenv_file =\n[server x]\n",
     "dac.conf:1: setting before the first section; begin with one like [server]\n"
     "dac.conf:2: no \"=\" in this line; write \"name = value\", or begin a comment with "
     ";\n"
     "dac.conf:3: no name before \"=\"; write \"name = value\"\n"
     "dac.conf:4: section has no name; write it like [server]\n"
     "dac.conf:6: section has no closing bracket; write it like [server]\n"
     "dac.conf:8: text behind a section; put it on a line of its own\n"
     "dac.conf:10: section [server] takes no name; write [server]\n"
     "dac.conf:10: this section is there twice; move its settings to line 8\n"},
    {NO_ENV "workers = 2\nworkers = x\n[server]\nworkers = 3\n",
     "dac.conf:4: workers: is set twice, first on line 3; keep one\n"
     "dac.conf:5: this section is there twice; move its settings to line 1\n"
     "dac.conf:6: workers: is set twice, first on line 3; keep one\n"},
    {NO_ENV "name = \"a\nuser = \"b\" c\nworkers = \"1\";\n",
     "dac.conf:3: value has no closing quote; add one, or put \\ before a quote in it\n"
     "dac.conf:4: text behind the closing quote; put the whole value in one pair\n"
     "dac.conf:5: text behind the closing quote; put the whole value in one pair\n"},
    {NO_ENV "workers = 0\nmax_connections = -1\nheader_timeout = 30\nbody_max = 1.5m\n"
            "drain_timeout = 25h\nlog_level = loud\nbody_timeout =\n",
     "dac.conf:3: workers: \"0\" is out of range; choose 1 to 28, or auto\n"
     "dac.conf:4: max_connections: \"-1\" is not a whole number; choose 1 to 1000000\n"
     "dac.conf:5: header_timeout: \"30\" is not a duration like 30s, 100ms or 5m; choose "
     "100ms to 1h\n"
     "dac.conf:6: body_max: \"1.5m\" is not a size like 4096, 64k or 48m; choose 1k to "
     "64m\n"
     "dac.conf:7: drain_timeout: \"25h\" is out of range; choose 0s to 1d\n"
     "dac.conf:8: log_level: \"loud\" is not known; choose error, warn, info or debug\n"
     "dac.conf:9: body_timeout: \"\" is not a duration like 30s, 100ms or 5m; choose "
     "100ms to 1h\n"},
    {NO_ENV "[store]\npostgres = host=a passwort=hunter2\n",
     "dac.conf:4: postgres: is no connection string of libpq (invalid connection option "
     "...); write it as \"host=... dbname=...\" or postgresql://...\n"},
    {NO_ENV "[store]\npostgres = postgresql://u:hunter2@h:1/d?x=y\n",
     "dac.conf:4: postgres: is no connection string of libpq (invalid URI query "
     "parameter: ...); write it as \"host=... dbname=...\" or postgresql://...\n"},
    {NO_ENV "[store]\npostgres = host=a,b sslmode=hunter2\n",
     "dac.conf:4: postgres: libpq refuses it (invalid sslmode value...)\n"},
    {NO_ENV "[store]\npostgres = host=a,b port=1,2,3\n",
     "dac.conf:4: postgres: libpq refuses it (could not match 3 port numbers to 2 "
     "hosts...)\n"},
    {NO_ENV "[store]\npostgres = postgresql://u:hunter2@h:99999/\n",
     "dac.conf:4: postgres: libpq refuses it (invalid port number...)\n"},
    {NO_ENV "workers = many\n[memory]\nshm_size = 99999999999g\nmax_flights = 8\n",
     "dac.conf:3: workers: \"many\" is not a whole number; choose 1 to 28, or auto\n"
     "dac.conf:5: shm_size: \"99999999999g\" is not a size like 4096, 64k or 48m; choose "
     "4m to 64g\n"
     "dac.conf:6: max_flights: \"8\" is out of range; choose 16 to 65536\n"},
    {NO_ENV "listen = localhost:8000\n",
     "dac.conf:3: listen: \"localhost:8000\" is not an address; write it like "
     "127.0.0.1:8000, [::1]:8000 or unix:/path\n"},
    {NO_ENV "listen = 127.0.0.1:1, ::1:80\n",
     "dac.conf:3: listen: \"::1:80\" is not an address; write it like 127.0.0.1:8000, "
     "[::1]:8000 or unix:/path\n"},
    {NO_ENV "listen = 127.0.0.1:0, 1.2.3.4:5, here, unix:x\n",
     "dac.conf:3: listen: \"127.0.0.1:0\" has no port from 1 to 65535 behind its last "
     "colon; and listen: \"here\" is not an address; write it like 127.0.0.1:8000, "
     "[::1]:8000 or unix:/path; and listen: \"unix:x\" has no absolute path; write it "
     "like unix:/run/dac/dac.sock\n"},
    {NO_ENV "listen = 127.0.0.1:0\n",
     "dac.conf:3: listen: \"127.0.0.1:0\" has no port from 1 to 65535 behind its last "
     "colon\n"},
    {NO_ENV "listen = 1.2.3.4:5,1.2.3.4:05\n",
     "dac.conf:3: listen: \"1.2.3.4:05\" is there twice; name it once\n"},
    {NO_ENV "listen = unix:dac.sock\n",
     "dac.conf:3: listen: \"unix:dac.sock\" has no absolute path; write it like "
     "unix:/run/dac/dac.sock\n"},
    {NO_ENV "listen = 1.2.3.4:5,\n", "dac.conf:3: listen: \"\" is not an address; write "
                                     "it like 127.0.0.1:8000, [::1]:8000 "
                                     "or unix:/path\n"},
    {"[serve]\n[x]\n", "dac.conf:1: unknown section [serve]; did you mean [server]?\n"
                       "dac.conf:2: unknown section [x]; there are [server], [memory], "
                       "[store], [flight] and [provider NAME]\n"},
    {P("api_key = hunter2\nmodel = x\nconnect_timeout_ms = 5\n"),
     "dac.conf:4: unknown setting \"api_key\" in [provider p]; did you mean "
     "\"api_key_file\"?\n"
     "dac.conf:5: unknown setting \"model\" in [provider p]; did you mean \"models\"?\n"
     "dac.conf:6: unknown setting \"connect_timeout_ms\" in [provider p]; did you mean "
     "\"connect_timeout\"?\n"},
    {NO_ENV "[store]\nspool = /x\nsqlite = /x\n",
     "dac.conf:4: spool: \"/x\" is the file of sqlite; name another one\n"},
    {NO_ENV "name = ../x\n", "dac.conf:3: name: \"../x\" is not valid; use up to 48 "
                             "letters, digits, \".\", \"_\" or "
                             "\"-\", not beginning with \".\"\n"},
    {NO_ENV
     "[store]\nsqlite =\n[flight]\nabandon_grace_max = 50ms\nflight_max_bytes = 48m\n",
     "dac.conf:4: sqlite: is empty; name a database file\n"
     "dac.conf:6: abandon_grace: 100ms is longer than abandon_grace_max, which is 50ms; "
     "make it at most that\n"
     "dac.conf:7: flight_max_bytes: 48m is not below shm_size, which is 48m; lower it or "
     "raise shm_size in "
     "[memory]\n"},
    {NO_ENV "[provider]\n[provider 1x]\n[provider a b]\n[provider x]\nbase_url=http://h\n"
            "[provider x]\nrps=x\n[provider y]\n",
     "dac.conf:3: [provider] has no name; write [provider NAME]\n"
     "dac.conf:4: provider name \"1x\" is not valid; use a letter, then up to 30 "
     "letters, "
     "digits, \".\", \"_\" or \"-\"\n"
     "dac.conf:5: provider name \"a b\" is not valid; use a letter, then up to 30 "
     "letters, "
     "digits, \".\", \"_\" or \"-\"\n"
     "dac.conf:8: this section is there twice; move its settings to line 6\n"
     "dac.conf:9: rps: \"x\" is not a number like 10 or 0.5; choose 0.0001 to 100000, or "
     "0 for no limit\n"
     "dac.conf:10: [provider y] has no base_url; add one like base_url = "
     "https://api.example.com/v1\n"},
    {P("rps = -1\nburst = 0\nconcurrency = 257\nhttp2 = on\ndialect = anthropic\n"
       "models = a,,b\nstall_timeout = 0s\n"),
     "dac.conf:4: rps: \"-1\" is not a number like 10 or 0.5; choose 0.0001 to 100000, "
     "or 0 for no limit\n"
     "dac.conf:5: burst: \"0\" is out of range; choose 1 to 100000, or auto\n"
     "dac.conf:6: concurrency: \"257\" is out of range; choose 1 to 256\n"
     "dac.conf:7: http2: \"on\" is not known; choose auto or off\n"
     "dac.conf:8: dialect: \"anthropic\" is not known; choose openai\n"
     "dac.conf:9: models: \"a,,b\" has an empty item; write items separated by single "
     "commas\n"
     "dac.conf:10: stall_timeout: \"0s\" is out of range; choose 10ms to 1h\n"},
    {P("rps = 100001\n"),
     "dac.conf:4: rps: \"100001\" is out of range; choose 0.0001 to 100000, or 0 for no "
     "limit\n"},
    {P("api_key_file = /none/key\nca_file = /none/ca\n"),
     "dac.conf:4: api_key_file: could not read \"/none/key\": No such file or directory; "
     "create it with the key in it\n"
     "dac.conf:5: ca_file: could not read \"/none/ca\": No such file or directory; name "
     "a "
     "PEM file\n"},
    {P("api_key_file = /tmp\n"), "dac.conf:4: api_key_file: could not read \"/tmp\": not "
                                 "a regular file; create it with "
                                 "the key in it\n"},
    {NO_ENV "[provider a-b]\nbase_url=http://h\n[provider A.b]\nbase_url=http://h\n",
     "dac.conf:5: [provider A.b] and [provider a-b] share the flag A_B_RPS; rename "
     "one\n"},
    {"[server]\nenv_file = /none/env\n",
     "dac.conf:2: env_file: could not read \"/none/env\": No such file or directory; "
     "create "
     "it or leave env_file empty\n"},
    {NO_ENV "user = no-such-user-here\n",
     "dac.conf:3: user: there is no user \"no-such-user-here\"; create it or name "
     "another\n"},
};

START_TEST(bad_files_are_told_whole)
{
    struct config_problems problems = {0};
    struct config *cfg;
    char *printed;

    if (strstr(bad[_i].text, "user = no-such") && geteuid() != 0)
        return; /* only a service that can change its user looks for it */
    write_text("dac.conf", bad[_i].text);
    ck_assert_int_eq(config_load("dac.conf", NULL, &cfg, &problems), DAC_E_INVALID);
    ck_assert_ptr_null(cfg);
    printed = problem_text(&problems);
    ck_assert_str_eq(printed, bad[_i].problems);
    free(printed);
    config_problems_free(&problems);
}
END_TEST

static const struct {
    const char *url;
    const char *fault; /* NULL: good */
} urls[] = {
    {"http://h", NULL},
    {"https://api.example.com:8443/v1", NULL},
    {"http://127.0.0.1:1/", NULL},
    {"https://[2001:db8::1]:443/x", NULL},
    {"", "must begin with http:// or https://"},
    {"ftp://h", "must begin with http:// or https://"},
    {"api.example.com", "must begin with http:// or https://"},
    {"http://", "has no valid host"},
    {"http:///v1", "has no valid host"},
    {"http://:80", "has no valid host"},
    {"http://[::1", "has no valid host"},
    {"http://[::g]", "has no valid host"},
    {"http://[::1]x", "has no valid port"},
    {"http://a b", "has a character that a URL cannot have"},
    {"http://h/\xc3\xa9", "has a character that a URL cannot have"},
    {"http://a%41", "has no valid host"},
    {"http://h:", "has no valid port"},
    {"http://h:0", "has no valid port"},
    {"http://h:65536", "has no valid port"},
    {"http://h:8a", "has no valid port"},
    {"https://u:hunter2@h/", "must not have a user or password; put the key into "
                             "api_key_file"},
    {"https://h/?key=hunter2", "must not have a query or fragment"},
    {"https://h/#x", "must not have a query or fragment"},
};

START_TEST(base_urls)
{
    struct config_problems problems = {0};
    char text[256], expected[256];
    struct config *cfg;
    char *printed;
    enum dac_err rc;

    snprintf(text, sizeof(text), NO_ENV "[provider p]\nbase_url = %s\n", urls[_i].url);
    write_text("dac.conf", text);
    rc = config_load("dac.conf", NULL, &cfg, &problems);
    printed = problem_text(&problems);
    if (urls[_i].fault)
        snprintf(expected, sizeof(expected), "dac.conf:4: base_url: the value %s\n",
                 urls[_i].fault);
    else
        expected[0] = '\0';
    ck_assert_str_eq(printed, expected);
    ck_assert_int_eq(rc, urls[_i].fault ? DAC_E_INVALID : DAC_OK);
    free(printed);
    config_free(cfg);
    config_problems_free(&problems);
}
END_TEST

static const struct {
    const char *data;
    size_t n;
    const char *key;     /* NULL: refused */
    const char *problem; /* begins so */
} keys[] = {
    {"sk-abc", 6, "sk-abc", ""},
    {"sk-abc\n", 7, "sk-abc", ""},
    {"sk-abc \r\n\n", 10, "sk-abc", ""},
    {"", 0, NULL, "dac.conf:5: api_key_file: \"key\" is empty"},
    {"\n\n", 2, NULL, "dac.conf:5: api_key_file: \"key\" is empty"},
    {"a\nb", 3, NULL, "dac.conf:5: api_key_file: \"key\" has more in it than one key"},
    {"a b", 3, NULL, "dac.conf:5: api_key_file: \"key\" has more in it than one key"},
    {"a\0b", 3, NULL, "dac.conf:5: api_key_file: \"key\" has more in it than one key"},
    {"a\r\nX-Evil: 1", 12, NULL, "dac.conf:5: api_key_file: \"key\" has more in it"},
};

START_TEST(key_files)
{
    struct config_problems problems = {0};
    struct config *cfg;
    char *printed;

    write_bytes("key", keys[_i].data, keys[_i].n);
    write_text("dac.conf",
               NO_ENV "[provider p]\nbase_url = http://h\napi_key_file = key\n");
    ck_assert_int_eq(config_load("dac.conf", NULL, &cfg, &problems),
                     keys[_i].key ? DAC_OK : DAC_E_INVALID);
    printed = problem_text(&problems);
    ck_assert_int_eq(strncmp(printed, keys[_i].problem, strlen(keys[_i].problem)), 0);
    if (keys[_i].key)
        ck_assert_str_eq(cfg->providers[0].api_key, keys[_i].key);
    else
        ck_assert(!strstr(printed, "Evil"));
    free(printed);
    config_free(cfg);
    config_problems_free(&problems);
}
END_TEST

START_TEST(key_that_all_can_read_is_a_warning)
{
    struct config_problems problems = {0};
    struct config *cfg;
    char *printed;

    write_text("key", "sk-abc");
    ck_assert_int_eq(chmod("key", 0644), 0);
    write_text("dac.conf",
               NO_ENV "[provider p]\nbase_url = http://h\napi_key_file = key\n");
    ck_assert_int_eq(config_load("dac.conf", NULL, &cfg, &problems), DAC_OK);
    printed = problem_text(&problems);
    ck_assert_str_eq(printed, "dac.conf:5: warning: api_key_file: every user can read "
                              "\"key\"; chmod it to 0640\n");
    ck_assert_uint_eq(problems.errors, 0);
    free(printed);
    config_free(cfg);
    config_problems_free(&problems);
}
END_TEST

START_TEST(missing_file_is_one_problem)
{
    struct config_problems problems = {0};
    struct config *cfg;
    char *printed;

    ck_assert_int_eq(config_load("/none/dac.conf", NULL, &cfg, &problems), DAC_E_INVALID);
    printed = problem_text(&problems);
    ck_assert_ptr_nonnull(strstr(printed,
                                 "/none/dac.conf: could not read the configuration: "
                                 "No such file or directory; create it, or name another "
                                 "with -c FILE\n"));
    free(printed);
    config_problems_free(&problems);
}
END_TEST

START_TEST(seventeen_providers_are_one_too_many)
{
    struct config_problems problems = {0};
    char text[2048] = NO_ENV;
    struct config *cfg;
    char *printed;

    for (int i = 0; i < 17; i++)
        snprintf(text + strlen(text), sizeof(text) - strlen(text),
                 "[provider p%d]\nbase_url = http://h\n", i);
    write_text("dac.conf", text);
    ck_assert_int_eq(config_load("dac.conf", NULL, &cfg, &problems), DAC_E_INVALID);
    printed = problem_text(&problems);
    ck_assert_str_eq(printed,
                     "dac.conf:35: [provider p16] is one too many; there can be 16\n");
    free(printed);
    config_problems_free(&problems);
}
END_TEST

START_TEST(problems_are_bounded)
{
    struct config_problems problems = {0};
    struct config *cfg;
    FILE *f = fopen("dac.conf", "w");
    char *printed;

    fprintf(f, NO_ENV);
    for (int i = 0; i < 1000; i++)
        fprintf(f, "junk\n");
    fclose(f);
    ck_assert_int_eq(config_load("dac.conf", NULL, &cfg, &problems), DAC_E_INVALID);
    ck_assert_uint_eq(problems.count, CONFIG_PROBLEMS_MAX);
    ck_assert_uint_eq(problems.errors, 1000);
    printed = problem_text(&problems);
    ck_assert_str_eq(strstr(printed, "and "), "and 900 more\n");
    free(printed);
    config_problems_free(&problems);
}
END_TEST

static const struct {
    const char *bytes;
    size_t n;
    const char *problem;
} lines[] = {
    {"a\0b = 1", 7, "dac.conf:3: line has a control character; remove it\n"},
    {"name = a\x1b[2J", 12, "dac.conf:3: line has a control character; remove it\n"},
    {"name = \xff", 8, "dac.conf:3: line is not valid UTF-8; save the file as UTF-8\n"},
    {NULL, 65537, "dac.conf:3: line is longer than 65536 bytes; make it shorter\n"},
    {NULL, 65536, "dac.conf:3: name: \"aaa"},
};

START_TEST(odd_lines)
{
    struct config_problems problems = {0};
    char *text = malloc(sizeof(NO_ENV) + lines[_i].n);
    size_t head = strlen(NO_ENV);
    struct config *cfg;
    char *printed;

    memcpy(text, NO_ENV, head);
    if (lines[_i].bytes) {
        memcpy(text + head, lines[_i].bytes, lines[_i].n);
    } else {
        memset(text + head, 'a', lines[_i].n);
        memcpy(text + head, "name=", 5);
    }
    write_bytes("dac.conf", text, head + lines[_i].n);
    ck_assert_int_eq(config_load("dac.conf", NULL, &cfg, &problems), DAC_E_INVALID);
    printed = problem_text(&problems);
    ck_assert_int_eq(strncmp(printed, lines[_i].problem, strlen(lines[_i].problem)), 0);
    free(printed);
    free(text);
    config_problems_free(&problems);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("config_load");
    TCase *tc = tcase_create("load");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(tc, enter_folder, leave_folder);
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, defaults_are_those_of_the_manual);
    tcase_add_test(tc, provider_defaults_and_lookup);
    tcase_add_test(tc, values_as_people_write_them);
    tcase_add_loop_test(tc, name_comes_from_the_first_address, 0,
                        (int)DAC_ARRAY_LEN(names));
    tcase_add_test(tc, relative_paths_start_at_the_file);
    tcase_add_loop_test(tc, bad_files_are_told_whole, 0, (int)DAC_ARRAY_LEN(bad));
    tcase_add_loop_test(tc, base_urls, 0, (int)DAC_ARRAY_LEN(urls));
    tcase_add_loop_test(tc, key_files, 0, (int)DAC_ARRAY_LEN(keys));
    tcase_add_test(tc, key_that_all_can_read_is_a_warning);
    tcase_add_test(tc, missing_file_is_one_problem);
    tcase_add_test(tc, seventeen_providers_are_one_too_many);
    tcase_add_test(tc, problems_are_bounded);
    tcase_add_loop_test(tc, odd_lines, 0, (int)DAC_ARRAY_LEN(lines));
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
