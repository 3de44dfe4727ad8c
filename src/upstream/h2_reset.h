/*
 * Keeps libcurl from resetting HTTP/2 streams that are over; h2_reset.c says why.
 */
#ifndef DAC_UPSTREAM_H2_RESET_H
#define DAC_UPSTREAM_H2_RESET_H

/* Called once before the first transfer: it also has this part linked in. */
void h2_reset_bind(void);

#endif
