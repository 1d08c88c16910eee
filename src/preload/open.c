/* Opening a node, and asking whether one may. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "preload/preload.h"

static bool wants_write(int flags) {
  return (flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC);
}

/* A memfd with the contents, read-only as the client gets it. */
static int text_descriptor(const char *text, size_t len, int flags) {
  char path[32];
  int fd = memfd_create("uvirt-text", MFD_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t n = REAL(write)(fd, text, len);
  snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
  int r = n == (ssize_t)len ? REAL(open)(path, O_RDONLY | (flags & (O_CLOEXEC | O_NONBLOCK))) : -1;
  REAL(close)(fd);
  return r;
}

static int open_text(const struct target *t, int flags) {
  if (wants_write(flags)) return fail(EACCES);
  size_t len;
  char *text = t->text(t, &len);
  if (!text) return -1;
  int fd = text_descriptor(text, len, flags);
  free(text);
  return fresh(fd);
}

int open_target(const struct target *t, int flags) {
  if (flags & O_DIRECTORY) return fail(ENOTDIR);
  if ((flags & (O_CREAT | O_EXCL)) == (O_CREAT | O_EXCL)) return fail(EEXIST);
  switch (t->kind) {
  case TARGET_NODE:
    return uvirt_open("/dev/kvm", flags);
  case TARGET_TEXT:
    return open_text(t, flags);
  default:
    return fail(ENXIO); /* a file without an inode of its own */
  }
}

static mode_t get_mode(int flags, va_list ap) {
  bool has_mode = (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE;
  return has_mode ? va_arg(ap, mode_t) : 0;
}

#define OPEN(name)                                                                                                               \
  INTERPOSE int name(const char *path, int flags, ...) {                                                                         \
    va_list ap;                                                                                                                  \
    va_start(ap, flags);                                                                                                         \
    mode_t mode = get_mode(flags, ap);                                                                                           \
    va_end(ap);                                                                                                                  \
    struct target t = path_target(AT_FDCWD, path);                                                                               \
    return unlikely(t.kind) ? open_target(&t, flags) : fresh(REAL(name)(path, flags, mode));                                     \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                                             \
  INTERPOSE int name(int dirfd, const char *path, int flags, ...) {                                                              \
    va_list ap;                                                                                                                  \
    va_start(ap, flags);                                                                                                         \
    mode_t mode = get_mode(flags, ap);                                                                                           \
    va_end(ap);                                                                                                                  \
    struct target t = path_target(dirfd, path);                                                                                  \
    return unlikely(t.kind) ? open_target(&t, flags) : fresh(REAL(name)(dirfd, path, flags, mode));                              \
  }
OPENAT(openat)
OPENAT(openat64)

#define CREAT(name)                                                                                                              \
  INTERPOSE int name(const char *path, mode_t mode) {                                                                            \
    struct target t = path_target(AT_FDCWD, path);                                                                               \
    return unlikely(t.kind) ? open_target(&t, O_CREAT | O_WRONLY | O_TRUNC) : fresh(REAL(name)(path, mode));                     \
  }
CREAT(creat)
CREAT(creat64)

/* What fortified programs call when there is no mode, and libc's names for its own libraries. */
INTERPOSE int __open_2(const char *path, int flags);
INTERPOSE int __open64_2(const char *path, int flags);
INTERPOSE int __openat_2(int dirfd, const char *path, int flags);
INTERPOSE int __openat64_2(int dirfd, const char *path, int flags);
INTERPOSE int __open(const char *path, int flags, ...) ALIAS(open);
INTERPOSE int __open64(const char *path, int flags, ...) ALIAS(open64);

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

/* ---- streams ---- */

/* The flags of fopen(3)'s mode; -1: no mode at all. */
static int stream_flags(const char *mode) {
  int flags = strchr(mode, '+') ? O_RDWR : mode[0] == 'r' ? O_RDONLY : O_WRONLY;
  if (!strchr("rwa", mode[0])) return -1;
  if (mode[0] == 'w') flags |= O_TRUNC;
  if (mode[0] != 'r') flags |= O_CREAT;
  if (strchr(mode, 'x')) flags |= O_EXCL;
  if (strchr(mode, 'e')) flags |= O_CLOEXEC;
  return flags;
}

static FILE *open_stream(const struct target *t, const char *mode) {
  int flags = mode ? stream_flags(mode) : -1;
  int fd = flags < 0 ? fail(EINVAL) : open_target(t, flags);
  FILE *f = fd < 0 ? NULL : fdopen(fd, mode);
  if (fd >= 0 && !f) close(fd);
  return f;
}

#define FOPEN(name)                                                                                                              \
  INTERPOSE FILE *name(const char *path, const char *mode) {                                                                     \
    struct target t = path_target(AT_FDCWD, path);                                                                               \
    if (unlikely(t.kind)) return open_stream(&t, mode);                                                                          \
    FILE *f = REAL(name)(path, mode);                                                                                            \
    if (f) fresh(fileno(f));                                                                                                     \
    return f;                                                                                                                    \
  }
FOPEN(fopen)
FOPEN(fopen64)

/* ---- access ---- */

/* A node has mode 0666, a text 0444: nobody is asked who they are. */
static int access_target(const struct target *t, int mode) {
  if (mode & ~(R_OK | W_OK | X_OK)) return fail(EINVAL);
  int refused = t->kind == TARGET_TEXT ? W_OK | X_OK : X_OK;
  return mode & refused ? fail(EACCES) : 0;
}

#define ACCESS(name)                                                                                                             \
  INTERPOSE int name(const char *path, int mode) {                                                                               \
    struct target t = path_target(AT_FDCWD, path);                                                                               \
    return unlikely(t.kind) ? access_target(&t, mode) : REAL(name)(path, mode);                                                  \
  }
ACCESS(access)
ACCESS(eaccess)
ACCESS(euidaccess)

INTERPOSE int faccessat(int dirfd, const char *path, int mode, int flags) {
  struct target t = path_target(dirfd, path);
  return unlikely(t.kind) ? access_target(&t, mode) : REAL(faccessat)(dirfd, path, mode, flags);
}
