/* The descriptors of the library: from a descriptor's number to the object behind it.
 *
 * Every object's descriptor is a real one of the process.  The table is read without a lock: an entry is loaded inside an RCU
 * read section and its reference taken; closing replaces the entry and frees the object's record after a grace period.
 */
#ifndef API_FD_H
#define API_FD_H

#include "core/vm.h"

enum fd_kind { FD_SYSTEM, FD_VM, FD_VCPU, FD_DEVICE, FD_STATS, FD_KINDS };

struct fd_object {
  enum fd_kind kind;     /* (o) */
  _Atomic int refs;      /* one for the table's entry, one per call at work */
  const struct api *api; /* (o) the ioctls of the object's architecture */
  struct vm *vm;         /* (o) NULL on the system descriptor; the object holds a reference */
  struct vcpu *vcpu;     /* (o) NULL unless FD_VCPU; reference held */
  struct device *device; /* (o) FD_DEVICE */
};

/* Enters fd, which the caller opened, for a copy of *init; takes over the references in it.  Returns fd, or -errno with fd closed
 * and the references given back. */
int fd_install(int fd, const struct fd_object *init);
/* The same for a descriptor that stays the caller's if this fails: 0 or -errno. */
int fd_enter(int fd, const struct fd_object *init);
/* The object with a reference, or NULL for a descriptor that is not ours. */
struct fd_object *fd_get(int fd);
void fd_put(struct fd_object *o);
bool fd_is_ours(int fd);
/* Closes fd if it is ours: 0, or -EBADF. */
int fd_close(int fd);
/* The numbers from first to last, both included, were closed behind our back: their entries go. */
void fd_forget(unsigned first, unsigned last);
/* A second descriptor for the object of old, made by dup(2) or received: newfd is entered for the same object.  0 or -errno. */
int fd_alias(int old, int newfd);

/* A descriptor of ours for this file, or -1. */
struct stat;
int fd_find(const struct stat *file);

/* An empty memfd: the body of a descriptor that only stands for an object. */
int fd_make(const char *name, bool cloexec);

#endif
