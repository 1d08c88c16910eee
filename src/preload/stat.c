/* What a node and our descriptors look like to stat(2) and its relatives. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include "preload/preload.h"

#define NODE_MODE (S_IFCHR | 0666)
#define TEXT_MODE (S_IFREG | 0444)

_Static_assert(sizeof(struct stat) == sizeof(struct stat64), "the two are one on x86-64");

/* A file of /dev or /sys, as old as the directory. */
static int stat_target(const struct target *t, struct stat *st) {
  bool text = t->kind == TARGET_TEXT;
  if (REAL(stat)(text ? "/sys" : "/dev", st)) memset(st, 0, sizeof(*st));
  st->st_ino = text ? (ino_t)(uintptr_t)t->text_arg & 0x7fffffff : 1000 + t->minor;
  st->st_mode = text ? TEXT_MODE : NODE_MODE;
  st->st_rdev = text ? 0 : makedev(t->major, t->minor);
  st->st_nlink = 1;
  st->st_uid = st->st_gid = 0;
  st->st_size = text ? 4096 : 0;
  st->st_blocks = 0;
  st->st_blksize = 4096;
  return 0;
}

/* Our descriptor, of which the kernel says *st. */
static void describe_descriptor(int fd, struct stat *st) {
  struct target node = {.kind = TARGET_NODE};
  if (front_kind(fd) == FRONT_NODE && front_node("/dev/kvm", &node.major, &node.minor)) {
    stat_target(&node, st);
    return;
  }
  st->st_mode = 0600; /* KVM's objects are files of no type */
  st->st_size = 0;
  st->st_blocks = 0;
}

static int stat_descriptor(int fd, struct stat *st) {
  int r = REAL(fstat)(fd, st);
  if (!r && ours(fd)) describe_descriptor(fd, st);
  return r;
}

/* /proc/self/fd/N of an object, not followed or followed, is what the kernel makes of it. */
static bool concerns_us(const struct target *t) {
  return t->kind == TARGET_NODE || t->kind == TARGET_TEXT;
}

/* A link in /proc that is not followed is a link. */
static bool is_link(const char *path, bool follow) {
  return !follow && front_started() && path_descriptor(path) >= 0;
}

static int stat_path(int dirfd, const char *path, struct stat *st, bool follow, int *result) {
  struct target t = path_target(dirfd, path);
  if (likely(!concerns_us(&t)) || is_link(path, follow)) return 0;
  *result = stat_target(&t, st);
  return 1;
}

#define STAT(name, type, follow)                                                                                                 \
  INTERPOSE int name(const char *path, struct type *st) {                                                                        \
    int r;                                                                                                                       \
    return unlikely(stat_path(AT_FDCWD, path, (struct stat *)st, follow, &r)) ? r : REAL(name)(path, st);                        \
  }
STAT(stat, stat, true)
STAT(stat64, stat64, true)
STAT(lstat, stat, false)
STAT(lstat64, stat64, false)

INTERPOSE int fstat(int fd, struct stat *st) {
  return ours(fd) ? stat_descriptor(fd, st) : REAL(fstat)(fd, st);
}
INTERPOSE int fstat64(int fd, struct stat64 *st) {
  return ours(fd) ? stat_descriptor(fd, (struct stat *)st) : REAL(fstat64)(fd, st);
}

static bool is_empty(const char *path, int flags) {
  return (flags & AT_EMPTY_PATH) && path && !*path;
}

#define FSTATAT(name, type)                                                                                                      \
  INTERPOSE int name(int dirfd, const char *path, struct type *st, int flags) {                                                  \
    int r;                                                                                                                       \
    if (is_empty(path, flags) && ours(dirfd)) return stat_descriptor(dirfd, (struct stat *)st);                                  \
    if (unlikely(stat_path(dirfd, path, (struct stat *)st, !(flags & AT_SYMLINK_NOFOLLOW), &r))) return r;                       \
    return REAL(name)(dirfd, path, st, flags);                                                                                   \
  }
FSTATAT(fstatat, stat)
FSTATAT(fstatat64, stat64)

/* ---- statx ---- */

static struct statx_timestamp statx_time(struct timespec t) {
  return (struct statx_timestamp){.tv_sec = t.tv_sec, .tv_nsec = (unsigned)t.tv_nsec};
}

static void to_statx(const struct stat *st, struct statx *x) {
  *x = (struct statx){
      .stx_mask = STATX_BASIC_STATS,
      .stx_blksize = (unsigned)st->st_blksize,
      .stx_nlink = (unsigned)st->st_nlink,
      .stx_uid = st->st_uid,
      .stx_gid = st->st_gid,
      .stx_mode = (unsigned short)st->st_mode,
      .stx_ino = st->st_ino,
      .stx_size = (unsigned long long)st->st_size,
      .stx_blocks = (unsigned long long)st->st_blocks,
      .stx_atime = statx_time(st->st_atim),
      .stx_ctime = statx_time(st->st_ctim),
      .stx_mtime = statx_time(st->st_mtim),
      .stx_rdev_major = major(st->st_rdev),
      .stx_rdev_minor = minor(st->st_rdev),
      .stx_dev_major = major(st->st_dev),
      .stx_dev_minor = minor(st->st_dev),
  };
}

INTERPOSE int statx(int dirfd, const char *path, int flags, unsigned mask, struct statx *x) {
  struct stat st;
  int r;
  if (is_empty(path, flags) && ours(dirfd))
    r = stat_descriptor(dirfd, &st);
  else if (likely(!stat_path(dirfd, path, &st, !(flags & AT_SYMLINK_NOFOLLOW), &r)))
    return REAL(statx)(dirfd, path, flags, mask, x);
  if (!r) to_statx(&st, x);
  return r;
}

/* ---- what programs built before glibc 2.33 call ---- */

INTERPOSE int __xstat(int version, const char *path, struct stat *st);
INTERPOSE int __xstat64(int version, const char *path, struct stat64 *st);
INTERPOSE int __lxstat(int version, const char *path, struct stat *st);
INTERPOSE int __lxstat64(int version, const char *path, struct stat64 *st);
INTERPOSE int __fxstat(int version, int fd, struct stat *st);
INTERPOSE int __fxstat64(int version, int fd, struct stat64 *st);
INTERPOSE int __fxstatat(int version, int dirfd, const char *path, struct stat *st, int flags);
INTERPOSE int __fxstatat64(int version, int dirfd, const char *path, struct stat64 *st, int flags);

int __xstat(int version, const char *path, struct stat *st) {
  return stat(path, st);
}
int __xstat64(int version, const char *path, struct stat64 *st) {
  return stat64(path, st);
}
int __lxstat(int version, const char *path, struct stat *st) {
  return lstat(path, st);
}
int __lxstat64(int version, const char *path, struct stat64 *st) {
  return lstat64(path, st);
}
int __fxstat(int version, int fd, struct stat *st) {
  return fstat(fd, st);
}
int __fxstat64(int version, int fd, struct stat64 *st) {
  return fstat64(fd, st);
}
int __fxstatat(int version, int dirfd, const char *path, struct stat *st, int flags) {
  return fstatat(dirfd, path, st, flags);
}
int __fxstatat64(int version, int dirfd, const char *path, struct stat64 *st, int flags) {
  return fstatat64(dirfd, path, st, flags);
}
