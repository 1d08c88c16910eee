/* Names: what /proc/self/fd/N is called, and the node's real path. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "preload/preload.h"

enum { NAME_SIZE = 256 }; /* memfd_create(2) takes no longer ones */

#define MEMFD_PREFIX "/memfd:"
#define MEMFD_SUFFIX " (deleted)"

/* The name that the kernel's KVM would give our descriptor, from the name of its memfd. */
static void kvm_name(enum front_kind kind, const char *memfd, char out[NAME_SIZE]) {
  int len = (int)strlen(memfd) - (int)strlen(MEMFD_PREFIX) - (int)strlen(MEMFD_SUFFIX);
  if (kind == FRONT_NODE || len < 0)
    strcpy(out, "/dev/kvm");
  else
    snprintf(out, NAME_SIZE, "anon_inode:%.*s", len, memfd + strlen(MEMFD_PREFIX));
}

/* The descriptor's name without a terminating zero, as readlink(2) gives it; 0: not one of ours. */
static ssize_t read_own_link(const char *path, char *buf, size_t size) {
  char memfd[NAME_SIZE + sizeof(MEMFD_PREFIX MEMFD_SUFFIX)], name[NAME_SIZE];
  if (!path || !front_started() || front_inside()) return 0;
  int fd = path_descriptor(path);
  enum front_kind kind = fd < 0 ? FRONT_FOREIGN : front_kind(fd);
  if (kind == FRONT_FOREIGN) return 0;
  ssize_t n = REAL(readlink)(path, memfd, sizeof(memfd) - 1);
  if (n < 0) return n;
  memfd[n] = 0;
  kvm_name(kind, memfd, name);
  size_t len = MIN(strlen(name), size);
  memcpy(buf, name, len);
  return (ssize_t)len;
}

INTERPOSE ssize_t readlink(const char *path, char *buf, size_t size) {
  ssize_t n = read_own_link(path, buf, size);
  if (unlikely(n)) return n;
  struct target t = path_target(AT_FDCWD, path);
  return unlikely(t.kind) ? fail(EINVAL) : REAL(readlink)(path, buf, size); /* the node is no link */
}

INTERPOSE ssize_t readlinkat(int dirfd, const char *path, char *buf, size_t size) {
  ssize_t n = read_own_link(path, buf, size);
  if (unlikely(n)) return n;
  struct target t = path_target(dirfd, path);
  return unlikely(t.kind) ? fail(EINVAL) : REAL(readlinkat)(dirfd, path, buf, size);
}

/* The node's one name; or that of the text, which has one too. */
static char *real_path(const struct target *t, const char *path, char *resolved) {
  char *out = resolved ? resolved : malloc(PATH_MAX);
  if (t->kind == TARGET_OBJECT_LINK) {
    if (!resolved) free(out);
    fail(ENOENT);
    return NULL;
  }
  return out ? strcpy(out, t->kind == TARGET_NODE ? "/dev/kvm" : path) : NULL;
}

INTERPOSE char *realpath(const char *path, char *resolved) {
  struct target t = path_target(AT_FDCWD, path);
  return unlikely(t.kind) ? real_path(&t, path, resolved) : REAL(realpath)(path, resolved);
}

INTERPOSE char *canonicalize_file_name(const char *path) {
  return realpath(path, NULL);
}

/* ---- what fortified programs call ---- */

INTERPOSE ssize_t __readlink_chk(const char *path, char *buf, size_t size, size_t room);
INTERPOSE ssize_t __readlinkat_chk(int dirfd, const char *path, char *buf, size_t size, size_t room);
INTERPOSE char *__realpath_chk(const char *path, char *resolved, size_t room);

ssize_t __readlink_chk(const char *path, char *buf, size_t size, size_t room) {
  return likely(size <= room) ? readlink(path, buf, size) : REAL(__readlink_chk)(path, buf, size, room);
}

ssize_t __readlinkat_chk(int dirfd, const char *path, char *buf, size_t size, size_t room) {
  return likely(size <= room) ? readlinkat(dirfd, path, buf, size) : REAL(__readlinkat_chk)(dirfd, path, buf, size, room);
}

char *__realpath_chk(const char *path, char *resolved, size_t room) {
  return likely(room >= PATH_MAX) ? realpath(path, resolved) : REAL(__realpath_chk)(path, resolved, room);
}
