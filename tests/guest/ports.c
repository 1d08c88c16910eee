/* Port input and output by string instructions, as the client sees it: how much one exit asks for and where the answer goes
 * (api.rst, KVM_EXIT_IO; Intel SDM Vol. 2A INS). */
#include <string.h>
#include "harness.h"

#define PORT 0x80

GUEST_BLOB(ins_byte, "rep insb\n" REPORT(1));
GUEST_BLOB(ins_word, "rep insw\n" REPORT(1));
GUEST_BLOB(outs_byte, "rep outsb\n" REPORT(1));

static struct guest *start(const u8 *begin, const u8 *end, u64 rdi, u64 rcx) {
  struct guest *g = guest_new();
  guest_long(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, begin, (size_t)(end - begin));
  struct kvm_regs r = guest_regs(g);
  r.rdi = r.rsi = rdi;
  r.rcx = rcx;
  r.rdx = PORT;
  guest_set_regs(g, &r);
  return g;
}
#define START(name, rdi, rcx) start(name##_start, name##_end, rdi, rcx)

/* One exit for `count` elements of `size`; answers with bytes counting up from `seed`. */
static void answer(struct guest *g, unsigned size, unsigned count, u8 seed) {
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_IO);
  CHECK_EQ(g->run->io.direction, KVM_EXIT_IO_IN);
  CHECK_EQ(g->run->io.port, PORT);
  CHECK_EQ(g->run->io.size, size);
  CHECK_EQ(g->run->io.count, count);
  u8 *data = (u8 *)g->run + g->run->io.data_offset;
  for (unsigned k = 0; k < size * count; k++) data[k] = (u8)(seed + k);
}

static void expect_bytes(struct guest *g, u64 gpa, unsigned n, u8 seed) {
  for (unsigned k = 0; k < n; k++) CHECK_EQ(g->mem[gpa + k], (u8)(seed + k));
}

static void within_a_page(void) {
  struct guest *g = START(ins_byte, GUEST_DATA + 16, 100);
  answer(g, 1, 100, 7);
  CHECK_EQ(guest_regs(g).rcx, 100); /* nothing has happened yet */
  CHECK_EQ(guest_next(g), 1);
  expect_bytes(g, GUEST_DATA + 16, 100, 7);
  CHECK_EQ(guest_regs(g).rcx, 0);
  CHECK_EQ(guest_regs(g).rdi, GUEST_DATA + 16 + 100);
  guest_free(g);
}

/* 1024 bytes at most, up to the page's end; an element across the border is asked for alone. */
static void over_pages(void) {
  u64 at = GUEST_DATA + 0x1000 - 2 * 600 - 1;
  struct guest *g = START(ins_word, at, 602);
  answer(g, 2, 512, 0);
  answer(g, 2, 88, 0);
  answer(g, 2, 1, 0);
  answer(g, 2, 1, 2);
  CHECK_EQ(guest_next(g), 1);
  expect_bytes(g, at, 1024, 0);
  expect_bytes(g, at + 1024, 176, 0);
  expect_bytes(g, at + 1200, 4, 0);
  guest_free(g);
}

static void downwards(void) {
  struct guest *g = START(ins_byte, GUEST_DATA + 10, 3);
  struct kvm_regs r = guest_regs(g);
  r.rflags |= 0x400;
  guest_set_regs(g, &r);
  for (u8 k = 0; k < 3; k++) answer(g, 1, 1, (u8)(5 - k));
  CHECK_EQ(guest_next(g), 1);
  expect_bytes(g, GUEST_DATA + 8, 3, 3);
  guest_free(g);
}

/* The destination is looked at before the port is read. */
static void unmapped(void) {
  struct guest *g = START(ins_byte, GUEST_MEM * 1024ull, 5);
  CHECK_EQ(guest_next(g), TRAP(14));
  guest_free(g);
}

/* The client takes the count away while it answers: the registers it set hold. */
static void count_changed(void) {
  struct guest *g = START(ins_byte, GUEST_DATA, 3);
  answer(g, 1, 3, 9);
  struct kvm_regs r = guest_regs(g);
  r.rcx = 2;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), 1);
  expect_bytes(g, GUEST_DATA, 2, 9);
  CHECK_EQ(g->mem[GUEST_DATA + 2], 0);
  guest_free(g);
}

static void output(void) {
  struct guest *g = START(outs_byte, GUEST_DATA, 3);
  for (u8 k = 0; k < 3; k++) g->mem[GUEST_DATA + k] = k;
  for (u8 k = 0; k < 3; k++) {
    CHECK_EQ(guest_run(g), 0);
    CHECK_EQ(g->run->exit_reason, KVM_EXIT_IO);
    CHECK_EQ(g->run->io.direction, KVM_EXIT_IO_OUT);
    CHECK_EQ(g->run->io.count, 1);
    CHECK_EQ(((u8 *)g->run)[g->run->io.data_offset], k);
  }
  CHECK_EQ(guest_next(g), 1);
  guest_free(g);
}

GUEST_MAIN({"within-a-page", within_a_page}, {"over-pages", over_pages}, {"downwards", downwards}, {"unmapped", unmapped},
           {"count-changed", count_changed}, {"output", output})
