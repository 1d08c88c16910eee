/* Coalesced I/O: writes to registered zones are collected in the ring that the client drains at its next exit. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "core/eventfd.h"
#include "core/iobus.h"

#define RING_ENTRIES ((PAGE_SIZE - sizeof(struct kvm_coalesced_mmio_ring)) / sizeof(struct kvm_coalesced_mmio))

struct zone {
  struct io_device dev;
  struct zone *next;
  struct vm *vm;
  struct kvm_coalesced_mmio_zone zone;
};

static struct zone *zones;
static pthread_mutex_t zones_lock = PTHREAD_MUTEX_INITIALIZER;

/* The ring is the VM's: it lies in every vCPU's page of that vCPU; each vCPU fills its own. */
static int zone_write(struct io_device *dev, struct vcpu *vcpu, u64 addr, unsigned len, const void *data) {
  struct zone *z = container_of(dev, struct zone, dev);
  struct kvm_coalesced_mmio_ring *ring = vcpu->coalesced;
  u32 last = READ_ONCE(ring->last), first = __atomic_load_n(&ring->first, __ATOMIC_ACQUIRE);
  if (last >= RING_ENTRIES || (last + 1) % RING_ENTRIES == first) return -EOPNOTSUPP; /* full: the client drains it at this exit */
  struct kvm_coalesced_mmio *e = &ring->coalesced_mmio[last];
  e->phys_addr = addr;
  e->len = len;
  memcpy(e->data, data, len);
  e->pio = z->zone.pio;
  __atomic_store_n(&ring->last, (u32)((last + 1) % RING_ENTRIES), __ATOMIC_RELEASE);
  return 0;
}

static void zone_destroy(struct io_device *dev) {
  struct zone *z = container_of(dev, struct zone, dev);
  pthread_mutex_lock(&zones_lock);
  for (struct zone **at = &zones; *at; at = &(*at)->next)
    if (*at == z) {
      *at = z->next;
      break;
    }
  pthread_mutex_unlock(&zones_lock);
  free(z);
}

static const struct io_device_ops ops = {.write = zone_write, .destroy = zone_destroy};

int vm_register_coalesced(struct vm *vm, const struct kvm_coalesced_mmio_zone *zone) {
  if (zone->pio != 0 && zone->pio != 1) return -EINVAL;
  struct zone *z = calloc(1, sizeof(*z));
  if (!z) return -ENOMEM;
  *z = (struct zone){.dev.ops = &ops, .vm = vm, .zone = *zone};
  pthread_mutex_lock(&zones_lock);
  z->next = zones;
  zones = z;
  pthread_mutex_unlock(&zones_lock);
  int r = io_bus_register(vm, zone->pio ? BUS_PIO : BUS_MMIO, zone->addr, zone->size, &z->dev);
  if (r) zone_destroy(&z->dev);
  return r;
}

int vm_unregister_coalesced(struct vm *vm, const struct kvm_coalesced_mmio_zone *zone) {
  if (zone->pio != 0 && zone->pio != 1) return -EINVAL;
  for (;;) {
    pthread_mutex_lock(&zones_lock);
    struct zone *z = zones;
    while (z && !(z->vm == vm && z->zone.pio == zone->pio && zone->addr >= z->zone.addr && zone->addr + zone->size <= z->zone.addr + z->zone.size))
      z = z->next;
    pthread_mutex_unlock(&zones_lock);
    if (!z) return 0;
    io_bus_unregister(vm, zone->pio ? BUS_PIO : BUS_MMIO, &z->dev);
  }
}
