/*
 * libcurl 7.88 ends each HTTP/2 transfer with a RST_STREAM, the complete ones too, since
 * it forgets that their stream was closed. Providers count resets to defend themselves
 * (CVE-2023-44487) and close the connection after some hundreds, with all the calls on
 * it. So this program has a nghttp2_submit_rst_stream() of its own, which libcurl is
 * bound to as well: it drops resets of streams that are over and hands on all others.
 * With a libcurl that has no need of it, it changes nothing.
 *
 * Any process.
 */
#include "upstream/h2_reset.h"

#include <dlfcn.h>
#include <nghttp2/nghttp2.h>
#include <stdatomic.h>

#include "base/err.h"

typedef int (*submit_fn)(nghttp2_session *s, uint8_t flags, int32_t id, uint32_t error);

static _Atomic(submit_fn) submit_next;

void h2_reset_bind(void)
{
    void *p = dlsym(RTLD_NEXT, "nghttp2_submit_rst_stream");
    submit_fn fn;

    DAC_ASSERT(p != NULL);
    __builtin_memcpy(&fn, &p, sizeof(fn));
    atomic_store(&submit_next, fn);
}

int nghttp2_submit_rst_stream(nghttp2_session *session, uint8_t flags, int32_t stream_id,
                              uint32_t error_code)
{
    if (!atomic_load(&submit_next))
        h2_reset_bind();
    /* One whose HEADERS are still queued is not known either, but not over. */
    if (stream_id > 0 && nghttp2_session_get_stream_local_close(session, stream_id) < 0 &&
        nghttp2_session_get_outbound_queue_size(session) == 0)
        return 0;
    return atomic_load(&submit_next)(session, flags, stream_id, error_code);
}
