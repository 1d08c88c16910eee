/* The door to the KVM ABI: the same calls over libuvirt ("soft") or over the machine's own /dev/kvm ("host").
 *
 * All return what the system call returns, but failures as negative errno instead of -1.
 */
#ifndef VMM_KVM_H
#define VMM_KVM_H

#include <stddef.h>
#include <sys/types.h>

struct vmm_accel {
  const char *name; /* "soft" or "host" */
  int (*open)(void);
  int (*ioctl)(int fd, unsigned long request, void *arg);
  void *(*mmap)(size_t length, int prot, int flags, int fd, off_t offset); /* NULL on failure, errno set */
  int (*close)(int fd);
};

extern const struct vmm_accel vmm_accel_soft;
extern const struct vmm_accel vmm_accel_host;

/* "auto": host where CPUID reports VT-x or SVM and /dev/kvm opens and makes a VM, else soft.  *why says in one sentence which and why. */
const struct vmm_accel *vmm_accel_auto(const char **why);

#endif
