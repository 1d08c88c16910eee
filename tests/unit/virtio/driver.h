/* A small virtio driver for tests: finds a device on the fake machine's PCI bus and works its queues, as a guest would. */
#ifndef TESTS_VIRTIO_DRIVER_H
#define TESTS_VIRTIO_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

#include <linux/virtio_ring.h>

#include "fake_vmm.h"

enum {
  DRIVER_QUEUES = 2,
  DRIVER_QUEUE_SIZE = 16,
  DRIVER_QUEUE_SPAN = 0x4000, /* memory for each queue: descriptors, available, used */
  DRIVER_RING_BASE = 0x100000,
  DRIVER_DATA = 0x200000,    /* free for the test's buffers */
  DRIVER_VECTOR_DATA = 0x40, /* message data of vector v is this + v; vector 0 is for configuration changes */
};

struct driver {
  struct vmm *vmm;
  unsigned slot;
  uint64_t bar;
  uint16_t used_seen[DRIVER_QUEUES];
};

/* Finds the device of this virtio type; MSI-X is set up with vector 0 for configuration and 1 + q for queue q. */
void driver_open(struct driver *d, struct vmm *vmm, unsigned type, bool msix);
/* Reset, features, queues, DRIVER_OK.  False if the device refuses FEATURES_OK. */
bool driver_start(struct driver *d, uint64_t features);
void driver_reset(struct driver *d);
uint8_t driver_status(struct driver *d);
uint64_t driver_features(struct driver *d);
uint64_t driver_config(struct driver *d, unsigned offset, unsigned len);
uint8_t driver_isr(struct driver *d);

/* Puts a chain of n descriptors (from index `head` on) on the available ring and rings the doorbell. */
void driver_offer(struct driver *d, unsigned queue, unsigned head, const struct vring_desc *chain, unsigned n);
void driver_kick(struct driver *d, unsigned queue);
/* Waits (10 s at most) for the next used element. */
bool driver_wait(struct driver *d, unsigned queue, struct vring_used_elem *elem);
/* Whether one is there, without waiting. */
bool driver_used(struct driver *d, unsigned queue);

#endif
