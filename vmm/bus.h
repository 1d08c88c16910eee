/* Sorted arrays of the ranges that devices answer for. */
#ifndef VMM_BUS_H
#define VMM_BUS_H

#include <stddef.h>
#include <stdint.h>

#include "vmm/vmm.h"

struct bus_range {
  uint64_t base, len;
  const struct vmm_range_ops *ops;
  void *dev;
};

/* Ranges that do not overlap, ordered by base.  The owner's lock guards it. */
struct bus {
  struct bus_range *ranges;
  size_t count, room;
};

void bus_free(struct bus *bus);
int bus_add(struct bus *bus, uint64_t base, uint64_t len, const struct vmm_range_ops *ops, void *dev);
int bus_del(struct bus *bus, uint64_t base);
/* The range that holds all of [addr, addr+len), or NULL. */
const struct bus_range *bus_find(const struct bus *bus, uint64_t addr, unsigned len);
/* Makes the access; false when nobody claims it. */
bool bus_access(const struct bus *bus, uint64_t addr, void *data, unsigned len, bool write);

#endif
