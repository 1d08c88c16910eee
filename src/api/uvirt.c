/* The public entry points (include/uvirt.h): system-call manners around the objects.
 *
 * Every call is bracketed by enter() and leave(): meanwhile the client's signal handlers wait, and the thread cannot be cancelled
 * half-way (ioctl, mmap and close of the kernel are no cancellation points either).
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>
#include "api/devnode.h"
#include "api/dispatch.h"
#include "api/fd.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/process.h"
#include "base/signals.h"
#include "core/dirty_ring.h"
#include "uvirt.h"

#define TEXT(x)    #x
#define VERSION(x) TEXT(x)

const char *uvirt_version(void) {
  return VERSION(UVIRT_VERSION_MAJOR) "." VERSION(UVIRT_VERSION_MINOR) "." VERSION(UVIRT_VERSION_PATCH);
}

struct visit {
  int cancel_state, saved_errno;
};

static inline struct visit enter(void) {
  struct visit v = {.saved_errno = errno};
  signals_enter();
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &v.cancel_state);
  return v;
}

/* Turns a negative errno into the system call's form; a call that succeeds leaves errno alone. */
static inline long leave(struct visit v, long r) {
  signals_leave();
  pthread_setcancelstate(v.cancel_state, NULL);
  bool error = is_errno(r);
  errno = error ? (int)-r : v.saved_errno;
  return error ? -1 : r;
}

static int open_node(const char *path, int flags) {
  const struct devnode *node = devnode_find(path);
  if (!node) return trace_error(-ENOENT);
  process_init();
  fault_install();
  struct fd_object o = {.kind = FD_SYSTEM, .api = api_of(node->arch)};
  if (!o.api) return trace_error(-ENOMEM);
  int fd = fd_make(node->name, flags & O_CLOEXEC);
  return fd < 0 ? fd : fd_install(fd, &o);
}

int uvirt_open(const char *path, int flags) {
  struct visit v = enter();
  return (int)leave(v, path ? open_node(path, flags) : -EFAULT);
}

bool uvirt_is_ours(int fd) { return fd_is_ours(fd); }

static void abandon(void *arg) { fd_put(arg); }

int uvirt_ioctl(int fd, unsigned long request, void *arg) {
  struct visit v = enter();
  long r = -EBADF;
  struct fd_object *o = fd_get(fd);
  if (likely(o != NULL)) {
    signal_gate.abandon_arg = o;
    signal_gate.abandon = abandon;
    r = api_ioctl(o, request, arg);
    fd_put(o);
  }
  return (int)leave(v, r);
}

/* Page 2 of a vCPU's mapping is another object's page: it is laid over the memfd's.  mremap of length 0 makes a second mapping of
 * shared pages. */
static int overlay(struct vcpu *vcpu, char *base, size_t length, int prot, off_t offset) {
  for (unsigned page = 0; page < VCPU_MMAP_PAGES; page++) {
    void *shared = vcpu_mmap_page(vcpu, page);
    u64 at = page * PAGE_SIZE;
    if (!shared || at < (u64)offset || at - (u64)offset >= length) continue;
    char *to = base + (at - (u64)offset);
    if (mremap(shared, 0, PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED || mprotect(to, PAGE_SIZE, prot))
      return -errno;
  }
  return 0;
}

static void *map_vcpu(struct fd_object *o, int fd, void *addr, size_t length, int prot, int flags, off_t offset, int *err) {
  bool shared = (flags & MAP_TYPE) != MAP_PRIVATE;
  if (dirty_ring_mapped(o->vm, (u64)offset, length) && ((prot & PROT_EXEC) || !shared)) {
    *err = trace_error(-EINVAL);
    return MAP_FAILED;
  }
  void *p = mmap(addr, length, prot, flags, fd, offset);
  if (p == MAP_FAILED) {
    *err = -errno;
    return p;
  }
  *err = overlay(o->vcpu, p, length, prot, offset);
  if (!*err) return p;
  munmap(p, length);
  return MAP_FAILED;
}

void *uvirt_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset) {
  struct visit v = enter();
  int err = -EBADF;
  void *p = MAP_FAILED;
  struct fd_object *o = fd_get(fd);
  if (o) {
    err = -ENODEV; /* as every KVM descriptor without pages */
    if (o->kind == FD_VCPU) p = map_vcpu(o, fd, addr, length, prot, flags, offset, &err);
    fd_put(o);
  }
  leave(v, p == MAP_FAILED ? err : 0);
  return p;
}

int uvirt_close(int fd) {
  struct visit v = enter();
  return (int)leave(v, fd_close(fd));
}
