/* Eventfds of the client: what /proc says of them, signalling, draining. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#include "base/log.h"
#include "base/ownfd.h"
#include "core/eventfd.h"

/* Reads a small /proc file whole.  Length or -errno. */
static int read_file(const char *path, char *buf, size_t size) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -errno;
  ssize_t n = read(fd, buf, size - 1);
  int r = n < 0 ? -errno : (int)n;
  close(fd);
  buf[n < 0 ? 0 : n] = 0;
  return r;
}

int client_eventfd_id(int fd, u64 *id) {
  char path[40], text[512];
  if (fd < 0 || fcntl(fd, F_GETFD) < 0) return trace_error(-EBADF);
  snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
  int r = read_file(path, text, sizeof(text));
  if (r < 0) return trace_error(r == -ENOENT ? -EBADF : r);
  if (!strstr(text, "eventfd-count:")) return trace_error(-EINVAL);
  const char *p = strstr(text, "eventfd-id:"); /* Linux 5.2 */
  *id = p ? strtoull(p + strlen("eventfd-id:"), NULL, 10) : (u64)fd | BIT(63);
  return 0;
}

int client_eventfd_get(int fd, struct client_eventfd *out) {
  int r = client_eventfd_id(fd, &out->id);
  if (r) return r;
  out->fd = own_fd(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  return out->fd < 0 ? trace_error(-errno) : 0;
}

void client_eventfd_put(struct client_eventfd *e) {
  own_fd_close(e->fd);
  e->fd = -1;
}

void client_eventfd_signal(const struct client_eventfd *e) {
  static const u64 one = 1;
  ssize_t n = write(e->fd, &one, sizeof(one));
  (void)n; /* a full counter of a non-blocking eventfd is as good as a signal */
}

bool client_eventfd_take(const struct client_eventfd *e) {
  u64 count;
  struct iovec v = {.iov_base = &count, .iov_len = sizeof(count)};
  ssize_t n = preadv2(e->fd, &v, 1, -1, RWF_NOWAIT);
  if (n < 0 &&
      (errno == EOPNOTSUPP || errno == ENOSYS || errno == ESPIPE)) { /* before Linux 5.8: eventfds do not know RWF_NOWAIT */
    struct pollfd p = {.fd = e->fd, .events = POLLIN};
    n = poll(&p, 1, 0) == 1 ? read(e->fd, &count, sizeof(count)) : -1;
  }
  return n == sizeof(count);
}
