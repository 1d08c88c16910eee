/* The calls on descriptors.
 *
 * Ours are real descriptors, so most calls are the kernel's business.  Here are those that do something on our objects (ioctl,
 * mmap, close), that make or take away numbers (dup, close_range), or that would reach the memfd behind an object (read, write).
 *
 * In a vfork child, which has descriptors of its own but its parent's memory, only the kernel is told of numbers.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "preload/preload.h"

void forget(int fd) {
  if (unlikely(uvirt_is_ours(fd)) && !process_is_guest()) front_forget((unsigned)fd, (unsigned)fd);
}

int fresh(int fd) {
  if (!front_inside()) forget(fd);
  return fd;
}

int duplicated(int old, int fd) {
  if (fd < 0 || front_inside() || old == fd) return fd;
  if (!ours(old) || process_is_guest()) return fresh(fd);
  int r = front_alias(old, fd);
  if (!r) return fd;
  forget(fd);
  REAL(close)(fd);
  return fail(-r);
}

/* ---- ioctl and mmap ---- */

/* Requests of KVM's type on a descriptor that we do not know: it may be one of ours that came here unseen. */
__attribute__((noinline)) static int ioctl_stranger(int fd, unsigned long request, void *arg) {
  int r = front_adopt(fd);
  if (!r) return uvirt_ioctl(fd, request, arg);
  return r == -EIO ? fail(EIO) : REAL(ioctl)(fd, request, arg);
}

static __thread bool mask_taken __attribute__((tls_model("initial-exec")));

__attribute__((noinline)) static void take_mask(void) {
  mask_taken = true;
  front_take_mask();
}

INTERPOSE int ioctl(int fd, unsigned long request, ...) {
  va_list ap;
  va_start(ap, request);
  void *arg = va_arg(ap, void *);
  va_end(ap);
  if (ours(fd)) {
    if (unlikely(!mask_taken)) take_mask();
    return uvirt_ioctl(fd, request, arg);
  }
  if (unlikely(_IOC_TYPE(request) == KVMIO) && !front_inside()) return ioctl_stranger(fd, request, arg);
  return REAL(ioctl)(fd, request, arg);
}

INTERPOSE void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset) {
  if (!(flags & MAP_ANONYMOUS) && ours(fd)) return uvirt_mmap(addr, length, prot, flags, fd, offset);
  return REAL(mmap)(addr, length, prot, flags, fd, offset);
}

INTERPOSE void *mmap64(void *addr, size_t length, int prot, int flags, int fd, off64_t offset) {
  return mmap(addr, length, prot, flags, fd, offset);
}

/* ---- closing ---- */

/* A number that the library keeps for itself does not exist for the program. */
static bool hidden(int fd) {
  return own_fd_is(fd) && !front_inside() && !process_is_guest();
}

INTERPOSE int close(int fd) {
  if (ours(fd) && !process_is_guest()) return uvirt_close(fd);
  return unlikely(hidden(fd)) ? fail(EBADF) : REAL(close)(fd);
}

INTERPOSE int __close(int fd) ALIAS(close);

INTERPOSE int fclose(FILE *f) {
  int fd = f ? fileno(f) : -1;
  if (ours(fd)) forget(fd);
  return REAL(fclose)(f);
}

/* The library's own numbers in between stay open. */
static int close_between(unsigned first, unsigned last, int flags) {
  for (int own; (own = own_fd_next(first)) >= 0 && (unsigned)own <= last; first = (unsigned)own + 1)
    if ((unsigned)own > first && REAL(close_range)(first, (unsigned)own - 1, flags)) return -1;
  return first <= last ? REAL(close_range)(first, last, flags) : 0;
}

INTERPOSE int close_range(unsigned first, unsigned last, int flags) {
  bool valid = first <= last && !(flags & ~(CLOSE_RANGE_UNSHARE | CLOSE_RANGE_CLOEXEC));
  if (!valid || (flags & CLOSE_RANGE_CLOEXEC) || front_inside() || !front_started() || process_is_guest())
    return REAL(close_range)(first, last, flags);
  front_forget(first, last);
  return close_between(first, last, flags);
}

INTERPOSE void closefrom(int first) {
  first = first < 0 ? 0 : first;
  if (!front_started() || process_is_guest() || close_range((unsigned)first, ~0u, 0)) REAL(closefrom)(first);
}

/* ---- duplicating ---- */

INTERPOSE int dup(int fd) {
  return duplicated(fd, REAL(dup)(fd));
}

/* The library's own number cannot be given away: the program is told that it is not to be had now (dup2(2), EBUSY). */
INTERPOSE int dup2(int fd, int newfd) {
  return unlikely(hidden(newfd)) ? fail(EBUSY) : duplicated(fd, REAL(dup2)(fd, newfd));
}

INTERPOSE int dup3(int fd, int newfd, int flags) {
  return unlikely(hidden(newfd)) ? fail(EBUSY) : duplicated(fd, REAL(dup3)(fd, newfd, flags));
}

#define FCNTL(name)                                                                                                              \
  INTERPOSE int name(int fd, int command, ...) {                                                                                 \
    va_list ap;                                                                                                                  \
    va_start(ap, command);                                                                                                       \
    void *arg = va_arg(ap, void *);                                                                                              \
    va_end(ap);                                                                                                                  \
    int r = REAL(name)(fd, command, arg);                                                                                        \
    return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? duplicated(fd, r) : r;                                             \
  }
FCNTL(fcntl)
FCNTL(fcntl64)

/* ---- reading and writing: only statistics are files ---- */

static bool no_file(int fd) {
  return ours(fd) && front_kind(fd) != FRONT_STATS;
}

INTERPOSE ssize_t read(int fd, void *buf, size_t size) {
  return no_file(fd) ? fail(EINVAL) : REAL(read)(fd, buf, size);
}
INTERPOSE ssize_t write(int fd, const void *buf, size_t size) {
  return no_file(fd) ? fail(EINVAL) : REAL(write)(fd, buf, size);
}
INTERPOSE ssize_t pread(int fd, void *buf, size_t size, off_t at) {
  return no_file(fd) ? fail(EINVAL) : REAL(pread)(fd, buf, size, at);
}
INTERPOSE ssize_t pread64(int fd, void *buf, size_t size, off64_t at) {
  return no_file(fd) ? fail(EINVAL) : REAL(pread64)(fd, buf, size, at);
}
INTERPOSE ssize_t pwrite(int fd, const void *buf, size_t size, off_t at) {
  return no_file(fd) ? fail(EINVAL) : REAL(pwrite)(fd, buf, size, at);
}
INTERPOSE ssize_t pwrite64(int fd, const void *buf, size_t size, off64_t at) {
  return no_file(fd) ? fail(EINVAL) : REAL(pwrite64)(fd, buf, size, at);
}

INTERPOSE ssize_t __read_chk(int fd, void *buf, size_t size, size_t room);
INTERPOSE ssize_t __pread_chk(int fd, void *buf, size_t size, off_t at, size_t room);
INTERPOSE ssize_t __pread64_chk(int fd, void *buf, size_t size, off64_t at, size_t room);

ssize_t __read_chk(int fd, void *buf, size_t size, size_t room) {
  return no_file(fd) ? fail(EINVAL) : REAL(__read_chk)(fd, buf, size, room);
}
ssize_t __pread_chk(int fd, void *buf, size_t size, off_t at, size_t room) {
  return no_file(fd) ? fail(EINVAL) : REAL(__pread_chk)(fd, buf, size, at, room);
}
ssize_t __pread64_chk(int fd, void *buf, size_t size, off64_t at, size_t room) {
  return no_file(fd) ? fail(EINVAL) : REAL(__pread64_chk)(fd, buf, size, at, room);
}
