/* The device nodes that uvirt_open() knows. */
#ifndef API_DEVNODE_H
#define API_DEVNODE_H

#include "core/arch.h"

struct devnode {
  const char *path;
  const char *name; /* shown in /proc/self/fd */
  const struct arch_ops *arch;
};

/* NULL for a path this build does not provide. */
const struct devnode *devnode_find(const char *path);

#endif
