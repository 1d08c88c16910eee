/* The border's functions: each is a visit to the library like those of include/uvirt.h. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include "api/devnode.h"
#include "api/dispatch.h"
#include "api/fd.h"
#include "api/front.h"

bool front_node(const char *path, unsigned *major, unsigned *minor) {
  const struct devnode *node = devnode_find(path);
  if (!node) return false;
  *major = node->major;
  *minor = node->minor;
  return true;
}

enum front_kind front_kind(int fd) {
  static const enum front_kind kinds[FD_KINDS] = {
      [FD_SYSTEM] = FRONT_NODE,   [FD_VM] = FRONT_OBJECT,   [FD_VCPU] = FRONT_OBJECT,
      [FD_DEVICE] = FRONT_OBJECT, [FD_STATS] = FRONT_STATS,
  };
  if (!fd_is_ours(fd)) return FRONT_FOREIGN;
  signals_enter();
  struct fd_object *o = fd_get(fd);
  enum front_kind kind = o ? kinds[o->kind] : FRONT_FOREIGN;
  if (o) fd_put(o);
  signals_leave();
  return kind;
}

int front_alias(int old, int newfd) {
  signals_enter();
  int r = fd_alias(old, newfd);
  signals_leave();
  return r;
}

void front_forget(unsigned first, unsigned last) {
  signals_enter();
  fd_forget(first, last);
  signals_leave();
}

/* ---- strangers ---- */

#define MEMFD_PREFIX "/memfd:"
#define MEMFD_SUFFIX " (deleted)"

/* The name an object's memfd was given, or false. */
static bool memfd_name(int fd, char *name, size_t size) {
  char path[40], link[80];
  snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
  ssize_t n = readlink(path, link, sizeof(link) - 1);
  const size_t head = strlen(MEMFD_PREFIX), tail = strlen(MEMFD_SUFFIX);
  if (n < (ssize_t)(head + tail)) return false;
  link[(size_t)n - tail] = 0;
  if (strncmp(link, MEMFD_PREFIX, head) || (size_t)n - head - tail >= size) return false;
  strcpy(name, link + head);
  return true;
}

static int enter_node(int fd, const struct devnode *node) {
  process_init();
  struct fd_object o = {.kind = FD_SYSTEM, .api = api_of(node->arch)};
  return o.api ? fd_enter(fd, &o) : -ENOMEM;
}

static int adopt(int fd) {
  struct stat st;
  char name[64];
  if (fstat(fd, &st)) return -errno;
  if (S_ISCHR(st.st_mode)) {
    const struct devnode *node = devnode_by_number(major(st.st_rdev), minor(st.st_rdev));
    return node ? enter_node(fd, node) : -ENOTTY;
  }
  if (!S_ISREG(st.st_mode) || !memfd_name(fd, name, sizeof(name))) return -ENOTTY;
  int old = fd_find(&st);
  if (old >= 0) return fd_alias(old, fd);
  const struct devnode *node = devnode_by_name(name);
  if (node) return enter_node(fd, node);
  return devnode_owns_name(name) ? -EIO : -ENOTTY;
}

int front_adopt(int fd) {
  int saved = errno;
  signals_enter();
  int r = adopt(fd);
  signals_leave();
  errno = saved;
  return r;
}

/* ---- signals ---- */

void front_set_signal_functions(front_sigaction_fn *action, front_sigmask_fn *mask) {
  signals_sigaction = action;
  signals_sigmask = mask;
}

/* A vfork child has handlers of its own, but its parent's memory: the records there stay the parent's. */
static int guest_sigaction(int sig, const struct sigaction *act, struct sigaction *old) {
  struct sigaction now;
  if (signals_sigaction(sig, NULL, &now)) return -1;
  signals_seen_by_client(sig, &now);
  if (act && signals_sigaction(sig, act, NULL)) return -1;
  if (old) *old = now;
  return 0;
}

int front_sigaction(int sig, const struct sigaction *act, struct sigaction *old) {
  if (!front_started() || front_inside()) return signals_sigaction(sig, act, old);
  if (process_is_guest()) return guest_sigaction(sig, act, old);
  return signals_client_sigaction(sig, act, old);
}

int front_sigmask(int how, const sigset_t *set, sigset_t *old) {
  if (!front_started() || front_inside()) return signals_sigmask(how, set, old);
  return signals_client_mask(how, set, old);
}

void front_take_mask(void) {
  signals_hide_faults();
}
