/* Exits on bus locks (KVM_CAP_X86_BUS_LOCK_EXIT, api.rst 7.22): locked operations across a cache line, and nothing else; the flag
 * in kvm_run where another exit comes first. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include "harness.h"

#define LINE  (GUEST_DATA + 64) /* RBX; the operands begin 4 bytes before it, or 1 for the small ones */
#define PAGE2 (GUEST_DATA + 0x1000)

static struct guest *start(u64 mode) {
  struct guest *g = guest_new_cap(KVM_CAP_X86_BUS_LOCK_EXIT, mode);
  guest_long(g, GUEST_CODE);
  return g;
}

/* `code` with RBX at a line's (or page's) start, then a report. */
static void load(struct guest *g, const u8 *code, size_t size, u64 rbx) {
  guest_load(g, GUEST_CODE, code, size);
  guest_load(g, GUEST_CODE + size, (const u8[]){0xb0, 1, 0xe6, GUEST_PORT}, 4);
  struct kvm_regs r = guest_regs(g);
  r.rip = GUEST_CODE;
  r.rax = 0x1122334455667788, r.rbx = rbx, r.rcx = 1, r.rdx = 5;
  r.rflags = 2;
  guest_set_regs(g, &r);
}

static const struct row {
  const char *name;
  u8 code[8], len;
  bool locks;
} rows[] = {
    {"lock addl", {0xf0, 0x01, 0x4b, 0xfe}, 4, true},                    /* lock add %ecx, -2(%rbx) */
    {"lock incw", {0x66, 0xf0, 0xff, 0x43, 0xff}, 5, true},              /* lock incw -1(%rbx) */
    {"lock xaddq", {0xf0, 0x48, 0x0f, 0xc1, 0x4b, 0xf9}, 6, true},       /* lock xadd %rcx, -7(%rbx) */
    {"lock cmpxchgl", {0xf0, 0x0f, 0xb1, 0x4b, 0xfd}, 5, true},          /* not equal: it locks all the same */
    {"lock cmpxchg8b", {0xf0, 0x0f, 0xc7, 0x4b, 0xfc}, 5, true},         /* */
    {"lock btsl", {0xf0, 0x0f, 0xba, 0x6b, 0xfe, 3}, 6, true},           /* lock btsl $3, -2(%rbx) */
    {"lock notq", {0xf0, 0x48, 0xf7, 0x53, 0xfc}, 5, true},              /* */
    {"xchgl", {0x87, 0x4b, 0xff}, 3, true},                              /* locks without the prefix */
    {"addl", {0x01, 0x4b, 0xfe}, 3, false},                              /* not locked */
    {"movq", {0x48, 0x89, 0x43, 0xfc}, 4, false},                        /* */
    {"lock addl to the line's end", {0xf0, 0x01, 0x4b, 0xfc}, 4, false}, /* */
    {"lock addl in the next line", {0xf0, 0x01, 0x0b}, 3, false},        /* */
    {"lock incb", {0xf0, 0xfe, 0x43, 0xff}, 4, false},                   /* */
    {"xchg of registers", {0x48, 0x87, 0xca}, 3, false},                 /* */
};

static void one(struct guest *g, const struct row *row, u64 rbx) {
  u8 before[64];
  load(g, row->code, row->len, rbx);
  memcpy(before, g->mem + rbx - 32, sizeof(before));
  unsigned r = guest_next(g);
  CHECK_EQ(r, row->locks ? EXIT(KVM_EXIT_X86_BUS_LOCK) : 1);
  CHECK_EQ(g->run->flags, row->locks ? KVM_RUN_X86_BUS_LOCK : 0);
  if (!row->locks) return;
  CHECK_EQ(guest_regs(g).rip, GUEST_CODE + row->len); /* it is done */
  if (!strstr(row->name, "cmpxchg")) CHECK(memcmp(before, g->mem + rbx - 32, sizeof(before)));
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(g->run->flags, 0); /* of one exit only */
}

static void which(void) {
  struct guest *g = start(KVM_BUS_LOCK_DETECTION_EXIT);
  for (unsigned k = 0; k < sizeof(rows) / sizeof(rows[0]); k++) {
    one(g, &rows[k], LINE);
    one(g, &rows[k], PAGE2);
  }
  guest_free(g);
}

static void without(u64 mode) {
  struct guest *g = start(mode);
  load(g, rows[0].code, rows[0].len, LINE);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(g->run->flags, 0);
  guest_free(g);
}

static void modes(void) {
  struct guest *g = guest_new();
  CHECK_EQ(guest_ioctl(g->sys, KVM_CHECK_EXTENSION, (void *)KVM_CAP_X86_BUS_LOCK_EXIT), 3);
  CHECK_EQ(guest_enable(g, KVM_CAP_X86_BUS_LOCK_EXIT, 3), -1);
  CHECK_EQ(errno, EINVAL);
  CHECK_EQ(guest_enable(g, KVM_CAP_X86_BUS_LOCK_EXIT, 4), -1);
  CHECK_EQ(errno, EINVAL);
  CHECK_EQ(guest_enable(g, KVM_CAP_X86_BUS_LOCK_EXIT, 1ull << 32), -1);
  guest_free(g);
  without(0);
  without(KVM_BUS_LOCK_DETECTION_OFF);
  g = start(KVM_BUS_LOCK_DETECTION_EXIT);
  CHECK_EQ(guest_enable(g, KVM_CAP_X86_BUS_LOCK_EXIT, KVM_BUS_LOCK_DETECTION_OFF), 0);
  one(g, &rows[0], LINE); /* as in Linux 6.1, what was switched on stays on */
  guest_free(g);
}

/* Hot code: every one of them, and none of those within a line. */
GUEST_BLOB(loop, "1: lock incl -2(%rbx)\n lock incl 16(%rbx)\n lock incl 20(%rbx)\n dec %ecx\n jnz 1b\n" REPORT(1));
#define ROUNDS 5000

static void hot(void) {
  struct guest *g = start(KVM_BUS_LOCK_DETECTION_EXIT);
  guest_load_blob(g, loop);
  struct kvm_regs r = guest_regs(g);
  r.rbx = LINE, r.rcx = ROUNDS;
  guest_set_regs(g, &r);
  unsigned exits = 0, last;
  while ((last = guest_next(g)) == EXIT(KVM_EXIT_X86_BUS_LOCK)) exits++;
  CHECK_EQ(last, 1);
  CHECK_EQ(exits, ROUNDS);
  CHECK_EQ(guest_read(g, LINE - 2, 4), ROUNDS);
  CHECK_EQ(guest_read(g, LINE + 16, 4), ROUNDS);
  CHECK_EQ(guest_read(g, LINE + 20, 4), ROUNDS);
  guest_free(g);
}

/* A debug exit for the same instruction comes first and tells of the lock. */
static void with_debug(void) {
  struct guest *g = start(KVM_BUS_LOCK_DETECTION_EXIT);
  struct kvm_guest_debug d = {.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP};
  load(g, rows[0].code, rows[0].len, LINE);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_GUEST_DEBUG, &d), 0);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_DEBUG));
  CHECK_EQ(g->run->flags, KVM_RUN_X86_BUS_LOCK);
  CHECK_EQ(guest_regs(g).rip, GUEST_CODE + rows[0].len);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_DEBUG));
  CHECK_EQ(g->run->flags, 0);
  guest_free(g);
}

/* The guest's own trap: the handler has not begun when the client hears of the lock. */
static void with_trap(void) {
  struct guest *g = start(KVM_BUS_LOCK_DETECTION_EXIT);
  load(g, rows[0].code, rows[0].len, LINE);
  struct kvm_regs r = guest_regs(g);
  r.rflags |= 0x100;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_X86_BUS_LOCK));
  CHECK_EQ(guest_next(g), TRAP(1));
  CHECK_EQ(guest_stack(g, 0, 8), GUEST_CODE + rows[0].len);
  guest_free(g);
}

/* What faults has not locked; a device is not memory. */
static void no_memory(void) {
  struct guest *g = start(KVM_BUS_LOCK_DETECTION_EXIT);
  load(g, rows[0].code, rows[0].len, 0x50001000); /* not mapped */
  CHECK_EQ(guest_next(g), TRAP(14));
  CHECK_EQ(g->run->flags, 0);
  guest_map(g, 0x50000000, 0xd0000000, 0x2000, P_W);
  load(g, rows[0].code, rows[0].len, 0x50000040);
  unsigned r;
  for (unsigned n = 0; (r = guest_next(g)) == EXIT(KVM_EXIT_MMIO) && n < 16; n++) CHECK_EQ(g->run->flags, 0);
  CHECK_EQ(r, 1);
  guest_free(g);
}

GUEST_MAIN({"which", which}, {"modes", modes}, {"hot", hot}, {"with-debug", with_debug}, {"with-trap", with_trap},
           {"no-memory", no_memory})
