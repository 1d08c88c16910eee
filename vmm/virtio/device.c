/* What every virtio device does: status and feature rules, starting and stopping queues, taking and giving back chains.
 *
 * VIRTIO 1.2, sections 2.1 (status), 2.2 (features), 2.4 (reset), 3.1 (initialisation).
 */
#include "vmm/virtio/device.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <linux/virtio_config.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>

#include "vmm/loop.h"
#include "vmm/vmm.h"

static const uint64_t common_features =
    1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_EVENT_IDX | 1ull << VIRTIO_RING_F_INDIRECT_DESC;

/* ---- interrupts ---- */

static void raise_locked(struct virtio_dev *dev, uint16_t vector, uint8_t isr_bit) {
  bool msix = msix_enabled(&dev->pci);
  /* 4.1.4.5.1: the configuration bit is set in any case, the queue bit only without MSI-X. */
  if (!msix || isr_bit == VIRTIO_PCI_ISR_CONFIG) dev->isr |= isr_bit;
  if (!msix)
    pci_intx_set(&dev->pci, true);
  else if (vector != VIRTIO_MSI_NO_VECTOR)
    msix_notify(&dev->pci, vector);
}

/* 2.1.2: after an error that only a reset cures; the driver hears of it if it is up. */
static void needs_reset_locked(struct virtio_dev *dev, const char *why) {
  if (dev->status & VIRTIO_CONFIG_S_NEEDS_RESET) return;
  bool tell = dev->status & VIRTIO_CONFIG_S_DRIVER_OK;
  if (!dev->warned)
    fprintf(stderr,
            "uvirt: the guest's driver of virtio device %u in slot %u broke a rule (%s); the device waits for a reset\r\n",
            dev->ops->id, dev->pci.slot, why);
  dev->warned = true; /* once: a guest must not fill the terminal */
  dev->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
  dev->running = false;
  if (tell) raise_locked(dev, dev->config_vector, VIRTIO_PCI_ISR_CONFIG);
}

void virtio_interrupt_locked(struct virtio_queue *queue) {
  struct virtq *ring = virtio_ring_locked(queue);
  if (ring && virtq_should_interrupt(ring)) raise_locked(queue->dev, queue->vector, 1);
  virtio_check_locked(queue);
}

void virtio_interrupt(struct virtio_queue *queue) {
  pthread_mutex_lock(&queue->dev->lock);
  virtio_interrupt_locked(queue);
  pthread_mutex_unlock(&queue->dev->lock);
}

void virtio_config_change(struct virtio_dev *dev, unsigned offset, const void *data, unsigned len) {
  pthread_mutex_lock(&dev->lock);
  memcpy(dev->config + offset, data, len);
  dev->generation++;
  if (dev->status & VIRTIO_CONFIG_S_DRIVER_OK) raise_locked(dev, dev->config_vector, VIRTIO_PCI_ISR_CONFIG);
  pthread_mutex_unlock(&dev->lock);
}

void virtio_kick_self(struct virtio_queue *queue) {
  eventfd_write(queue->kick, 1);
}

/* ---- chains ---- */

struct virtq *virtio_ring_locked(struct virtio_queue *queue) {
  return queue->dev->running && queue->live ? &queue->ring : NULL;
}

void virtio_check_locked(struct virtio_queue *queue) {
  if (queue->live && queue->ring.broken) needs_reset_locked(queue->dev, queue->ring.broken);
}

int virtio_pop(struct virtio_queue *queue, struct virtq_chain *chain) {
  struct virtio_dev *dev = queue->dev;
  pthread_mutex_lock(&dev->lock);
  struct virtq *ring = virtio_ring_locked(queue);
  int r = ring ? virtq_pop(ring, chain) : 0;
  if (r > 0) dev->in_flight++;
  virtio_check_locked(queue);
  pthread_mutex_unlock(&dev->lock);
  return r > 0;
}

/* Locks, and ends the flight of a chain.  NULL: the device stopped meanwhile, the chain is the driver's again. */
static struct virtq *land(struct virtio_queue *queue) {
  struct virtio_dev *dev = queue->dev;
  pthread_mutex_lock(&dev->lock);
  if (!--dev->in_flight) pthread_cond_broadcast(&dev->idle);
  return virtio_ring_locked(queue);
}

void virtio_push(struct virtio_queue *queue, uint16_t head, uint32_t written) {
  struct virtq *ring = land(queue);
  if (ring) virtq_push(ring, head, written);
  virtio_check_locked(queue);
  pthread_mutex_unlock(&queue->dev->lock);
}

void virtio_unpop(struct virtio_queue *queue) {
  struct virtq *ring = land(queue);
  if (ring) virtq_unpop(ring);
  pthread_mutex_unlock(&queue->dev->lock);
}

void virtio_reject(struct virtio_queue *queue, const char *why) {
  if (land(queue)) needs_reset_locked(queue->dev, why);
  pthread_mutex_unlock(&queue->dev->lock);
}

void virtio_kicks_off(struct virtio_queue *queue) {
  pthread_mutex_lock(&queue->dev->lock);
  struct virtq *ring = virtio_ring_locked(queue);
  if (ring) virtq_kicks_off(ring);
  virtio_check_locked(queue);
  pthread_mutex_unlock(&queue->dev->lock);
}

bool virtio_kicks_on(struct virtio_queue *queue) {
  pthread_mutex_lock(&queue->dev->lock);
  struct virtq *ring = virtio_ring_locked(queue);
  bool more = ring && virtq_kicks_on(ring);
  virtio_check_locked(queue);
  pthread_mutex_unlock(&queue->dev->lock);
  return more;
}

/* ---- queues ---- */

static void *translate(void *opaque, uint64_t addr, uint64_t *len, bool write) {
  struct virtio_dev *dev = opaque;
  void *host = vmm_ram(dev->vmm, addr, *len);
  if (host || *len <= 1) return host;
  /* The range may cross from one piece of RAM to the next: pages never do. */
  uint64_t to_page_end = 4096 - (addr & 4095);
  if (to_page_end >= *len) return NULL;
  *len = to_page_end;
  return vmm_ram(dev->vmm, addr, *len);
}

static void queue_start(struct virtio_queue *queue) {
  struct virtio_dev *dev = queue->dev;
  const struct virtq_mem mem = {.translate = translate, .opaque = dev};
  const struct virtq_config config = {
      .size = queue->size,
      .desc = queue->desc,
      .avail = queue->avail,
      .used = queue->used,
      .event_idx = virtio_has(dev, VIRTIO_RING_F_EVENT_IDX),
      .indirect = virtio_has(dev, VIRTIO_RING_F_INDIRECT_DESC),
  };
  int r = virtq_start(&queue->ring, &mem, &config);
  if (r < 0) {
    needs_reset_locked(dev, r == -EINVAL ? "a queue has a wrong size or alignment" : "a queue is not in memory");
    return;
  }
  queue->live = true;
  virtio_kick_self(queue); /* buffers may be there already, and the event index is still to be set */
}

/* 4.1.4.3: the queue's fields are fixed from here on; it works when the driver is ready. */
void virtio_queue_enable(struct virtio_queue *queue) {
  if (queue->enabled) return;
  queue->enabled = true;
  if (queue->dev->running) queue_start(queue);
}

static void queue_reset(struct virtio_queue *queue) {
  queue->size = queue->size_max;
  queue->vector = VIRTIO_MSI_NO_VECTOR;
  queue->desc = queue->avail = queue->used = 0;
  queue->enabled = queue->live = false;
}

/* ---- status ---- */

static void start(struct virtio_dev *dev) {
  dev->running = true;
  if (dev->ops->started) dev->ops->started(dev);
  for (unsigned i = 0; i < dev->ops->queues && dev->running; i++)
    if (dev->queue[i].enabled) queue_start(&dev->queue[i]);
}

/* 2.4.1, 4.1.4.3.1: when the driver reads status 0 the device has stopped using its memory. */
void virtio_reset_locked(struct virtio_dev *dev) {
  dev->running = false;
  while (dev->in_flight) pthread_cond_wait(&dev->idle, &dev->lock);
  for (unsigned i = 0; i < dev->ops->queues; i++) queue_reset(&dev->queue[i]);
  dev->status = dev->isr = 0;
  dev->acked = 0;
  dev->device_feature_select = dev->driver_feature_select = 0;
  dev->queue_select = 0;
  dev->config_vector = VIRTIO_MSI_NO_VECTOR;
  pci_intx_set(&dev->pci, false);
  if (dev->ops->stopped) dev->ops->stopped(dev);
}

/* 2.2.2, 6.2: a subset of what was offered, and never without VERSION_1, since there is no legacy interface here. */
static bool features_acceptable(const struct virtio_dev *dev) {
  return !(dev->acked & ~dev->offered) && virtio_has(dev, VIRTIO_F_VERSION_1);
}

/* 2.1.1: bits are only ever added, except by a reset. */
void virtio_status_write(struct virtio_dev *dev, uint8_t value) {
  if (!value) {
    virtio_reset_locked(dev);
    return;
  }
  uint8_t added = value & ~dev->status & ~VIRTIO_CONFIG_S_NEEDS_RESET;
  if ((added & VIRTIO_CONFIG_S_FEATURES_OK) && !features_acceptable(dev)) added &= ~VIRTIO_CONFIG_S_FEATURES_OK;
  bool features_ok = (dev->status | added) & VIRTIO_CONFIG_S_FEATURES_OK;
  if (!features_ok) added &= ~VIRTIO_CONFIG_S_DRIVER_OK; /* 3.1.1: the order of the steps */
  dev->status |= added;
  if ((added & VIRTIO_CONFIG_S_DRIVER_OK) && !(dev->status & VIRTIO_CONFIG_S_NEEDS_RESET)) start(dev);
}

/* ---- life ---- */

int virtio_thread_start(pthread_t *thread, const char *name, void *(*fn)(void *arg), void *arg) {
  static const int own_faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP}; /* these belong to the thread that causes them */
  sigset_t blocked, old;
  sigfillset(&blocked);
  for (unsigned i = 0; i < sizeof own_faults / sizeof own_faults[0]; i++) sigdelset(&blocked, own_faults[i]);
  pthread_sigmask(SIG_SETMASK, &blocked, &old);
  int r = pthread_create(thread, NULL, fn, arg);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  if (!r) pthread_setname_np(*thread, name);
  return -r;
}

int virtio_dev_init(struct virtio_dev *dev, struct vmm *vmm, const struct virtio_ops *ops, uint64_t features, const void *config,
                    unsigned config_len) {
  for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++) dev->queue[i].kick = -1;
  if (config_len > VIRTIO_CONFIG_MAX || ops->queues > VIRTIO_QUEUES_MAX) return -EINVAL;
  dev->vmm = vmm;
  dev->ops = ops;
  dev->offered = features | common_features;
  dev->config_len = config_len;
  if (config_len) memcpy(dev->config, config, config_len);
  dev->config_vector = VIRTIO_MSI_NO_VECTOR;
  pthread_mutex_init(&dev->lock, NULL);
  pthread_cond_init(&dev->idle, NULL);
  for (unsigned i = 0; i < ops->queues; i++) {
    struct virtio_queue *queue = &dev->queue[i];
    queue->dev = dev;
    queue->index = i;
    queue->size_max = ops->queue_size[i];
    queue_reset(queue);
    queue->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (queue->kick < 0) return -errno;
  }
  return 0;
}

static void loop_kick(void *opaque, int fd, uint32_t events) {
  struct virtio_queue *queue = opaque;
  eventfd_t count;
  eventfd_read(fd, &count);
  vmm_lock(queue->dev->vmm);
  queue->dev->ops->kicked(queue);
  vmm_unlock(queue->dev->vmm);
}

int virtio_dev_watch_kicks(struct virtio_dev *dev) {
  dev->on_loop = true;
  for (unsigned i = 0; i < dev->ops->queues; i++) {
    int r = vmm_loop_add(vmm_event_loop(dev->vmm), dev->queue[i].kick, EPOLLIN, loop_kick, &dev->queue[i]);
    if (r < 0) return r;
  }
  return 0;
}

void virtio_dev_fini(struct virtio_dev *dev) {
  for (unsigned i = 0; i < VIRTIO_QUEUES_MAX; i++) {
    int kick = dev->queue[i].kick;
    if (kick < 0) continue;
    if (dev->on_loop) vmm_loop_del(vmm_event_loop(dev->vmm), kick);
    close(kick);
  }
  pci_dev_fini(&dev->pci);
  pthread_cond_destroy(&dev->idle);
  pthread_mutex_destroy(&dev->lock);
}
