/* The device nodes there are, and the public API. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "api/dispatch.h"
#include "core/vcpu_pages.h"
#include "uvirt.h"

static const struct {
  const char *path;
  const struct arch_ops *arch;
} nodes[] = {{"/dev/kvm", &x86_arch}};

#define STR(x)  #x
#define XSTR(x) STR(x)
const char *uvirt_version(void) { return XSTR(UVIRT_VERSION_MAJOR) "." XSTR(UVIRT_VERSION_MINOR) "." XSTR(UVIRT_VERSION_PATCH); }

static int fail(long r) {
  errno = (int)-r;
  return -1;
}

int uvirt_open(const char *path, int flags) {
  for (size_t k = 0; k < ARRAY_SIZE(nodes); k++) {
    if (strcmp(path, nodes[k].path)) continue;
    int fd = memfd_create("kvm", flags & O_CLOEXEC ? MFD_CLOEXEC : 0);
    if (fd < 0) return -1;
    int r = fd_install(fd, &(struct fd_object){.kind = FD_SYSTEM, .arch = nodes[k].arch});
    if (!r) return fd;
    close(fd);
    return fail(r);
  }
  return fail(-ENOENT);
}

bool uvirt_is_ours(int fd) {
  struct fd_object *o = fd_get(fd);
  if (o) fd_put(o);
  return o != NULL;
}

int uvirt_ioctl(int fd, unsigned long request, void *arg) {
  struct fd_object *o = fd_get(fd);
  if (!o) return fail(-EBADF);
  long r = dispatch_ioctl(o, request, arg);
  fd_put(o);
  return r < 0 ? fail(r) : (int)r;
}

void *uvirt_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset) {
  struct fd_object *o = fd_get(fd);
  int r = !o ? EBADF : o->kind != FD_VCPU ? ENODEV : 0;
  if (o) fd_put(o);
  if (!r) return mmap(addr, length, prot, flags, fd, offset);
  errno = r;
  return MAP_FAILED;
}

int uvirt_close(int fd) {
  struct fd_object *o = fd_remove(fd);
  if (!o) return fail(-EBADF);
  close(fd);
  fd_put(o);
  return 0;
}
