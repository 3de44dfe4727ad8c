/*
 * What lies in the segment: every struct, every field, who writes it and under what.
 *
 * Offsets and indexes only, never pointers; numbers are native-endian, times are
 * CLOCK_MONOTONIC nanoseconds. shm/README.md draws the layout, pairs the barriers and has
 * the life-cycle tables. Changing anything here means raising SHM_LAYOUT_VERSION.
 *
 * Notation in the comments: [W: who] is the only writer; "cas" means that any process may
 * move the word by one compare-and-swap; "relaxed" fields are hints or statistics.
 */
#ifndef DAC_SHM_LAYOUT_H
#define DAC_SHM_LAYOUT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SHM_MAGIC          UINT64_C(0x3153544847494c46) /* "FLIGHTS1" */
#define SHM_LAYOUT_VERSION 13u
#define SHM_SLOTS          64u
#define SHM_NO_SLOT        UINT32_C(0xff)
#define SHM_WORKERS_MAX    28u
#define SHM_PROVIDERS_MAX  16u
#define SHM_PERMITS_MAX    256u
#define SHM_BLOCK_SIZE     2048u
#define SHM_SAMPLES        16384u
#define SHM_FLIGHTS_MAX    65536u
#define SHM_ALIASES_LEAST  4096u /* or four for each flight, if that is more */
#define SHM_NAME_SIZE      64u
#define SHM_LIVE_MAX       48u  /* settings that change while the service runs */
#define SHM_CONTROL_SIZE   108u /* of a unix socket's path */
#define SHM_CANCELS        8u
#define SHM_KEY_SIZE       32u
#define SHM_TIMING_BUCKETS 17u /* of a histogram; the last one has no bound */
#define SHM_ALIGNED        _Alignas(64)

typedef _Atomic uint64_t shm_u64;
typedef _Atomic uint32_t shm_u32;

/* Counters by slot; X(name, help). One writer each, relaxed; readers sum over the slots
 * and the base. A slot keeps them for the next process in it: moved to another word they
 * would be in neither or in both for whoever sums up at that moment. */
#define SHM_COUNTERS(X)                                                                  \
    X(requests, "HTTP requests read whole")                                              \
    X(leaders, "requests that started a flight")                                         \
    X(followers, "requests that joined a running flight")                                \
    X(hits, "requests served from a finished flight")                                    \
    X(shared_failures, "requests answered by another request's failure")                 \
    X(bypassed, "requests with a flight of their own, never joined")                     \
    X(upstream_calls, "calls made to providers")                                         \
    X(upstream_retries, "second calls after a failure before the first token")           \
    X(upstream_rate_limited, "429 answers from providers")                               \
    X(upstream_cancelled, "calls ended because nobody listened or someone said stop")    \
    X(turns_complete, "turns stored as complete")                                        \
    X(turns_cancelled, "turns stored as cancelled")                                      \
    X(turns_incomplete, "turns stored as incomplete")                                    \
    X(turns_failed, "turns stored as failed")                                            \
    X(turns_unstored, "turns that the store did not take")                               \
    X(store_commits, "commits of the recorder")                                          \
    X(store_commits_1ms, "commits that took at most 1 ms")                               \
    X(store_commits_5ms, "commits that took at most 5 ms")                               \
    X(store_commits_20ms, "commits that took at most 20 ms")                             \
    X(store_commits_100ms, "commits that took at most 100 ms")                           \
    X(store_commits_500ms, "commits that took at most 500 ms")                           \
    X(store_commits_2s, "commits that took at most 2 s")                                 \
    X(store_commit_us, "microseconds that commits took, together")                       \
    X(store_commits_1_row, "commits of one row")                                         \
    X(store_commits_4_rows, "commits of at most 4 rows")                                 \
    X(store_commits_16_rows, "commits of at most 16 rows")                               \
    X(store_commits_64_rows, "commits of at most 64 rows")                               \
    X(store_commits_256_rows, "commits of at most 256 rows")                             \
    X(store_rows, "rows committed, turns and others")                                    \
    X(store_spooled, "rows committed to the spool")                                      \
    X(store_reconnects, "connections to PostgreSQL after the first one")                 \
    X(deliveries, "stream pieces given to clients")                                      \
    X(sent_bytes, "bytes given to the kernel for clients")                               \
    X(stalled_clients, "clients cut off because they took nothing")                      \
    X(accept_pauses, "times accepting paused")                                           \
    X(refused, "requests refused because a table or pool was exhausted")                 \
    X(lock_timeouts, "bucket locks not had in time")                                     \
    X(lock_recoveries, "bucket locks taken over from a dead process")                    \
    X(locks_lost, "bucket locks that can never be had again")                            \
    X(flights_orphaned, "flights whose fetcher died")                                    \
    X(takeovers, "orphaned flights that another worker took over")                       \
    X(idempotency_keys_bound, "values of Idempotency-Key that were bound to a turn")

enum shm_counter {
#define X(name, help) SHM_C_##name,
    SHM_COUNTERS(X)
#undef X
        SHM_C_COUNT
};

/* --- slots -------------------------------------------------------------------------- */

enum slot_state {
    SLOT_FREE = 0,
    SLOT_STARTING, /* forked, not accepting yet */
    SLOT_READY,    /* a worker that accepts, a recorder that stores */
    SLOT_DRAINING, /* accepts no more */
    SLOT_DEAD      /* reaped; the master sweeps it */
};

enum slot_kind { SLOT_WORKER = 1, SLOT_RECORDER = 2 };
#define SHM_KINDS 3u /* room for an array by kind */

/* Why a process was started again. */
enum restart_reason {
    RESTART_KILLED,   /* a signal that the master did not send */
    RESTART_EXITED,   /* it ended by itself */
    RESTART_WATCHDOG, /* its heartbeat stood still */
    RESTART_REASON_COUNT
};

struct shm_slot {
    SHM_ALIGNED shm_u32
        state;          /* enum slot_state [W: master; its process READY, DRAINING] */
    shm_u32 pid;        /* [W: master, before fork returns in the child: its process] */
    shm_u32 kind;       /* enum slot_kind [W: master] */
    shm_u32 ordinal;    /* of a worker [W: master] */
    shm_u32 generation; /* of processes; grows at each start [W: master] */
    shm_u32
        locking_bucket;  /* bucket + 1 it is about to lock or holds, 0 [W: its process] */
    shm_u64 heartbeat;   /* grows 4 times a second [W: its process] */
    shm_u64 beat_ns;     /* time of the last beat [W: its process] */
    shm_u64 connections; /* open clients, a gauge [W: its process] */
    shm_u64 streams;     /* open streams, a gauge [W: its process] */
    SHM_ALIGNED shm_u32
        notified;        /* 1: an eventfd write is under way; read-modify-write only */
    shm_u32 pacer_dirty; /* bit per provider: a permit came back; rmw only */
    SHM_ALIGNED shm_u64 counters[SHM_C_COUNT]; /* relaxed [W: its process] */
};

/* --- pacers ------------------------------------------------------------------------- */

struct shm_pacer {
    SHM_ALIGNED shm_u64 tat_ns; /* GCRA's theoretical arrival time; cas */
    shm_u64 interval_ns;        /* emission interval, 0: no rate limit [W: master] */
    shm_u64 tolerance_ns;       /* (burst - 1) * interval [W: master] */
    shm_u64 paused_until_ns;    /* nobody calls before (a 429 said so); only grows, cas */
    shm_u64 waiting;            /* slots that found no permit; rmw */
    shm_u32 concurrency;        /* permits in use at most, 0: no limit [W: master] */
    shm_u32 calls;              /* permits taken now, a hint; relaxed */
    shm_u32 above;        /* permits from `concurrency` to here may be taken, since it was
                           * higher; 0: none [W: master; any sets it to 0] */
    shm_u32 pause_reason; /* enum pacer_reason, of the last pause; relaxed */
    SHM_ALIGNED shm_u64
        permits[SHM_PERMITS_MAX]; /* {slot+1:8, flight:24, incarnation:32}; cas */
};

/* --- key index ---------------------------------------------------------------------- */

struct shm_bucket {
    SHM_ALIGNED pthread_mutex_t lock; /* process-shared, robust */
    shm_u32 head; /* flight + 1, newest first, 0: none; under the lock */
    shm_u32 lost; /* 1: the lock can never be had again, nobody gets in; any, set once */
    shm_u32 aliases;      /* alias + 1, 0: none; under the lock */
    shm_u32 aliases_gone; /* grows before one of them leaves with its flight; rmw
                           * [W: recorder] */
};

/* --- flights ------------------------------------------------------------------------ */

enum flight_state {
    FLIGHT_FREE = 0,
    FLIGHT_CLAIMED,   /* owner fills in key and ids, indexes it, writes REQUEST */
    FLIGHT_QUEUED,    /* REQUEST is in the log; waits for the pacer */
    FLIGHT_FETCHING,  /* upstream call under way, no content yet */
    FLIGHT_STREAMING, /* content arrives */
    FLIGHT_ORPHANED,  /* owner was reaped; nobody owns it */
    FLIGHT_DONE,      /* ended: END says complete */
    FLIGHT_FAILED,    /* ended: END says failed or incomplete */
    FLIGHT_CANCELLED, /* ended: END says cancelled */
    FLIGHT_STATE_COUNT
};

enum flight_kind { FLIGHT_TURN = 1, FLIGHT_THREAD = 2 };

enum flight_stored {
    STORED_NO = 0,
    STORED_POSTGRES,
    STORED_SPOOL,
    STORED_SQLITE,
    STORED_FAILED /* the store refused it, or there was nothing to store */
};

/* Bits of shm_flight.requests: asked of the owner by anyone; rmw. */
#define FLIGHT_ASK_CANCEL UINT32_C(1) /* someone said stop */
#define FLIGHT_CLOSED                                                                    \
    UINT32_C(2) /* takes no more joiners: abandoned, under the lock; or its owner died   \
                 * before the question was logged */

struct shm_flight {
    /* {state:8, owner slot:8, generation:16, incarnation:32}; cas. Incarnation grows when
     * the flight becomes FREE, and with that every block and permit naming the old one is
     * free. */
    SHM_ALIGNED shm_u64 word;
    shm_u64 readers;     /* bitmap of slots; bits are set under the bucket's lock only */
    shm_u64 tail;        /* published bytes of the log; release [W: owner] */
    shm_u32 stored;      /* enum flight_stored; release, after the commit [W: recorder] */
    shm_u32 requests;    /* FLIGHT_ASK_CANCEL, FLIGHT_CLOSED; rmw */
    shm_u32 first_block; /* block + 1 [W: owner in CLAIMED, before tail] */
    shm_u32 block_count; /* blocks it has taken, a hint [W: owner; taken out at FREE] */
    shm_u32 bucket;      /* bucket + 1 where it is indexed, 0: nowhere; under the lock */
    shm_u32 next;        /* flight + 1 in the bucket's chain; under the lock */
    shm_u64 declined;    /* while ORPHANED: slots of readers that cannot take it over; rmw
                          * [each its own bit; master: zero before it is orphaned] */
    shm_u32 fetcher; /* who called the provider last: a worker's ordinal + 1, 0: nobody
                      * yet [W: owner, before FETCHING] */
    shm_u32 batch;   /* bit 0: in a recorder's hands; above it: how many recorders died
                      * with it there [W: recorder] */
    /* The following are written by the owner in CLAIMED, before indexing, unless noted.
     */
    SHM_ALIGNED uint8_t key[SHM_KEY_SIZE];
    uint8_t turn_id[16];
    uint8_t org[16];          /* first half of SHA-256 of the org's name */
    shm_u64 start;            /* readers begin here: behind the last RESET [W: owner] */
    shm_u64 lost_ns;          /* when a reader or the owner was last reaped [W: master] */
    shm_u32 kind;             /* enum flight_kind */
    shm_u32 provider;         /* index of its pacer */
    shm_u64 claim_seq;        /* order in which flights were indexed; under the lock */
    shm_u64 result_ttl_ns;    /* how long DONE answers newcomers */
    shm_u64 abandon_grace_ns; /* the longest that any client asked for; cas, only grows */
    shm_u64 arrived_ns;       /* when the leader's request was read whole */
    shm_u64 queued_ns;        /* [W: owner, at each step] */
    shm_u64 fetch_ns;         /* left the pacer's queue */
    shm_u64 first_token_ns;   /* 0: no content yet */
    shm_u64 ended_ns;         /* before the word says so */
    shm_u64 ticket;           /* place in the pacer's queue */
    shm_u64 followers;        /* relaxed add, under the lock */
    shm_u64 hits;             /* relaxed add, under the lock */
    shm_u64 sample;           /* sequence of its sample + 1, 0: none [W: recorder] */
    int64_t created_us;       /* wall clock */
    SHM_ALIGNED shm_u64 aliases; /* {how many:32, alias + 1 of the newest:32}; cas by its
                                  * readers, only grows; reset at the claim */
    shm_u32 aliases_stored;      /* of them [W: recorder] */
    /* Of the request that led; written like the key. */
    uint8_t trace_flags;
    uint8_t unused[3];
    uint8_t trace_id[16];
    /* For the turn's sample (shm/timing.h says what they mean) [W: owner; relaxed]. */
    shm_u64 question;    /* digest of what was asked, 0: it was not to be shared */
    shm_u64 own_ns;      /* spent in code of ours, so far */
    shm_u64 called_ns;   /* the last call was handed to the HTTP client, 0: none was */
    shm_u64 answered_ns; /* the last that came of it; 0: it runs */
};

/* --- aliases ------------------------------------------------------------------------ */

/* A client's name for a turn. Free as soon as the use of the flight that it is bound to
 * is over: no step, no list. */
struct shm_alias {
    /* 0: free. Top bit: being bound by {slot+1:8 from bit 32, the slot's generation:32};
     * or dropped, with slot+1 = 0 and `drops`. Else bound to {flight+1:32,
     * incarnation:32}. cas. None but 0 comes back once it means free. */
    SHM_ALIGNED shm_u64 word;
    shm_u64 target; /* the use to whose list it is about to be added [W: its binder] */
    shm_u32 bucket; /* bucket + 1 in whose chain it is, 0: none; under the lock */
    shm_u32 next;   /* alias + 1 in the bucket's chain; under the lock */
    shm_u32
        sibling; /* alias + 1 in its flight's list [W: its binder, before it is there] */
    shm_u32 stored; /* 1: the store has it, or is not to have it [W: recorder] */
    /* The following are written by who took it from the pool, before `bucket`. */
    int64_t created_us;          /* wall clock: when the name was first used */
    uint8_t org[16];             /* as shm_flight.org */
    shm_u32 drops;               /* how often it was dropped [W: who is binding it] */
    SHM_ALIGNED uint8_t key[32]; /* SHA-256 of the name */
    uint8_t body[32];            /* SHA-256 of what was asked under it */
};

/* --- block log ---------------------------------------------------------------------- */

struct shm_block {
    shm_u64 owner; /* {flight+1:32, incarnation:32}, 0: free; cas. Also free: incarnation
                    * is not the flight's present one */
    shm_u32 next;  /* block + 1, 0: last; release [W: the owner's writer] */
    uint32_t unused;
};

/* --- samples ------------------------------------------------------------------------ */

struct shm_sample {
    shm_u64 seq; /* its number + 1, 0 while written; release [W: recorder] */
    shm_u64 ended_ns;
    shm_u64 question; /* as in its flight */
    shm_u64 turn[2];  /* its id */
    shm_u32 ttft_us;  /* UINT32_MAX: no content came */
    shm_u32 latency_us;
    shm_u32 queue_us;
    shm_u32 own_us;
    shm_u32 call_us;      /* UINT32_MAX: no call was made */
    shm_u32 call_ttft_us; /* UINT32_MAX: no content came */
    shm_u32 provider;     /* index of its pacer */
    shm_u32 status;       /* enum turn_status */
    shm_u32 followers;
    shm_u32 hits; /* relaxed add, by any worker */
};

/* --- timings ------------------------------------------------------------------------ */

/* Histograms of turns; shm/timing.h says what each is of, timing.c its bounds. */
enum shm_timing_kind {
    TIMING_TTFT,
    TIMING_LATENCY,
    TIMING_QUEUE,
    TIMING_OWN,
    TIMING_CALL,
    TIMING_CALL_TTFT,
    TIMING_COUNT
};

struct shm_timing {
    shm_u64 buckets[SHM_TIMING_BUCKETS]; /* each for itself, not what is below it */
    shm_u64 sum_us;
};

/* Of one provider's turns. The area has those that the recorder counts, then as many
 * that the master took over from a segment before. Relaxed; they only grow. */
struct shm_timings {
    SHM_ALIGNED struct shm_timing of[TIMING_COUNT];
};

/* What the words of one sample become: written whole before the first of them is, so
 * that whoever finds them half done does them again. [W: recorder] */
struct shm_timing_redo {
    shm_u64 seq; /* the sample's number + 1; release */
    shm_u32 provider;
    shm_u32 bucket[TIMING_COUNT]; /* SHM_TIMING_BUCKETS: not counted */
    shm_u64 count[TIMING_COUNT];
    shm_u64 sum_us[TIMING_COUNT];
};

/* --- how the store is doing, for workers and who looks on ----------------------------
 */

/* [W: recorder; relaxed, each word for itself] */
struct shm_store {
    shm_u32 up;              /* 1: the database takes batches; not the spool */
    shm_u32 spool_full;      /* 1: no new questions are to be taken */
    shm_u64 spool_rows;      /* that the database has not got */
    shm_u64 spool_bytes;     /* of the file in use */
    shm_u64 spool_oldest_us; /* wall clock, 0: it is empty */
};

/* --- header ------------------------------------------------------------------------- */

struct shm_areas { /* offsets from the segment's start, in bytes */
    uint64_t slots, dirty, pacers, buckets, flights, aliases, samples, timings, blocks,
        data, end;
};

struct shm_header {
    uint64_t magic; /* written last at creation */
    uint32_t layout_version;
    uint32_t header_size;
    uint32_t slot_size, pacer_size, bucket_size, flight_size, alias_size, sample_size,
        timings_size;
    uint32_t block_size;
    uint32_t flight_count, bucket_count, alias_count, block_count;
    uint32_t dirty_words; /* 64-bit words of a slot's dirty bitmap */
    /* Names of the pacers in use; one that has a name keeps it. Grows after the name is
     * written; release [W: master]. */
    shm_u32 provider_count;
    uint64_t total_size;
    uint64_t flight_max_bytes;
    uint64_t created_ns;
    int64_t created_us;
    struct shm_areas areas;
    char name[SHM_NAME_SIZE];
    char provider_names[SHM_PROVIDERS_MAX][32];
    shm_u32 master_pid;                    /* [W: master] */
    shm_u32 draining;                      /* 1: the service is stopping [W: master] */
    shm_u32 recorder_slot;                 /* SHM_NO_SLOT: none [W: master] */
    shm_u32 worker_count;                  /* ordinals in use [W: master] */
    shm_u32 ordinal_slot[SHM_WORKERS_MAX]; /* SHM_NO_SLOT: none [W: master] */
    shm_u32 kicks;                         /* grows with each kick [W: master] */
    shm_u32 generation;                    /* of the newest process [W: master] */
    shm_u32 hold;       /* 1: workers are to accept nobody yet [W: master] */
    shm_u32 superseded; /* 1: the instance has moved to another segment [W: master] */
    shm_u32 renewals;   /* segments of this instance before this one [W: master] */
    /* Processes started again, by enum slot_kind and reason [W: master]. */
    shm_u64 restarts[SHM_KINDS][RESTART_REASON_COUNT];
    shm_u64 reconnect_grace_ns; /* the setting, for who looks on [W: master] */
    shm_u64 live_seq;           /* odd while `live` is written [W: master] */
    shm_u64 live[SHM_LIVE_MAX]; /* relaxed [W: master] */
    shm_u64 cancel_seq; /* turns whose end an operator asked for; release [W: master] */
    shm_u64 cancels[SHM_CANCELS][2]; /* their ids, the last ones; relaxed [W: master] */
    char control[SHM_CONTROL_SIZE]; /* path of the master's socket, "": none; written once
                                     * before the first child */
    struct shm_store store;         /* [W: recorder] */
    shm_u64 counters_base[SHM_C_COUNT]; /* the master's own, and of segments before this
                                         * one [W: master] */
    SHM_ALIGNED shm_u32 flight_hand;    /* where the next claim looks first; relaxed */
    shm_u32 flights_used;               /* hint, recounted by the master; relaxed */
    SHM_ALIGNED shm_u32 block_hand;     /* relaxed */
    shm_u32 blocks_used;                /* hint, recounted by the master; relaxed */
    SHM_ALIGNED shm_u32 alias_hand;     /* relaxed */
    shm_u32 aliases_used;               /* hint, recounted by the master; relaxed */
    SHM_ALIGNED shm_u64 claim_seq;      /* relaxed add */
    shm_u64 tickets[SHM_PROVIDERS_MAX]; /* relaxed add */
    SHM_ALIGNED shm_u64 sample_seq;     /* samples ever; release [W: recorder] */
    struct shm_timing_redo timing_redo; /* [W: recorder] */
    SHM_ALIGNED shm_u32 pressure; /* 1: someone found no room; the recorder recycles */
    shm_u32 lock_lost; /* 1: a bucket is lost; the master makes a new segment; any, set
                          once */
};

_Static_assert(sizeof(struct shm_block) == 16, "block descriptors are packed");
_Static_assert(sizeof(struct shm_flight) == 320, "a flight is five cache lines");
_Static_assert(sizeof(struct shm_bucket) == 64, "a bucket is a cache line");
_Static_assert(sizeof(struct shm_alias) == 128, "an alias is two cache lines");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "64-bit atomics must be lock-free");

#endif
