/* Fuzz target: a virtqueue whose rings, descriptors and indirect tables are the input.  Nothing may be reached outside memory. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "virtq/virtq.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MEMORY = 16384, SPLIT = 8192, HEAD = 16, STEPS = 64 };

/* Two pieces with a hole behind each; on the heap, so that a sanitizer sees every byte too far. */
struct memory {
  uint8_t *piece[2];
};

static void *translate(void *opaque, uint64_t addr, uint64_t *len, bool write) {
  struct memory *memory = opaque;
  if (addr >= MEMORY) return NULL;
  uint64_t room = SPLIT - addr % SPLIT;
  if (*len > room) *len = room;
  return memory->piece[addr / SPLIT] + addr % SPLIT;
}

static void check(const struct memory *memory, const struct virtq_chain *chain) {
  for (unsigned i = 0; i < (unsigned)chain->readable + chain->writable; i++) {
    const uint8_t *from = chain->iov[i].iov_base;
    size_t len = chain->iov[i].iov_len;
    bool inside = false;
    for (unsigned p = 0; p < 2; p++)
      inside |= from >= memory->piece[p] && from < memory->piece[p] + SPLIT && len <= (size_t)(memory->piece[p] + SPLIT - from);
    if (!inside || !len) abort();
  }
}

static void use(struct virtq *q, struct virtq_chain *chain, uint8_t op) {
  uint8_t bytes[300];
  struct iovec slice[VIRTQ_CHAIN_MAX];
  size_t got = virtq_copy_from(chain, op, bytes, sizeof bytes);
  virtq_copy_to(chain, op, bytes, got);
  if (virtq_slice(chain->iov, chain->readable, op, 4096, slice) > chain->readable) abort();
  if (op & 1)
    virtq_push(q, chain->head, got);
  else if (op & 2)
    virtq_unpop(q);
}

/* Each step is one byte of the header, used again and again: what the device does. */
static void step(struct virtq *q, struct virtq_chain *chain, const struct memory *memory, uint8_t op) {
  if (virtq_pop(q, chain) > 0) {
    check(memory, chain);
    use(q, chain, op);
  }
  if (op & 4) virtq_should_interrupt(q);
  if (op & 8) virtq_kicks_on(q);
  if (op & 16) virtq_kicks_off(q);
  if (op & 32) virtq_remap(q);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (size < HEAD) return 0;
  struct memory memory = {{calloc(1, SPLIT), calloc(1, SPLIT)}};
  struct virtq_chain *chain = malloc(sizeof *chain);
  size_t rest = size - HEAD < MEMORY ? size - HEAD : MEMORY;
  memcpy(memory.piece[0], data + HEAD, rest < SPLIT ? rest : SPLIT);
  if (rest > SPLIT) memcpy(memory.piece[1], data + HEAD + SPLIT, rest - SPLIT);
  uint16_t at[4];
  memcpy(at, data, sizeof at);
  struct virtq q;
  struct virtq_mem mem = {.translate = translate, .opaque = &memory};
  struct virtq_config config = {
      .size = data[8] < 16 ? 1u << data[8] : data[8],
      .desc = at[0],
      .avail = at[1],
      .used = at[2],
      .event_idx = data[9] & 1,
      .indirect = data[9] & 2,
  };
  if (virtq_start(&q, &mem, &config) == 0) {
    virtq_set_base(&q, at[3]);
    for (unsigned i = 0; i < STEPS; i++) step(&q, chain, &memory, data[10 + i % (HEAD - 10)]);
  }
  free(memory.piece[0]);
  free(memory.piece[1]);
  free(chain);
  return 0;
}
