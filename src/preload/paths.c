/* Which paths concern us.
 *
 * Nearly all are told apart by their last component or their beginning, without a system call.  A path whose last component is a
 * node's name is looked at more closely: it names the node if its directory is the node's, however written, or if a real node of
 * the same numbers lies there (a container's "/host/dev").
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "preload/preload.h"

#define NODE_NAME "kvm"
#define NODE_PATH "/dev/" NODE_NAME

static bool has_node_name(const char *path) {
  size_t len = strlen(path), n = sizeof(NODE_NAME) - 1;
  return len >= n && !memcmp(path + len - n, NODE_NAME, n) && (len == n || path[len - n - 1] == '/');
}

/* The path of an open directory. */
static bool directory_path(int dirfd, char out[PATH_MAX]) {
  if (dirfd == AT_FDCWD) return getcwd(out, PATH_MAX);
  char link[32];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", dirfd);
  ssize_t n = REAL(readlink)(link, out, PATH_MAX - 1);
  if (n <= 0 || out[0] != '/') return false;
  out[n] = 0;
  return true;
}

/* The directory of path, resolved, with the node's name behind it. */
static bool resolve(int dirfd, const char *path, char out[PATH_MAX]) {
  char directory[PATH_MAX] = "", resolved[PATH_MAX];
  size_t len = strlen(path) - (sizeof(NODE_NAME) - 1);
  if (path[0] != '/' && !directory_path(dirfd, directory)) return false;
  size_t n = strlen(directory);
  if (n + 1 + len + 1 > PATH_MAX) return false;
  snprintf(directory + n, PATH_MAX - n, "/%.*s", (int)len, path);
  if (!REAL(realpath)(directory, resolved)) return false;
  return snprintf(out, PATH_MAX, "%s/" NODE_NAME, resolved) < PATH_MAX;
}

static bool is_real_node(int dirfd, const char *path) {
  unsigned major, minor;
  struct stat st;
  if (!front_node(NODE_PATH, &major, &minor)) return false;
  return !REAL(fstatat)(dirfd, path, &st, 0) && S_ISCHR(st.st_mode) && st.st_rdev == makedev(major, minor);
}

/* A function of its own: a thread may have 16 KiB of stack, and paths are mostly written as is. */
static __attribute__((noinline)) bool is_elsewhere(int dirfd, const char *path, struct target *t) {
  char absolute[PATH_MAX];
  if (resolve(dirfd, path, absolute) && front_node(absolute, &t->major, &t->minor)) return true;
  return is_real_node(dirfd, path) && front_node(NODE_PATH, &t->major, &t->minor);
}

static bool is_node(int dirfd, const char *path, struct target *t) {
  return front_node(path, &t->major, &t->minor) || is_elsewhere(dirfd, path, t);
}

/* The number at the end of path if it begins with prefix. */
static int number_behind(const char *path, const char *prefix) {
  size_t n = strlen(prefix);
  if (strncmp(path, prefix, n) || path[n] < '0' || path[n] > '9') return -1;
  char *end;
  unsigned long fd = strtoul(path + n, &end, 10);
  return *end || fd > INT_MAX ? -1 : (int)fd;
}

int path_descriptor(const char *path) {
  char own[40];
  if (strncmp(path, "/proc/", 6) && strncmp(path, "/dev/fd/", 8)) return -1;
  int fd = number_behind(path, "/proc/self/fd/");
  if (fd < 0) fd = number_behind(path, "/dev/fd/");
  if (fd < 0) fd = number_behind(path, "/proc/thread-self/fd/");
  if (fd >= 0 || path[6] < '0' || path[6] > '9') return fd;
  snprintf(own, sizeof(own), "/proc/%d/fd/", getpid());
  return number_behind(path, own);
}

/* Opening a link in /proc opens the file anew. */
static enum target_kind link_kind(int fd) {
  switch (front_kind(fd)) {
  case FRONT_NODE:
    return TARGET_NODE;
  case FRONT_OBJECT:
    return TARGET_OBJECT_LINK;
  default:
    return TARGET_NONE;
  }
}

struct target path_target(int dirfd, const char *path) {
  struct target t = {.kind = TARGET_NONE};
  if (!path || front_inside()) return t;
  int saved = errno;
  if (has_node_name(path)) {
    if (is_node(dirfd, path, &t)) t.kind = TARGET_NODE;
  } else if (textfile_find(path, &t)) {
    t.kind = TARGET_TEXT;
  } else if (front_started()) {
    int fd = path_descriptor(path);
    if (fd >= 0) t.kind = link_kind(fd);
    if (t.kind == TARGET_NODE) front_node(NODE_PATH, &t.major, &t.minor);
  }
  errno = saved;
  return t;
}
