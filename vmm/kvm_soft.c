/* The KVM ABI over libuvirt. */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

#include "uvirt.h"
#include "vmm/kvm.h"

static int soft_open(void) {
  int fd = uvirt_open("/dev/kvm", O_RDWR | O_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

static int soft_ioctl(int fd, unsigned long request, void *arg) {
  int r = uvirt_ioctl(fd, request, arg);
  return r < 0 ? -errno : r;
}

static void *soft_mmap(size_t length, int prot, int flags, int fd, off_t offset) {
  void *p = uvirt_mmap(NULL, length, prot, flags, fd, offset);
  return p == MAP_FAILED ? NULL : p;
}

static int soft_close(int fd) {
  return uvirt_close(fd) < 0 ? -errno : 0;
}

const struct vmm_accel vmm_accel_soft = {"soft", soft_open, soft_ioctl, soft_mmap, soft_close};
