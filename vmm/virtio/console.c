/* virtio-console: one port (hvc0) over a console back end.
 *
 * VIRTIO 1.2, section 5.3.  Everything runs with vmm->lock held, on the main thread or (reset) on a vCPU's.
 */
#include "vmm/virtio/device.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <linux/virtio_console.h>
#include <linux/virtio_ids.h>

#include "vmm/backend/console.h"

enum {
  RECEIVE = 0,
  TRANSMIT = 1,
  QUEUE_SIZE = 64,
  CHUNK = 4096,
  CHAINS_PER_KICK = 64,
};

struct virtio_console {
  struct virtio_dev dev; /* first */
  struct console *console;
  uint64_t sent; /* bytes of the next transmit chain that are out already: it is taken again when there is room */
  struct virtq_chain chain;
};

/* ---- guest to host ---- */

/* Sends the chain from byte `sent` on.  True: all of it is out. */
static bool send_chain(struct virtio_console *con) {
  while (con->sent < con->chain.readable_len) {
    uint8_t bytes[CHUNK];
    size_t len = virtq_copy_from(&con->chain, con->sent, bytes, sizeof bytes);
    size_t taken = console_write(con->console, bytes, len);
    con->sent += taken;
    if (taken < len) return false;
  }
  con->sent = 0;
  return true;
}

static void transmit(struct virtio_console *con) {
  struct virtio_queue *queue = &con->dev.queue[TRANSMIT];
  unsigned budget = CHAINS_PER_KICK;
  bool room = console_has_room(con->console);
  virtio_kicks_off(queue);
  while (room && budget && virtio_pop(queue, &con->chain)) {
    room = send_chain(con);
    if (room)
      virtio_push(queue, con->chain.head, 0);
    else
      virtio_unpop(queue);
    budget--;
  }
  console_flush(con->console);
  virtio_interrupt(queue);
  /* Without room the back end calls on_room, and a kick would be of no use. */
  if (room && virtio_kicks_on(queue)) virtio_kick_self(queue);
}

/* ---- host to guest ---- */

enum outcome { FILLED, NO_INPUT, NO_BUFFER };

static enum outcome receive_chain(struct virtio_console *con) {
  struct virtio_queue *queue = &con->dev.queue[RECEIVE];
  uint8_t bytes[CHUNK];
  if (!virtio_pop(queue, &con->chain)) return NO_BUFFER;
  if (!con->chain.writable_len) {
    virtio_reject(queue, "a console receive buffer without room");
    return NO_BUFFER;
  }
  size_t room = con->chain.writable_len < sizeof bytes ? con->chain.writable_len : sizeof bytes;
  size_t len = console_read(con->console, bytes, room);
  if (!len) {
    virtio_unpop(queue);
    return NO_INPUT;
  }
  virtq_copy_to(&con->chain, 0, bytes, len);
  virtio_push(queue, con->chain.head, len);
  return FILLED;
}

static void receive(struct virtio_console *con) {
  struct virtio_queue *queue = &con->dev.queue[RECEIVE];
  enum outcome last = FILLED;
  for (unsigned i = 0; i < CHAINS_PER_KICK && last == FILLED; i++) last = receive_chain(con);
  virtio_interrupt(queue);
  /* Kicks are wanted in any case, as input may come to wait for buffers.  Look again if it waits already. */
  if (virtio_kicks_on(queue) && last != NO_INPUT) virtio_kick_self(queue);
}

/* ---- events ---- */

static void console_kicked(struct virtio_queue *queue) {
  struct virtio_console *con = (struct virtio_console *)queue->dev;
  if (queue->index == TRANSMIT)
    transmit(con);
  else
    receive(con);
}

static void on_input(void *opaque) {
  receive(opaque);
}
static void on_room(void *opaque) {
  transmit(opaque);
}

static void console_stopped(struct virtio_dev *dev) {
  ((struct virtio_console *)dev)->sent = 0;
}

void virtio_console_resize(struct virtio_console *console, uint16_t columns, uint16_t rows) {
  const uint16_t size[2] = {columns, rows};
  virtio_config_change(&console->dev, offsetof(struct virtio_console_config, cols), size, sizeof size);
}

/* ---- life ---- */

static void console_destroy(struct virtio_dev *dev) {
  struct virtio_console *con = (struct virtio_console *)dev;
  console_attach(con->console, NULL, NULL, NULL);
  virtio_dev_fini(dev);
  free(con);
}

static const struct virtio_ops console_ops = {
    .id = VIRTIO_ID_CONSOLE,
    .class_code = 0x078000, /* other communication controller */
    .queues = 2,
    .queue_size = {QUEUE_SIZE, QUEUE_SIZE},
    .stopped = console_stopped,
    .kicked = console_kicked,
    .destroy = console_destroy,
};

int virtio_console_create(struct vmm *vmm, struct pci_host *host, const struct virtio_console_options *options,
                          struct virtio_console **out, char err[VIRTIO_ERR_MAX]) {
  struct virtio_console *con = calloc(1, sizeof *con);
  const struct virtio_console_config config = {.cols = options->columns, .rows = options->rows};
  uint64_t features = options->columns && options->rows ? 1ull << VIRTIO_CONSOLE_F_SIZE : 0;
  int r = con ? virtio_dev_init(&con->dev, vmm, &console_ops, features, &config, sizeof config) : -ENOMEM;
  if (con) con->console = options->console;
  if (r == 0) r = virtio_dev_watch_kicks(&con->dev);
  if (r == 0) r = virtio_dev_add(&con->dev, host);
  if (r < 0) {
    snprintf(err, VIRTIO_ERR_MAX, "The virtio console cannot be attached: %s.", strerror(-r));
    if (con) console_destroy(&con->dev);
    return r;
  }
  console_attach(con->console, on_input, on_room, con);
  if (out) *out = con;
  return 0;
}
