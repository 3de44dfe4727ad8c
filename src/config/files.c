/*
 * The files of a configuration: the one that was named, and those that it includes, each
 * read once. What a file sets again that another one has set before it wins.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config/load.h"
#include "config/parser.h"
#include "config/problems.h"

#define FILE_MAX_BYTES (1 << 20)

bool load_read_file(const char *path, struct buf *out, char *why, size_t n, int *err)
{
    /* O_NONBLOCK: a FIFO without a writer must not stop us before we see that it is one.
     */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    char reason[128];
    struct stat st;
    ssize_t got = 0;

    *err = 0;
    if (fd < 0 || fstat(fd, &st) < 0)
        goto failed;
    if (!S_ISREG(st.st_mode)) {
        snprintf(why, n, "not a regular file");
        close(fd);
        return false;
    }
    for (;;) {
        char *room = buf_reserve(out, 1);

        if (!room && out->len < out->max) {
            errno = ENOMEM;
            goto failed;
        }
        if (!room)
            break;
        got = read(fd, room, out->cap - out->len - 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            break;
        out->len += (size_t)got;
    }
    if (got < 0)
        goto failed;
    close(fd);
    if (out->failed)
        snprintf(why, n, "larger than %zu bytes", out->max);
    return !out->failed;

failed:
    *err = errno;
    snprintf(why, n, "%s", strerror_r(*err, reason, sizeof(reason)));
    if (fd >= 0)
        close(fd);
    return false;
}

const char *load_file_of(const struct load *l, const struct config_origin *o)
{
    if (o->source == CONFIG_FROM_FILE && o->file < l->cfg->files.count)
        return l->cfg->files.items[o->file];
    return l->cfg->path;
}

static bool is_same_file(const char *a, const char *b)
{
    struct stat x, y;

    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev &&
           x.st_ino == y.st_ino;
}

/* Notes `path` as the file that is read; false: it cannot be, which was reported at
 * `line` of the file that includes it. */
static bool enter_file(struct load *l, const char *path, unsigned line)
{
    struct config_list *files = &l->cfg->files;

    for (size_t i = 0; i < files->count; i++) {
        if (is_same_file(files->items[i], path)) {
            problem_add(l->problems, l->file, line,
                        "include: \"%s\" is read already; include it once", path);
            return false;
        }
    }
    if (files->count == CONFIG_FILES_MAX) {
        problem_add(l->problems, l->file, line,
                    "include: \"%s\" is one file too many; there can be %d", path,
                    CONFIG_FILES_MAX);
        return false;
    }
    char **items = realloc(files->items, (files->count + 1) * sizeof(*items));

    if (items)
        files->items = items;
    if (!items || !(items[files->count] = strdup(path))) {
        l->nomem = true;
        return false;
    }
    l->file = items[files->count];
    l->file_number = (unsigned)files->count++;
    return true;
}

/* `line` of `by` includes it; 0: it is the one that was named. */
static void could_not_read(struct load *l, const char *path, const char *by,
                           unsigned line, const char *why, int err)
{
    const char *hint = err == ENOENT   ? "create it, or name another with -c FILE"
                       : err == EACCES ? "let dacd read it"
                                       : "put a file there that dacd can read";

    if (line > 0)
        problem_add(l->problems, by, line, "include: could not read \"%s\": %s; %s", path,
                    why, hint);
    else
        problem_add(l->problems, path, 0, "could not read the configuration: %s; %s", why,
                    hint);
}

/* Reads one file, in which no section has begun; `line`: of its include, 0: none. */
static void load_file(struct load *l, const char *path, unsigned line)
{
    struct load outer = *l;
    const char *slash = strrchr(path, '/');
    char *folder =
        slash ? strndup(path, slash > path ? (size_t)(slash - path) : 1) : NULL;
    struct buf text = BUF_INIT(FILE_MAX_BYTES);
    char why[160];
    int err;

    if (slash && !folder)
        l->nomem = true;
    else if (enter_file(l, path, line)) {
        l->folder = folder;
        l->section = NULL;
        l->provider = NULL;
        if (!load_read_file(path, &text, why, sizeof(why), &err))
            could_not_read(l, path, outer.file, line, why, err);
        else if (parser_ini(text.data, text.len, l->events, l) != DAC_OK)
            l->nomem = true;
    }
    l->file = outer.file;
    l->file_number = outer.file_number;
    l->folder = outer.folder;
    l->section = outer.section;
    l->provider = outer.provider;
    buf_free(&text);
    free(folder);
}

/* A pattern without a wildcard names a file, which must be there. */
static void nothing_matches(struct load *l, unsigned line, const char *pattern)
{
    if (strpbrk(pattern, "*?[") == NULL)
        problem_add(l->problems, l->file, line,
                    "include: there is no file \"%s\"; create it or remove this line",
                    pattern);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* In the order of their names' bytes, whatever the locale. */
static void load_matches(struct load *l, unsigned line, glob_t *found)
{
    if (found->gl_pathc > 1)
        qsort(found->gl_pathv, found->gl_pathc, sizeof(*found->gl_pathv), by_name);
    for (size_t i = 0; i < found->gl_pathc; i++)
        load_file(l, found->gl_pathv[i], line);
}

/* For glob(): a folder that is not there has no files; one that cannot be read may. */
static int stop_unless_missing(const char *path, int err)
{
    (void)path;
    return err != ENOENT && err != ENOTDIR;
}

void load_include(void *arg, unsigned line, const char *pattern)
{
    struct load *l = arg;
    struct buf path = BUF_INIT(2 * PARSER_LINE_MAX);
    glob_t found = {0};
    int rc;

    if (*pattern != '/' && l->folder)
        buf_printf(&path, "%s/", l->folder);
    buf_puts(&path, pattern);
    if (!buf_cstr(&path)) {
        l->nomem = true;
        buf_free(&path);
        return;
    }
    rc = glob(path.data, GLOB_NOSORT, stop_unless_missing, &found);
    if (rc == GLOB_NOMATCH)
        nothing_matches(l, line, path.data);
    else if (rc == GLOB_NOSPACE)
        l->nomem = true;
    else if (rc != 0)
        problem_add(l->problems, l->file, line,
                    "include: could not read a folder of \"%s\"; let dacd read it",
                    path.data);
    load_matches(l, line, &found);
    globfree(&found);
    buf_free(&path);
}

void load_files(struct load *l)
{
    load_file(l, l->cfg->path, 0);
    l->file = l->cfg->path;
}
