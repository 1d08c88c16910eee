/* A virtio device without its bus: status, features, queues, interrupts; shared by the device types and the PCI transport.
 *
 * VIRTIO 1.2, chapters 2 and 3.
 *
 * Locks: vmm->lock, then dev->lock, then those of vmm/pci.  The driver's side (registers) runs with vmm->lock held and takes
 * dev->lock.  A device's own thread never takes vmm->lock, because a reset waits under vmm->lock until that thread has
 * given back the chains it holds.
 */
#ifndef VMM_VIRTIO_DEVICE_H
#define VMM_VIRTIO_DEVICE_H

#include <pthread.h>

#include "virtq/virtq.h"
#include "vmm/pci/pci.h"
#include "vmm/virtio/virtio.h"

enum { VIRTIO_QUEUES_MAX = 4, VIRTIO_CONFIG_MAX = 96 };

struct virtio_dev;

struct virtio_queue {
  struct virtio_dev *dev; /* (o) set once */
  unsigned index;         /* (o) */
  uint16_t size_max;      /* (o) */
  int kick;               /* (o) eventfd that the driver's notifications arrive at */
  bool doorbell;          /* [vmm->lock] kick is tied to the notification address */
  /* [dev->lock], reset by the driver */
  uint16_t size, vector;
  uint64_t desc, avail, used;
  bool enabled; /* queue_enable was written */
  bool live;    /* ring is started */
  struct virtq ring;
};

struct virtio_ops {
  uint16_t id;         /* device type, chapter 5 */
  uint32_t class_code; /* PCI class */
  unsigned queues;
  uint16_t queue_size[VIRTIO_QUEUES_MAX];
  /* The driver is ready / the device was reset and holds no chain.  vmm->lock and dev->lock are held.  Optional. */
  void (*started)(struct virtio_dev *dev);
  void (*stopped)(struct virtio_dev *dev);
  /* For devices on the main loop: a queue was kicked.  vmm->lock is held. */
  void (*kicked)(struct virtio_queue *queue);
  /* Ends the device's threads and frees what it owns, dev itself last.  No lock is held. */
  void (*destroy)(struct virtio_dev *dev);
};

struct virtio_dev {
  struct pci_dev pci;           /* first: the bus frees through it */
  struct vmm *vmm;              /* (o) */
  const struct virtio_ops *ops; /* (o) */
  uint64_t offered;             /* (o) features */
  unsigned config_len;          /* (o) */
  unsigned window_cap;          /* (o) offset of VIRTIO_PCI_CAP_PCI_CFG */
  bool on_loop;                 /* (o) kicks are watched by the main loop */

  pthread_mutex_t lock;
  pthread_cond_t idle;               /* in_flight reached zero */
  uint8_t config[VIRTIO_CONFIG_MAX]; /* [lock] device-specific configuration */
  uint8_t generation;                /* [lock] of config */
  bool warned;                       /* [lock] the user has been told that the driver misbehaves */
  /* [lock], reset by the driver */
  uint8_t status, isr;
  bool running;       /* DRIVER_OK and not broken: chains may be taken and given back */
  unsigned in_flight; /* chains taken by virtio_pop() and not yet given back */
  uint64_t acked;     /* features; does not change while running */
  uint32_t device_feature_select, driver_feature_select;
  uint16_t queue_select, config_vector;
  struct virtio_queue queue[VIRTIO_QUEUES_MAX];
};

/* ---- life (device.c, transport.c) ---- */

/* Fills in a zeroed device; features are those beyond the common ones.  0 or -errno; on failure call virtio_dev_fini(). */
int virtio_dev_init(struct virtio_dev *dev, struct vmm *vmm, const struct virtio_ops *ops, uint64_t features, const void *config,
                    unsigned config_len);
/* Puts it on the bus.  0 or -errno. */
int virtio_dev_add(struct virtio_dev *dev, struct pci_host *host);
/* Has the main loop call ops->kicked. */
int virtio_dev_watch_kicks(struct virtio_dev *dev);
/* Frees what init, add and watch made; not dev. */
void virtio_dev_fini(struct virtio_dev *dev);
/* Starts a thread with all signals blocked but those of its own faults (so a write to a closed socket raises no SIGPIPE).  0 or
 * -errno. */
int virtio_thread_start(pthread_t *thread, const char *name, void *(*fn)(void *arg), void *arg);

/* ---- for the device types: self-locking, any thread ---- */

static inline bool virtio_has(const struct virtio_dev *dev, unsigned feature) {
  return dev->acked >> feature & 1;
}

/* Takes the next chain: 1, or 0 if there is none or the device does not run.  Every chain taken is given back soon by exactly one
 * of the next three. */
int virtio_pop(struct virtio_queue *queue, struct virtq_chain *chain);
void virtio_push(struct virtio_queue *queue, uint16_t head, uint32_t written);
void virtio_unpop(struct virtio_queue *queue);
/* The chain breaks a rule of the device type: DEVICE_NEEDS_RESET. */
void virtio_reject(struct virtio_queue *queue, const char *why);
/* Interrupts the driver if it wants that for what was pushed. */
void virtio_interrupt(struct virtio_queue *queue);
void virtio_kicks_off(struct virtio_queue *queue);
/* True: there is more already (or the device stopped meanwhile and false is returned). */
bool virtio_kicks_on(struct virtio_queue *queue);
/* Changes configuration bytes and tells the driver (2.5, 4.1.4.5). */
void virtio_config_change(struct virtio_dev *dev, unsigned offset, const void *data, unsigned len);
/* Makes the device look at a queue again, as a kick would. */
void virtio_kick_self(struct virtio_queue *queue);

/* ---- for longer sections: dev->lock is held ---- */

/* The started ring, or NULL if the device does not run. */
struct virtq *virtio_ring_locked(struct virtio_queue *queue);
/* After use of the ring: turns a broken one into DEVICE_NEEDS_RESET. */
void virtio_check_locked(struct virtio_queue *queue);
void virtio_interrupt_locked(struct virtio_queue *queue);

/* ---- for the transport: vmm->lock and dev->lock are held ---- */

void virtio_status_write(struct virtio_dev *dev, uint8_t value);
void virtio_queue_enable(struct virtio_queue *queue);
void virtio_reset_locked(struct virtio_dev *dev);

#endif
