/* The device nodes that uvirt_open() knows. */
#ifndef API_DEVNODE_H
#define API_DEVNODE_H

#include "core/arch.h"

struct devnode {
  const char *path;
  const char *name; /* its descriptor's memfd; those of its objects are called NAME-something */
  unsigned major, minor;
  const struct arch_ops *arch;
};

/* NULL for a path this build does not provide. */
const struct devnode *devnode_find(const char *path);
const struct devnode *devnode_by_number(unsigned major, unsigned minor);
const struct devnode *devnode_by_name(const char *name);
/* Whether name is that of an object made on some node. */
bool devnode_owns_name(const char *name);

#endif
