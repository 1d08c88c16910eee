/* The virtqueue walker: the device's side of a split virtqueue, over a callback that translates addresses.
 *
 * Virtual I/O Device (VIRTIO) 1.2, section 2.7 (split virtqueues).  All ring and descriptor contents belong to the driver, which
 * may change them at any time: every value is read once into a local copy, checked, and only then used.  What breaks a rule
 * of the specification breaks the queue (virtq->broken says why) and never anything else.
 *
 * No locks: the caller serialises the calls for one queue.
 */
#ifndef VIRTQ_VIRTQ_H
#define VIRTQ_VIRTQ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum {
  VIRTQ_SIZE_MAX = 32768, /* 2.7: the largest queue size */
  VIRTQ_CHAIN_MAX = 1024, /* pieces of one chain; also what one readv() takes */
};

/* Addresses as the driver writes them (guest physical, or IOVA) to host pointers. */
struct virtq_mem {
  /* Where addr is on the host.  *len is what the caller wants; it is lowered to what lies in one piece from there on.
   * write: the device will write.  NULL if addr is not memory (or not writable). */
  void *(*translate)(void *opaque, uint64_t addr, uint64_t *len, bool write);
  void *opaque;
};

/* One of the three areas of a queue. */
struct virtq_area {
  uint64_t addr, len;
  uint8_t *host; /* where it is, if it is in one piece; else NULL and each access translates */
  bool write;
};

struct virtq {
  struct virtq_mem mem;
  struct virtq_area desc, avail, used;
  uint16_t size;
  bool event_idx, indirect; /* VIRTIO_F_EVENT_IDX and VIRTIO_F_INDIRECT_DESC were negotiated */

  uint16_t next_avail; /* index of the next chain to take */
  uint16_t next_used;  /* index of the next used element to write */
  uint16_t signalled;  /* next_used when the driver was last asked about an interrupt */
  bool signalled_valid;
  const char *broken; /* NULL, or the rule that the driver broke */
};

struct virtq_config {
  uint16_t size;
  uint64_t desc, avail, used; /* queue_desc, queue_driver, queue_device */
  bool event_idx, indirect;
};

/* A descriptor chain: iov[0..readable) is for the device to read, iov[readable..readable+writable) to write. */
struct virtq_chain {
  uint16_t head;
  uint16_t readable, writable;
  uint64_t readable_len, writable_len;
  struct iovec iov[VIRTQ_CHAIN_MAX];
};

/* Starts an empty queue.  -EINVAL: size or alignment is wrong (2.7); -EFAULT: an area is not in memory. */
int virtq_start(struct virtq *q, const struct virtq_mem *mem, const struct virtq_config *config);
/* Continues where another device stopped: both indices are set (nothing is in flight). */
void virtq_set_base(struct virtq *q, uint16_t index);
/* Memory changed: finds the areas again.  -EFAULT if one has gone (the queue is broken then). */
int virtq_remap(struct virtq *q);

/* Takes the next available chain: 1, 0 if there is none, -EPROTO if the queue is broken. */
int virtq_pop(struct virtq *q, struct virtq_chain *chain);
/* Gives back the chain taken last, as if it had not been taken. */
void virtq_unpop(struct virtq *q);
/* Puts chain `head` on the used ring with the number of bytes written (2.7.8). */
void virtq_push(struct virtq *q, uint16_t head, uint32_t written);
/* As virtq_push, but the driver sees none of it before virtq_publish(); `offset` counts from the unpublished elements. */
void virtq_fill(struct virtq *q, uint16_t head, uint32_t written, uint16_t offset);
void virtq_publish(struct virtq *q, uint16_t count);

/* Whether the driver wants an interrupt for what was pushed since the last call (2.7.7, 2.7.10). */
bool virtq_should_interrupt(struct virtq *q);
/* Tells the driver that notifications are not needed now (a hint). */
void virtq_kicks_off(struct virtq *q);
/* Asks for a notification for the next chain.  True: there is one already, look again. */
bool virtq_kicks_on(struct virtq *q);
/* Whether a chain is available. */
bool virtq_has_more(struct virtq *q);

/* Copies from the readable part, from byte `offset` of it on; returns how many bytes there were (at most len). */
size_t virtq_copy_from(const struct virtq_chain *chain, uint64_t offset, void *buf, size_t len);
/* Copies to the writable part. */
size_t virtq_copy_to(const struct virtq_chain *chain, uint64_t offset, const void *buf, size_t len);
/* Describes [offset, offset+len) of iov[0..count) in out (room for count entries); returns the number of entries. */
unsigned virtq_slice(const struct iovec *iov, unsigned count, uint64_t offset, uint64_t len, struct iovec *out);

#endif
