/* The options of user-mode networking, parsed; private to slirp.c and slirp_options.c, and what their test looks at. */
#ifndef VMM_BACKEND_SLIRP_H
#define VMM_BACKEND_SLIRP_H

#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "vmm/backend/net.h"

enum { SLIRP_FORWARDS_MAX = 64 };

struct slirp_forward {
  bool udp;
  struct in_addr host_addr, guest_addr; /* guest_addr 0.0.0.0: the address that DHCP gives out first */
  uint16_t host_port, guest_port;
};

struct slirp_options {
  bool ipv6, restricted;
  unsigned forwards;
  struct slirp_forward forward[SLIRP_FORWARDS_MAX];
};

/* spec: "" or ",NAME=VALUE[,...]" with hostfwd=tcp|udp:[HADDR]:HPORT-[GADDR]:GPORT (HADDR defaults to 127.0.0.1),
 * ipv6=on|off, restrict=on|off.  0 or -EINVAL with one sentence in err. */
int slirp_options_parse(const char *spec, struct slirp_options *options, char err[NET_ERR_MAX]);

#endif
