/* The row that describes one ioctl; the dispatcher does everything the row says. */
#ifndef API_IOCTL_H
#define API_IOCTL_H

#include "core/vm.h"

/* How the argument travels.  Sizes come from the request number (_IOC_SIZE). */
enum ioctl_arg {
  ARG_NONE,   /* nothing is copied; a handler that has to refuse a non-zero argument looks at `value`, which is always set */
  ARG_VALUE,  /* the integer itself, passed in `value` */
  ARG_IN,     /* copied in before the handler: data points to _IOC_SIZE bytes */
  ARG_OUT,    /* zeroed before, copied out after a handler that returned >= 0 */
  ARG_INOUT,  /* both */
  ARG_USER,   /* variable-size: the handler gets the user pointer in `user` and copies with copy_from_user/copy_to_user */
};

enum ioctl_locks {
  LOCK_NONE = 0,
  LOCK_VM = 1,    /* vm->lock */
  LOCK_VCPU = 2,  /* vcpu->mutex (all ordinary vCPU ioctls) */
};

struct fd_object;

struct ioctl_ctx {
  struct fd_object *object; /* the descriptor's record; for src/api */
  struct vm *vm;     /* NULL on the system descriptor */
  struct vcpu *vcpu; /* NULL unless a vCPU's descriptor */
  u64 value;
  void *user;
};

/* Returns the ioctl's result (>= 0) or negative errno. */
typedef long ioctl_fn(struct ioctl_ctx *ctx, void *data);

struct ioctl_row {
  unsigned long request;
  const char *name; /* "KVM_SET_REGS" */
  enum ioctl_arg arg;
  unsigned locks;
  ioctl_fn *fn;
};

/* The address `offset` bytes behind a client's, which may be anything: misaligned, or at the end of the address space. */
static inline void *user_at(const void *user, size_t offset) { return (void *)((uintptr_t)user + offset); }

/* Copies that answer -EFAULT for bad client addresses instead of crashing. */
int copy_from_user(void *dst, const void *user, size_t len);
int copy_to_user(void *user, const void *src, size_t len);

#endif
