/* Descriptors that arrive over a socket: those of our objects are entered under their new numbers.
 *
 * What another process sent is not an object here.  A node's descriptor works all the same, as it has no state; a VM's or vCPU's
 * answers EIO, as KVM's do outside the process that made them (both in front_adopt, at the first ioctl).
 */
#include <string.h>
#include <sys/socket.h>
#include "preload/preload.h"

static void adopt_received(struct msghdr *m) {
  for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    for (size_t at = 0; at + sizeof(int) <= c->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
      int fd;
      memcpy(&fd, CMSG_DATA(c) + at, sizeof(fd));
      fresh(fd);
      front_adopt(fd);
    }
  }
}

static bool looks_at(const struct msghdr *m) {
  return m->msg_controllen && front_started() && !front_inside();
}

INTERPOSE ssize_t recvmsg(int fd, struct msghdr *m, int flags) {
  ssize_t n = REAL(recvmsg)(fd, m, flags);
  if (n >= 0 && looks_at(m)) adopt_received(m);
  return n;
}

INTERPOSE int recvmmsg(int fd, struct mmsghdr *v, unsigned n, int flags, struct timespec *timeout) {
  int got = REAL(recvmmsg)(fd, v, n, flags, timeout);
  for (int i = 0; i < got; i++)
    if (looks_at(&v[i].msg_hdr)) adopt_received(&v[i].msg_hdr);
  return got;
}
