/* ioeventfds: guest writes that signal an eventfd instead of exiting. */
#ifndef CORE_IOEVENTFD_H
#define CORE_IOEVENTFD_H

#include "core/vm.h"

/* KVM_IOEVENTFD.  -EINVAL: length, wrap, flags, data match without length; -EEXIST: an access would hit two; -ENOENT: nothing to
 * deassign; -EBADF and -EINVAL for a descriptor that is no eventfd. */
int vm_ioeventfd(struct vm *vm, const struct kvm_ioeventfd *args);

#endif
