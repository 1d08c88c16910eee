/* virtio-blk: a disk with one queue, served by a thread of its own straight between guest memory and the image.
 *
 * VIRTIO 1.2, section 5.2.
 */
#include "vmm/virtio/device.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <linux/virtio_blk.h>
#include <linux/virtio_ids.h>

#include "vmm/backend/disk.h"

enum {
  QUEUE_SIZE = 256,
  SEG_MAX = QUEUE_SIZE - 2, /* a request also has a header and a status */
  SERIAL_LEN = VIRTIO_BLK_ID_BYTES,
  RANGE_SECTORS_MAX = 1 << 17, /* of one discard or write-zeroes segment: 64 MiB, so that none takes long */
  RANGES_MAX = 16,
  HEADER_LEN = sizeof(struct virtio_blk_outhdr),
};

struct virtio_blk {
  struct virtio_dev dev; /* first */
  struct disk *disk;
  char serial[SERIAL_LEN];
  pthread_t thread;
  bool thread_runs;
  atomic_bool quit;
  struct virtq_chain chain; /* the request being served; the thread's */
  struct iovec data[VIRTQ_CHAIN_MAX];
};

/* ---- requests: each returns its status byte (5.2.6) ---- */

struct request {
  uint64_t sector;
  uint64_t in_len; /* writable bytes before the status byte */
};

static uint8_t status_of(int r) {
  return r < 0 ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK;
}

/* Whether [sector, +len bytes) is on the disk and whole sectors. */
static bool on_disk(const struct virtio_blk *blk, uint64_t sector, uint64_t len) {
  uint64_t sectors = disk_size(blk->disk) / DISK_SECTOR;
  return len % DISK_SECTOR == 0 && sector <= sectors && len / DISK_SECTOR <= sectors - sector;
}

static uint8_t do_read(struct virtio_blk *blk, const struct request *req) {
  const struct virtq_chain *chain = &blk->chain;
  if (!on_disk(blk, req->sector, req->in_len)) return VIRTIO_BLK_S_IOERR;
  unsigned n = virtq_slice(chain->iov + chain->readable, chain->writable, 0, req->in_len, blk->data);
  return status_of(disk_read(blk->disk, req->sector * DISK_SECTOR, blk->data, n));
}

/* 5.2.6.2: without FLUSH the driver takes every completed write for durable. */
static int settle(struct virtio_blk *blk) {
  return virtio_has(&blk->dev, VIRTIO_BLK_F_FLUSH) ? 0 : disk_flush(blk->disk);
}

static uint8_t do_write(struct virtio_blk *blk, const struct request *req) {
  const struct virtq_chain *chain = &blk->chain;
  uint64_t len = chain->readable_len - HEADER_LEN;
  if (disk_readonly(blk->disk) || !on_disk(blk, req->sector, len)) return VIRTIO_BLK_S_IOERR;
  unsigned n = virtq_slice(chain->iov, chain->readable, HEADER_LEN, len, blk->data);
  int r = disk_write(blk->disk, req->sector * DISK_SECTOR, blk->data, n);
  return status_of(r < 0 ? r : settle(blk));
}

static uint8_t do_flush(struct virtio_blk *blk, const struct request *req) {
  return status_of(disk_flush(blk->disk));
}

static uint8_t do_get_id(struct virtio_blk *blk, const struct request *req) {
  if (req->in_len < SERIAL_LEN) return VIRTIO_BLK_S_IOERR;
  virtq_copy_to(&blk->chain, 0, blk->serial, SERIAL_LEN);
  return VIRTIO_BLK_S_OK;
}

/* The segments of a discard or write-zeroes request: checked all, then done one after the other. */
static uint8_t do_ranges(struct virtio_blk *blk, uint32_t allowed_flags,
                         int (*fn)(struct virtio_blk *blk, uint64_t offset, uint64_t len, uint32_t flags)) {
  struct virtio_blk_discard_write_zeroes range[RANGES_MAX];
  uint64_t len = blk->chain.readable_len - HEADER_LEN;
  unsigned n = len / sizeof range[0];
  if (disk_readonly(blk->disk) || !n || len % sizeof range[0] || n > RANGES_MAX) return VIRTIO_BLK_S_IOERR;
  virtq_copy_from(&blk->chain, HEADER_LEN, range, len);
  for (unsigned i = 0; i < n; i++) {
    if (range[i].flags & ~allowed_flags) return VIRTIO_BLK_S_UNSUPP; /* 5.2.6.2 */
    uint64_t bytes = (uint64_t)range[i].num_sectors * DISK_SECTOR;
    if (range[i].num_sectors > RANGE_SECTORS_MAX || !on_disk(blk, range[i].sector, bytes)) return VIRTIO_BLK_S_IOERR;
  }
  for (unsigned i = 0; i < n; i++) {
    uint64_t bytes = (uint64_t)range[i].num_sectors * DISK_SECTOR;
    int r = bytes ? fn(blk, range[i].sector * DISK_SECTOR, bytes, range[i].flags) : 0;
    if (r < 0) return VIRTIO_BLK_S_IOERR;
  }
  return status_of(settle(blk));
}

static int discard_range(struct virtio_blk *blk, uint64_t offset, uint64_t len, uint32_t flags) {
  return disk_discard(blk->disk, offset, len);
}

static int zero_range(struct virtio_blk *blk, uint64_t offset, uint64_t len, uint32_t flags) {
  return disk_zero(blk->disk, offset, len, flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP);
}

static uint8_t do_discard(struct virtio_blk *blk, const struct request *req) {
  return do_ranges(blk, 0, discard_range);
}

static uint8_t do_write_zeroes(struct virtio_blk *blk, const struct request *req) {
  return do_ranges(blk, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, zero_range);
}

typedef uint8_t request_fn(struct virtio_blk *blk, const struct request *req);

static request_fn *const requests[] = {
    [VIRTIO_BLK_T_IN] = do_read,       [VIRTIO_BLK_T_OUT] = do_write,       [VIRTIO_BLK_T_FLUSH] = do_flush,
    [VIRTIO_BLK_T_GET_ID] = do_get_id, [VIRTIO_BLK_T_DISCARD] = do_discard, [VIRTIO_BLK_T_WRITE_ZEROES] = do_write_zeroes,
};

/* 5.2.6: a readable header, data, and a status byte at the very end of the writable part.  The chain is in blk->chain. */
static void serve(struct virtio_blk *blk, struct virtio_queue *queue) {
  struct virtio_blk_outhdr header;
  if (virtq_copy_from(&blk->chain, 0, &header, HEADER_LEN) < HEADER_LEN || !blk->chain.writable_len) {
    virtio_reject(queue, "a request without header or status byte");
    return;
  }
  const struct request req = {.sector = header.sector, .in_len = blk->chain.writable_len - 1};
  request_fn *fn = header.type < sizeof requests / sizeof requests[0] ? requests[header.type] : NULL;
  uint8_t status = fn ? fn(blk, &req) : VIRTIO_BLK_S_UNSUPP;
  virtq_copy_to(&blk->chain, req.in_len, &status, 1);
  virtio_push(queue, blk->chain.head, blk->chain.writable_len);
  virtio_interrupt(queue);
}

/* ---- the thread ---- */

static void drain(struct virtio_blk *blk) {
  struct virtio_queue *queue = &blk->dev.queue[0];
  do {
    virtio_kicks_off(queue);
    while (!atomic_load(&blk->quit) && virtio_pop(queue, &blk->chain)) serve(blk, queue);
  } while (virtio_kicks_on(queue) && !atomic_load(&blk->quit));
}

static void *blk_thread(void *arg) {
  struct virtio_blk *blk = arg;
  struct pollfd kick = {.fd = blk->dev.queue[0].kick, .events = POLLIN};
  eventfd_t count;
  while (!atomic_load(&blk->quit)) {
    poll(&kick, 1, -1);
    eventfd_read(kick.fd, &count);
    drain(blk);
  }
  return NULL;
}

/* ---- life ---- */

static void blk_destroy(struct virtio_dev *dev) {
  struct virtio_blk *blk = (struct virtio_blk *)dev;
  if (blk->thread_runs) {
    atomic_store(&blk->quit, true);
    virtio_kick_self(&dev->queue[0]);
    pthread_join(blk->thread, NULL);
  }
  virtio_dev_fini(dev);
  disk_close(blk->disk);
  free(blk);
}

static const struct virtio_ops blk_ops = {
    .id = VIRTIO_ID_BLOCK,
    .class_code = 0x018000, /* other mass storage */
    .queues = 1,
    .queue_size = {QUEUE_SIZE},
    .destroy = blk_destroy,
};

static int blk_init(struct virtio_blk *blk, struct vmm *vmm) {
  uint64_t features = 1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE | 1ull << VIRTIO_BLK_F_FLUSH;
  if (disk_readonly(blk->disk))
    features |= 1ull << VIRTIO_BLK_F_RO;
  else
    features |= 1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES;
  const struct virtio_blk_config config = {
      .capacity = disk_size(blk->disk) / DISK_SECTOR,
      .seg_max = SEG_MAX,
      .blk_size = DISK_SECTOR,
      .max_discard_sectors = RANGE_SECTORS_MAX,
      .max_discard_seg = RANGES_MAX,
      .discard_sector_alignment = 4096 / DISK_SECTOR,
      .max_write_zeroes_sectors = RANGE_SECTORS_MAX,
      .max_write_zeroes_seg = 1,
      .write_zeroes_may_unmap = 1,
  };
  return virtio_dev_init(&blk->dev, vmm, &blk_ops, features, &config,
                         offsetof(struct virtio_blk_config, unused1) + sizeof config.unused1);
}

int virtio_blk_create(struct vmm *vmm, struct pci_host *host, const struct virtio_blk_options *options,
                      char err[VIRTIO_ERR_MAX]) {
  struct virtio_blk *blk = calloc(1, sizeof *blk);
  struct disk *disk;
  int r = blk ? disk_open(options->path, options->readonly, &disk, err) : -ENOMEM;
  if (!blk) snprintf(err, VIRTIO_ERR_MAX, "No memory for the disk '%s'.", options->path);
  if (r < 0) {
    free(blk);
    return r;
  }
  blk->disk = disk;
  if (options->serial) memcpy(blk->serial, options->serial, strnlen(options->serial, SERIAL_LEN));
  r = blk_init(blk, vmm);
  if (r == 0) r = virtio_thread_start(&blk->thread, "disk", blk_thread, blk);
  blk->thread_runs = r == 0;
  if (r == 0) r = virtio_dev_add(&blk->dev, host);
  if (r < 0) {
    snprintf(err, VIRTIO_ERR_MAX, "The disk '%s' cannot be attached: %s.", options->path, strerror(-r));
    blk_destroy(&blk->dev);
  }
  return r;
}

int virtio_blk_check(const struct virtio_blk_options *options, char err[VIRTIO_ERR_MAX]) {
  struct disk *disk;
  int r = disk_open(options->path, options->readonly, &disk, err);
  if (r == 0) disk_close(disk);
  return r;
}
