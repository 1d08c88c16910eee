/* The dispatcher and the neutral tables. */
#ifndef API_DISPATCH_H
#define API_DISPATCH_H

#include "api/fd.h"
#include "api/ioctl.h"

extern const struct ioctl_row system_rows[], vm_rows[], vcpu_rows[];
extern const unsigned n_system_rows, n_vm_rows, n_vcpu_rows;

/* The ioctl's result, or negative errno. */
long dispatch_ioctl(struct fd_object *object, unsigned long request, void *arg);
/* KVM_CHECK_EXTENSION; vm may be NULL. */
long check_extension(const struct arch_ops *arch, struct vm *vm, long cap);

#endif
