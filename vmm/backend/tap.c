/* A tap interface of the host behind virtio-net, with checksum and segmentation offload where the kernel has it.
 *
 * Linux: Documentation/networking/tuntap.rst.
 */
#include "vmm/backend/net.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { FRAMES_PER_ROUND = 64 };

struct tap {
  struct net_backend be; /* first */
  int fd;
  bool vnet_header; /* frames on fd have the header in front */
  int poll_index;
  uint8_t buffer[NET_HEADER_LEN + NET_FRAME_MAX];
};

static const uint64_t offload_features = 1ull << VIRTIO_NET_F_CSUM | 1ull << VIRTIO_NET_F_GUEST_CSUM |
                                         1ull << VIRTIO_NET_F_HOST_TSO4 | 1ull << VIRTIO_NET_F_HOST_TSO6 |
                                         1ull << VIRTIO_NET_F_GUEST_TSO4 | 1ull << VIRTIO_NET_F_GUEST_TSO6;

/* ---- frames ---- */

static void tap_fill(struct net_backend *be, struct net_poll *set, bool hungry) {
  struct tap *tap = (struct tap *)be;
  tap->poll_index = hungry ? net_poll_add(set, tap->fd, POLLIN) : -1;
}

static void tap_polled(struct net_backend *be, const struct net_poll *set) {
  struct tap *tap = (struct tap *)be;
  if (tap->poll_index < 0 || !set->fd[tap->poll_index].revents) return;
  size_t header = tap->vnet_header ? NET_HEADER_LEN : 0;
  for (unsigned i = 0; i < FRAMES_PER_ROUND && be->sink.wants_more(be->sink.opaque); i++) {
    ssize_t n = read(tap->fd, tap->buffer, header + NET_FRAME_MAX);
    if (n < 0 && errno == EINTR) continue;
    if (n <= (ssize_t)header) break;
    be->sink.receive(be->sink.opaque, header ? tap->buffer : NULL, tap->buffer + header, n - header);
  }
}

/* The kernel checks the header's fields itself, so it may come straight from guest memory. */
static void tap_send(struct net_backend *be, const struct iovec *iov, unsigned count) {
  struct tap *tap = (struct tap *)be;
  struct iovec plain[1024];
  unsigned n = 0;
  size_t skip = tap->vnet_header ? 0 : NET_HEADER_LEN;
  for (unsigned i = 0; i < count; i++) {
    size_t drop = skip < iov[i].iov_len ? skip : iov[i].iov_len;
    skip -= drop;
    if (iov[i].iov_len > drop) plain[n++] = (struct iovec){(uint8_t *)iov[i].iov_base + drop, iov[i].iov_len - drop};
  }
  ssize_t r;
  do r = writev(tap->fd, plain, n);
  while (r < 0 && errno == EINTR); /* other failures: the interface is down or full, and the frame is lost as on a wire */
}

static void tap_negotiated(struct net_backend *be, uint64_t features) {
  static const struct {
    unsigned feature, offload;
  } rows[] = {
      {VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM}, {VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4}, {VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6}};
  struct tap *tap = (struct tap *)be;
  unsigned offload = 0;
  for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++)
    if (features >> rows[i].feature & 1) offload |= rows[i].offload;
  if (!(offload & TUN_F_CSUM)) offload = 0; /* the others depend on it (5.1.3.1) */
  if (tap->vnet_header) ioctl(tap->fd, TUNSETOFFLOAD, offload);
}

/* ---- life ---- */

static void tap_destroy(struct net_backend *be) {
  struct tap *tap = (struct tap *)be;
  if (tap->fd >= 0) close(tap->fd);
  free(tap);
}

static const struct net_backend_ops tap_ops = {
    .fill = tap_fill, .polled = tap_polled, .send = tap_send, .negotiated = tap_negotiated, .destroy = tap_destroy};

static bool try_vnet_header(int fd, struct ifreq *ifr) {
  int header = NET_HEADER_LEN, little_endian = 1;
  ifr->ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
  return ioctl(fd, TUNSETIFF, ifr) == 0 && ioctl(fd, TUNSETVNETHDRSZ, &header) == 0 &&
         ioctl(fd, TUNSETVNETLE, &little_endian) == 0 && ioctl(fd, TUNSETOFFLOAD, 0) == 0;
}

static int attach(struct tap *tap, const char *name) {
  struct ifreq ifr = {0};
  tap->fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (tap->fd < 0) return -errno;
  strcpy(ifr.ifr_name, name); /* its length was checked */
  tap->vnet_header = try_vnet_header(tap->fd, &ifr);
  if (tap->vnet_header) return 0;
  int error = errno;
  if (error != EINVAL && error != ENOTTY) return -error;
  close(tap->fd);
  tap->fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  ifr.ifr_flags = IFF_TAP | IFF_NO_PI;
  return tap->fd >= 0 && ioctl(tap->fd, TUNSETIFF, &ifr) == 0 ? 0 : -errno;
}

int tap_check(const char *name, char err[NET_ERR_MAX]) {
  size_t len = strlen(name);
  if (len && len < IFNAMSIZ && !strpbrk(name, "/, %")) return 0;
  snprintf(err, NET_ERR_MAX, "'%s' is no name of a network interface (1 to %d characters).", name, IFNAMSIZ - 1);
  return -EINVAL;
}

static void explain(int error, const char *name, char err[NET_ERR_MAX]) {
  static const struct {
    int error;
    const char *text;
  } reasons[] = {
      {ENOENT, "this machine has no /dev/net/tun"},
      {EPERM, "that needs CAP_NET_ADMIN, or an interface made for this user with 'ip tuntap add dev NAME mode tap user USER'"},
      {EBUSY, "something else uses it"},
      {EINVAL, "it exists and is not a tap interface of a single queue"},
  };
  const char *text = strerror(error);
  for (unsigned i = 0; i < sizeof reasons / sizeof reasons[0]; i++)
    if (reasons[i].error == error) text = reasons[i].text;
  snprintf(err, NET_ERR_MAX, "The tap interface '%s' cannot be opened: %s.", name, text);
}

int tap_open(const char *name, struct net_backend **out, char err[NET_ERR_MAX]) {
  int r = tap_check(name, err);
  if (r < 0) return r;
  struct tap *tap = calloc(1, sizeof *tap);
  r = tap ? attach(tap, name) : -ENOMEM;
  if (r < 0) {
    explain(-r, name, err);
    if (tap) tap_destroy(&tap->be);
    return r;
  }
  tap->be.ops = &tap_ops;
  tap->be.features = tap->vnet_header ? offload_features : 0;
  *out = &tap->be;
  return 0;
}
