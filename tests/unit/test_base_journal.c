/*
 * Lines of the log as entries of the journal: their fields, and that each line arrives
 * somewhere. The journal is a socket of the test.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/journal.h"
#include "base/log.h"

#define LINES 2000 /* more than any queue of datagrams holds */

static char folder[32];
static char path[64];
static int journal;          /* what listens there */
static int err_fd, saved_fd; /* standard error, a file; what it was */

static void set_up(void)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct stat st;
    char stream[64];
    const int on = 1;

    snprintf(folder, sizeof(folder), "/tmp/test-journal-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/socket", folder);
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
    journal = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    ck_assert_int_eq(bind(journal, (struct sockaddr *)&addr, sizeof(addr)), 0);
    setsockopt(journal, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on));

    err_fd = open("/tmp", O_TMPFILE | O_RDWR | O_APPEND, 0600);
    ck_assert_int_ge(err_fd, 0);
    saved_fd = dup(STDERR_FILENO);
    dup2(err_fd, STDERR_FILENO);
    ck_assert_int_eq(fstat(STDERR_FILENO, &st), 0);
    snprintf(stream, sizeof(stream), "%ju:%ju", (uintmax_t)st.st_dev,
             (uintmax_t)st.st_ino);
    setenv("JOURNAL_STREAM", stream, 1);
    log_set_identity("worker 2");
    log_set_format(LOG_FORMAT_HUMAN);
}

static void tear_down(void)
{
    journal_close();
    close(journal);
    dup2(saved_fd, STDERR_FILENO);
    close(saved_fd);
    close(err_fd);
    unsetenv("JOURNAL_STREAM");
    unlink(path);
    rmdir(folder);
}

/* How many bytes an entry has; 0: there is none. *pid: whom the kernel names for it. */
static size_t receive(char *out, size_t size, pid_t *pid)
{
    char control[CMSG_SPACE(sizeof(struct ucred))];
    struct iovec iov = {out, size};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control,
                       .msg_controllen = sizeof(control)};
    ssize_t n = recvmsg(journal, &m, MSG_DONTWAIT);
    struct ucred who;

    if (n < 0)
        return 0;
    ck_assert_ptr_nonnull(CMSG_FIRSTHDR(&m));
    memcpy(&who, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(who));
    *pid = who.pid;
    return (size_t)n;
}

/* The next entry as text. */
static const char *entry(void)
{
    static char out[JOURNAL_ENTRY_MAX + 1];
    pid_t pid;

    out[receive(out, JOURNAL_ENTRY_MAX, &pid)] = '\0';
    return out;
}

/* What standard error has got. */
static const char *said(void)
{
    static char out[LINES * 64];
    ssize_t n = pread(err_fd, out, sizeof(out) - 1, 0);

    out[n > 0 ? n : 0] = '\0';
    return out;
}

static unsigned lines_of(const char *text)
{
    unsigned n = 0;

    for (; (text = strchr(text, '\n')) != NULL; text++)
        n++;
    return n;
}

START_TEST(a_line_is_an_entry_with_fields)
{
    const struct log_about about = {
        .request = "r-1", .turn = "t-1", .org = "two\nlines", .trace = NULL};
    const char two[] = "DAC_ORG\n\x09\0\0\0\0\0\0\0two\nlines\n";
    char want[1024];

    ck_assert(journal_open(path));
    errno = EPERM;
    log_warn_about(&about, ENOENT, "could not open \"%s\"", "a\nb");
    ck_assert_int_eq(errno, EPERM);
    char got[1024];
    pid_t pid;
    size_t n = receive(got, sizeof(got), &pid);
    size_t len = (size_t)snprintf(
        want, sizeof(want),
        "MESSAGE=WARN worker 2[%d] could not open \"a\\nb\": No such file or directory"
        " request=r-1 turn=t-1 org=two\\nlines\n"
        "PRIORITY=4\nSYSLOG_IDENTIFIER=dacd\nDAC_PROCESS=worker 2\n"
        "DAC_REQUEST=r-1\nDAC_TURN=t-1\n",
        (int)getpid());

    memcpy(want + len, two, sizeof(two) - 1);
    len += sizeof(two) - 1;
    len += (size_t)sprintf(want + len, "ERRNO=%d\n", ENOENT);
    ck_assert_uint_eq(n, len);
    ck_assert_mem_eq(got, want, len);
    ck_assert_str_eq(said(), "");
}
END_TEST

START_TEST(the_form_of_the_message_is_the_configured_one)
{
    ck_assert(journal_open(path));
    log_set_format(LOG_FORMAT_JSON);
    log_info(0, "hello");
    const char *got = entry();

    ck_assert_ptr_eq(strstr(got, "MESSAGE={\"time\":\""), got);
    ck_assert_ptr_nonnull(strstr(got, "\"message\":\"hello\"}\nPRIORITY=6\n"));
    ck_assert_ptr_nonnull(strstr(got, "\nDAC_PROCESS=worker 2\n"));
    ck_assert_ptr_null(strstr(got, "ERRNO"));
}
END_TEST

START_TEST(repeats_keep_their_fields)
{
    const struct log_about about = {.turn = "t-9"};

    ck_assert(journal_open(path));
    for (int i = 0; i < LOG_SAME_MAX + 2; i++) {
        log_error_about(&about, EIO, "again %d", i);
        if (i < LOG_SAME_MAX)
            ck_assert_ptr_nonnull(strstr(entry(), "again"));
    }
    ck_assert_str_eq(entry(), "");
    log_tick(UINT64_MAX / 2);
    const char *got = entry();

    ck_assert_ptr_nonnull(strstr(got, "and 1 more like this"));
    ck_assert_ptr_nonnull(strstr(got, "\nDAC_TURN=t-9\n"));
    ck_assert_ptr_nonnull(strstr(got, "\nERRNO=5\n"));
}
END_TEST

START_TEST(another_standard_error_is_written_to)
{
    setenv("JOURNAL_STREAM", "8:1", 1);
    ck_assert(!journal_open(path));
    unsetenv("JOURNAL_STREAM");
    ck_assert(!journal_open(path));
    log_info(0, "hello");
    ck_assert_str_eq(entry(), "");
    ck_assert_ptr_nonnull(strstr(said(), " INFO worker 2["));
}
END_TEST

START_TEST(where_no_journal_listens_lines_go_to_standard_error)
{
    ck_assert(journal_open(path));
    log_info(0, "first");
    unlink(path);
    log_warn(0, "second"); /* ENOENT */
    ck_assert_ptr_nonnull(strstr(entry(), "first"));
    ck_assert_ptr_eq(strstr(said(), "<4>WARN worker 2["), said());
    ck_assert_uint_eq(lines_of(said()), 1);
}
END_TEST

/* Nobody reads, so this would hang if sending waited. */
START_TEST(what_a_busy_journal_does_not_take_goes_to_standard_error)
{
    unsigned taken = 0;

    ck_assert(journal_open(path));
    for (int i = 0; i < LINES; i++)
        log_info(0, "%s", "line"); /* EAGAIN from some time on */
    while (entry()[0] != '\0')
        taken++;
    ck_assert_uint_gt(taken, 0);
    ck_assert_uint_gt(lines_of(said()), 0);
    ck_assert_uint_eq(taken + lines_of(said()), LINES);
    log_info(0, "it reads again");
    ck_assert_ptr_nonnull(strstr(entry(), "it reads again"));
}
END_TEST

START_TEST(what_is_too_large_goes_to_standard_error)
{
    char text[3000], name[LOG_ABOUT_MAX + 1];
    const int small = 1; /* the kernel's least, of 4.5 KiB */
    int next = dup(STDIN_FILENO);

    memset(text, 1, sizeof(text) - 1); /* each of them escaped */
    text[sizeof(text) - 1] = '\0';
    memset(name, 'n', sizeof(name) - 1);
    name[sizeof(name) - 1] = '\0';
    const struct log_about about = {
        .request = name, .turn = name, .org = name, .trace = name};

    close(next);
    ck_assert(journal_open(path)); /* on that one's number */
    ck_assert_int_eq(setsockopt(next, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small)), 0);
    log_error_about(&about, 0, "%s", text); /* EMSGSIZE */
    ck_assert_str_eq(entry(), "");
    ck_assert_ptr_eq(strstr(said(), "<3>ERROR "), said());
    log_info(0, "short");
    ck_assert_ptr_nonnull(strstr(entry(), "short"));
}
END_TEST

START_TEST(a_child_speaks_for_itself)
{
    char got[1024];
    pid_t who, child;

    ck_assert(journal_open(path));
    child = fork();
    if (child == 0) {
        log_info(0, "from the child");
        _exit(0);
    }
    ck_assert_int_eq(waitpid(child, NULL, 0), child);
    ck_assert_uint_gt(receive(got, sizeof(got), &who), 0);
    ck_assert_int_eq(who, child);
    log_info(0, "from the parent");
    ck_assert_uint_gt(receive(got, sizeof(got), &who), 0);
    ck_assert_int_eq(who, getpid());
}
END_TEST

static double seconds_of_flush(void)
{
    struct timespec a, b;

    clock_gettime(CLOCK_MONOTONIC, &a);
    journal_flush();
    clock_gettime(CLOCK_MONOTONIC, &b);
    return (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) / 1e9;
}

START_TEST(the_end_waits_until_the_journal_has_read_but_not_forever)
{
    ck_assert(journal_open(path));
    ck_assert_double_lt(seconds_of_flush(), 0.05);
    log_info(0, "last words");
    ck_assert_double_ge(seconds_of_flush(), JOURNAL_FLUSH_MS / 1000.0);
    pid_t reader = fork();

    if (reader == 0) {
        usleep(20000);
        _exit(strstr(entry(), "last words") ? 0 : 1);
    }
    const double s = seconds_of_flush();
    int status;

    ck_assert_int_eq(waitpid(reader, &status, 0), reader);
    ck_assert_int_eq(status, 0);
    ck_assert_double_ge(s, 0.01);
}
END_TEST

/* Nobody reads at first; its parent looks after 20 ms, which are less than it waits. */
START_TEST(a_process_ends_when_its_last_words_are_read)
{
    struct pollfd readable = {.fd = journal, .events = POLLIN};
    pid_t child;

    ck_assert(journal_open(path));
    child = fork();
    if (child == 0) {
        if (_i == 1)
            DAC_ASSERT(_i != 1);
        log_error(0, "last words");
        exit(0);
    }
    ck_assert_int_eq(poll(&readable, 1, 5000), 1);
    usleep(20000);
    ck_assert_int_eq(waitpid(child, NULL, WNOHANG), 0);
    ck_assert_ptr_nonnull(strstr(entry(), _i == 1 ? "assertion" : "last words"));
    ck_assert_int_eq(waitpid(child, NULL, 0), child);
}
END_TEST

START_TEST(an_entry_is_bounded)
{
    static char large[JOURNAL_ENTRY_MAX];
    struct journal_entry e;

    ck_assert(journal_open(path));
    journal_begin(&e);
    memset(large, 'x', sizeof(large));
    journal_put(&e, "MESSAGE", "whole", 5);
    journal_put(&e, "DAC_ORG", large, sizeof(large));
    ck_assert(e.failed);
    ck_assert(!journal_send(&e));
    ck_assert_str_eq(entry(), "");
}
END_TEST

int main(void)
{
    Suite *s = suite_create("base_journal");
    TCase *tc = tcase_create("journal");
    SRunner *sr;
    int failed;

    tcase_add_checked_fixture(tc, set_up, tear_down);
    tcase_add_test(tc, a_line_is_an_entry_with_fields);
    tcase_add_test(tc, the_form_of_the_message_is_the_configured_one);
    tcase_add_test(tc, repeats_keep_their_fields);
    tcase_add_test(tc, another_standard_error_is_written_to);
    tcase_add_test(tc, where_no_journal_listens_lines_go_to_standard_error);
    tcase_add_test(tc, what_a_busy_journal_does_not_take_goes_to_standard_error);
    tcase_add_test(tc, what_is_too_large_goes_to_standard_error);
    tcase_add_test(tc, a_child_speaks_for_itself);
    tcase_add_test(tc, the_end_waits_until_the_journal_has_read_but_not_forever);
    tcase_add_loop_test(tc, a_process_ends_when_its_last_words_are_read, 0, 2);
    tcase_add_test(tc, an_entry_is_bounded);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_ENV);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed == 0 ? 0 : 1;
}
