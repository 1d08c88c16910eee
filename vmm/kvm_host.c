/* The KVM ABI over the machine's own /dev/kvm. */
#include <errno.h>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vmm/kvm.h"

static int host_open(void) {
  int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

static int host_ioctl(int fd, unsigned long request, void *arg) {
  int r = ioctl(fd, request, arg);
  return r < 0 ? -errno : r;
}

static void *host_mmap(size_t length, int prot, int flags, int fd, off_t offset) {
  void *p = mmap(NULL, length, prot, flags, fd, offset);
  return p == MAP_FAILED ? NULL : p;
}

static int host_close(int fd) {
  return close(fd) < 0 ? -errno : 0;
}

const struct vmm_accel vmm_accel_host = {"host", host_open, host_ioctl, host_mmap, host_close};
