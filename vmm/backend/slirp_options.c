/* Parses the options of user-mode networking: port forwards and switches. */
#include "vmm/backend/slirp.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VALUE_MAX = 128 };

/* ---- values; all modify the text they are given and return false for a bad one ---- */

static bool parse_port(const char *text, uint16_t *port) {
  char *end;
  if (*text < '0' || *text > '9') return false;
  unsigned long value = strtoul(text, &end, 10);
  *port = value;
  return !*end && value >= 1 && value <= UINT16_MAX;
}

static bool parse_address(const char *text, in_addr_t fallback, struct in_addr *addr) {
  addr->s_addr = fallback;
  return !*text || inet_pton(AF_INET, text, addr) == 1;
}

/* "[ADDR]:PORT" */
static bool parse_end(char *text, in_addr_t fallback, struct in_addr *addr, uint16_t *port) {
  char *colon = strchr(text, ':');
  if (!colon) return false;
  *colon = 0;
  return parse_address(text, fallback, addr) && parse_port(colon + 1, port);
}

static bool parse_forward(char *text, struct slirp_options *options) {
  char *host = strchr(text, ':'), *guest = strchr(text, '-');
  if (!host || !guest || guest < host || options->forwards == SLIRP_FORWARDS_MAX) return false;
  *host++ = *guest++ = 0;
  struct slirp_forward *forward = &options->forward[options->forwards];
  forward->udp = !strcmp(text, "udp");
  if (!forward->udp && strcmp(text, "tcp")) return false;
  if (!parse_end(host, htonl(INADDR_LOOPBACK), &forward->host_addr, &forward->host_port)) return false;
  if (!parse_end(guest, htonl(INADDR_ANY), &forward->guest_addr, &forward->guest_port)) return false;
  options->forwards++;
  return true;
}

static bool parse_switch(const char *text, bool *value) {
  *value = !strcmp(text, "on");
  return *value || !strcmp(text, "off");
}

static bool parse_ipv6(char *text, struct slirp_options *options) {
  return parse_switch(text, &options->ipv6);
}
static bool parse_restrict(char *text, struct slirp_options *options) {
  return parse_switch(text, &options->restricted);
}

/* ---- options ---- */

static const struct option {
  const char *name;
  bool (*parse)(char *value, struct slirp_options *options);
  const char *form;
} known[] = {
    {"hostfwd", parse_forward, "hostfwd=tcp|udp:[HADDR]:HPORT-[GADDR]:GPORT"},
    {"ipv6", parse_ipv6, "ipv6=on|off"},
    {"restrict", parse_restrict, "restrict=on|off"},
};

static const struct option *find_option(const char *name, size_t len) {
  for (unsigned i = 0; i < sizeof known / sizeof known[0]; i++)
    if (strlen(known[i].name) == len && !memcmp(known[i].name, name, len)) return &known[i];
  return NULL;
}

static int parse_option(const char *text, size_t len, struct slirp_options *options, char err[NET_ERR_MAX]) {
  const char *equals = memchr(text, '=', len);
  const struct option *option = equals ? find_option(text, equals - text) : NULL;
  if (!option) {
    snprintf(err, NET_ERR_MAX, "User networking has no option '%.*s'; it has hostfwd=, ipv6= and restrict=.",
             len > 100 ? 100 : (int)len, text);
    return -EINVAL;
  }
  char value[VALUE_MAX];
  size_t value_len = len - (equals + 1 - text);
  if (value_len < sizeof value) {
    memcpy(value, equals + 1, value_len);
    value[value_len] = 0;
    if (option->parse(value, options)) return 0;
  }
  snprintf(err, NET_ERR_MAX, "The network option '%.*s' is not of the form '%s'.", len > 100 ? 100 : (int)len, text,
           option->form);
  return -EINVAL;
}

int slirp_options_parse(const char *spec, struct slirp_options *options, char err[NET_ERR_MAX]) {
  *options = (struct slirp_options){0};
  while (*spec) {
    if (*spec++ != ',') {
      snprintf(err, NET_ERR_MAX, "After 'user' a comma or nothing is expected, not '%.100s'.", spec - 1);
      return -EINVAL;
    }
    size_t len = strcspn(spec, ",");
    int r = parse_option(spec, len, options, err);
    if (r < 0) return r;
    spec += len;
  }
  return 0;
}
