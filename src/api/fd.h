/* From descriptor numbers to the library's objects. */
#ifndef API_FD_H
#define API_FD_H

#include "core/vm.h"

enum fd_kind { FD_SYSTEM, FD_VM, FD_VCPU };

struct fd_object {
  enum fd_kind kind;
  _Atomic int refs;
  const struct arch_ops *arch;
  struct vm *vm;     /* FD_VM: one reference */
  struct vcpu *vcpu; /* FD_VCPU: one reference */
};

/* Puts an object under a real descriptor, which the table owns from now on.  0 or -errno. */
int fd_install(int fd, const struct fd_object *object);
/* The object of a descriptor, with a reference that fd_put() gives back; NULL if it is not ours. */
struct fd_object *fd_get(int fd);
void fd_put(struct fd_object *object);
/* Takes the descriptor out of the table (close). */
struct fd_object *fd_remove(int fd);

#endif
