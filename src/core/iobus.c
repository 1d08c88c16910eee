/* The buses: a sorted array of ranges per bus, read lock-free, replaced on change. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "base/rcu.h"
#include "core/iobus.h"
#include "core/vm_priv.h"

#define MAX_DEVICES 1000

struct io_range {
  u64 addr, len; /* len 0: hit by any access that begins at addr (ioeventfd without length) */
  u64 reach;     /* largest end of this and all earlier ranges: where a backward search may stop */
  struct io_device *dev;
  bool counted; /* against MAX_DEVICES; ioeventfds are limited by descriptors */
};

struct io_bus {
  unsigned n, counted;
  struct io_range range[]; /* by addr, then in order of registration */
};

static u64 range_end(const struct io_range *r) { return r->addr + MAX(r->len, 1ull); }

static bool hits(const struct io_range *r, u64 addr, unsigned len) {
  if (!r->len) return addr == r->addr;
  return addr >= r->addr && addr - r->addr < r->len && len <= r->len - (addr - r->addr);
}

/* The first range that may hold addr: everything before ends at or below it. */
static unsigned first_candidate(const struct io_bus *bus, u64 addr) {
  unsigned low = 0, high = bus->n;
  while (low < high) {
    unsigned mid = (low + high) / 2;
    if (bus->range[mid].reach <= addr)
      low = mid + 1;
    else
      high = mid;
  }
  return low;
}

static int dispatch(struct vcpu *vcpu, enum io_bus_kind kind, u64 addr, unsigned len, void *data, bool write) {
  int r = -EOPNOTSUPP;
  rcu_read_lock();
  const struct io_bus *bus = rcu_dereference(vcpu->vm->bus[kind]);
  for (unsigned i = first_candidate(bus, addr); r && i < bus->n && bus->range[i].addr <= addr; i++) {
    struct io_device *dev = bus->range[i].dev;
    if (!hits(&bus->range[i], addr, len)) continue;
    if (write && dev->ops->write)
      r = dev->ops->write(dev, vcpu, addr, len, data);
    else if (!write && dev->ops->read)
      r = dev->ops->read(dev, vcpu, addr, len, data);
  }
  rcu_read_unlock();
  return r ? -EOPNOTSUPP : 0;
}

int io_bus_read(struct vcpu *vcpu, enum io_bus_kind bus, u64 addr, unsigned len, void *data) {
  return dispatch(vcpu, bus, addr, len, data, false);
}

int io_bus_write(struct vcpu *vcpu, enum io_bus_kind bus, u64 addr, unsigned len, const void *data) {
  return dispatch(vcpu, bus, addr, len, (void *)data, true);
}

/* ---- change ---- */

static struct io_bus *alloc_bus(unsigned n) { return calloc(1, sizeof(struct io_bus) + n * sizeof(struct io_range)); }

/* slots_lock held.  Publishes, and frees the old array when nobody reads it any more. */
static void replace(struct vm *vm, enum io_bus_kind kind, struct io_bus *next) {
  struct io_bus *cur = vm->bus[kind];
  u64 reach = 0;
  next->counted = 0;
  for (unsigned i = 0; i < next->n; i++) {
    reach = MAX(reach, range_end(&next->range[i]));
    next->range[i].reach = reach;
    next->counted += next->range[i].counted;
  }
  rcu_assign_pointer(vm->bus[kind], next);
  synchronize_rcu();
  free(cur);
}

int io_bus_register_locked(struct vm *vm, enum io_bus_kind kind, u64 addr, u64 len, struct io_device *dev, bool counted) {
  const struct io_bus *cur = vm->bus[kind];
  if (addr + MAX(len, 1ull) < addr) return trace_error(-EINVAL);
  if (counted && cur->counted >= MAX_DEVICES) return trace_error(-ENOSPC);
  struct io_bus *next = alloc_bus(cur->n + 1);
  if (!next) return trace_error(-ENOMEM);
  unsigned at = 0;
  while (at < cur->n && cur->range[at].addr <= addr) at++;
  memcpy(next->range, cur->range, at * sizeof(cur->range[0]));
  next->range[at] = (struct io_range){.addr = addr, .len = len, .dev = dev, .counted = counted};
  memcpy(next->range + at + 1, cur->range + at, (cur->n - at) * sizeof(cur->range[0]));
  next->n = cur->n + 1;
  replace(vm, kind, next);
  return 0;
}

int io_bus_unregister_locked(struct vm *vm, enum io_bus_kind kind, struct io_device *dev) {
  const struct io_bus *cur = vm->bus[kind];
  unsigned kept = 0;
  struct io_bus *next = alloc_bus(cur->n);
  if (!next) return trace_error(-ENOMEM);
  for (unsigned k = 0; k < cur->n; k++)
    if (cur->range[k].dev != dev) next->range[kept++] = cur->range[k];
  if (kept == cur->n) {
    free(next);
    return -ENOENT;
  }
  next->n = kept;
  replace(vm, kind, next);
  if (dev->ops->destroy) dev->ops->destroy(dev);
  return 0;
}

int io_bus_register(struct vm *vm, enum io_bus_kind bus, u64 addr, u64 len, struct io_device *dev) {
  pthread_mutex_lock(&vm->slots_lock);
  int r = io_bus_register_locked(vm, bus, addr, len, dev, true);
  pthread_mutex_unlock(&vm->slots_lock);
  return r;
}

int io_bus_unregister(struct vm *vm, enum io_bus_kind bus, struct io_device *dev) {
  pthread_mutex_lock(&vm->slots_lock);
  int r = io_bus_unregister_locked(vm, bus, dev);
  pthread_mutex_unlock(&vm->slots_lock);
  return r;
}

int io_buses_create(struct vm *vm) {
  for (unsigned i = 0; i < BUS_KINDS; i++) {
    vm->bus[i] = alloc_bus(0);
    if (!vm->bus[i]) return trace_error(-ENOMEM);
  }
  return 0;
}

void io_buses_destroy(struct vm *vm) {
  for (unsigned i = 0; i < BUS_KINDS; i++) {
    struct io_bus *bus = vm->bus[i];
    for (unsigned k = 0; bus && k < bus->n; k++)
      if (bus->range[k].dev->ops->destroy) bus->range[k].dev->ops->destroy(bus->range[k].dev);
    free(bus);
  }
}
