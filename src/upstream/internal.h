/*
 * What the files of this folder share: the loop (libcurl on libevent), the calls that run
 * on it, and which of them share a connection. Not for other folders.
 *
 * Rule of the folder: curl's multi functions are never called inside one of curl's
 * callbacks, and a call is never recycled while a function of it is on the stack. `depth`
 * counts how deep we are in either; what must wait is put into the `work` list, which
 * upstream_leave() empties when the outermost one returns.
 *
 * A call is on exactly these lists:
 *   calls  from start until it is recycled
 *   work   while an action is put off
 *   lag    while held bytes wait for the next turn of the event loop
 *   links  while its request is on a connection
 *   idle   (instead of all others) recycled, for the next start
 */
#ifndef DAC_UPSTREAM_INTERNAL_H
#define DAC_UPSTREAM_INTERNAL_H

#include <curl/curl.h>
#include <event2/event.h>
#include <event2/event_struct.h>
#include <sys/queue.h>

#include "base/trace.h"
#include "upstream/dialect.h"
#include "upstream/upstream.h"

#define UPSTREAM_LINK_BUCKETS 256

enum body_kind {
    BODY_NONE,   /* no final head yet */
    BODY_STREAM, /* 2xx with an event stream */
    BODY_ERROR,  /* another status */
    BODY_JSON,   /* 2xx with JSON: perhaps an error object */
};

struct upstream_call {
    uint32_t magic;
    struct upstream *u;
    CURL *easy; /* owned, reused */
    const struct upstream_provider *provider;
    const struct dialect *dialect;
    struct log_about about; /* borrowed strings */
    struct reader reader;
    struct sse_decoder sse;
    struct buf body;  /* of the request; curl reads it without a copy */
    struct buf error; /* of an answer that is no stream */
    struct buf held;  /* came in while the call was paused, or too much for one turn */
    struct buf auth;
    struct curl_slist auth_node;
    char trace[sizeof("traceparent: ") + TRACE_PARENT_LEN]; /* header, "": none */
    struct curl_slist trace_node;
    char curl_error[CURL_ERROR_SIZE];

    /* the head of the answer */
    int status;
    enum body_kind kind;
    bool event_stream;
    bool json;
    uint64_t retry_after_ms;

    /* time */
    struct event timer;
    uint64_t started_ns;
    uint64_t content_ns; /* last piece of content, or resumed */
    uint64_t heard_ns;   /* last bytes, or curl's end of it */
    uint64_t pieces;     /* of the reader, at content_ns */

    /* state */
    bool in_multi; /* curl runs it */
    bool want_add;
    bool want_resume;
    bool queued;      /* in `work` */
    bool lagging;     /* in `lag` */
    bool paused;      /* by the caller */
    bool curl_paused; /* curl has stopped reading */
    bool broken;      /* its connection broke under another call */
    bool want_poke;   /* its connection may have broken under another call */
    bool over;        /* curl is done with it; `result` is valid */
    bool ended;       /* `end` is decided */
    bool detached;    /* cancelled, or on_end() was called */
    CURLcode result;
    struct upstream_end end;

    /* the connection, once the request is on it */
    bool linked;
    unsigned attempts; /* how often the request went out */
    uint64_t sent_ns;  /* the first time */
    int local_port;
    int remote_port;
    char remote_ip[64];

    TAILQ_ENTRY(upstream_call) all; /* calls or idle */
    TAILQ_ENTRY(upstream_call) work;
    TAILQ_ENTRY(upstream_call) lag;
    TAILQ_ENTRY(upstream_call) link;
};

TAILQ_HEAD(call_list, upstream_call);

struct sock; /* loop.c */

struct upstream {
    struct event_base *base;
    CURLM *multi;
    struct event *timer;    /* curl's */
    uint64_t timer_due_ns;  /* when it is to fire, 0: not */
    struct event *deferred; /* empties `work` */
    struct event *catch_up; /* goes on with `lag` */
    unsigned depth;
    size_t
        turn_bytes; /* of streams that may still be read before others have their turn */
    bool closing;
    bool damaged;        /* curl ran out of memory: its multi handle cannot be trusted */
    struct sock **socks; /* by descriptor */
    size_t sock_count;
    struct call_list calls;
    struct call_list work;
    struct call_list lag;
    struct call_list idle;
    size_t idle_count;
    size_t active;                                 /* calls that are not detached */
    struct call_list links[UPSTREAM_LINK_BUCKETS]; /* by local port */
    struct buf scratch;
    struct buf unescaped;
    uint64_t warned_ns;
};

/* --- loop.c --- */
enum dac_err loop_open(struct upstream *u) DAC_CHECK;
void loop_close(struct upstream *u);
/* Around everything that may call curl or the caller. */
void upstream_enter(struct upstream *u);
void upstream_leave(struct upstream *u);
/* Ends all calls and makes a new multi handle. One that ran out of memory while it noted
 * a socket (libcurl 7.88) divides by zero when that descriptor comes again. */
void loop_renew(struct upstream *u);
/* Does what curl's timer was for, if there was no memory for it. */
void loop_tick(struct upstream *u, uint64_t now_ns);
/* Has upstream_work() run from the event loop. */
void upstream_defer(struct upstream *u);
/* Has the calls that lag go on after the other events that are due. */
void upstream_catch_up(struct upstream *u);

/* --- upstream.c --- */
/* Curl is done with a call. */
void call_transfer_over(struct upstream_call *c, CURLcode result);
/* Curl cannot go on with a call: off it, and ended if it is not yet. */
void call_lost(struct upstream_call *c);
/* Does what was put off; depth is 1. */
void upstream_work(struct upstream *u);
void call_queue(struct upstream_call *c);

/* --- answer.c: what comes in --- */
size_t answer_head(char *p, size_t size, size_t n, void *arg);
size_t answer_body(char *p, size_t size, size_t n, void *arg);
/* Whether curl itself should stop reading. */
bool answer_wants_pause(const struct upstream_call *c);
/* Reads what was held, as much as this turn allows. */
void answer_drain(struct upstream_call *c);
/* The transfer is over and nothing is held: decides the end. */
void answer_over(struct upstream_call *c);
/* Decides the end, if it is not decided yet. */
void answer_end(struct upstream_call *c, const struct upstream_end *end);
/* The call's timer fired: decides the end if the time is over. */
void answer_time(struct upstream_call *c, uint64_t now);
/* Sets the timer to what the call is waiting for. */
void answer_arm(struct upstream_call *c, uint64_t now);

/* --- transfer.c: the request and its connection --- */
/* Makes the easy handle ready. */
enum dac_err transfer_prepare(struct upstream_call *c) DAC_CHECK;
/* Takes the call off curl, and sees to it that the provider is told now. */
void transfer_remove(struct upstream_call *c);
void transfer_unlink(struct upstream_call *c);
/* curl_easy_pause(); false: it failed. */
bool transfer_pause(struct upstream_call *c, int what);
/* A call came to no good end: the others on its connection are marked, to be failed if it
 * was the connection that broke, else to be looked at by curl. curl itself tells them
 * only when something comes in, and keeps a broken connection open until the last one
 * left. */
void transfer_failed(struct upstream_call *c, CURLcode result);
void transfer_poke(struct upstream_call *c);

#endif
