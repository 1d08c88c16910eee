/* The virtqueue walker: chains, indirect tables, notification rules, and every rule that a driver can break. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <linux/virtio_ring.h>

#include "virtq/virtq.h"

enum {
  SIZE = 8,
  MEMORY = 0x10000,
  DESC = 0x1000,
  AVAIL = 0x2000,
  USED = 0x3000,
  TABLE = 0x4000, /* for indirect descriptors */
  DATA = 0x8000,
};

/* Memory from 0 on; `piece` limits what lies in one piece (0: everything). */
struct bench {
  uint8_t *memory;
  uint64_t piece;
  struct virtq q;
  struct virtq_chain chain;
};

static void *translate(void *opaque, uint64_t addr, uint64_t *len, bool write) {
  struct bench *b = opaque;
  if (addr >= MEMORY) return NULL;
  uint64_t room = b->piece ? b->piece - addr % b->piece : MEMORY - addr;
  if (*len > room) *len = room;
  return b->memory + addr;
}

static struct vring_desc *desc(struct bench *b, unsigned i) {
  return (struct vring_desc *)(b->memory + DESC) + i;
}
static struct vring_desc *indirect(struct bench *b, unsigned i) {
  return (struct vring_desc *)(b->memory + TABLE) + i;
}
static struct vring_avail *avail(struct bench *b) {
  return (struct vring_avail *)(b->memory + AVAIL);
}
static struct vring_used *used(struct bench *b) {
  return (struct vring_used *)(b->memory + USED);
}
static uint16_t *used_event(struct bench *b) {
  return &avail(b)->ring[SIZE];
}
static uint16_t *avail_event(struct bench *b) {
  return (uint16_t *)&used(b)->ring[SIZE];
}

static void begin(struct bench *b, bool event_idx) {
  struct virtq_mem mem = {.translate = translate, .opaque = b};
  struct virtq_config config = {
      .size = SIZE, .desc = DESC, .avail = AVAIL, .used = USED, .event_idx = event_idx, .indirect = true};
  memset(b->memory, 0, MEMORY);
  assert_int_equal(virtq_start(&b->q, &mem, &config), 0);
}

static void offer(struct bench *b, uint16_t head) {
  struct vring_avail *a = avail(b);
  a->ring[a->idx % SIZE] = head;
  a->idx++;
}

static int setup(void **state) {
  struct bench *b = calloc(1, sizeof *b);
  b->memory = aligned_alloc(4096, MEMORY);
  begin(b, false);
  *state = b;
  return 0;
}

static int teardown(void **state) {
  struct bench *b = *state;
  free(b->memory);
  free(b);
  return 0;
}

/* ---- starting ---- */

static void test_start_rules(void **state) {
  struct bench *b = *state;
  static const struct {
    struct virtq_config config;
    int result;
  } rows[] = {
      {{.size = 0, .desc = DESC, .avail = AVAIL, .used = USED}, -EINVAL},
      {{.size = 3, .desc = DESC, .avail = AVAIL, .used = USED}, -EINVAL},
      {{.size = 8, .desc = DESC + 8, .avail = AVAIL, .used = USED}, -EINVAL},
      {{.size = 8, .desc = DESC, .avail = AVAIL + 1, .used = USED}, -EINVAL},
      {{.size = 8, .desc = DESC, .avail = AVAIL, .used = USED + 2}, -EINVAL},
      {{.size = 8, .desc = MEMORY, .avail = AVAIL, .used = USED}, -EFAULT},
      {{.size = 8, .desc = MEMORY - 64, .avail = AVAIL, .used = USED}, -EFAULT},
      {{.size = 8, .desc = -16ull, .avail = AVAIL, .used = USED}, -EFAULT},
      {{.size = 8, .desc = DESC, .avail = AVAIL, .used = MEMORY - 4}, -EFAULT},
      {{.size = 8, .desc = DESC, .avail = AVAIL, .used = USED}, 0},
      {{.size = 32768, .desc = 0, .avail = 0, .used = 0}, -EFAULT},
  };
  struct virtq_mem mem = {.translate = translate, .opaque = b};
  for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++)
    assert_int_equal(virtq_start(&b->q, &mem, &rows[i].config), rows[i].result);
}

/* ---- chains ---- */

static void test_chain(void **state) {
  struct bench *b = *state;
  assert_int_equal(virtq_pop(&b->q, &b->chain), 0);
  *desc(b, 2) = (struct vring_desc){DATA, 16, VRING_DESC_F_NEXT, 5};
  *desc(b, 5) = (struct vring_desc){DATA + 0x100, 32, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 7};
  *desc(b, 7) = (struct vring_desc){DATA + 0x200, 1, VRING_DESC_F_WRITE, 0};
  offer(b, 2);
  assert_int_equal(virtq_pop(&b->q, &b->chain), 1);
  assert_int_equal(b->chain.head, 2);
  assert_int_equal(b->chain.readable, 1);
  assert_int_equal(b->chain.writable, 2);
  assert_int_equal(b->chain.readable_len, 16);
  assert_int_equal(b->chain.writable_len, 33);
  assert_ptr_equal(b->chain.iov[2].iov_base, b->memory + DATA + 0x200);
  virtq_push(&b->q, 2, 33);
  assert_int_equal(used(b)->idx, 1);
  assert_int_equal(used(b)->ring[0].id, 2);
  assert_int_equal(used(b)->ring[0].len, 33);
  assert_int_equal(virtq_pop(&b->q, &b->chain), 0);
}

static void test_indirect(void **state) {
  struct bench *b = *state;
  *desc(b, 0) = (struct vring_desc){DATA, 4, VRING_DESC_F_NEXT, 1};
  /* 2.7.5.3.2: the write flag of an indirect descriptor is ignored. */
  *desc(b, 1) = (struct vring_desc){TABLE, 2 * 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE, 0};
  *indirect(b, 0) = (struct vring_desc){DATA + 4, 4, VRING_DESC_F_NEXT, 1};
  *indirect(b, 1) = (struct vring_desc){DATA + 8, 4, VRING_DESC_F_WRITE, 0};
  offer(b, 0);
  assert_int_equal(virtq_pop(&b->q, &b->chain), 1);
  assert_int_equal(b->chain.readable_len, 8);
  assert_int_equal(b->chain.writable_len, 4);
}

/* An unaligned table that crosses two pieces of memory, with data that does too. */
static void test_pieces(void **state) {
  struct bench *b = *state;
  b->piece = 4096;
  begin(b, true);
  uint64_t table = TABLE + 4096 - 20;
  struct vring_desc entries[2] = {{DATA + 4090, 10, VRING_DESC_F_NEXT, 1}, {DATA, 8192, VRING_DESC_F_WRITE, 0}};
  memcpy(b->memory + table, entries, sizeof entries);
  *desc(b, 0) = (struct vring_desc){table, sizeof entries, VRING_DESC_F_INDIRECT, 0};
  offer(b, 0);
  assert_int_equal(virtq_pop(&b->q, &b->chain), 1);
  assert_int_equal(b->chain.readable, 2);
  assert_int_equal(b->chain.iov[0].iov_len, 6);
  assert_int_equal(b->chain.writable, 2);
  b->piece = 0;
}

/* A queue whose areas do not lie in one piece still works, access by access. */
static void test_scattered_ring(void **state) {
  struct bench *b = *state;
  b->piece = 16;
  begin(b, true);
  assert_null(b->q.desc.host);
  for (unsigned i = 0; i < 40; i++) {
    *desc(b, i % SIZE) = (struct vring_desc){DATA, 8, 0, 0};
    offer(b, i % SIZE);
    assert_int_equal(virtq_pop(&b->q, &b->chain), 1);
    virtq_push(&b->q, b->chain.head, i);
    assert_int_equal(used(b)->ring[i % SIZE].len, i);
    virtq_kicks_on(&b->q);
    assert_int_equal(*avail_event(b), i + 1);
  }
  b->piece = 0;
}

static void test_index_wraps(void **state) {
  struct bench *b = *state;
  virtq_set_base(&b->q, 65534);
  avail(b)->idx = used(b)->idx = 65534;
  *desc(b, 1) = (struct vring_desc){DATA, 8, 0, 0};
  for (unsigned i = 0; i < 5; i++) {
    offer(b, 1);
    assert_int_equal(virtq_pop(&b->q, &b->chain), 1);
    virtq_push(&b->q, 1, 0);
  }
  assert_int_equal(used(b)->idx, 3);
}

static void test_unpop(void **state) {
  struct bench *b = *state;
  *desc(b, 1) = (struct vring_desc){DATA, 8, 0, 0};
  offer(b, 1);
  assert_int_equal(virtq_pop(&b->q, &b->chain), 1);
  assert_int_equal(virtq_pop(&b->q, &b->chain), 0);
  virtq_unpop(&b->q);
  assert_true(virtq_has_more(&b->q));
  assert_int_equal(virtq_pop(&b->q, &b->chain), 1);
}

/* ---- rules that break the queue ---- */

static void read_only(struct bench *b, unsigned i, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next) {
  *desc(b, i) = (struct vring_desc){addr, len, flags, next};
}

static void bad_head(struct bench *b) {
  offer(b, SIZE);
}
static void bad_index(struct bench *b) {
  avail(b)->idx = SIZE + 1;
}
static void bad_link(struct bench *b) {
  read_only(b, 0, DATA, 4, VRING_DESC_F_NEXT, SIZE);
}
static void bad_loop(struct bench *b) {
  read_only(b, 0, DATA, 4, VRING_DESC_F_NEXT, 0);
}
static void bad_zero(struct bench *b) {
  read_only(b, 0, DATA, 0, 0, 0);
}
static void bad_address(struct bench *b) {
  read_only(b, 0, MEMORY, 1, 0, 0);
}
static void bad_end(struct bench *b) {
  read_only(b, 0, MEMORY - 4, 8, 0, 0);
}
static void bad_wrap(struct bench *b) {
  read_only(b, 0, -4ull, 8, 0, 0);
}

static void bad_order(struct bench *b) {
  read_only(b, 0, DATA, 4, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1);
  read_only(b, 1, DATA, 4, 0, 0);
}

static void bad_table_len(struct bench *b) {
  read_only(b, 0, TABLE, 24, VRING_DESC_F_INDIRECT, 0);
}
static void bad_table_empty(struct bench *b) {
  read_only(b, 0, TABLE, 0, VRING_DESC_F_INDIRECT, 0);
}
static void bad_table_address(struct bench *b) {
  read_only(b, 0, MEMORY, 16, VRING_DESC_F_INDIRECT, 0);
}
static void bad_table_wrap(struct bench *b) {
  read_only(b, 0, -16ull, 32, VRING_DESC_F_INDIRECT, 0);
}
static void bad_table_next(struct bench *b) {
  read_only(b, 0, TABLE, 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT, 1);
}

static void bad_nested(struct bench *b) {
  read_only(b, 0, TABLE, 16, VRING_DESC_F_INDIRECT, 0);
  *indirect(b, 0) = (struct vring_desc){TABLE, 16, VRING_DESC_F_INDIRECT, 0};
}

static void bad_table_link(struct bench *b) {
  read_only(b, 0, TABLE, 32, VRING_DESC_F_INDIRECT, 0);
  *indirect(b, 0) = (struct vring_desc){DATA, 16, VRING_DESC_F_NEXT, 2};
}

static void bad_table_loop(struct bench *b) {
  read_only(b, 0, TABLE, 32, VRING_DESC_F_INDIRECT, 0);
  *indirect(b, 0) = (struct vring_desc){DATA, 16, VRING_DESC_F_NEXT, 1};
  *indirect(b, 1) = (struct vring_desc){DATA, 16, VRING_DESC_F_NEXT, 0};
}

static void bad_feature(struct bench *b) {
  b->q.indirect = false;
  read_only(b, 0, TABLE, 16, VRING_DESC_F_INDIRECT, 0);
}

static void test_broken(void **state) {
  static void (*const rows[])(struct bench * b) = {
      bad_head,       bad_index,      bad_link,   bad_loop,       bad_zero,        bad_address,
      bad_end,        bad_wrap,       bad_order,  bad_table_len,  bad_table_empty, bad_table_address,
      bad_table_wrap, bad_table_next, bad_nested, bad_table_link, bad_table_loop,  bad_feature,
  };
  struct bench *b = *state;
  for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    begin(b, false);
    rows[i](b);
    if (!avail(b)->idx) offer(b, 0);
    assert_int_equal(virtq_pop(&b->q, &b->chain), -EPROTO);
    assert_non_null(b->q.broken);
    uint16_t index = used(b)->idx;
    virtq_push(&b->q, 0, 0); /* a broken queue stays silent */
    assert_int_equal(used(b)->idx, index);
    assert_false(virtq_should_interrupt(&b->q));
    assert_int_equal(virtq_pop(&b->q, &b->chain), -EPROTO);
  }
}

/* More chains than entries cannot be available at once, even if each index step is small. */
static void test_runs_ahead(void **state) {
  struct bench *b = *state;
  *desc(b, 0) = (struct vring_desc){DATA, 4, 0, 0};
  for (unsigned i = 0; i < SIZE; i++) {
    offer(b, 0);
    assert_int_equal(virtq_pop(&b->q, &b->chain), 1);
  }
  offer(b, 0);
  assert_int_equal(virtq_pop(&b->q, &b->chain), -EPROTO);
}

/* ---- notifications ---- */

static void test_flags(void **state) {
  struct bench *b = *state;
  *desc(b, 0) = (struct vring_desc){DATA, 4, 0, 0};
  virtq_kicks_off(&b->q);
  assert_int_equal(used(b)->flags, VRING_USED_F_NO_NOTIFY);
  assert_false(virtq_kicks_on(&b->q));
  assert_int_equal(used(b)->flags, 0);
  offer(b, 0);
  assert_true(virtq_kicks_on(&b->q));
  assert_true(virtq_should_interrupt(&b->q));
  avail(b)->flags = VRING_AVAIL_F_NO_INTERRUPT;
  assert_false(virtq_should_interrupt(&b->q));
}

static void use_one(struct bench *b) {
  offer(b, 0);
  assert_int_equal(virtq_pop(&b->q, &b->chain), 1);
  virtq_push(&b->q, 0, 0);
}

static void test_event_index(void **state) {
  struct bench *b = *state;
  begin(b, true);
  *desc(b, 0) = (struct vring_desc){DATA, 4, 0, 0};
  use_one(b);
  assert_true(virtq_should_interrupt(&b->q)); /* the first always */
  *used_event(b) = 2;                         /* "when the third is used" */
  use_one(b);
  assert_false(virtq_should_interrupt(&b->q));
  use_one(b);
  assert_true(virtq_should_interrupt(&b->q));
  assert_false(virtq_should_interrupt(&b->q));
  use_one(b);
  assert_false(virtq_should_interrupt(&b->q));
  *used_event(b) = 4;
  use_one(b);
  use_one(b); /* stepped over it */
  assert_true(virtq_should_interrupt(&b->q));
  assert_false(virtq_kicks_on(&b->q));
  assert_int_equal(*avail_event(b), 6);
}

/* ---- data ---- */

static void test_copy(void **state) {
  struct bench *b = *state;
  for (unsigned i = 0; i < 3; i++) read_only(b, i, DATA + 0x100 * i, 5, VRING_DESC_F_NEXT, i + 1);
  read_only(b, 3, DATA + 0x300, 3, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 4);
  read_only(b, 4, DATA + 0x400, 3, VRING_DESC_F_WRITE, 0);
  for (unsigned i = 0; i < 15; i++) b->memory[DATA + 0x100 * (i / 5) + i % 5] = 'a' + i;
  offer(b, 0);
  assert_int_equal(virtq_pop(&b->q, &b->chain), 1);
  char text[32] = {0};
  assert_int_equal(virtq_copy_from(&b->chain, 3, text, 9), 9);
  assert_string_equal(text, "defghijkl");
  assert_int_equal(virtq_copy_from(&b->chain, 12, text, sizeof text), 3);
  assert_int_equal(virtq_copy_from(&b->chain, 15, text, sizeof text), 0);
  assert_int_equal(virtq_copy_to(&b->chain, 2, "xyz123", 6), 4);
  assert_memory_equal(b->memory + DATA + 0x302, "x", 1);
  assert_memory_equal(b->memory + DATA + 0x400, "yz1", 4); /* and not a byte more */
  struct iovec out[8];
  assert_int_equal(virtq_slice(b->chain.iov, b->chain.readable, 4, 7, out), 3);
  assert_int_equal(out[0].iov_len, 1);
  assert_int_equal(out[1].iov_len, 5);
  assert_int_equal(out[2].iov_len, 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_start_rules, setup, teardown),
      cmocka_unit_test_setup_teardown(test_chain, setup, teardown),
      cmocka_unit_test_setup_teardown(test_indirect, setup, teardown),
      cmocka_unit_test_setup_teardown(test_pieces, setup, teardown),
      cmocka_unit_test_setup_teardown(test_scattered_ring, setup, teardown),
      cmocka_unit_test_setup_teardown(test_index_wraps, setup, teardown),
      cmocka_unit_test_setup_teardown(test_unpop, setup, teardown),
      cmocka_unit_test_setup_teardown(test_broken, setup, teardown),
      cmocka_unit_test_setup_teardown(test_runs_ahead, setup, teardown),
      cmocka_unit_test_setup_teardown(test_flags, setup, teardown),
      cmocka_unit_test_setup_teardown(test_event_index, setup, teardown),
      cmocka_unit_test_setup_teardown(test_copy, setup, teardown),
  };
  return cmocka_run_group_tests_name("virtq", tests, NULL, NULL);
}
