/* Accesses at the edges: across two pages, across the canonical boundary, to devices. */
#include <string.h>
#include "inside.h"

#define PAGE 0x40000000ul /* two pages: the first always there */
#define BACK 0x200000ul   /* their memory */
#define P    1ull
#define W    2ull

/* ---- across two pages ---- */

static volatile u64 *pte; /* of the second page */

static void second(u64 flags) {
  *pte = (BACK + 0x1000) | flags;
  __asm__ volatile("invlpg (%0)" ::"r"(PAGE + 0x1000) : "memory");
}

static volatile u8 *byte(unsigned n) {
  return (u8 *)(uintptr_t)(BACK + 0xff0 + n);
}
static void fill(void) {
  for (unsigned n = 0; n < 32; n++) *byte(n) = (u8)(n ^ 0x55);
}
static bool untouched(void) {
  for (unsigned n = 0; n < 32; n++)
    if (*byte(n) != (n ^ 0x55)) return false;
  return true;
}

/* Each store with its last byte alone on the second page, then all but its first byte. */
#define STORE(size, text)                                                                                                        \
  do {                                                                                                                           \
    for (unsigned k_ = 1; k_ < (size); k_++) {                                                                                   \
      EXPECT_EQ(TRY(text, "r"(PAGE + 0x1000 - k_)), want | ERR_W);                                                               \
      EXPECT_EQ(fault_address, PAGE + 0x1000);                                                                                   \
      EXPECT(untouched());                                                                                                       \
    }                                                                                                                            \
  } while (0)
#define LOAD(size, text)                                                                                                         \
  do {                                                                                                                           \
    for (unsigned k_ = 1; k_ < (size); k_++) {                                                                                   \
      EXPECT_EQ(TRY(text, "r"(PAGE + 0x1000 - k_)), want);                                                                       \
      EXPECT_EQ(fault_address, PAGE + 0x1000);                                                                                   \
    }                                                                                                                            \
  } while (0)

static void stores(u32 want) {
  STORE(2, "movw %%ax, (%0)");
  STORE(4, "movl %%eax, (%0)");
  STORE(8, "movq %%rax, (%0)");
  STORE(16, "movups %%xmm0, (%0)");
  STORE(4, "lock addl $1, (%0)");
  STORE(8, "addq $1, (%0)");
  STORE(8, "xchgq %%rax, (%0)");
  STORE(4, "cmpxchgl %%ecx, (%0)");
  STORE(8, "cmpxchg8b (%0)");
  STORE(4, "incl (%0)");
  STORE(4, "btsl $1, (%0)");
  STORE(8, "lea 8(%0), %%rsp\n push $0\n");
  STORE(8, "lea 8(%0), %%rsp\n pushfq\n");
  STORE(8, "lea 8(%0), %%rsp\n call 1f\n");
  STORE(10, "sidt (%0)");
  STORE(8, "mov %0, %%rdi\n stosq");
  STORE(2, "sldt (%0)");
}

static void loads(u32 want) {
  LOAD(2, "movw (%0), %%ax");
  LOAD(4, "movl (%0), %%eax");
  LOAD(8, "movq (%0), %%rax");
  LOAD(16, "movups (%0), %%xmm0");
  LOAD(8, "cmpq %%rax, (%0)");
  LOAD(8, "mov %0, %%rsp\n pop %%rax");
  LOAD(8, "jmp *(%0)");
  LOAD(10, "lgdt (%0)");
  LOAD(8, "mov %0, %%rsi\n lodsq");
}

static void guest_crossing(void) {
  fill();
  second(0);
  stores(PF(0));
  loads(PF(0));
  second(P);
  stores(PF(ERR_P));
  /* With the second page there everything arrives. */
  second(P | W);
  for (unsigned k = 1; k < 8; k++) {
    EXPECT_EQ(TRY("mov $0x1122334455667788, %%rax\n mov %%rax, (%0)", "r"(PAGE + 0x1000 - k)), NO_FAULT);
    for (unsigned n = 0; n < 8; n++) EXPECT_EQ(*byte(16 - k + n), 0x88 - 0x11 * n);
    EXPECT_EQ(TRY("lock addq $1, (%0)", "r"(PAGE + 0x1000 - k)), NO_FAULT);
    EXPECT_EQ(*byte(16 - k), 0x89);
    EXPECT_EQ(TRY("mov (%0), %%rdx\n mov $0x1122334455667789, %%rcx\n cmp %%rdx, %%rcx\n je 1f\n ud2", "r"(PAGE + 0x1000 - k)),
              NO_FAULT);
  }
  done();
}

/* Both pages are missing: the first is told of, at the access's own address. */
static void guest_both(void) {
  volatile u64 *first = pte - 1;
  *first = 0;
  second(0);
  __asm__ volatile("invlpg (%0)" ::"r"(PAGE) : "memory");
  EXPECT_EQ(TRY("movq %%rax, (%0)", "r"(PAGE + 0xffd)), PF(ERR_W));
  EXPECT_EQ(fault_address, PAGE + 0xffd);
  EXPECT_EQ(TRY("movq (%0), %%rax", "r"(PAGE + 0xffd)), PF(0));
  EXPECT_EQ(fault_address, PAGE + 0xffd);
  done();
}

/* Repeated: what was done stays done. */
static void guest_string(void) {
  fill();
  second(0);
  EXPECT_EQ(TRY("mov %0, %%rdi\n mov $9, %%ecx\n mov $0xabababab, %%eax\n cld\n rep stosl", "r"(PAGE + 0xff2)), PF(ERR_W));
  EXPECT_EQ(fault_address, PAGE + 0x1000);
  for (unsigned n = 0; n < 32; n++) EXPECT_EQ(*byte(n), n >= 2 && n < 14 ? 0xab : n ^ 0x55);
  fill();
  EXPECT_EQ(TRY("mov %0, %%rdi\n mov $9, %%ecx\n mov %1, %%rsi\n cld\n rep movsw", "r"(PAGE + 0xff1), "r"(BACK + 0x100)),
            PF(ERR_W));
  EXPECT_EQ(fault_address, PAGE + 0x1000);
  for (unsigned n = 0; n < 32; n++) EXPECT_EQ(*byte(n), n >= 1 && n < 15 ? 0 : n ^ 0x55);
  done();
}

/* An instruction across the pages. */
static void guest_fetch(void) {
  static const u8 code[] = {0xb8, 1, 0, 0, 0, 0xc3}; /* mov $1, %eax; ret */
  second(0);
  for (unsigned k = 1; k < 5; k++) {
    for (unsigned n = 0; n < sizeof(code); n++) *byte(16 - k + n) = code[n];
    second(0);
    EXPECT_EQ(try_call(PAGE + 0x1000 - k), PF(ERR_I));
    EXPECT_EQ(fault_address, PAGE + 0x1000);
    EXPECT_EQ(fault_ip, PAGE + 0x1000 - k);
    second(P | 1ull << 63);
    EXPECT_EQ(try_call(PAGE + 0x1000 - k), PF(ERR_P | ERR_I));
    EXPECT_EQ(fault_ip, PAGE + 0x1000 - k);
    second(P);
    EXPECT_EQ(try_call(PAGE + 0x1000 - k), NO_FAULT);
  }
  done();
}

/* ---- the canonical boundary ---- */

#define SS0 FAULT(12, 0)

/* at: some or all of the bytes from there on have no canonical address. */
static void data_at(u64 at) {
  EXPECT_EQ(TRY("movl (%0), %%eax", "r"(at)), GP0);
  EXPECT_EQ(TRY("movl %%eax, (%0)", "r"(at)), GP0);
  EXPECT_EQ(TRY("lock incl (%0)", "r"(at)), GP0);
  EXPECT_EQ(TRY("movups (%0), %%xmm0", "r"(at)), GP0);
  EXPECT_EQ(TRY("movups %%xmm0, (%0)", "r"(at)), GP0);
  EXPECT_EQ(TRY("mov %0, %%rdi\n stosl", "r"(at)), GP0);
  EXPECT_EQ(TRY("mov %0, %%rsi\n lodsl", "r"(at)), GP0);
  EXPECT_EQ(TRY("sgdt (%0)", "r"(at)), GP0);
  EXPECT_EQ(TRY("fildl (%0)", "r"(at)), GP0);
  EXPECT_EQ(TRY("movl %%ss:(%0), %%eax", "r"(at)), GP0); /* the prefix is ignored in 64-bit mode */
}
static void stack_at(u64 at) {
  EXPECT_EQ(TRY("mov %0, %%rsp\n pop %%rax", "r"(at)), SS0);
  EXPECT_EQ(TRY("lea 8(%0), %%rsp\n push %%rax", "r"(at)), SS0);
  EXPECT_EQ(TRY("lea 8(%0), %%rsp\n call 1f", "r"(at)), SS0);
  EXPECT_EQ(TRY("mov %0, %%rsp\n ret", "r"(at)), SS0);
  EXPECT_EQ(TRY("mov %0, %%rsp\n movq (%%rsp), %%rax", "r"(at)), SS0);
  EXPECT_EQ(TRY("mov %0, %%rsp\n iretq", "r"(at)), SS0);
  EXPECT_EQ(TRY("mov %0, %%rbp\n leave", "r"(at)), SS0);
  EXPECT_EQ(TRY("mov %0, %%rbp\n movq %%rax, (%%rbp)", "r"(at)), SS0);
  EXPECT_EQ(TRY("mov %0, %%rbp\n movq %%ds:(%%rbp), %%rax", "r"(at)), SS0); /* nor does it make this one #GP */
}

static void jump_to(u64 at) {
  EXPECT_EQ(TRY("jmp *%0", "r"(at)), GP0);
  EXPECT(fault_ip != at);
  EXPECT_EQ(TRY("call *%0", "r"(at)), GP0);
  EXPECT(fault_ip != at);
  EXPECT_EQ(TRY("push %0\n ret", "r"(at)), GP0);
  EXPECT(fault_ip != at);
}

static void boundary(u64 edge) {
  data_at(edge);
  data_at(edge - 1);
  data_at(edge - 3);
  data_at(-edge - 4);
  stack_at(edge);
  stack_at(edge - 4);
  stack_at(-edge - 8);
  jump_to(edge);
  jump_to(-edge - 1);
  EXPECT_EQ(TRY("movl -4(%0), %%eax", "r"(edge - 0x1000)), PF(0)); /* wholly below, not mapped */
  EXPECT_EQ(TRY("movl (%0), %%eax", "r"(-edge)), PF(0));
}

#define EDGE48 0x800000000000ul
#define EDGE57 0x100000000000000ul
#define TOP    (EDGE48 - 0x1000) /* mapped */

/* The end of the last page below. */
static void run_off(void) {
  volatile u8 *code = (u8 *)(uintptr_t)(BACK + 0xff0);
  for (unsigned n = 0; n < 16; n++) code[n] = 0x90;
  EXPECT_EQ(try_call(TOP + 0xff8), GP0);
  EXPECT_EQ(fault_ip, EDGE48);
  code[15] = 0xb8; /* mov imm, %eax: its rest would be beyond */
  EXPECT_EQ(try_call(TOP + 0xff8), GP0);
  EXPECT_EQ(fault_ip, EDGE48 - 1);
}

static void guest_canonical(void) {
  boundary(EDGE48);
  run_off();
  EXPECT_EQ(TRY("mov %0, %%rax\n movq (%%rax), %%rax", "r"(-4ul)), PF(0)); /* wraps from one canonical half to the other */
  EXPECT_EQ(fault_address, -4ul);
  done();
}
static void guest_canonical57(void) {
  boundary(EDGE57);
  EXPECT_EQ(try_read(EDGE48), PF(0));
  EXPECT_EQ(try_read(-EDGE48 - 1), PF(0));
  done();
}

/* ---- host side ---- */

static struct guest *start(void (*f)(void)) {
  struct guest *g = inside_start(f);
  guest_map(g, PAGE, BACK, 0x2000, P_W);
  guest_map(g, TOP, BACK, 0x1000, P_W);
  u64 table = g->cr3;
  for (unsigned shift = 39; shift > 12; shift -= 9) table = guest_read(g, table + 8 * (PAGE >> shift & 511), 8) & ~0xfffull;
  pte = (u64 *)(uintptr_t)(table + 8 * 1);
  return g;
}

#define INSIDE(name)                                                                                                             \
  static void run_##name(void) {                                                                                                 \
    struct guest *g = start(guest_##name);                                                                                       \
    inside_run(g);                                                                                                               \
  }
INSIDE(crossing)
INSIDE(both)
INSIDE(string)
INSIDE(fetch)
INSIDE(canonical)

/* A fifth level above the tables. */
static void run_canonical57(void) {
  struct guest *g = start(guest_canonical57);
  if (!guest_supports(g, 7, 2, 16)) {
    guest_free(g);
    return;
  }
  struct kvm_sregs s = guest_sregs(g);
  guest_write(g, 0x3ff000, 8, g->cr3 | 7);
  s.cr3 = 0x3ff000;
  s.cr4 |= 0x1000;
  guest_set_sregs(g, &s);
  inside_run(g);
}

GUEST_MAIN({"crossing", run_crossing}, {"both", run_both}, {"string", run_string}, {"fetch", run_fetch},
           {"canonical", run_canonical}, {"canonical-57", run_canonical57})
