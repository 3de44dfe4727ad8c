/*
 * Tells systemd how the service is doing (sd_notify(3)'s protocol, by a datagram of our
 * own).
 */
#ifndef DAC_PROCESS_NOTIFY_H
#define DAC_PROCESS_NOTIFY_H

/* Sends e.g. "READY=1" to the socket that NOTIFY_SOCKET names; without it, nothing. Never
 * waits; a failure is logged once and is none for the service. Master only. */
void notify_send(const char *state);

#endif
