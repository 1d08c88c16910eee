/* The device's side of a split virtqueue: taking chains, giving them back, and when to interrupt or be kicked.
 *
 * Virtual I/O Device (VIRTIO) 1.2, section 2.7.  Layouts are little-endian, as the hosts are that uvirt runs on.
 */
#include "virtq/virtq.h"

#include <errno.h>
#include <string.h>

#include <linux/virtio_ring.h>

/* 2.7: sizes of the areas without and alignment with their trailing event fields. */
enum {
  DESC_SIZE = sizeof(struct vring_desc),
  DESC_ALIGN = 16,
  AVAIL_ALIGN = 2,
  USED_ALIGN = 4,
  USED_ELEM_SIZE = sizeof(struct vring_used_elem),
  RING_FLAGS = 0,
  RING_INDEX = 2,
  RING_ENTRIES = 4,
};

static int break_queue(struct virtq *q, const char *why) {
  if (!q->broken) q->broken = why;
  return -EPROTO;
}

/* ---- access to the areas ---- */

static void area_map(struct virtq *q, struct virtq_area *area) {
  uint64_t len = area->len;
  void *host = q->mem.translate(q->mem.opaque, area->addr, &len, area->write);
  area->host = host && len == area->len ? host : NULL;
}

/* Whether every byte of the area is memory, in however many pieces. */
static bool area_present(struct virtq *q, const struct virtq_area *area) {
  if (area->addr + area->len < area->addr) return false;
  for (uint64_t done = 0; done < area->len;) {
    uint64_t len = area->len - done;
    if (!q->mem.translate(q->mem.opaque, area->addr + done, &len, area->write) || !len) return false;
    done += len;
  }
  return true;
}

/* Host address of an aligned field of 2, 4 or 8 bytes; NULL (and the queue broken) if it has gone. */
static void *area_at(struct virtq *q, const struct virtq_area *area, uint64_t offset, uint64_t size) {
  if (area->host) return area->host + offset;
  uint64_t len = size;
  void *host = q->mem.translate(q->mem.opaque, area->addr + offset, &len, area->write);
  if (!host || len < size || ((uintptr_t)host & (size - 1))) {
    break_queue(q, "a part of the queue is not in memory");
    return NULL;
  }
  return host;
}

static uint16_t area_load16(struct virtq *q, const struct virtq_area *area, uint64_t offset, int order) {
  uint16_t *p = area_at(q, area, offset, 2);
  if (!p) return 0;
  return order == __ATOMIC_ACQUIRE ? __atomic_load_n(p, __ATOMIC_ACQUIRE) : __atomic_load_n(p, __ATOMIC_RELAXED);
}

static void area_store16(struct virtq *q, const struct virtq_area *area, uint64_t offset, uint16_t value, int order) {
  uint16_t *p = area_at(q, area, offset, 2);
  if (!p) return;
  if (order == __ATOMIC_RELEASE)
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
  else
    __atomic_store_n(p, value, __ATOMIC_RELAXED);
}

/* used_event is behind the available ring's entries, avail_event behind the used ring's (2.7.6, 2.7.8). */
static uint64_t used_event_offset(const struct virtq *q) {
  return RING_ENTRIES + 2ull * q->size;
}
static uint64_t avail_event_offset(const struct virtq *q) {
  return RING_ENTRIES + (uint64_t)USED_ELEM_SIZE * q->size;
}

/* ---- life ---- */

int virtq_start(struct virtq *q, const struct virtq_mem *mem, const struct virtq_config *config) {
  uint16_t size = config->size;
  if (!size || size > VIRTQ_SIZE_MAX || (size & (size - 1))) return -EINVAL;
  if (config->desc % DESC_ALIGN || config->avail % AVAIL_ALIGN || config->used % USED_ALIGN) return -EINVAL;
  uint64_t event = config->event_idx ? 2 : 0;
  *q = (struct virtq){
      .mem = *mem,
      .size = size,
      .event_idx = config->event_idx,
      .indirect = config->indirect,
      .desc = {.addr = config->desc, .len = (uint64_t)DESC_SIZE * size},
      .avail = {.addr = config->avail, .len = RING_ENTRIES + 2ull * size + event},
      .used = {.addr = config->used, .len = RING_ENTRIES + (uint64_t)USED_ELEM_SIZE * size + event, .write = true},
  };
  return virtq_remap(q);
}

void virtq_set_base(struct virtq *q, uint16_t index) {
  q->next_avail = index;
  q->next_used = index;
  q->signalled_valid = false;
}

int virtq_remap(struct virtq *q) {
  struct virtq_area *areas[] = {&q->desc, &q->avail, &q->used};
  static const uint8_t align[] = {DESC_ALIGN, AVAIL_ALIGN, USED_ALIGN};
  for (unsigned i = 0; i < 3; i++) {
    area_map(q, areas[i]);
    if ((uintptr_t)areas[i]->host & (align[i] - 1)) areas[i]->host = NULL;
    if (!areas[i]->host && !area_present(q, areas[i])) {
      break_queue(q, "a part of the queue is not in memory");
      return -EFAULT;
    }
  }
  return 0;
}

/* ---- taking a chain ---- */

/* A table of descriptors: the queue's own, or an indirect one. */
struct desc_table {
  uint64_t addr; /* indirect only */
  uint32_t count;
  bool indirect;
};

/* Reads 8 bytes once; the compiler may not read them again, and indirect tables need not be aligned. */
static uint64_t load64_once(const void *p) {
  struct __attribute__((packed, may_alias)) word {
    uint64_t value;
  };
  return ((const volatile struct word *)p)->value;
}

static bool copy_indirect(struct virtq *q, uint64_t addr, struct vring_desc *desc) {
  uint8_t *to = (uint8_t *)desc;
  for (uint64_t done = 0; done < DESC_SIZE;) {
    uint64_t len = DESC_SIZE - done;
    const uint8_t *from = q->mem.translate(q->mem.opaque, addr + done, &len, false);
    if (!from || !len) return false;
    if (len == DESC_SIZE) {
      uint64_t words[2] = {load64_once(from), load64_once(from + 8)};
      memcpy(desc, words, sizeof words);
      return true;
    }
    for (uint64_t i = 0; i < len; i++) to[done + i] = ((const volatile uint8_t *)from)[i];
    done += len;
  }
  return true;
}

static int read_desc(struct virtq *q, const struct desc_table *table, uint32_t index, struct vring_desc *desc) {
  if (table->indirect)
    return copy_indirect(q, table->addr + (uint64_t)DESC_SIZE * index, desc)
               ? 0
               : break_queue(q, "an indirect table is not in memory");
  uint64_t words[2];
  for (unsigned i = 0; i < 2; i++) {
    void *p = area_at(q, &q->desc, (uint64_t)DESC_SIZE * index + 8 * i, 8);
    if (!p) return -EPROTO;
    words[i] = load64_once(p);
  }
  memcpy(desc, words, sizeof words);
  return 0;
}

/* 2.7.5.3.1: no nesting, no chain behind it; 2.7.5.3.2: the device ignores its write flag. */
static int enter_indirect(struct virtq *q, struct desc_table *table, const struct vring_desc *desc) {
  if (!q->indirect) return break_queue(q, "an indirect descriptor without the feature");
  if (table->indirect) return break_queue(q, "an indirect descriptor in an indirect table");
  if (desc->flags & VRING_DESC_F_NEXT) return break_queue(q, "an indirect descriptor that goes on");
  if (!desc->len || desc->len % DESC_SIZE) return break_queue(q, "an indirect table of a wrong size");
  if (desc->addr + desc->len < desc->addr) return break_queue(q, "an indirect table that wraps around");
  *table = (struct desc_table){.addr = desc->addr, .count = desc->len / DESC_SIZE, .indirect = true};
  return 0;
}

static int add_buffer(struct virtq *q, struct virtq_chain *chain, const struct vring_desc *desc) {
  bool write = desc->flags & VRING_DESC_F_WRITE;
  if (!desc->len) return break_queue(q, "a buffer of length zero");
  if (!write && chain->writable) return break_queue(q, "a readable buffer behind a writable one"); /* 2.7.4.2 */
  if (desc->addr + desc->len < desc->addr) return break_queue(q, "a buffer that wraps around");
  for (uint64_t done = 0; done < desc->len;) {
    uint64_t len = desc->len - done;
    void *host = q->mem.translate(q->mem.opaque, desc->addr + done, &len, write);
    if (!host || !len) return break_queue(q, "a buffer is not in memory");
    unsigned n = chain->readable + chain->writable;
    if (n == VIRTQ_CHAIN_MAX) return break_queue(q, "a chain of too many pieces");
    chain->iov[n] = (struct iovec){host, len};
    *(write ? &chain->writable : &chain->readable) += 1;
    done += len;
  }
  uint64_t *total = write ? &chain->writable_len : &chain->readable_len;
  *total += desc->len;
  if (chain->readable_len + chain->writable_len > UINT32_MAX) return break_queue(q, "a chain of 4 GiB or more"); /* 2.7.5.2 */
  return 0;
}

static int walk_chain(struct virtq *q, uint16_t head, struct virtq_chain *chain) {
  struct desc_table table = {.count = q->size};
  uint32_t index = head;
  chain->head = head;
  chain->readable = chain->writable = 0;
  chain->readable_len = chain->writable_len = 0;
  /* A chain has at most as many links as its table has entries (2.7.5.2), so a longer one is a loop. */
  for (uint32_t links = 0; links < table.count; links++) {
    struct vring_desc desc;
    int r = read_desc(q, &table, index, &desc);
    if (r < 0) return r;
    if (desc.flags & VRING_DESC_F_INDIRECT) {
      r = enter_indirect(q, &table, &desc);
      if (r < 0) return r;
      index = 0;
      links = UINT32_MAX; /* starts again at 0 */
      continue;
    }
    r = add_buffer(q, chain, &desc);
    if (r < 0) return r;
    if (!(desc.flags & VRING_DESC_F_NEXT)) return 1;
    index = desc.next;
    if (index >= table.count) return break_queue(q, "a link out of its table");
  }
  return break_queue(q, "a chain that loops");
}

int virtq_pop(struct virtq *q, struct virtq_chain *chain) {
  if (q->broken) return -EPROTO;
  /* Acquire: the entries and descriptors are read after the index that makes them available (2.7.13.3). */
  uint16_t avail = area_load16(q, &q->avail, RING_INDEX, __ATOMIC_ACQUIRE);
  if (q->broken) return -EPROTO;
  if (avail == q->next_avail) return 0;
  if ((uint16_t)(avail - q->next_used) > q->size) return break_queue(q, "the available index runs ahead of the queue");
  uint64_t slot = RING_ENTRIES + 2ull * (q->next_avail & (q->size - 1));
  uint16_t head = area_load16(q, &q->avail, slot, __ATOMIC_RELAXED);
  if (q->broken) return -EPROTO;
  if (head >= q->size) return break_queue(q, "an available descriptor that does not exist");
  q->next_avail++;
  return walk_chain(q, head, chain);
}

void virtq_unpop(struct virtq *q) {
  q->next_avail--;
}

bool virtq_has_more(struct virtq *q) {
  return !q->broken && area_load16(q, &q->avail, RING_INDEX, __ATOMIC_ACQUIRE) != q->next_avail && !q->broken;
}

/* ---- giving chains back ---- */

void virtq_fill(struct virtq *q, uint16_t head, uint32_t written, uint16_t offset) {
  if (q->broken) return;
  uint64_t slot = RING_ENTRIES + (uint64_t)USED_ELEM_SIZE * ((uint16_t)(q->next_used + offset) & (q->size - 1));
  uint32_t *id = area_at(q, &q->used, slot, 4);
  uint32_t *len = area_at(q, &q->used, slot + 4, 4);
  if (!id || !len) return;
  __atomic_store_n(id, head, __ATOMIC_RELAXED);
  __atomic_store_n(len, written, __ATOMIC_RELAXED);
}

void virtq_publish(struct virtq *q, uint16_t count) {
  if (q->broken) return;
  q->next_used += count;
  /* Release: the elements and the data are written before the index that shows them (2.7.8.2). */
  area_store16(q, &q->used, RING_INDEX, q->next_used, __ATOMIC_RELEASE);
}

void virtq_push(struct virtq *q, uint16_t head, uint32_t written) {
  virtq_fill(q, head, written, 0);
  virtq_publish(q, 1);
}

/* ---- notifications in both directions ---- */

bool virtq_should_interrupt(struct virtq *q) {
  if (q->broken) return false;
  /* The used index must be visible before the driver's wish is read, or both sides wait for each other. */
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  if (!q->event_idx) {
    uint16_t flags = area_load16(q, &q->avail, RING_FLAGS, __ATOMIC_RELAXED);
    return !q->broken && !(flags & VRING_AVAIL_F_NO_INTERRUPT);
  }
  uint16_t old = q->signalled, now = q->next_used;
  bool known = q->signalled_valid;
  q->signalled = now;
  q->signalled_valid = true;
  uint16_t event = area_load16(q, &q->avail, used_event_offset(q), __ATOMIC_RELAXED);
  if (q->broken) return false;
  /* 2.7.7.2: interrupt when the index has moved over used_event. */
  return !known || (uint16_t)(now - event - 1) < (uint16_t)(now - old);
}

void virtq_kicks_off(struct virtq *q) {
  /* With event indices avail_event simply stays behind (2.7.10). */
  if (!q->broken && !q->event_idx) area_store16(q, &q->used, RING_FLAGS, VRING_USED_F_NO_NOTIFY, __ATOMIC_RELAXED);
}

bool virtq_kicks_on(struct virtq *q) {
  if (q->broken) return false;
  if (q->event_idx)
    area_store16(q, &q->used, avail_event_offset(q), q->next_avail, __ATOMIC_RELAXED);
  else
    area_store16(q, &q->used, RING_FLAGS, 0, __ATOMIC_RELAXED);
  /* The driver may have looked just before: the wish must be visible before the index is read again. */
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  return virtq_has_more(q);
}

/* ---- the data of a chain ---- */

unsigned virtq_slice(const struct iovec *iov, unsigned count, uint64_t offset, uint64_t len, struct iovec *out) {
  unsigned n = 0;
  for (unsigned i = 0; i < count && len; i++) {
    if (offset >= iov[i].iov_len) {
      offset -= iov[i].iov_len;
      continue;
    }
    uint64_t piece = iov[i].iov_len - offset;
    if (piece > len) piece = len;
    out[n++] = (struct iovec){(uint8_t *)iov[i].iov_base + offset, piece};
    len -= piece;
    offset = 0;
  }
  return n;
}

size_t virtq_copy_from(const struct virtq_chain *chain, uint64_t offset, void *buf, size_t len) {
  uint8_t *to = buf;
  size_t done = 0;
  for (unsigned i = 0; i < chain->readable && done < len; i++) {
    const struct iovec *v = &chain->iov[i];
    if (offset >= v->iov_len) {
      offset -= v->iov_len;
      continue;
    }
    size_t piece = v->iov_len - offset;
    if (piece > len - done) piece = len - done;
    memcpy(to + done, (const uint8_t *)v->iov_base + offset, piece);
    done += piece;
    offset = 0;
  }
  return done;
}

size_t virtq_copy_to(const struct virtq_chain *chain, uint64_t offset, const void *buf, size_t len) {
  const uint8_t *from = buf;
  size_t done = 0;
  for (unsigned i = chain->readable; i < (unsigned)chain->readable + chain->writable && done < len; i++) {
    const struct iovec *v = &chain->iov[i];
    if (offset >= v->iov_len) {
      offset -= v->iov_len;
      continue;
    }
    size_t piece = v->iov_len - offset;
    if (piece > len - done) piece = len - done;
    memcpy((uint8_t *)v->iov_base + offset, from + done, piece);
    done += piece;
    offset = 0;
  }
  return done;
}
