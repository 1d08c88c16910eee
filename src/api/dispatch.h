/* From an ioctl's number to its row, and through the row to the handler. */
#ifndef API_DISPATCH_H
#define API_DISPATCH_H

#include "api/fd.h"
#include "api/ioctl.h"

/* The ioctls of one architecture's device node, ready for look-up.  Made once per architecture, never freed. */
struct api;
const struct api *api_of(const struct arch_ops *arch); /* NULL: no memory */
const struct arch_ops *api_arch(const struct api *api);

/* The neutral rows. */
struct ioctl_rows {
  const struct ioctl_row *row;
  unsigned n;
};
extern const struct ioctl_rows kvm_system_rows, kvm_vm_rows, kvm_vcpu_rows, kvm_device_rows;

/* Does what the row says: copy in, lock, call, unlock, copy out.  Result or -errno. */
long api_ioctl(struct fd_object *o, unsigned long request, void *arg);

/* Whether a result is a negative errno.  What is more negative is a value, as libc has it of any system call. */
static inline bool is_errno(long r) { return r < 0 && r >= -4095; }

#endif
