/* A small virtio driver for tests, on the registers of the modern PCI transport. */
#include "driver.h"

#include <string.h>
#include <time.h>

#include <linux/pci_regs.h>
#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>

enum { ISR = 0x1000, CONFIG = 0x2000, NOTIFY = 0x3000, AVAIL = 0x1000, USED = 0x2000 };

static uint64_t ring(unsigned queue) {
  return DRIVER_RING_BASE + DRIVER_QUEUE_SPAN * queue;
}
static void set(struct driver *d, unsigned at, uint64_t value, unsigned len) {
  fake_mmio_write(d->vmm, d->bar + at, value, len);
}
static uint64_t get(struct driver *d, unsigned at, unsigned len) {
  return fake_mmio_read(d->vmm, d->bar + at, len);
}

static void setup_msix(struct driver *d) {
  uint64_t table = fake_config_read(d->vmm, d->slot, PCI_BASE_ADDRESS_1, 4) & ~0xfu;
  for (unsigned v = 0; v <= DRIVER_QUEUES; v++) {
    fake_mmio_write(d->vmm, table + 16 * v, 0xfee00000, 8);
    fake_mmio_write(d->vmm, table + 16 * v + 8, DRIVER_VECTOR_DATA + v, 8); /* data, and unmasked */
  }
  unsigned cap = fake_config_read(d->vmm, d->slot, PCI_CAPABILITY_LIST, 1);
  while (cap && fake_config_read(d->vmm, d->slot, cap, 1) != PCI_CAP_ID_MSIX) cap = fake_config_read(d->vmm, d->slot, cap + 1, 1);
  fake_config_write(d->vmm, d->slot, cap + PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_ENABLE, 2);
}

void driver_open(struct driver *d, struct vmm *vmm, unsigned type, bool msix) {
  *d = (struct driver){.vmm = vmm};
  while (fake_config_read(vmm, d->slot, PCI_VENDOR_ID, 4) != ((0x1040 + type) << 16 | 0x1af4)) d->slot++;
  d->bar = fake_config_read(vmm, d->slot, PCI_BASE_ADDRESS_0, 4) & ~0xfu;
  fake_config_write(vmm, d->slot, PCI_COMMAND, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, 2);
  if (msix) setup_msix(d);
}

uint8_t driver_status(struct driver *d) {
  return get(d, VIRTIO_PCI_COMMON_STATUS, 1);
}
uint8_t driver_isr(struct driver *d) {
  return get(d, ISR, 1);
}
uint64_t driver_config(struct driver *d, unsigned offset, unsigned len) {
  return get(d, CONFIG + offset, len);
}

uint64_t driver_features(struct driver *d) {
  set(d, VIRTIO_PCI_COMMON_DFSELECT, 0, 4);
  uint64_t low = get(d, VIRTIO_PCI_COMMON_DF, 4);
  set(d, VIRTIO_PCI_COMMON_DFSELECT, 1, 4);
  return low | get(d, VIRTIO_PCI_COMMON_DF, 4) << 32;
}

static void start_queue(struct driver *d, unsigned queue) {
  uint64_t base = ring(queue);
  memset(fake_ram(d->vmm, base), 0, DRIVER_QUEUE_SPAN);
  d->used_seen[queue] = 0;
  set(d, VIRTIO_PCI_COMMON_Q_SELECT, queue, 2);
  set(d, VIRTIO_PCI_COMMON_Q_SIZE, DRIVER_QUEUE_SIZE, 2);
  set(d, VIRTIO_PCI_COMMON_Q_MSIX, 1 + queue, 2);
  set(d, VIRTIO_PCI_COMMON_Q_DESCLO, base, 8);
  set(d, VIRTIO_PCI_COMMON_Q_AVAILLO, base + AVAIL, 8);
  set(d, VIRTIO_PCI_COMMON_Q_USEDLO, base + USED, 8);
  set(d, VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2);
}

void driver_reset(struct driver *d) {
  set(d, VIRTIO_PCI_COMMON_STATUS, 0, 1);
}

bool driver_start(struct driver *d, uint64_t features) {
  unsigned status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
  driver_reset(d);
  set(d, VIRTIO_PCI_COMMON_STATUS, status, 1);
  for (unsigned i = 0; i < 2; i++) {
    set(d, VIRTIO_PCI_COMMON_GFSELECT, i, 4);
    set(d, VIRTIO_PCI_COMMON_GF, (uint32_t)(features >> (32 * i)), 4);
  }
  status |= VIRTIO_CONFIG_S_FEATURES_OK;
  set(d, VIRTIO_PCI_COMMON_STATUS, status, 1);
  if (!(driver_status(d) & VIRTIO_CONFIG_S_FEATURES_OK)) return false;
  set(d, VIRTIO_PCI_COMMON_MSIX, 0, 2);
  unsigned queues = get(d, VIRTIO_PCI_COMMON_NUMQ, 2);
  for (unsigned i = 0; i < queues && i < DRIVER_QUEUES; i++) start_queue(d, i);
  set(d, VIRTIO_PCI_COMMON_STATUS, status | VIRTIO_CONFIG_S_DRIVER_OK, 1);
  return true;
}

void driver_kick(struct driver *d, unsigned queue) {
  set(d, NOTIFY + 4 * queue, queue, 2);
}

void driver_offer(struct driver *d, unsigned queue, unsigned head, const struct vring_desc *chain, unsigned n) {
  struct vring_desc *desc = (struct vring_desc *)fake_ram(d->vmm, ring(queue));
  struct vring_avail *avail = (struct vring_avail *)fake_ram(d->vmm, ring(queue) + AVAIL);
  for (unsigned i = 0; i < n; i++) {
    desc[head + i] = chain[i];
    if (i + 1 == n) continue;
    desc[head + i].flags |= VRING_DESC_F_NEXT;
    desc[head + i].next = head + i + 1;
  }
  avail->ring[avail->idx % DRIVER_QUEUE_SIZE] = head;
  __atomic_store_n(&avail->idx, avail->idx + 1, __ATOMIC_RELEASE);
  driver_kick(d, queue);
}

static struct vring_used *used(struct driver *d, unsigned queue) {
  return (struct vring_used *)fake_ram(d->vmm, ring(queue) + USED);
}

bool driver_used(struct driver *d, unsigned queue) {
  return __atomic_load_n(&used(d, queue)->idx, __ATOMIC_ACQUIRE) != d->used_seen[queue];
}

bool driver_wait(struct driver *d, unsigned queue, struct vring_used_elem *elem) {
  const struct timespec moment = {.tv_nsec = 200 * 1000};
  for (unsigned i = 0; i < 50000 && !driver_used(d, queue); i++) nanosleep(&moment, NULL);
  if (!driver_used(d, queue)) return false;
  struct vring_used_elem *at = &used(d, queue)->ring[d->used_seen[queue] % DRIVER_QUEUE_SIZE];
  elem->id = __atomic_load_n(&at->id, __ATOMIC_RELAXED);
  elem->len = __atomic_load_n(&at->len, __ATOMIC_RELAXED);
  d->used_seen[queue]++;
  return true;
}
