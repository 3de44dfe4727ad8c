/*
 * Planning, creating, attaching, replacing and removing the segment, and what
 * segment_valid() says of a header with one wrong field. What the system refuses is
 * refused for real: by limits of the test's own process, or by taking its rights away.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "tests/shm/segment_fixture.h"

static char why[256];

static void setup(void)
{
    why[0] = '\0';
    fixture_name("segment");
}

static void teardown(void)
{
    shm_unlink(shm_name);
}

/* --- the plan ----------------------------------------------------------------------- */

static const struct {
    uint64_t size;
    uint32_t flights;
    uint64_t flight_max_bytes;
    uint32_t providers;
    enum dac_err want;
} plans[] = {
    {UINT64_C(48) << 20, 4096, UINT64_C(8) << 20, 2, DAC_OK}, /* the default */
    {UINT64_C(48) << 20, 0, UINT64_C(8) << 20, 1, DAC_E_INVALID},
    {UINT64_C(48) << 20, SHM_FLIGHTS_MAX + 1, UINT64_C(8) << 20, 1, DAC_E_INVALID},
    {UINT64_C(48) << 20, 4096, UINT64_C(8) << 20, SHM_PROVIDERS_MAX, DAC_OK},
    {UINT64_C(48) << 20, 4096, UINT64_C(8) << 20, SHM_PROVIDERS_MAX + 1, DAC_E_INVALID},
    {UINT64_C(2) << 20, 1, 4096, 0, DAC_OK},
    {UINT64_C(2) << 20, 1, UINT64_C(1) << 20, 0, DAC_E_TOO_LARGE},
    {UINT64_C(24) << 20, SHM_FLIGHTS_MAX, UINT64_C(8) << 20, 1, DAC_E_TOO_LARGE},
    {UINT64_C(1) << 30, SHM_FLIGHTS_MAX, UINT64_C(8) << 20, 1, DAC_OK},
    {UINT64_C(1) << 44, 64, UINT64_C(8) << 20, 1, DAC_OK}, /* more blocks than 31 bits */
    {0, 64, 4096, 1, DAC_E_TOO_LARGE},
    {4096, 64, 4096, 1, DAC_E_TOO_LARGE},
};

static struct shm_options plan_options(int i)
{
    struct shm_options opt = fixture_options("plan", plans[i].flights);

    opt.size = plans[i].size;
    opt.flight_max_bytes = plans[i].flight_max_bytes;
    opt.provider_count = plans[i].providers;
    return opt;
}

static void check_plan(const struct shm_options *opt, const struct shm_plan *p)
{
    const struct shm_areas *a = &p->areas;
    const struct {
        uint64_t at, end, bytes;
    } areas[] = {
        {a->slots, a->dirty, SHM_SLOTS * sizeof(struct shm_slot)},
        {a->dirty, a->pacers, SHM_SLOTS * p->dirty_words * sizeof(uint64_t)},
        {a->pacers, a->buckets, SHM_PROVIDERS_MAX * sizeof(struct shm_pacer)},
        {a->buckets, a->flights, p->bucket_count * sizeof(struct shm_bucket)},
        {a->flights, a->aliases, p->flight_count * sizeof(struct shm_flight)},
        {a->aliases, a->samples, p->alias_count * sizeof(struct shm_alias)},
        {a->samples, a->timings, SHM_SAMPLES * sizeof(struct shm_sample)},
        {a->timings, a->blocks,
         UINT64_C(2) * SHM_PROVIDERS_MAX * sizeof(struct shm_timings)},
        {a->blocks, a->data, p->block_count * sizeof(struct shm_block)},
        {a->data, a->end, (uint64_t)p->block_count * SHM_BLOCK_SIZE},
    };

    ck_assert_uint_ge(a->slots, sizeof(struct shm_header));
    for (size_t i = 0; i < DAC_ARRAY_LEN(areas); i++) {
        ck_assert_uint_eq(areas[i].at % 64, 0);
        ck_assert_uint_ge(areas[i].end - areas[i].at, areas[i].bytes);
    }
    ck_assert_uint_le(p->total, opt->size);
    ck_assert_uint_ge(p->dirty_words * 64, p->flight_count);
    ck_assert_uint_ge(p->bucket_count, p->flight_count);
    ck_assert_uint_ge(p->alias_count, p->flight_count * 4);
    ck_assert_uint_ge(p->alias_count, SHM_ALIASES_LEAST);
    ck_assert_uint_eq(p->bucket_count & (p->bucket_count - 1), 0);
    ck_assert_uint_gt((uint64_t)p->block_count * SHM_BLOCK_SIZE, opt->flight_max_bytes);
}

START_TEST(plan_fits_or_says_what_would)
{
    struct shm_options opt = plan_options(_i);
    struct shm_plan plan;
    unsigned long long least;

    ck_assert_int_eq(segment_plan(&opt, &plan, why, sizeof(why)), plans[_i].want);
    if (plans[_i].want == DAC_OK) {
        check_plan(&opt, &plan);
        return;
    }
    ck_assert_str_ne(why, "");
    if (plans[_i].want != DAC_E_TOO_LARGE)
        return;
    /* The value it names would do, and one page less would not. */
    ck_assert_int_eq(sscanf(strstr(why, "at least "), "at least %lluk", &least), 1);
    opt.size = least * 1024;
    ck_assert_int_eq(segment_plan(&opt, &plan, why, sizeof(why)), DAC_OK);
    check_plan(&opt, &plan);
    opt.size -= 4096;
    ck_assert_int_eq(segment_plan(&opt, &plan, why, sizeof(why)), DAC_E_TOO_LARGE);
}
END_TEST

/* Who changes these changes the table in shm/README.md, too. */
START_TEST(default_layout_is_the_one_described)
{
    struct shm_options opt = plan_options(0);
    struct shm_plan p;

    ck_assert_int_eq(segment_plan(&opt, &p, why, sizeof(why)), DAC_OK);
    ck_assert_uint_eq(p.block_count, 21906);
    ck_assert_uint_eq(p.bytes_per_flight, 2968);
    ck_assert_uint_eq(p.areas.slots, 4096);
    ck_assert_uint_eq(p.areas.dirty, 36864);
    ck_assert_uint_eq(p.areas.pacers, 69632);
    ck_assert_uint_eq(p.areas.buckets, 103424);
    ck_assert_uint_eq(p.areas.flights, 365568);
    ck_assert_uint_eq(p.areas.aliases, 1676288);
    ck_assert_uint_eq(p.areas.samples, 3773440);
    ck_assert_uint_eq(p.areas.timings, 5084160);
    ck_assert_uint_eq(p.areas.blocks, 5112832);
    ck_assert_uint_eq(p.areas.data, 5464064);
    ck_assert_uint_eq(p.areas.end, 50327552);
}
END_TEST

/* The smallest segment takes the longest answer that is allowed. */
START_TEST(least_segment_holds_one_whole_answer)
{
    struct shm_options opt = fixture_options(shm_name, 64);
    unsigned long long least;
    struct shm_plan plan;
    struct join_request req = question(1);
    struct join_result r;
    static const char piece[1000];
    bool replaced;
    enum dac_err e;

    opt.size = 0;
    ck_assert_int_eq(segment_plan(&opt, &plan, why, sizeof(why)), DAC_E_TOO_LARGE);
    ck_assert_int_eq(sscanf(strstr(why, "at least "), "at least %lluk", &least), 1);
    opt.size = least * 1024;
    ck_assert_int_eq(segment_create(&opt, &shm, &replaced, why, sizeof(why)), DAC_OK);
    shm.self = new_worker();
    ck_assert_int_eq(index_join(&shm, &req, &r), DAC_OK);
    while ((e = blocklog_append(&shm, &r.writer, RECORD_DELTA, piece, sizeof(piece))) ==
           DAC_OK)
        ;
    ck_assert_int_eq(e, DAC_E_TOO_LARGE);
    ck_assert_uint_gt(r.writer.offset + sizeof(piece) + 8, opt.flight_max_bytes);
    end_flight(&r.ref, &r.writer, FLIGHT_FAILED, clock_now_ns());
    assert_all_valid();
    segment_destroy(&shm);
}
END_TEST

/* --- create ------------------------------------------------------------------------- */

static enum dac_err create(bool *replaced)
{
    struct shm_options opt = fixture_options(shm_name, 64);

    return segment_create(&opt, &shm, replaced, why, sizeof(why));
}

START_TEST(new_segment_is_valid_and_empty)
{
    struct stat st;
    bool replaced = true;
    char path[128];

    umask(022);
    ck_assert_int_eq(create(&replaced), DAC_OK);
    ck_assert(!replaced);
    snprintf(path, sizeof(path), "/dev/shm/%s", shm_name);
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_uint_eq(st.st_mode & 0777, 0640);
    /* Its memory is there now, not when it is touched. */
    ck_assert_uint_ge((uint64_t)st.st_blocks * 512, shm.size);
    ck_assert_uint_eq(shm.self, SHM_NO_SLOT);
    ck_assert_uint_eq(flights_in_use(), 0);
    ck_assert_uint_eq(blocks_in_use(), 0);
    for (size_t i = 0; i < SHM_SLOTS; i++) {
        ck_assert_int_ge(shm.eventfd[i], 0);
        ck_assert(fcntl(shm.eventfd[i], F_GETFL) & O_NONBLOCK);
        ck_assert(fcntl(shm.eventfd[i], F_GETFD) & FD_CLOEXEC);
    }
    assert_all_valid();
    segment_destroy(&shm);
    ck_assert_int_eq(stat(path, &st), -1);
    ck_assert_ptr_null(shm.base);
}
END_TEST

static const char *const bad_names[] = {
    "", "a/b", "/a", "0123456789012345678901234567890123456789012345678901234567890123"};

START_TEST(bad_name_is_refused)
{
    struct shm_options opt = fixture_options(bad_names[_i], 64);
    bool replaced;

    ck_assert_int_eq(segment_create(&opt, &shm, &replaced, why, sizeof(why)),
                     DAC_E_INVALID);
    ck_assert_ptr_nonnull(strstr(why, "name"));
}
END_TEST

START_TEST(too_large_for_dev_shm_is_an_error_at_once)
{
    struct shm_options opt = fixture_options(shm_name, 64);
    struct stat st;
    bool replaced;
    char path[128];

    opt.size = UINT64_C(1) << 42;
    ck_assert_int_eq(segment_create(&opt, &shm, &replaced, why, sizeof(why)), DAC_E_FULL);
    ck_assert_ptr_nonnull(strstr(why, "shm_size"));
    snprintf(path, sizeof(path), "/dev/shm/%s", shm_name);
    ck_assert_int_eq(stat(path, &st), -1);
    ck_assert_ptr_null(shm.base);
}
END_TEST

START_TEST(second_instance_is_refused_by_name_and_pid)
{
    struct shm first;
    char pid[16];
    bool replaced;

    ck_assert_int_eq(create(&replaced), DAC_OK);
    first = shm;
    ck_assert_int_eq(create(&replaced), DAC_E_EXISTS);
    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    ck_assert_ptr_nonnull(strstr(why, pid));
    ck_assert_ptr_nonnull(strstr(why, shm_name));
    shm = first;
    segment_destroy(&shm);
    ck_assert_int_eq(create(&replaced), DAC_OK);
    ck_assert(!replaced);
    segment_destroy(&shm);
}
END_TEST

START_TEST(killed_masters_segment_is_replaced)
{
    struct shm_options opt = fixture_options(shm_name, 64);
    struct shm old;
    bool replaced;

    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid == 0) {
        if (create(&replaced) != DAC_OK || pthread_mutex_lock(&shm.buckets[3].lock) != 0)
            _exit(1);
        raise(SIGKILL);
    }
    int status;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFSIGNALED(status));
    ck_assert_int_eq(segment_attach(shm_name, &old, why, sizeof(why)), DAC_OK);
    ck_assert_int_eq(segment_create(&opt, &shm, &replaced, why, sizeof(why)), DAC_OK);
    ck_assert(replaced);
    ck_assert_uint_eq(atomic_load(&shm.hdr->master_pid), (uint32_t)getpid());
    ck_assert_int_eq(pthread_mutex_trylock(&shm.buckets[3].lock), 0);
    ck_assert_int_eq(pthread_mutex_unlock(&shm.buckets[3].lock), 0);
    /* Who still maps the old one keeps its memory. */
    ck_assert_uint_eq(atomic_load(&old.hdr->master_pid), (uint32_t)pid);
    segment_detach(&old);
    segment_destroy(&shm);
}
END_TEST

/* Not even a header is there: the maker died early. */
START_TEST(half_made_segment_is_replaced)
{
    bool replaced;
    int fd = shm_open(shm_name, O_RDWR | O_CREAT | O_EXCL, 0600);

    ck_assert_int_ge(fd, 0);
    close(fd);
    ck_assert_int_eq(segment_attach(shm_name, &shm, why, sizeof(why)), DAC_E_CORRUPT);
    ck_assert_int_eq(create(&replaced), DAC_OK);
    ck_assert(replaced);
    segment_destroy(&shm);
}
END_TEST

/* The name may have become another instance's: it stays then. */
START_TEST(destroy_leaves_another_ones_name)
{
    struct shm first;
    bool replaced;

    ck_assert_int_eq(create(&replaced), DAC_OK);
    first = shm;
    ck_assert_int_eq(shm_unlink(shm_name), 0);
    ck_assert_int_eq(create(&replaced), DAC_OK);
    segment_destroy(&first);
    ck_assert_int_eq(segment_attach(shm_name, &first, why, sizeof(why)), DAC_OK);
    segment_detach(&first);
    segment_destroy(&shm);
}
END_TEST

/* --- what the system refuses ----------------------------------------------------------
 */

static rlim_t limit_files(uint32_t more)
{
    int next = dup(0); /* descriptors below it are taken */
    struct rlimit old, now;

    ck_assert_int_ge(next, 0);
    close(next);
    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &old), 0);
    now = old;
    now.rlim_cur = (rlim_t)next + more;
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &now), 0);
    return old.rlim_cur;
}

static void set_limit(int what, rlim_t value)
{
    struct rlimit now;

    ck_assert_int_eq(getrlimit(what, &now), 0);
    now.rlim_cur = value;
    ck_assert_int_eq(setrlimit(what, &now), 0);
}

static const struct {
    uint32_t descriptors;
    const char *words;
} short_of_files[] = {
    {0, "could not open shared memory"}, /* the segment itself */
    {1, "could not open shared memory"}, /* the descriptor that it is mapped through */
    {10, "could not open eventfd"},
};

/* An error in words, nothing stays behind, and with more descriptors it works. */
START_TEST(too_few_descriptors_are_an_error)
{
    rlim_t enough = limit_files(short_of_files[_i].descriptors);
    bool replaced;

    ck_assert_int_eq(create(&replaced), DAC_E_SYS);
    ck_assert_msg(strstr(why, short_of_files[_i].words), "%s", why);
    ck_assert_ptr_null(shm.base);
    ck_assert_int_eq(shm.lock_fd, -1);
    set_limit(RLIMIT_NOFILE, enough);
    ck_assert_int_eq(create(&replaced), DAC_OK);
    ck_assert(!replaced);
    limit_files(0);
    struct shm outside;
    ck_assert_int_eq(segment_attach(shm_name, &outside, why, sizeof(why)), DAC_E_SYS);
    ck_assert_ptr_nonnull(strstr(why, strerror(EMFILE)));
    set_limit(RLIMIT_NOFILE, enough);
    segment_destroy(&shm);
}
END_TEST

#ifndef DAC_SANITIZE /* which needs the address space for itself */
static rlim_t pages_mapped(void)
{
    unsigned long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");

    ck_assert_ptr_nonnull(f);
    ck_assert_int_eq(fscanf(f, "%lu", &pages), 1);
    fclose(f);
    return pages;
}

START_TEST(too_little_address_space_is_an_error)
{
    bool replaced;

    set_limit(RLIMIT_AS, (pages_mapped() + 256) * 4096);
    ck_assert_int_eq(create(&replaced), DAC_E_SYS);
    ck_assert_ptr_nonnull(strstr(why, "could not map"));
    set_limit(RLIMIT_AS, RLIM_INFINITY);
    ck_assert_int_eq(shm_unlink(shm_name), -1);
    ck_assert_int_eq(create(&replaced), DAC_OK);
    ck_assert(!replaced);
    set_limit(RLIMIT_AS, (pages_mapped() + 256) * 4096);
    struct shm outside;
    ck_assert_int_eq(segment_attach(shm_name, &outside, why, sizeof(why)), DAC_E_SYS);
    set_limit(RLIMIT_AS, RLIM_INFINITY);
    segment_destroy(&shm);
}
END_TEST
#endif

/* Without rights another one's segment is neither taken nor removed, and what one makes
 * oneself can be given to nobody. */
START_TEST(without_rights_nothing_is_taken)
{
    struct shm_options opt = fixture_options(shm_name, 64);
    char theirs[SHM_NAME_SIZE];
    struct shm outside;
    struct shm first;
    bool replaced;

    if (geteuid() != 0)
        return;
    ck_assert_int_eq(segment_create(&opt, &first, &replaced, why, sizeof(why)), DAC_OK);
    ck_assert_int_eq(setgroups(0, NULL), 0);
    ck_assert_int_eq(setegid(65534), 0);
    ck_assert_int_eq(seteuid(65534), 0);
    ck_assert_int_eq(segment_create(&opt, &shm, &replaced, why, sizeof(why)), DAC_E_SYS);
    ck_assert_msg(strstr(why, strerror(EACCES)), "%s", why);
    ck_assert(!replaced);
    ck_assert_int_eq(segment_attach(shm_name, &shm, why, sizeof(why)), DAC_E_SYS);
    snprintf(theirs, sizeof(theirs), "%s", shm_name);
    opt.name = fixture_name("nobody");
    ck_assert_int_eq(segment_create(&opt, &shm, &replaced, why, sizeof(why)), DAC_E_SYS);
    ck_assert_msg(strstr(why, "to uid 0"), "%s", why);
    ck_assert_int_eq(shm_unlink(shm_name), -1);
    ck_assert_int_eq(seteuid(0), 0);
    ck_assert_int_eq(segment_attach(theirs, &outside, why, sizeof(why)), DAC_OK);
    segment_detach(&outside);
    segment_destroy(&first);
}
END_TEST

/* --- attach ------------------------------------------------------------------------- */

START_TEST(attached_reads_and_cannot_write)
{
    struct shm outside;
    bool replaced;

    ck_assert_int_eq(segment_attach(shm_name, &outside, why, sizeof(why)),
                     DAC_E_NOT_FOUND);
    ck_assert_int_eq(create(&replaced), DAC_OK);
    shm.self = new_worker();
    struct join_request req = question(1);
    struct join_result r;
    ck_assert_int_eq(index_join(&shm, &req, &r), DAC_OK);
    ck_assert_int_eq(segment_attach(shm_name, &outside, why, sizeof(why)), DAC_OK);
    ck_assert(!outside.writable);
    ck_assert_ptr_ne(outside.base, shm.base);
    ck_assert_int_eq(flight_load(&outside, r.ref.index).state, FLIGHT_CLAIMED);
    ck_assert(all_valid(&outside, why, sizeof(why)));
    for (size_t i = 0; i < SHM_SLOTS; i++)
        ck_assert_int_eq(outside.eventfd[i], -1);
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGSEGV, SIG_DFL); /* a sanitizer's handler would report it */
        atomic_store(&outside.hdr->kicks, 1);
        _exit(0);
    }
    int status;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    segment_detach(&outside);
    segment_destroy(&shm);
}
END_TEST

START_TEST(child_gives_up_the_lock)
{
    bool replaced;

    ck_assert_int_eq(create(&replaced), DAC_OK);
    ck_assert_int_ge(shm.lock_fd, 0);
    segment_enter_child(&shm, 7);
    ck_assert_int_eq(shm.lock_fd, -1);
    ck_assert_uint_eq(shm.self, 7);
    /* The name is not a child's to remove. */
    segment_destroy(&shm);
    ck_assert_int_eq(shm_unlink(shm_name), 0);
}
END_TEST

#define FIELD(member)                                                                    \
    {                                                                                    \
#member, offsetof(struct shm_header, member),                                    \
            sizeof(((struct shm_header *)0)->member)                                     \
    }

/* Every field that places something or is trusted as a bound. */
static const struct {
    const char *name;
    size_t at, size;
} fields[] = {
    FIELD(magic),         FIELD(layout_version), FIELD(header_size),
    FIELD(slot_size),     FIELD(pacer_size),     FIELD(bucket_size),
    FIELD(flight_size),   FIELD(alias_size),     FIELD(sample_size),
    FIELD(timings_size),  FIELD(areas.timings),  FIELD(block_size),
    FIELD(flight_count),  FIELD(bucket_count),   FIELD(alias_count),
    FIELD(block_count),   FIELD(dirty_words),    FIELD(total_size),
    FIELD(areas.slots),   FIELD(areas.dirty),    FIELD(areas.pacers),
    FIELD(areas.buckets), FIELD(areas.flights),  FIELD(areas.aliases),
    FIELD(areas.samples), FIELD(areas.blocks),   FIELD(areas.data),
    FIELD(areas.end),
};

/* Values of one field are wrong in many ways; each is noticed, and none is a crash. */
START_TEST(one_wrong_field_is_noticed)
{
    const uint64_t wrong[] = {0, 1, 63, UINT64_MAX, UINT64_C(1) << 31};
    struct shm outside;
    uint64_t good = 0;
    bool replaced;

    ck_assert_int_eq(create(&replaced), DAC_OK);
    uint8_t *at = shm.base + fields[_i].at;
    memcpy(&good, at, fields[_i].size);
    for (size_t i = 0; i < DAC_ARRAY_LEN(wrong) + 3; i++) {
        uint64_t v = i < DAC_ARRAY_LEN(wrong)        ? wrong[i]
                     : i == DAC_ARRAY_LEN(wrong)     ? good + 64
                     : i == DAC_ARRAY_LEN(wrong) + 1 ? good - 64
                                                     : good + 1;
        memcpy(at, &v, fields[_i].size);
        if (memcmp(at, &good, fields[_i].size) == 0)
            continue;
        ck_assert_msg(segment_attach(shm_name, &outside, why, sizeof(why)) ==
                          DAC_E_CORRUPT,
                      "%s = %llu passed", fields[_i].name, (unsigned long long)v);
        ck_assert_ptr_null(outside.base);
        memcpy(at, &good, fields[_i].size);
    }
    ck_assert_int_eq(segment_attach(shm_name, &outside, why, sizeof(why)), DAC_OK);
    segment_detach(&outside);
    segment_destroy(&shm);
}
END_TEST

START_TEST(names_without_end_are_noticed)
{
    struct shm outside;
    bool replaced;

    ck_assert_int_eq(create(&replaced), DAC_OK);
    memset(shm.hdr->provider_names[0], 'x', sizeof(shm.hdr->provider_names[0]));
    ck_assert_int_eq(segment_attach(shm_name, &outside, why, sizeof(why)), DAC_E_CORRUPT);
    shm.hdr->provider_names[0][3] = '\0';
    memset(shm.hdr->name, 'x', sizeof(shm.hdr->name));
    ck_assert_int_eq(segment_attach(shm_name, &outside, why, sizeof(why)), DAC_E_CORRUPT);
    snprintf(shm.hdr->name, sizeof(shm.hdr->name), "%s", shm_name);
    atomic_store(&shm.hdr->provider_count, SHM_PROVIDERS_MAX + 1);
    ck_assert_int_eq(segment_attach(shm_name, &outside, why, sizeof(why)), DAC_E_CORRUPT);
    segment_destroy(&shm);
}
END_TEST

START_TEST(truncated_file_is_noticed)
{
    static const off_t sizes[] = {0, 8, 4096, 100000};
    struct shm outside;
    bool replaced;
    char path[128];

    ck_assert_int_eq(create(&replaced), DAC_OK);
    snprintf(path, sizeof(path), "/dev/shm/%s", shm_name);
    for (size_t i = DAC_ARRAY_LEN(sizes); i-- > 0;) {
        ck_assert_int_eq(truncate(path, sizes[i]), 0);
        ck_assert_int_eq(segment_attach(shm_name, &outside, why, sizeof(why)),
                         DAC_E_CORRUPT);
    }
    ck_assert_int_eq(shm_unlink(shm_name), 0); /* nothing of it may be touched now */
    segment_detach(&shm);
}
END_TEST

/* --- counters ----------------------------------------------------------------------- */

START_TEST(counters_sum_slots_and_base)
{
    bool replaced;

    ck_assert_int_eq(create(&replaced), DAC_OK);
    shm_count(&shm, SHM_C_requests, 1); /* the master's own go to the base */
    for (uint64_t i = 0; i < 3; i++) {
        shm.self = new_worker();
        shm_count(&shm, SHM_C_requests, 10 + i);
        shm_count(&shm, SHM_C_sent_bytes, UINT64_C(1) << 40);
    }
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_requests), 34);
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_sent_bytes), UINT64_C(3) << 40);
    ck_assert_uint_eq(shm_counter_sum(&shm, SHM_C_hits), 0);
    ck_assert_str_eq(shm_counter_name(SHM_C_requests), "requests");
    ck_assert_str_eq(shm_counter_name(SHM_C_COUNT), "?");
    for (int c = 0; c < SHM_C_COUNT; c++)
        ck_assert_uint_gt(strlen(shm_counter_help((enum shm_counter)c)), 5);
    ck_assert_str_eq(shm_counter_help(SHM_C_COUNT), "");
    segment_destroy(&shm);
}
END_TEST

START_TEST(restarts_sum_kinds_and_reasons)
{
    bool replaced;

    ck_assert_int_eq(create(&replaced), DAC_OK);
    ck_assert_uint_eq(shm_restarts_sum(&shm), 0);
    atomic_store(&shm.hdr->restarts[SLOT_WORKER][RESTART_KILLED], 1);
    atomic_store(&shm.hdr->restarts[SLOT_WORKER][RESTART_WATCHDOG], 20);
    atomic_store(&shm.hdr->restarts[SLOT_RECORDER][RESTART_EXITED], 300);
    ck_assert_uint_eq(shm_restarts_sum(&shm), 321);
    ck_assert_str_eq(shm_restart_reason_name(RESTART_WATCHDOG), "watchdog");
    ck_assert_str_eq(shm_restart_reason_name(RESTART_REASON_COUNT), "?");
    segment_destroy(&shm);
}
END_TEST

int main(void)
{
    Suite *s = suite_create("segment");
    TCase *t = tcase_create("segment");

    tcase_add_checked_fixture(t, setup, teardown);
    tcase_add_loop_test(t, plan_fits_or_says_what_would, 0, DAC_ARRAY_LEN(plans));
    tcase_add_test(t, default_layout_is_the_one_described);
    tcase_add_test(t, least_segment_holds_one_whole_answer);
    tcase_add_test(t, new_segment_is_valid_and_empty);
    tcase_add_loop_test(t, bad_name_is_refused, 0, DAC_ARRAY_LEN(bad_names));
    tcase_add_test(t, too_large_for_dev_shm_is_an_error_at_once);
    tcase_add_test(t, second_instance_is_refused_by_name_and_pid);
    tcase_add_test(t, killed_masters_segment_is_replaced);
    tcase_add_test(t, half_made_segment_is_replaced);
    tcase_add_test(t, destroy_leaves_another_ones_name);
    tcase_add_loop_test(t, too_few_descriptors_are_an_error, 0,
                        DAC_ARRAY_LEN(short_of_files));
#ifndef DAC_SANITIZE
    tcase_add_test(t, too_little_address_space_is_an_error);
#endif
    tcase_add_test(t, without_rights_nothing_is_taken);
    tcase_add_test(t, attached_reads_and_cannot_write);
    tcase_add_test(t, child_gives_up_the_lock);
    tcase_add_loop_test(t, one_wrong_field_is_noticed, 0, DAC_ARRAY_LEN(fields));
    tcase_add_test(t, names_without_end_are_noticed);
    tcase_add_test(t, truncated_file_is_noticed);
    tcase_add_test(t, counters_sum_slots_and_base);
    tcase_add_test(t, restarts_sum_kinds_and_reasons);
    suite_add_tcase(s, t);
    return run_suite(s);
}
