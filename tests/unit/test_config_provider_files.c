/*
 * config_load(): the files that a provider's settings name: keys, also as credentials of
 * systemd, and roots; and that no message ever shows a secret.
 */
#include "config/describe.h"
#include "config_fixture.h"

#define P(text) NO_ENV "[provider p]\nbase_url = http://h\n" text

#define KEY "sk-canary-0123456789"

static void enter(void)
{
    enter_folder();
    ck_assert_int_eq(mkdir("credentials", 0700), 0);
    write_text("credentials/acme", KEY "\n");
}

static void leave(void)
{
    unlink("credentials/acme");
    unlink("credentials/empty");
    ck_assert_int_eq(rmdir("credentials"), 0);
    leave_folder();
}

/* Loads dac.conf as the service does or from outside. Returns what was said. */
static char *load_said(const char *const *environ, bool outside, enum dac_err expected,
                       struct config **cfg)
{
    struct config_problems problems = {0};
    enum dac_err rc =
        (outside ? config_look : config_load)("dac.conf", environ, cfg, &problems);
    char *said = problem_text(&problems);

    ck_assert_msg(rc == expected, "%d: %s", (int)rc, said);
    ck_assert_ptr_null(strstr(said, "canary"));
    config_problems_free(&problems);
    return said;
}

/* --- credentials -------------------------------------------------------------------- */

static const struct {
    const char *value, *environ;
    bool outside;
    const char *key;  /* NULL: none */
    const char *said; /* "": nothing */
} credentials[] = {
    {"credential:acme", "CREDENTIALS_DIRECTORY=credentials", false, KEY, ""},
    {"credential:acme", "CREDENTIALS_DIRECTORY=credentials", true, KEY, ""},
    {"credential:other", "CREDENTIALS_DIRECTORY=credentials", false, NULL,
     "dac.conf:5: api_key_file: the service was given no credential \"other\"; add "
     "LoadCredential=other:FILE to its unit and restart it\n"},
    {"credential:other", "CREDENTIALS_DIRECTORY=credentials", true, NULL,
     "dac.conf:5: api_key_file: the service was given no credential \"other\"; add "
     "LoadCredential=other:FILE to its unit and restart it\n"},
    {"credential:empty", "CREDENTIALS_DIRECTORY=credentials", false, NULL,
     "dac.conf:5: api_key_file: \"credentials/empty\" is empty; put the key into it\n"},
    {"credential:acme", NULL, false, NULL,
     "dac.conf:5: api_key_file: there is no credential \"acme\", since this is not "
     "started "
     "by systemd; name a file, or add LoadCredential=acme:FILE to the unit\n"},
    {"credential:acme", "CREDENTIALS_DIRECTORY=", true, NULL,
     "dac.conf:5: warning: api_key_file: credential \"acme\" is given to the service "
     "alone; it was not looked at\n"},
    {"credential:", NULL, false, NULL,
     "dac.conf:5: api_key_file: \"credential:\" is no credential's name; write it like "
     "credential:perplexity\n"},
    {"credential:../acme", "CREDENTIALS_DIRECTORY=credentials", false, NULL,
     "dac.conf:5: api_key_file: \"credential:../acme\" is no credential's name; write it "
     "like credential:perplexity\n"},
};

START_TEST(a_key_may_be_a_credential_of_systemd)
{
    const char *const environ[] = {"PATH=/bin", credentials[_i].environ, NULL};
    bool is_error = *credentials[_i].said && !strstr(credentials[_i].said, "warning");
    char text[256], *said;
    struct config *cfg;

    write_text("credentials/empty", "");
    snprintf(text, sizeof(text), P("api_key_file = %s\n"), credentials[_i].value);
    write_text("dac.conf", text);
    said = load_said(environ, credentials[_i].outside, is_error ? DAC_E_INVALID : DAC_OK,
                     &cfg);
    ck_assert_str_eq(said, credentials[_i].said);
    if (cfg) {
        ck_assert_str_eq(cfg->providers[0].api_key_file, credentials[_i].value);
        ck_assert_pstr_eq(cfg->providers[0].api_key, credentials[_i].key);
    }
    free(said);
    config_free(cfg);
}
END_TEST

/* --- secrets ------------------------------------------------------------------------ */

/* What people write where it does not belong, or belongs but must not be shown. */
static const char *const spilt[] = {
    P("api_key_file = " KEY "\n"),
    P("api_key_file = keys/" KEY "\n"),
    P("api_key = " KEY "\n"),
    P("api_key_file\n" KEY "\n"),
    P("api_key_file = \"" KEY "\n"),
    P("api_key_file = \"key\" " KEY "\n"),
    P("ca_file = none\nrps = 1\n" KEY "\n"),
    P("") "[store]\npostgres = host=a passwort=" KEY "\n",
    P("") "[store]\npostgres = host=a password=" KEY " sslmode=x\n",
    P("") "[store]\npostgres = postgresql://u:" KEY "@h:99999/\n",
    P("") "[store]\npostgres = postgresql://u:" KEY "\n",
    P("") "[store]\npostgress = host=a password=" KEY "\n",
    NO_ENV "[provider p]\nbase_url = https://u:" KEY "@h/v1\n",
    NO_ENV "[provider p]\nbase_url = https://h/v1?key=" KEY "\n",
    "[server]\nenv_file = dac.env\nx = y\n",
};

START_TEST(no_problem_shows_a_secret)
{
    struct config *cfg;
    char *said;

    write_text("key", KEY);
    write_text("dac.env", "API_KEY " KEY "\nKEY='" KEY "\nP_RPS=1\nTOKEN=" KEY "\n");
    write_text("dac.conf", spilt[_i]);
    said = load_said(NULL, false, DAC_E_INVALID, &cfg);
    ck_assert_str_ne(said, "");
    free(said);
}
END_TEST

static void note_secret(void *arg, const struct config_fact *f)
{
    bool *shown = arg;

    *shown = *shown || strstr(f->value, "canary") || strstr(f->origin, "canary");
}

START_TEST(no_value_shows_a_secret)
{
    struct config *cfg;
    bool shown = false;
    char *text = NULL;
    size_t n;
    FILE *f;

    write_text("key", KEY);
    cfg = load_good(
        P("api_key_file = key\n") "[store]\npostgres = host=h password=" KEY "\n", NULL);
    ck_assert_str_eq(cfg->providers[0].api_key, KEY);
    ck_assert_int_eq(config_facts(cfg, note_secret, &shown), DAC_OK);
    ck_assert(!shown);
    f = open_memstream(&text, &n);
    config_print(cfg, f);
    fclose(f);
    ck_assert_ptr_null(strstr(text, "canary"));
    free(text);
    config_free(cfg);
}
END_TEST

/* --- roots -------------------------------------------------------------------------- */

/* Cuts the file of one certificate to its first `n` bytes and adds `text`. */
static void mangle(size_t n, const char *text)
{
    char all[4096];
    FILE *f = fopen("ca.pem", "r");
    size_t got = fread(all, 1, sizeof(all) - 512, f);

    fclose(f);
    got = n < got ? n : got;
    memcpy(all + got, text, strlen(text));
    write_bytes("ca.pem", all, got + strlen(text));
}

static const struct {
    size_t n; /* bytes that are left of a good certificate */
    const char *text, *said;
} roots[] = {
    {4096, "", ""},
    {4096, "# a comment\n", ""},
    {4096, "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
     "dac.conf:5: ca_file: certificate 2 in \"ca.pem\" cannot be read; name a PEM file "
     "of "
     "whole certificates\n"},
    {200, "",
     "dac.conf:5: ca_file: certificate 1 in \"ca.pem\" cannot be read; name a PEM file "
     "of "
     "whole certificates\n"},
    {0, "",
     "dac.conf:5: ca_file: \"ca.pem\" has no certificate in it; name a PEM file of "
     "trusted "
     "roots\n"},
    {0, "junk\n",
     "dac.conf:5: ca_file: \"ca.pem\" has no certificate in it; name a PEM file of "
     "trusted "
     "roots\n"},
};

START_TEST(roots_must_be_certificates)
{
    struct config *cfg;
    char *said;

    write_certificate("ca.pem");
    mangle(roots[_i].n, roots[_i].text);
    write_text("dac.conf", P("ca_file = ca.pem\n"));
    said = load_said(NULL, false, *roots[_i].said ? DAC_E_INVALID : DAC_OK, &cfg);
    ck_assert_str_eq(said, roots[_i].said);
    free(said);
    config_free(cfg);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("config_provider_files");
    TCase *tc = tcase_create("files");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(tc, enter, leave);
    tcase_add_loop_test(tc, a_key_may_be_a_credential_of_systemd, 0,
                        (int)DAC_ARRAY_LEN(credentials));
    tcase_add_loop_test(tc, no_problem_shows_a_secret, 0, (int)DAC_ARRAY_LEN(spilt));
    tcase_add_test(tc, no_value_shows_a_secret);
    tcase_add_loop_test(tc, roots_must_be_certificates, 0, (int)DAC_ARRAY_LEN(roots));
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
