/*
 * A worker or the recorder ends at each crash point that stands in shm/, or stops there
 * for a while, beside a worker that lives on. The names are read from the sources, so no
 * new point is forgotten, and each must be reached.
 *
 * Without crash points (see --enable-crashpoints) there is nothing to run.
 */
#include <glob.h>

#include "tests/shm/actors.h"

#ifdef DAC_CRASHPOINTS

#define POINTS_MAX  120
#define NAME_MAX_   48
#define BROKEN_KEY  9u
#define BROKEN_NAME 6u

static char points[POINTS_MAX][NAME_MAX_];
static size_t point_count;

static const unsigned passes[] = {1, 3};

/* --- the list ----------------------------------------------------------------------- */

static void note_points_of(const char *path)
{
    static const char mark[] = "CRASH_POINT(\"";
    char line[256];
    FILE *f = fopen(path, "r");

    if (!f)
        return;
    while (fgets(line, sizeof(line), f)) {
        const char *at = strstr(line, mark);
        if (at && point_count < POINTS_MAX)
            sscanf(at + strlen(mark), "%47[a-z_]", points[point_count++]);
    }
    fclose(f);
}

static void find_points(void)
{
    glob_t files;

    if (glob("shm/*.c", 0, NULL, &files) != 0)
        return;
    for (size_t i = 0; i < files.gl_pathc; i++)
        note_points_of(files.gl_pathv[i]);
    globfree(&files);
}

/* --- the world ---------------------------------------------------------------------- */

static uint32_t me;
static struct join_result mine[3]; /* flights of this process: keys 0, 1, 2 */

static void setup(void)
{
    fixture_open(64);
    pacer_set_limits(&shm, 0, 1e6, 1000, FIXTURE_CONCURRENCY);
}

static void teardown(void)
{
    fixture_close();
}

static void ask(uint32_t key, struct join_result *r)
{
    struct join_request req = question(key);

    ck_assert_int_eq(index_join(&shm, &req, r), DAC_OK);
}

/* A process that dies with the lock of BROKEN_KEY's bucket, and with two flights, one of
 * them ended and not stored, with a name that is half bound to it. */
static void leave_something_to_repair(void)
{
    uint32_t slot = new_worker();
    pid_t pid = fork_actor(slot);

    if (pid == 0) {
        struct join_result r;
        struct join_request req = question(7);
        struct alias_key key = name_of(0, BROKEN_NAME);
        struct alias_found found;
        uint32_t alias;
        must(index_join(&shm, &req, &r), "not joined", 7);
        must(blocklog_append(&shm, &r.writer, RECORD_REQUEST, "{}", 2), "no log", 7);
        must(flight_advance(&shm, r.ref, FLIGHT_QUEUED), "not queued", 7);
        req = question(8);
        must(index_join(&shm, &req, &r), "not joined", 8);
        must(alias_claim(&shm, &key, body_of(BROKEN_NAME), 1, NULL, &alias, &found),
             "not claimed", 8);
        atomic_store(&alias_at(&shm, alias)->target, alias_use(r.ref));
        alias_push(&shm, alias, r.ref); /* and no word of it */
        finish(&r, TURN_FAILED);
        pthread_mutex_lock(&shm.buckets[BROKEN_KEY].lock);
        raise(SIGKILL);
    }
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
    bury_actor(slot);
}

static void begin(void)
{
    me = new_worker();
    shm.self = me;
    for (uint32_t i = 0; i < DAC_ARRAY_LEN(mine); i++) {
        ask(i, &mine[i]);
        ck_assert_int_eq(mine[i].role, JOIN_LEADER);
        ck_assert_int_eq(blocklog_append(&shm, &mine[i].writer, RECORD_REQUEST, "{}", 2),
                         DAC_OK);
        ck_assert_int_eq(flight_advance(&shm, mine[i].ref, FLIGHT_QUEUED), DAC_OK);
    }
    leave_something_to_repair();
}

/* --- who dies ----------------------------------------------------------------------- */

/* Binds a name to a flight that it leads, in the place of what the name has; NULL: it
 * gives the name back. */
static void rebind(uint32_t n, const struct flight_ref *replace, bool drop)
{
    struct alias_key key = name_of(0, n);
    struct join_request req = private_question(n);
    struct alias_found found;
    struct join_result r;
    unsigned seed = n;
    uint32_t alias;
    enum dac_err e;

    while ((e = alias_claim(&shm, &key, body_of(n), 1, replace, &alias, &found)) ==
           DAC_E_BUSY)
        ;
    if (e == DAC_E_EXISTS)
        return;
    must(e, "name not claimed", n);
    if (drop) {
        alias_drop(&shm, alias);
        return;
    }
    while ((e = index_join(&shm, &req, &r)) == DAC_E_BUSY)
        ;
    must(e, "not led", n);
    alias_bind(&shm, alias, r.ref);
    atomic_fetch_or(&flight_at(&shm, r.ref.index)->readers, UINT64_C(1) << me);
    actor_lead(&r, &seed);
}

/* Names: one is bound, one is given back and asked for again, one is half bound by a dead
 * process and passes on to another flight. */
static void name_scene(void)
{
    struct alias_key broken = name_of(0, BROKEN_NAME), dropped = name_of(0, 2);
    struct alias_found found;
    enum dac_err e;

    for (int round = 0; round < 3; round++) {
        rebind((uint32_t)round, NULL, false);
        rebind(3, NULL, true);
        rebind(4, NULL, true);
    }
    while ((e = alias_find(&shm, &dropped, &found)) == DAC_E_BUSY)
        ;
    while ((e = alias_find(&shm, &broken, &found)) == DAC_E_BUSY)
        ;
    must(e, "a name is lost", BROKEN_NAME);
    for (int round = 0; round < 3; round++) {
        struct flight_ref last = found.ref;
        rebind(BROKEN_NAME, &last, false);
        while ((e = alias_find(&shm, &broken, &found)) == DAC_E_BUSY)
            ;
        must(e, "a name is lost", BROKEN_NAME);
    }
}

/* Follows what runs, leads what nobody leads, over broken and over sound buckets. This
 * process reads along, so that there is somebody to wake. */
static void worker_scene(void)
{
    static const uint32_t keys[] = {0, 1, BROKEN_KEY, 4, 5, 1, 4, 6};
    unsigned seed = 5;

    for (size_t i = 0; i < DAC_ARRAY_LEN(keys); i++) {
        struct join_request req = question(keys[i]);
        struct join_result r;

        req.result_ttl_ns = 0;
        req.error_ttl_ns = 0;
        while (index_join(&shm, &req, &r) == DAC_E_BUSY)
            ;
        if (r.role == JOIN_LEADER) {
            atomic_fetch_or(&flight_at(&shm, r.ref.index)->readers, UINT64_C(1) << me);
            actor_lead(&r, &seed);
        } else {
            flight_decline(&shm, r.ref.index, true); /* none of its clients could */
            actor_follow(&r, &seed);
        }
    }
    name_scene();
    struct flight_ref spare; /* a claim that is given back */
    must(flight_claim(&shm, &spare), "not claimed", 0);
    flight_unclaim(&shm, spare);
}

static void recorder_scene(void)
{
    recorder_step(RECYCLE_EXPIRED);
    recorder_step(RECYCLE_PRESSURE);
    recorder_step(RECYCLE_PRESSURE);
}

static void act(bool recorder, const char *point, unsigned pass, bool stop)
{
    char at[NAME_MAX_ + 16];

    snprintf(at, sizeof(at), "%s:%u", point, pass);
    setenv("DAC_CRASH_AT", at, 1);
    setenv("DAC_CRASH_SIGNAL", stop ? "STOP" : "KILL", 1);
    crash_set_role(recorder ? "recorder" : "worker");
    if (recorder)
        recorder_scene();
    else
        worker_scene();
    _exit(0);
}

/* --- who lives on ------------------------------------------------------------------- */

/* Whatever the other one left of a name: it is bound or free, and a living process binds
 * it once. */
static void go_on_by_name(bool busy_allowed)
{
    for (uint32_t n = 0; n < ACTOR_NAMES; n++) {
        struct alias_key key = name_of(0, n);
        struct alias_found found;
        struct join_result r;
        uint32_t alias;
        enum dac_err e = alias_claim(&shm, &key, body_of(n), 1, NULL, &alias, &found);

        if (e == DAC_E_BUSY && busy_allowed)
            continue;
        if (e == DAC_E_EXISTS) {
            ck_assert(alias_use_lasts(&shm, alias_use(found.ref)));
            ck_assert_int_eq(memcmp(found.body, body_of(n), 32), 0);
            continue;
        }
        ck_assert_int_eq(e, DAC_OK);
        struct join_request req = private_question(n);
        e = index_join(&shm, &req, &r);
        if (e != DAC_OK) {
            ck_assert(e == DAC_E_BUSY && busy_allowed);
            alias_drop(&shm, alias);
            continue;
        }
        alias_bind(&shm, alias, r.ref);
        finish(&r, TURN_FAILED);
        flight_drop_reader(&shm, r.ref.index);
        ck_assert_int_eq(alias_claim(&shm, &key, body_of(n), 1, NULL, &alias, &found),
                         DAC_E_EXISTS);
    }
}

/* All keys can be asked for, whatever the other one left; `busy_allowed`: it may stand
 * stopped with a lock. */
static void go_on(bool busy_allowed)
{
    char why[160];

    for (uint32_t key = 0; key < 12; key++) {
        struct join_request req = question(key);
        struct join_result r;
        enum dac_err e = index_join(&shm, &req, &r);

        if (e == DAC_E_BUSY && busy_allowed)
            continue;
        ck_assert_int_eq(e, DAC_OK);
        if (r.role == JOIN_LEADER)
            finish(&r, TURN_FAILED);
        flight_drop_reader(&shm, r.ref.index);
    }
    go_on_by_name(busy_allowed);
    for (uint32_t key = 0; key < 12 && !busy_allowed; key++)
        ck_assert_msg(index_valid(&shm, key, why, sizeof(why)), "bucket %u: %s", key,
                      why);
    for (uint32_t i = 0; i < DAC_ARRAY_LEN(mine); i++) {
        struct join_result *r = &mine[i];
        if (flight_load(&shm, r->ref.index).owner == me)
            ck_assert_int_eq(blocklog_append(&shm, &r->writer, RECORD_DELTA, "", 0),
                             DAC_OK);
    }
}

static void end_mine(void)
{
    for (uint32_t i = 0; i < DAC_ARRAY_LEN(mine); i++) {
        finish(&mine[i], TURN_FAILED);
        flight_drop_reader(&shm, mine[i].ref.index);
    }
}

/* One child at one point; true if it got there. */
static bool run_one(bool recorder, const char *point, unsigned pass, bool stop)
{
    uint32_t slot;
    int status;
    bool reached;

    begin();
    slot = recorder ? new_recorder() : new_worker();
    pid_t pid = fork_actor(slot);
    if (pid == 0)
        act(recorder, point, pass, stop);
    ck_assert_int_eq(waitpid(pid, &status, stop ? WUNTRACED : 0), pid);
    reached = stop ? WIFSTOPPED(status) : WIFSIGNALED(status);
    if (stop && reached) {
        go_on(true);
        ck_assert_int_eq(kill(pid, SIGCONT), 0);
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    }
    if (reached && !stop)
        ck_assert_int_eq(WTERMSIG(status), SIGKILL);
    else
        ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0,
                      "%s:%u: %s ended with status %x", point, pass,
                      recorder ? "recorder" : "worker", (unsigned)status);
    bury_actor(slot);
    go_on(false);
    end_mine();
    bury_actor(me);
    shm.self = SHM_NO_SLOT;
    assert_nothing_leaked();
    return reached;
}

static void run_all(const char *point, bool stop)
{
    uint32_t reached = 0;

    for (size_t i = 0; i < (stop ? 1 : DAC_ARRAY_LEN(passes)); i++) {
        reached += run_one(false, point, passes[i], stop);
        reached += run_one(true, point, passes[i], stop);
    }
    ck_assert_msg(reached > 0, "nobody came to crash point %s", point);
}

START_TEST(death_at_each_point)
{
    run_all(points[_i], false);
}
END_TEST

START_TEST(stop_at_each_point)
{
    run_all(points[_i], true);
}
END_TEST

START_TEST(points_were_found)
{
    ck_assert_msg(point_count > 20, "run this from the top folder: shm/*.c has %zu",
                  point_count);
}
END_TEST

/* --- a late claimer ----------------------------------------------------------------- */

/* It claimed, and before it came back to the lock another flight of the key had come and
 * gone. What it leads then is what newcomers find. */
START_TEST(late_claimer_is_found)
{
    uint32_t slot = new_worker();
    struct join_result r;
    int status;

    me = new_worker();
    shm.self = me;
    pid_t pid = fork_actor(slot);
    if (pid == 0) {
        setenv("DAC_CRASH_AT", "claim_filled", 1);
        setenv("DAC_CRASH_SIGNAL", "STOP", 1);
        crash_set_role("worker");
        struct join_request req = question(3);
        if (index_join(&shm, &req, &r) != DAC_OK || r.role != JOIN_LEADER)
            _exit(ACTOR_BAD);
        raise(SIGSTOP);
        _exit(0);
    }
    ck_assert_int_eq(waitpid(pid, &status, WUNTRACED), pid);
    ck_assert(WIFSTOPPED(status));
    ask(3, &r);
    ck_assert_int_eq(r.role, JOIN_LEADER);
    finish(&r, TURN_CANCELLED);
    uint32_t gone = r.ref.index;
    ck_assert_int_eq(kill(pid, SIGCONT), 0);
    ck_assert_int_eq(waitpid(pid, &status, WUNTRACED), pid);
    ck_assert(WIFSTOPPED(status));
    ask(3, &r);
    ck_assert_int_eq(r.role, JOIN_FOLLOWER);
    ck_assert_uint_ne(r.ref.index, gone);
    ck_assert_uint_eq(flight_load(&shm, r.ref.index).owner, slot);
    kill(pid, SIGKILL);
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
}
END_TEST

/* --- losers of a race --------------------------------------------------------------- */

/* A child that stops at the first pass of `point`, in `slot`; 0 in the child. */
static pid_t stopped_at(const char *point, uint32_t slot, int (*fn)(void))
{
    int status;
    pid_t pid = fork_actor(slot);

    if (pid == 0) {
        setenv("DAC_CRASH_AT", point, 1);
        setenv("DAC_CRASH_SIGNAL", "STOP", 1);
        setenv("DAC_CRASH_ROLE", "worker", 1);
        crash_set_role("worker");
        _exit(fn());
    }
    ck_assert_int_eq(waitpid(pid, &status, WUNTRACED), pid);
    ck_assert(WIFSTOPPED(status));
    return pid;
}

static int how_it_ended(pid_t pid)
{
    int status;

    ck_assert_int_eq(kill(pid, SIGCONT), 0);
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static struct join_result contested;

static int adopt_it(void)
{
    return (int)flight_adopt(&shm, contested.ref, FLIGHT_FETCHING);
}

/* Two saw the same orphan: the second swap changes nothing. */
START_TEST(late_adopter_leaves_it_alone)
{
    uint32_t owner = new_worker(), late = new_worker();
    struct flight_word w;

    shm.self = owner;
    ask(3, &contested);
    slot_sweep(&shm, owner);
    pid_t pid = stopped_at("adopt_before", late, adopt_it);
    shm.self = new_worker();
    ck_assert_int_eq(flight_adopt(&shm, contested.ref, FLIGHT_CLAIMED), DAC_OK);
    ck_assert_int_eq(how_it_ended(pid), DAC_E_STATE);
    w = flight_load(&shm, contested.ref.index);
    ck_assert_int_eq(w.state, FLIGHT_CLAIMED);
    ck_assert_uint_eq(w.owner, shm.self);
    ck_assert_uint_eq(w.generation, 1);
}
END_TEST

static int lead_it_on(void)
{
    return (int)flight_advance(&shm, contested.ref, FLIGHT_QUEUED);
}

/* Nobody takes from the living; if it were done all the same, the owner would notice. */
START_TEST(owner_that_lost_its_flight_moves_it_no_more)
{
    uint32_t owner = new_worker();

    shm.self = owner;
    ask(3, &contested);
    pid_t pid = stopped_at("flight_advance_before", owner, lead_it_on);
    slot_sweep(&shm, owner);
    ck_assert_int_eq(how_it_ended(pid), DAC_E_STATE);
    ck_assert_int_eq(flight_load(&shm, contested.ref.index).state, FLIGHT_ORPHANED);
}
END_TEST

static int take_a_call(void)
{
    uint32_t permit;
    uint64_t wait;
    enum dac_err e = pacer_take(&shm, 0, contested.ref, 10 * NS_PER_S, &permit, &wait);

    if (e != DAC_E_AGAIN || permit != PACER_NO_PERMIT || wait == 0)
        return ACTOR_BAD;
    return wait == NS_PER_S ? 0 : 1;
}

/* One token, two permits: the second one gives its permit back and knows how long to
 * wait. */
START_TEST(permit_without_token_is_given_back)
{
    uint32_t permit;
    uint64_t wait;

    me = new_worker();
    shm.self = me;
    ask(3, &contested);
    pacer_set_limits(&shm, 0, 1, 1, 2);
    pid_t pid = stopped_at("permit_after", me, take_a_call);
    shm.self = new_worker();
    ck_assert_int_eq(pacer_take(&shm, 0, contested.ref, 10 * NS_PER_S, &permit, &wait),
                     DAC_OK);
    ck_assert_uint_eq(pacer_in_flight(&shm, 0), 2);
    ck_assert_int_eq(how_it_ended(pid), 0);
    ck_assert_uint_eq(pacer_in_flight(&shm, 0), 1);
    ck_assert_uint_eq(atomic_load(&shm.pacers[0].calls), 1);
}
END_TEST

static int share_it(void)
{
    struct join_request req = question(3);
    struct join_result r;
    enum dac_err e = index_join(&shm, &req, &r);

    if (e != DAC_OK || r.role != JOIN_FOLLOWER || flights_in_use() != 1)
        return 1;
    return flight_load(&shm, r.ref.index).owner != shm.self ? 0 : 2;
}

/* It claimed a flight for a question that got a leader meanwhile: it joins that one, and
 * the claim is free again. */
START_TEST(late_claimer_joins_the_leader)
{
    uint32_t late = new_worker();

    shm.self = new_worker();
    pid_t pid = stopped_at("claim_filled", late, share_it);
    ask(3, &contested);
    ck_assert_int_eq(contested.role, JOIN_LEADER);
    ck_assert_int_eq(how_it_ended(pid), 0);
}
END_TEST

/* A point fires at its own name only, in its own role, and only once there is one. */
START_TEST(points_fire_where_they_are_meant)
{
    setenv("DAC_CRASH_AT", "claim", 1);
    crash_set_role("worker");
    crash_point("claim_before");
    setenv("DAC_CRASH_AT", "claim_before_all", 1);
    crash_point("claim_before");
    setenv("DAC_CRASH_AT", "claim_before", 1);
    setenv("DAC_CRASH_ROLE", "recorder", 1);
    crash_point("claim_before");
    crash_set_role(NULL);
    crash_point("claim_before");
}
END_TEST

static Suite *suite(void)
{
    Suite *s = suite_create("crash points");
    TCase *t = tcase_create("points");

    find_points();
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 30);
    tcase_add_test(t, points_were_found);
    tcase_add_loop_test(t, death_at_each_point, 0, (int)point_count);
    tcase_add_loop_test(t, stop_at_each_point, 0, (int)point_count);
    tcase_add_test(t, late_claimer_is_found);
    tcase_add_test(t, late_claimer_joins_the_leader);
    tcase_add_test(t, late_adopter_leaves_it_alone);
    tcase_add_test(t, owner_that_lost_its_flight_moves_it_no_more);
    tcase_add_test(t, permit_without_token_is_given_back);
    tcase_add_test(t, points_fire_where_they_are_meant);
    suite_add_tcase(s, t);
    return s;
}

#else

static Suite *suite(void)
{
    puts("crash points are not compiled in; make check-shm CRASHPOINTS=1 runs these "
         "tests");
    return suite_create("crash points");
}

#endif

int main(void)
{
    return run_suite(suite());
}
