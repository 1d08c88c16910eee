/* Changing owner, mode and access control list of a node, or making it: the host's own node, if there is one, is not the
 * program's to change.  libvirt does all of it, in a /dev of its own where only the names of nodes are. */
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>
#include "preload/preload.h"

static bool is_node(int dirfd, const char *path) {
  return path_target(dirfd, path).kind == TARGET_NODE;
}

/* Nothing changes: everybody may open the node anyway. */
static int changed(bool changes) {
  return changes && geteuid() ? fail(EPERM) : 0;
}
static int owned(uid_t user, gid_t group) {
  return changed(user != (uid_t)-1 || group != (gid_t)-1);
}

INTERPOSE int chown(const char *path, uid_t user, gid_t group) {
  return unlikely(is_node(AT_FDCWD, path)) ? owned(user, group) : REAL(chown)(path, user, group);
}
INTERPOSE int lchown(const char *path, uid_t user, gid_t group) {
  return unlikely(is_node(AT_FDCWD, path)) ? owned(user, group) : REAL(lchown)(path, user, group);
}
INTERPOSE int fchownat(int dirfd, const char *path, uid_t user, gid_t group, int flags) {
  return unlikely(is_node(dirfd, path)) ? owned(user, group) : REAL(fchownat)(dirfd, path, user, group, flags);
}
INTERPOSE int chmod(const char *path, mode_t mode) {
  return unlikely(is_node(AT_FDCWD, path)) ? changed(true) : REAL(chmod)(path, mode);
}
INTERPOSE int fchmodat(int dirfd, const char *path, mode_t mode, int flags) {
  return unlikely(is_node(dirfd, path)) ? changed(true) : REAL(fchmodat)(dirfd, path, mode, flags);
}
INTERPOSE int mknod(const char *path, mode_t mode, dev_t dev) {
  return unlikely(is_node(AT_FDCWD, path)) ? fail(EEXIST) : REAL(mknod)(path, mode, dev);
}
INTERPOSE int mknodat(int dirfd, const char *path, mode_t mode, dev_t dev) {
  return unlikely(is_node(dirfd, path)) ? fail(EEXIST) : REAL(mknodat)(dirfd, path, mode, dev);
}

/* ---- extended attributes: there are none, and access control lists that are set say nothing new ---- */

INTERPOSE ssize_t getxattr(const char *path, const char *name, void *value, size_t size) {
  return unlikely(is_node(AT_FDCWD, path)) ? fail(ENODATA) : REAL(getxattr)(path, name, value, size);
}
INTERPOSE ssize_t lgetxattr(const char *path, const char *name, void *value, size_t size) {
  return unlikely(is_node(AT_FDCWD, path)) ? fail(ENODATA) : REAL(lgetxattr)(path, name, value, size);
}
INTERPOSE int setxattr(const char *path, const char *name, const void *value, size_t size, int flags) {
  return unlikely(is_node(AT_FDCWD, path)) ? changed(true) : REAL(setxattr)(path, name, value, size, flags);
}
INTERPOSE int lsetxattr(const char *path, const char *name, const void *value, size_t size, int flags) {
  return unlikely(is_node(AT_FDCWD, path)) ? changed(true) : REAL(lsetxattr)(path, name, value, size, flags);
}
INTERPOSE int removexattr(const char *path, const char *name) {
  return unlikely(is_node(AT_FDCWD, path)) ? fail(ENODATA) : REAL(removexattr)(path, name);
}
INTERPOSE int lremovexattr(const char *path, const char *name) {
  return unlikely(is_node(AT_FDCWD, path)) ? fail(ENODATA) : REAL(lremovexattr)(path, name);
}
