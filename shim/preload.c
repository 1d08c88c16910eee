/* libuvirt-preload.so: puts uvirt's device nodes behind a program's own open, ioctl, mmap and close.
 *
 * Each function below has the name and signature of libc's and passes on whatever is not ours.  Paths are compared as the program gives them:
 * "/dev/kvm" is ours whether or not the machine has one.
 */
#undef _FILE_OFFSET_BITS /* both names of each call are defined here */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "uvirt.h"

#define EXPORT __attribute__((visibility("default")))
#define NEXT(name) ((__typeof__(&name))next(#name))

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

static bool is_node(const char *path) { return path && !strcmp(path, "/dev/kvm"); }

/* The mode argument exists only with these flags (open(2)). */
static mode_t mode_of(int flags, va_list ap) { return flags & (O_CREAT | __O_TMPFILE) ? va_arg(ap, mode_t) : 0; }

#define DEFINE_OPEN(name)                                                                                                        \
  EXPORT int name(const char *path, int flags, ...) {                                                                            \
    va_list ap;                                                                                                                  \
    va_start(ap, flags);                                                                                                         \
    mode_t mode = mode_of(flags, ap);                                                                                            \
    va_end(ap);                                                                                                                  \
    return is_node(path) ? uvirt_open(path, flags) : NEXT(name)(path, flags, mode);                                              \
  }
#define DEFINE_OPENAT(name)                                                                                                      \
  EXPORT int name(int dir, const char *path, int flags, ...) {                                                                   \
    va_list ap;                                                                                                                  \
    va_start(ap, flags);                                                                                                         \
    mode_t mode = mode_of(flags, ap);                                                                                            \
    va_end(ap);                                                                                                                  \
    return is_node(path) ? uvirt_open(path, flags) : NEXT(name)(dir, path, flags, mode);                                         \
  }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)

/* Fortified programs call these. */
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);
EXPORT int __open_2(const char *path, int flags) { return is_node(path) ? uvirt_open(path, flags) : NEXT(__open_2)(path, flags); }
EXPORT int __open64_2(const char *path, int flags) { return is_node(path) ? uvirt_open(path, flags) : NEXT(__open64_2)(path, flags); }

EXPORT int ioctl(int fd, unsigned long request, ...) {
  va_list ap;
  va_start(ap, request);
  void *arg = va_arg(ap, void *);
  va_end(ap);
  return uvirt_is_ours(fd) ? uvirt_ioctl(fd, request, arg) : NEXT(ioctl)(fd, request, arg);
}

EXPORT void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset) {
  if (fd >= 0 && !(flags & MAP_ANONYMOUS) && uvirt_is_ours(fd)) return uvirt_mmap(addr, length, prot, flags, fd, offset);
  return NEXT(mmap)(addr, length, prot, flags, fd, offset);
}

EXPORT void *mmap64(void *addr, size_t length, int prot, int flags, int fd, off64_t offset) {
  if (fd >= 0 && !(flags & MAP_ANONYMOUS) && uvirt_is_ours(fd)) return uvirt_mmap(addr, length, prot, flags, fd, offset);
  return NEXT(mmap64)(addr, length, prot, flags, fd, offset);
}

EXPORT int close(int fd) { return fd >= 0 && uvirt_is_ours(fd) ? uvirt_close(fd) : NEXT(close)(fd); }

EXPORT int access(const char *path, int mode) { return is_node(path) ? 0 : NEXT(access)(path, mode); }
EXPORT int faccessat(int dir, const char *path, int mode, int flags) { return is_node(path) ? 0 : NEXT(faccessat)(dir, path, mode, flags); }

/* What stat says of a KVM node: a character device 10:232, mode 0666. */
static int node_stat(struct stat *st) {
  memset(st, 0, sizeof(*st));
  st->st_mode = S_IFCHR | 0666;
  st->st_rdev = makedev(10, 232);
  st->st_nlink = 1;
  st->st_blksize = 4096;
  return 0;
}
EXPORT int stat(const char *restrict path, struct stat *restrict st) { return is_node(path) ? node_stat(st) : NEXT(stat)(path, st); }
EXPORT int stat64(const char *restrict path, struct stat64 *restrict st) {
  return is_node(path) ? node_stat((struct stat *)st) : NEXT(stat64)(path, st);
}
