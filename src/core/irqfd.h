/* irqfds: eventfds of the client that raise a GSI, and the resampling of level-triggered ones. */
#ifndef CORE_IRQFD_H
#define CORE_IRQFD_H

#include "core/vm.h"

/* KVM_IRQFD.  -EINVAL: unknown flags, no interrupt controllers, not an eventfd; -EBADF; -EBUSY: the eventfd raises a GSI already.
 */
int vm_irqfd(struct vm *vm, const struct kvm_irqfd *args);

#endif
