/* The public C API of libuvirt: virtual device nodes of Linux virtualization, used like descriptors.
 *
 * Every call mirrors the system call of the same name: the same arguments, the same return values, -1 and errno
 * on failure.  Descriptors are real descriptors of the process, so poll(2), dup(2) and /proc/self/fd work on them;
 * only ioctl, mmap and close have to go through this API (or through `uvirt exec`, which does it for a program).
 *
 * Thread safety: as the kernel's.  Any thread may call anything; a vCPU is run by one thread at a time.
 */
#ifndef UVIRT_H
#define UVIRT_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

#define UVIRT_VERSION_MAJOR 0
#define UVIRT_VERSION_MINOR 1
#define UVIRT_VERSION_PATCH 0

#define UVIRT_PUBLIC __attribute__((visibility("default")))

/* Version of the library in use, "MAJOR.MINOR.PATCH"; never NULL, never freed. */
UVIRT_PUBLIC const char *uvirt_version(void);

/* Opens a virtual device node ("/dev/kvm").  flags: O_RDWR, O_CLOEXEC as for open(2).
 * Returns a descriptor, or -1: ENOENT for a path this build does not provide, EMFILE, ENFILE, ENOMEM. */
UVIRT_PUBLIC int uvirt_open(const char *path, int flags);

/* Whether fd is a descriptor of this library (device node, VM, vCPU, device, statistics). */
UVIRT_PUBLIC bool uvirt_is_ours(int fd);

/* ioctl(2) on a descriptor of this library.  arg is the integer or pointer argument of the request.
 * Returns what the kernel's handler would; -1 with EBADF where fd is not ours. */
UVIRT_PUBLIC int uvirt_ioctl(int fd, unsigned long request, void *arg);

/* mmap(2) on a descriptor of this library (a vCPU's kvm_run, coalesced ring and dirty ring).
 * offset is in bytes.  The mapping is undone with munmap(2). */
UVIRT_PUBLIC void *uvirt_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset);

/* close(2).  The object lives on while other descriptors or objects refer to it, as in the kernel. */
UVIRT_PUBLIC int uvirt_close(int fd);

#ifdef __cplusplus
}
#endif

#endif
