/* Opening a node, and asking whether one may. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <unistd.h>
#include "preload/preload.h"

int open_node(int flags) {
  if (flags & O_DIRECTORY) return fail(ENOTDIR);
  if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL)) return fail(EEXIST);
  return uvirt_open("/dev/kvm", flags);
}

static bool opens_node(int dirfd, const char *path) {
  return !front_inside() && is_node(dirfd, path);
}

static bool has_mode(int flags) {
  return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE;
}

static mode_t get_mode(int flags, va_list ap) {
  return has_mode(flags) ? va_arg(ap, mode_t) : 0;
}

#define OPEN(name)                                                                                                               \
  INTERPOSE int name(const char *path, int flags, ...) {                                                                         \
    va_list ap;                                                                                                                  \
    va_start(ap, flags);                                                                                                         \
    mode_t mode = get_mode(flags, ap);                                                                                           \
    va_end(ap);                                                                                                                  \
    return opens_node(AT_FDCWD, path) ? open_node(flags) : REAL(name)(path, flags, mode);                                        \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                             \
  INTERPOSE int name(int dirfd, const char *path, int flags, ...) {                                                              \
    va_list ap;                                                                                                                  \
    va_start(ap, flags);                                                                                                         \
    mode_t mode = get_mode(flags, ap);                                                                                           \
    va_end(ap);                                                                                                                  \
    return opens_node(dirfd, path) ? open_node(flags) : REAL(name)(dirfd, path, flags, mode);                                    \
  }
OPENAT(openat)
OPENAT(openat64)

/* What fortified programs call when there is no mode. */
INTERPOSE int __open_2(const char *path, int flags);
INTERPOSE int __open64_2(const char *path, int flags);
INTERPOSE int __openat_2(int dirfd, const char *path, int flags);
INTERPOSE int __openat64_2(int dirfd, const char *path, int flags);

int __open_2(const char *path, int flags) {
  return open(path, flags);
}
int __open64_2(const char *path, int flags) {
  return open64(path, flags);
}
int __openat_2(int dirfd, const char *path, int flags) {
  return openat(dirfd, path, flags);
}
int __openat64_2(int dirfd, const char *path, int flags) {
  return openat64(dirfd, path, flags);
}

/* ---- access ---- */

/* Anybody may read and write (mode 0666). */
static int access_node(int mode) {
  return mode & X_OK ? fail(EACCES) : 0;
}

INTERPOSE int access(const char *path, int mode) {
  return opens_node(AT_FDCWD, path) ? access_node(mode) : REAL(access)(path, mode);
}

INTERPOSE int faccessat(int dirfd, const char *path, int mode, int flags) {
  return opens_node(dirfd, path) ? access_node(mode) : REAL(faccessat)(dirfd, path, mode, flags);
}
