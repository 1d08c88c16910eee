/* Which paths name a virtual device node.
 *
 * Nearly all paths are told apart by their last component, without a system call.  For the rest the directory decides: the node's
 * own ("/dev", however written) or any other in which a real node of that number lies (a container's "/host/dev").
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

static bool has_node_name(const char *path) {
  size_t len = strlen(path), n = sizeof(NODE_NAME) - 1;
  return len >= n && !memcmp(path + len - n, NODE_NAME, n) && (len == n || path[len - n - 1] == '/');
}

/* Appends the components of path to out[PATH_MAX], an absolute path without a final "/"; "." and ".." are resolved by name.
 * False: too long. */
static bool append_components(char *out, const char *path) {
  size_t len = strlen(out);
  while (*path) {
    size_t n = strcspn(path, "/");
    if (n == 2 && path[0] == '.' && path[1] == '.') {
      while (len && out[--len] != '/') {
      }
    } else if (n && !(n == 1 && path[0] == '.')) {
      if (len + n + 2 > PATH_MAX) return false;
      out[len++] = '/';
      memcpy(out + len, path, n);
      len += n;
    }
    out[len] = 0;
    path += n;
    path += *path == '/';
  }
  return true;
}

/* The path of an open directory. */
static bool directory_path(int dirfd, char out[PATH_MAX]) {
  if (dirfd == AT_FDCWD) return getcwd(out, PATH_MAX);
  char link[32];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", dirfd);
  ssize_t n = readlink(link, out, PATH_MAX - 1);
  if (n <= 0 || out[0] != '/') return false;
  out[n] = 0;
  return true;
}

static bool absolute_path(int dirfd, const char *path, char out[PATH_MAX]) {
  out[0] = 0;
  if (path[0] != '/' && !directory_path(dirfd, out)) return false;
  if (!strcmp(out, "/")) out[0] = 0;
  return append_components(out, path);
}

bool is_node(int dirfd, const char *path) {
  char absolute[PATH_MAX];
  if (!path || !has_node_name(path)) return false;
  int saved = errno;
  bool yes = absolute_path(dirfd, path, absolute) && front_is_node(absolute);
  errno = saved;
  return yes;
}
