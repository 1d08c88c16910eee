/* The coalesced ring (one per VM, page 2 of every vCPU's mapping) and the zones that feed it.
 *
 * Producers take ring_lock; the client consumes without it: it moves `first` after it has read entries, we move `last` after we
 * have written them.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "base/log.h"
#include "core/coalesced.h"
#include "core/iobus.h"
#include "core/vm_priv.h"

#define RING_ENTRIES ((PAGE_SIZE - sizeof(struct kvm_coalesced_mmio_ring)) / sizeof(struct kvm_coalesced_mmio))

struct coalesced_zone {
  struct io_device dev;
  struct coalesced_zone *next; /* [s] vm_priv.zones */
  struct vm *vm;
  u64 addr, size;
  u32 pio;
};

static enum io_bus_kind bus_of(u32 pio) { return pio ? BUS_PIO : BUS_MMIO; }

static bool inside(const struct coalesced_zone *z, u64 addr, u64 len) {
  return addr + len >= addr && addr >= z->addr && addr + len <= z->addr + z->size;
}

/* ring_lock held.  The client writes the indices too: they are read once and checked. */
static bool push(struct kvm_coalesced_mmio_ring *ring, u32 pio, u64 addr, unsigned len, const void *data) {
  u32 last = __atomic_load_n(&ring->last, __ATOMIC_RELAXED);
  if (last >= RING_ENTRIES) return false;
  u32 next = (last + 1) % (u32)RING_ENTRIES;
  /* acquire: the client has read the entry before it moved `first` past it. */
  if (next == __atomic_load_n(&ring->first, __ATOMIC_ACQUIRE)) return false;
  struct kvm_coalesced_mmio *e = &ring->coalesced_mmio[last];
  e->phys_addr = addr;
  e->len = len;
  e->pio = pio;
  memcpy(e->data, data, len);
  __atomic_store_n(&ring->last, next, __ATOMIC_RELEASE); /* the entry is complete before the client sees it */
  return true;
}

static int zone_write(struct io_device *dev, struct vcpu *vcpu, u64 addr, unsigned len, const void *data) {
  struct coalesced_zone *z = container_of(dev, struct coalesced_zone, dev);
  struct vm_priv *p = z->vm->priv;
  if (!inside(z, addr, len) || len > sizeof(p->ring->coalesced_mmio[0].data)) return -EOPNOTSUPP;
  pthread_mutex_lock(&p->ring_lock);
  bool done = push(p->ring, z->pio, addr, len, data);
  pthread_mutex_unlock(&p->ring_lock);
  return done ? 0 : -EOPNOTSUPP; /* full: the access exits, and the client empties the ring first */
}

static void zone_destroy(struct io_device *dev) {
  struct coalesced_zone *z = container_of(dev, struct coalesced_zone, dev), **p = &z->vm->priv->zones;
  while (*p != z) p = &(*p)->next;
  *p = z->next;
  free(z);
}

static const struct io_device_ops zone_ops = {.write = zone_write, .destroy = zone_destroy};

int vm_register_coalesced(struct vm *vm, const struct kvm_coalesced_mmio_zone *zone) {
  if (zone->pio > 1) return trace_error(-EINVAL);
  struct coalesced_zone *z = calloc(1, sizeof(*z));
  if (!z) return trace_error(-ENOMEM);
  *z = (struct coalesced_zone){.dev.ops = &zone_ops, .vm = vm, .addr = zone->addr, .size = zone->size, .pio = zone->pio};
  pthread_mutex_lock(&vm->slots_lock);
  int r = io_bus_register_locked(vm, bus_of(z->pio), z->addr, z->size, &z->dev, true);
  if (!r) {
    z->next = vm->priv->zones;
    vm->priv->zones = z;
  }
  pthread_mutex_unlock(&vm->slots_lock);
  if (r) free(z);
  return r;
}

/* Ends every zone that contains the one given.  No such zone is not an error. */
int vm_unregister_coalesced(struct vm *vm, const struct kvm_coalesced_mmio_zone *zone) {
  if (zone->pio > 1) return trace_error(-EINVAL);
  int r = 0;
  pthread_mutex_lock(&vm->slots_lock);
  struct coalesced_zone *z = vm->priv->zones, *next;
  for (; z && !r; z = next) {
    next = z->next;
    if (z->pio == zone->pio && inside(z, zone->addr, zone->size)) r = io_bus_unregister_locked(vm, bus_of(z->pio), &z->dev);
  }
  pthread_mutex_unlock(&vm->slots_lock);
  return r;
}

int coalesced_create(struct vm *vm) {
  void *p = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return trace_error(-ENOMEM);
  vm->priv->ring = p;
  return 0;
}

void coalesced_destroy(struct vm *vm) {
  if (vm->priv->ring) munmap(vm->priv->ring, PAGE_SIZE);
}
