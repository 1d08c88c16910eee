/* Sorted arrays of the ranges that devices answer for. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/bus.h"

void bus_free(struct bus *bus) {
  free(bus->ranges);
  *bus = (struct bus){0};
}

/* Index of the first range that begins above addr. */
static size_t upper_bound(const struct bus *bus, uint64_t addr) {
  size_t low = 0, high = bus->count;
  while (low < high) {
    size_t mid = (low + high) / 2;
    if (bus->ranges[mid].base <= addr)
      low = mid + 1;
    else
      high = mid;
  }
  return low;
}

int bus_add(struct bus *bus, uint64_t base, uint64_t len, const struct vmm_range_ops *ops, void *dev) {
  if (len == 0 || base + len - 1 < base) return -EINVAL;
  size_t i = upper_bound(bus, base);
  if (i > 0 && base - bus->ranges[i - 1].base < bus->ranges[i - 1].len) return -EEXIST;
  if (i < bus->count && bus->ranges[i].base - base < len) return -EEXIST;
  if (bus->count == bus->room) {
    size_t room = bus->room ? bus->room * 2 : 16;
    struct bus_range *ranges = realloc(bus->ranges, room * sizeof(*ranges));
    if (!ranges) return -ENOMEM;
    bus->ranges = ranges;
    bus->room = room;
  }
  memmove(&bus->ranges[i + 1], &bus->ranges[i], (bus->count - i) * sizeof(*bus->ranges));
  bus->ranges[i] = (struct bus_range){base, len, ops, dev};
  bus->count++;
  return 0;
}

int bus_del(struct bus *bus, uint64_t base) {
  size_t i = upper_bound(bus, base);
  if (i == 0 || bus->ranges[i - 1].base != base) return -ENOENT;
  memmove(&bus->ranges[i - 1], &bus->ranges[i], (bus->count - i) * sizeof(*bus->ranges));
  bus->count--;
  return 0;
}

const struct bus_range *bus_find(const struct bus *bus, uint64_t addr, unsigned len) {
  size_t i = upper_bound(bus, addr);
  if (i == 0) return NULL;
  const struct bus_range *r = &bus->ranges[i - 1];
  uint64_t offset = addr - r->base;
  return offset < r->len && len <= r->len - offset ? r : NULL;
}

bool bus_access(const struct bus *bus, uint64_t addr, void *data, unsigned len, bool write) {
  const struct bus_range *r = bus_find(bus, addr, len);
  if (!r) return false;
  /* Copied: the handler may remove its own range (a BAR that moves). */
  const struct bus_range range = *r;
  if (write)
    range.ops->write(range.dev, addr - range.base, data, len);
  else
    range.ops->read(range.dev, addr - range.base, data, len);
  return true;
}
