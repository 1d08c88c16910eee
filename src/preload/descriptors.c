/* The calls on descriptors: ioctl, mmap, close. */
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "preload/preload.h"

INTERPOSE int ioctl(int fd, unsigned long request, ...) {
  va_list ap;
  va_start(ap, request);
  void *arg = va_arg(ap, void *);
  va_end(ap);
  return ours(fd) ? uvirt_ioctl(fd, request, arg) : REAL(ioctl)(fd, request, arg);
}

INTERPOSE void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset) {
  if (!(flags & MAP_ANONYMOUS) && ours(fd)) return uvirt_mmap(addr, length, prot, flags, fd, offset);
  return REAL(mmap)(addr, length, prot, flags, fd, offset);
}

INTERPOSE void *mmap64(void *addr, size_t length, int prot, int flags, int fd, off64_t offset) {
  return mmap(addr, length, prot, flags, fd, offset);
}

INTERPOSE int close(int fd) {
  return ours(fd) ? uvirt_close(fd) : REAL(close)(fd);
}
