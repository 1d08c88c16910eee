/* The buses: arrays of ranges, replaced as a whole, read under RCU. */
#include "core/iobus.h"
#include <errno.h>
#include <stdlib.h>
#include <urcu-bp.h>
#include "core/core_priv.h"

#define BUS_MAX 1000

struct range {
  u64 addr, len;
  struct io_device *dev;
};

/* Sorted by address.  Ranges may overlap: all that hold an access are asked, in order. */
struct io_bus {
  unsigned n;
  struct range range[];
};

static struct io_bus *bus_alloc(unsigned n) {
  struct io_bus *b = calloc(1, sizeof(*b) + n * sizeof(b->range[0]));
  if (b) b->n = n;
  return b;
}

int io_buses_init(struct vm *vm) {
  for (int k = 0; k < BUS_KINDS; k++) {
    vm->bus[k] = bus_alloc(0);
    if (!vm->bus[k]) return -ENOMEM;
  }
  return 0;
}

void io_buses_destroy(struct vm *vm) {
  for (int k = 0; k < BUS_KINDS; k++) {
    struct io_bus *b = vm->bus[k];
    for (unsigned i = 0; b && i < b->n; i++)
      if (b->range[i].dev->ops->destroy) b->range[i].dev->ops->destroy(b->range[i].dev);
    free(b);
    vm->bus[k] = NULL;
  }
}

static void replace(struct vm *vm, enum io_bus_kind kind, struct io_bus *b) {
  struct io_bus *old = vm->bus[kind];
  rcu_assign_pointer(vm->bus[kind], b);
  synchronize_rcu();
  free(old);
}

int io_bus_register(struct vm *vm, enum io_bus_kind kind, u64 addr, u64 len, struct io_device *dev) {
  pthread_mutex_lock(&vm->slots_lock);
  struct io_bus *old = vm->bus[kind], *b = old->n < BUS_MAX ? bus_alloc(old->n + 1) : NULL;
  int r = b ? 0 : old->n < BUS_MAX ? -ENOMEM : -ENOSPC;
  if (b) {
    unsigned at = 0;
    while (at < old->n && old->range[at].addr <= addr) b->range[at] = old->range[at], at++;
    b->range[at] = (struct range){addr, len, dev};
    for (; at < old->n; at++) b->range[at + 1] = old->range[at];
    replace(vm, kind, b);
  }
  pthread_mutex_unlock(&vm->slots_lock);
  return r;
}

int io_bus_unregister(struct vm *vm, enum io_bus_kind kind, struct io_device *dev) {
  pthread_mutex_lock(&vm->slots_lock);
  struct io_bus *old = vm->bus[kind];
  unsigned hits = 0;
  for (unsigned k = 0; k < old->n; k++) hits += old->range[k].dev == dev;
  struct io_bus *b = hits ? bus_alloc(old->n - hits) : NULL;
  int r = b ? 0 : hits ? -ENOMEM : -ENOENT;
  if (b) {
    for (unsigned k = 0, to = 0; k < old->n; k++)
      if (old->range[k].dev != dev) b->range[to++] = old->range[k];
    replace(vm, kind, b);
    if (dev->ops->destroy) dev->ops->destroy(dev);
  }
  pthread_mutex_unlock(&vm->slots_lock);
  return r;
}

static bool holds(const struct range *r, u64 addr, unsigned len) {
  if (!r->len) return addr == r->addr; /* a wildcard ioeventfd: any length at its address */
  return addr >= r->addr && addr + len <= r->addr + r->len;
}

static int dispatch(struct vcpu *vcpu, enum io_bus_kind kind, u64 addr, unsigned len, void *in, const void *out) {
  int r = -EOPNOTSUPP;
  rcu_read_lock();
  const struct io_bus *b = rcu_dereference(vcpu->vm->bus[kind]);
  for (unsigned k = 0; r && k < b->n && b->range[k].addr <= addr; k++) {
    if (!holds(&b->range[k], addr, len)) continue;
    struct io_device *d = b->range[k].dev;
    if (out) r = d->ops->write ? d->ops->write(d, vcpu, addr, len, out) : -EOPNOTSUPP;
    else r = d->ops->read ? d->ops->read(d, vcpu, addr, len, in) : -EOPNOTSUPP;
  }
  rcu_read_unlock();
  return r;
}

int io_bus_read(struct vcpu *vcpu, enum io_bus_kind bus, u64 addr, unsigned len, void *data) {
  return dispatch(vcpu, bus, addr, len, data, NULL);
}

int io_bus_write(struct vcpu *vcpu, enum io_bus_kind bus, u64 addr, unsigned len, const void *data) {
  return dispatch(vcpu, bus, addr, len, NULL, data);
}
