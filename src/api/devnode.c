/* The table of device nodes: a new architecture is one line here. */
#include <string.h>
#include "api/devnode.h"

static const struct devnode nodes[] = {
    {"/dev/kvm", "kvm", 10, 232, &x86_arch}, /* Documentation/admin-guide/devices.txt */
};

const struct devnode *devnode_find(const char *path) {
  for (unsigned i = 0; i < ARRAY_SIZE(nodes); i++)
    if (!strcmp(path, nodes[i].path)) return &nodes[i];
  return NULL;
}

const struct devnode *devnode_by_number(unsigned major, unsigned minor) {
  for (unsigned i = 0; i < ARRAY_SIZE(nodes); i++)
    if (nodes[i].major == major && nodes[i].minor == minor) return &nodes[i];
  return NULL;
}

const struct devnode *devnode_by_name(const char *name) {
  for (unsigned i = 0; i < ARRAY_SIZE(nodes); i++)
    if (!strcmp(name, nodes[i].name)) return &nodes[i];
  return NULL;
}

bool devnode_owns_name(const char *name) {
  for (unsigned i = 0; i < ARRAY_SIZE(nodes); i++) {
    size_t n = strlen(nodes[i].name);
    if (!strncmp(name, nodes[i].name, n) && name[n] == '-') return true;
  }
  return false;
}
