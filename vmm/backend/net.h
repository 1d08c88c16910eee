/* The seam between virtio-net and what carries its frames: user-mode networking (slirp) or a tap interface.
 *
 * A back end runs wholly on the network device's thread, which polls for it; so it needs no locks.
 * Frames to and from it follow a struct virtio_net_hdr_mrg_rxbuf where offloads say something about them.
 */
#ifndef VMM_BACKEND_NET_H
#define VMM_BACKEND_NET_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum {
  NET_ERR_MAX = 256,
  NET_HEADER_LEN = 12,        /* struct virtio_net_hdr_mrg_rxbuf */
  NET_FRAME_MAX = 65535 + 18, /* a segmentation-offload packet with its link header */
};

/* What the thread waits for in one round. */
struct net_poll {
  struct pollfd *fd;
  unsigned count, capacity;
  int timeout_ms; /* -1: forever */
};
/* Adds a descriptor; returns its index or -1 without memory. */
int net_poll_add(struct net_poll *set, int fd, short events);

/* The network device, as a back end sees it. */
struct net_sink {
  void *opaque;
  /* A frame for the guest; header may be NULL (no offloads).  Dropped if the device's backlog is full. */
  void (*receive)(void *opaque, const void *header, const void *frame, size_t len);
  /* Whether the guest keeps up; while not, leave frames where they are. */
  bool (*wants_more)(void *opaque);
};

struct net_backend;

struct net_backend_ops {
  /* Before and after waiting.  With `hungry` false the back end gets no frames rid, and needs not be woken for them. */
  void (*fill)(struct net_backend *be, struct net_poll *set, bool hungry);
  void (*polled)(struct net_backend *be, const struct net_poll *set);
  /* A frame from the guest: iov is the header (NET_HEADER_LEN bytes) and the frame.  Lost if it cannot go out. */
  void (*send)(struct net_backend *be, const struct iovec *iov, unsigned count);
  /* The driver has settled its features (virtio-net's feature bits). */
  void (*negotiated)(struct net_backend *be, uint64_t features);
  void (*destroy)(struct net_backend *be);
};

struct net_backend {
  const struct net_backend_ops *ops;
  uint64_t features;    /* offload features of virtio-net that it can offer */
  struct net_sink sink; /* set by the device before the first call of ops */
};

/* 0, or -errno with one sentence in err.  spec is what follows "user" (",hostfwd=..." or empty) or "tap=". */
int slirp_open(const char *spec, struct net_backend **out, char err[NET_ERR_MAX]);
int slirp_check(const char *spec, char err[NET_ERR_MAX]);
int tap_open(const char *name, struct net_backend **out, char err[NET_ERR_MAX]);
int tap_check(const char *name, char err[NET_ERR_MAX]);

#endif
