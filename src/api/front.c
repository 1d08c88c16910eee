/* The border's functions: each is a visit to the library like those of include/uvirt.h. */
#include <string.h>
#include "api/devnode.h"
#include "api/fd.h"
#include "api/front.h"

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

bool front_is_node(const char *path) {
  return devnode_find(path);
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
