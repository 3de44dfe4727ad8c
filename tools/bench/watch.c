/*
 * What a run cost the server: CPU of its processes while tokens flowed, memory while all
 * clients waited, and how many calls the mock provider saw.
 */
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "tools/bench/bench.h"

/* A counter of the mock provider, -1 if it cannot be had. */
static double mock_counter(const struct bench_options *o, const char *name)
{
    static char answer[65536];
    struct json_object *root, *value;
    double n = -1;

    if (!o->has_mock ||
        http_once(&o->mock, "/mock/stats", "", NULL, answer, sizeof(answer)) != 200)
        return -1;
    root = json_tokener_parse(answer);
    if (json_object_object_get_ex(root, name, &value))
        n = json_object_get_double(value);
    json_object_put(root);
    return n;
}

void watch_begin(struct watch *w, const struct bench_options *o)
{
    *w = (struct watch){.o = o};
    w->calls_before = mock_counter(o, "calls");
    if (o->pid == 0)
        return;
    w->has_tree = procfs_find(o->pid, &w->tree);
    if (!w->has_tree)
        fprintf(stderr, "dac-bench: no process %d; its figures are left out\n",
                (int)o->pid);
    else
        w->before = procfs_memory(&w->tree);
}

void watch_waiting(struct watch *w)
{
    if (!w->has_tree || w->started)
        return;
    w->started = true;
    w->during = procfs_memory(&w->tree);
    w->cpu_start_ns = procfs_cpu_ns(&w->tree);
}

uint64_t watch_cpu_ns(const struct watch *w)
{
    return w->started && w->cpu_end_ns > w->cpu_start_ns ? w->cpu_end_ns - w->cpu_start_ns
                                                         : 0;
}

void watch_end(struct watch *w, const struct load *l, uint64_t deliveries,
               struct report *r)
{
    double clients = (double)l->clients;

    if (w->started) {
        w->cpu_end_ns = procfs_cpu_ns(&w->tree);
        report_add(r, "server", "processes", w->tree.n, "");
        report_add(r, "server", "cpu", (double)watch_cpu_ns(w) / (double)NS_PER_S, "s");
        if (deliveries)
            report_add(r, "server", "cpu_per_delivery",
                       (double)watch_cpu_ns(w) / (double)deliveries / (double)NS_PER_US,
                       "us");
        if (l->pieces)
            report_add(r, "server", "cpu_per_event",
                       (double)watch_cpu_ns(w) / (double)l->pieces / (double)NS_PER_US,
                       "us");
        report_add(r, "server", "pss_per_client",
                   ((double)w->during.pss_bytes - (double)w->before.pss_bytes) / clients,
                   "bytes");
        report_add(r, "server", "rss_per_client",
                   ((double)w->during.rss_bytes - (double)w->before.rss_bytes) / clients,
                   "bytes");
        report_add(r, "server", "pss_total", (double)w->during.pss_bytes, "bytes");
    }
    if (w->calls_before >= 0)
        report_add(r, "provider", "upstream_calls",
                   mock_counter(w->o, "calls") - w->calls_before, "");
}

void report_load(struct report *r, const char *group, const struct load *l)
{
    report_add(r, group, "clients", (double)l->clients, "");
    report_add(r, group, "answered", (double)l->answered, "");
    report_add(r, group, "failed", (double)l->failed, "");
    if (l->failed) {
        report_add(r, group, "not_connected", (double)l->refused, "");
        report_add(r, group, "first_bad_status", (double)l->first_bad_status, "");
    }
    report_add(r, group, "wall", (double)l->wall_ns / (double)NS_PER_S, "s");
    if (l->pieces) {
        report_add(r, group, "text_events", (double)l->pieces, "");
        report_add(r, group, "bytes_per_event", (double)l->bytes / (double)l->pieces,
                   "bytes");
    }
}
