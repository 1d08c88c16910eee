/* virtio-rng: entropy from the host's getrandom().
 *
 * VIRTIO 1.2, section 5.4.
 */
#include "vmm/virtio/device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include <linux/virtio_ids.h>

enum {
  QUEUE_SIZE = 64,
  REQUEST_MAX = 4096, /* the device may give less than was asked for (5.4.6.1); the main loop stays responsive */
};

struct virtio_rng {
  struct virtio_dev dev; /* first */
  struct virtq_chain chain;
};

static void serve(struct virtio_rng *rng, struct virtio_queue *queue) {
  uint8_t bytes[REQUEST_MAX];
  size_t want = rng->chain.writable_len < sizeof bytes ? rng->chain.writable_len : sizeof bytes;
  if (!want) {
    virtio_reject(queue, "an entropy request without room");
    return;
  }
  ssize_t got = getrandom(bytes, want, GRND_NONBLOCK);
  size_t len = got > 0 ? virtq_copy_to(&rng->chain, 0, bytes, got) : 0;
  explicit_bzero(bytes, sizeof bytes);
  virtio_push(queue, rng->chain.head, len);
}

static void rng_kicked(struct virtio_queue *queue) {
  struct virtio_rng *rng = (struct virtio_rng *)queue->dev;
  unsigned budget = queue->size_max;
  virtio_kicks_off(queue);
  while (budget && virtio_pop(queue, &rng->chain)) {
    serve(rng, queue);
    budget--;
  }
  virtio_interrupt(queue);
  if (virtio_kicks_on(queue)) virtio_kick_self(queue); /* the other devices of the loop first */
}

static void rng_destroy(struct virtio_dev *dev) {
  virtio_dev_fini(dev);
  free(dev);
}

static const struct virtio_ops rng_ops = {
    .id = VIRTIO_ID_RNG,
    .class_code = 0x00ff00,
    .queues = 1,
    .queue_size = {QUEUE_SIZE},
    .kicked = rng_kicked,
    .destroy = rng_destroy,
};

int virtio_rng_create(struct vmm *vmm, struct pci_host *host, char err[VIRTIO_ERR_MAX]) {
  struct virtio_rng *rng = calloc(1, sizeof *rng);
  int r = rng ? virtio_dev_init(&rng->dev, vmm, &rng_ops, 0, NULL, 0) : -ENOMEM;
  if (r == 0) r = virtio_dev_watch_kicks(&rng->dev);
  if (r == 0) r = virtio_dev_add(&rng->dev, host);
  if (r < 0) {
    snprintf(err, VIRTIO_ERR_MAX, "The entropy device cannot be attached: %s.", strerror(-r));
    if (rng) rng_destroy(&rng->dev);
  }
  return r;
}
