/*
 * Addresses to listen on, and base URLs of providers. Internal to config.
 */
#ifndef DAC_CONFIG_ADDRESS_H
#define DAC_CONFIG_ADDRESS_H

#include "config/config.h"

/* Reads "a.b.c.d:port", "[ipv6]:port" or "unix:/path"; no names, nothing is resolved. On
 * DAC_OK out->text is owned by the caller. On DAC_E_INVALID *why is a static text that
 * goes on after the quoted value ("is not ..."). DAC_E_NOMEM. */
enum dac_err address_parse(const char *s, struct config_address *out,
                           const char **why) DAC_CHECK;
/* Whether both are the same place. */
bool address_equal(const struct config_address *a, const struct config_address *b);
/* "dac-<port>" or "dac-<file>" of a unix socket, of what an instance name may have. */
void address_instance_name(const struct config_address *a, char out[CONFIG_NAME_MAX + 1]);

/* Whether `s` is an http or https URL of host, optional port and optional path, without
 * user, query or fragment; else *why is a static text. */
bool url_valid(const char *s, const char **why);

#endif
