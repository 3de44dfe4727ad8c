/*
 * What the route handlers share, and the routing table.
 */
#ifndef DAC_API_API_H
#define DAC_API_API_H

#include "config/config.h"
#include "flight/flights.h"
#include "http/http.h"
#include "shm/segment.h"
#include "store/store.h"

struct api {
    struct shm *shm;
    const struct config *config;
    struct flights *flights;
    struct store_reader *reader;
};

extern const struct http_route api_routes[];
extern const size_t api_route_count;

#endif
