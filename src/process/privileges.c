/*
 * The master looks the user and its groups up once, before it forks; children only make
 * system calls with the result. The order of dropping matters: groups, then the group,
 * then the user, after which nothing of it can be taken back.
 */
#include "process/privileges.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"

enum dac_err privileges_find(const char *user, struct privileges *out, char *why,
                             size_t n)
{
    const struct passwd *pw;

    memset(out, 0, sizeof(*out));
    out->uid = geteuid();
    out->gid = getegid();
    if (!user || !user[0]) {
        if (geteuid() == 0)
            log_warn(0, "running as root; [server] user names whom to become instead");
        return DAC_OK;
    }
    errno = 0;
    pw = getpwnam(user);
    if (!pw) {
        snprintf(why, n, "[server] user = %s: %s", user,
                 errno ? strerror(errno)
                       : "there is no such user (useradd --system makes one)");
        return DAC_E_NOT_FOUND;
    }
    if (geteuid() != 0) {
        if (pw->pw_uid != geteuid())
            log_warn(0,
                     "[server] user = %s is ignored: only root can become another user",
                     user);
        return DAC_OK;
    }
    snprintf(out->user, sizeof(out->user), "%s", user);
    if (pw->pw_dir && strlen(pw->pw_dir) < sizeof(out->home))
        snprintf(out->home, sizeof(out->home), "%s", pw->pw_dir);
    out->uid = pw->pw_uid;
    out->gid = pw->pw_gid;
    out->group_count = PRIVILEGES_GROUPS_MAX;
    if (getgrouplist(user, pw->pw_gid, out->groups, &out->group_count) < 0) {
        snprintf(why, n, "[server] user = %s is in more than %d groups", user,
                 PRIVILEGES_GROUPS_MAX);
        return DAC_E_TOO_LARGE;
    }
    out->drop = out->uid != 0;
    return DAC_OK;
}

enum dac_err privileges_drop(const struct privileges *p)
{
    if (!p->drop)
        return DAC_OK;
    if (setgroups((size_t)p->group_count, p->groups) != 0 ||
        setresgid(p->gid, p->gid, p->gid) != 0 || setresuid(p->uid, p->uid, p->uid) != 0)
        return DAC_E_SYS;
    if (setuid(0) == 0) {
        errno = EPERM;
        return DAC_E_SYS;
    }
    return setenv("HOME", p->home, 1) == 0 ? DAC_OK : DAC_E_SYS;
}
