/* 16-bit code that runs often enough to be translated: segments with bases and limits, offsets, stack and instruction pointers
 * that go round at 64 KiB, loads of segment registers, written code; in real, virtual-8086 and protected mode. */
#include <string.h>
#include "harness.h"

#define VM    0x20000u
#define IOPL3 0x3000u

/* Linear 0x8000 by segments that begin with a page, and otherwise. */
static const u16 segments[] = {0, 0x800, 0x7ff, 0x7f1, 0x3c0};
#define N_SEGMENTS (sizeof(segments) / sizeof(segments[0]))

static struct guest *real(const u8 *start, const u8 *end, u16 cs) {
  struct guest *g = guest_new();
  guest_load(g, GUEST_CODE, start, (size_t)(end - start));
  guest_real(g, cs, (u16)(GUEST_CODE - cs * 16));
  return g;
}
#define REAL(name, cs) real(name##_start, name##_end, cs)
#define SEGMENTS                                                                                                                 \
  "mov $0x1001, %ax\n mov %ax, %ds\n mov $0x2000, %ax\n mov %ax, %es\n mov $0x3000, %ax\n mov %ax, %ss\n mov $0x8000, %sp\n"

/* ---- memory, calls, the stack ---- */

GUEST_BLOB(memory, ".code16\n" SEGMENTS /* */
                   "xor %ax, %ax\n mov $300, %cx\n"
                   "1: mov %cx, %bx\n shl $1, %bx\n mov %cx, 2(%bx)\n add 2(%bx), %ax\n mov %bx, %si\n add %cx, %es:0x100(%si)\n"
                   "incw %cs:0x7000\n mov %sp, %bp\n push %cx\n xor %cx, -2(%bp)\n pop %dx\n or %dx, %di\n dec %cx\n jnz 1b\n"
                   "mov %ax, %bx\n" REPORT(1));

static void memory(void) {
  for (unsigned k = 0; k < N_SEGMENTS; k++) {
    struct guest *g = REAL(memory, segments[k]);
    u64 counter = segments[k] * 16u + 0x7000;
    guest_write(g, counter, 2, 0xfff0);
    CHECK_EQ(guest_next(g), 1);
    CHECK_EQ(guest_regs(g).rbx & 0xffff, 45150); /* 1 + ... + 300 */
    CHECK_EQ(guest_regs(g).rdi & 0xffff, 0);
    CHECK_EQ(guest_regs(g).rsp & 0xffff, 0x8000);
    CHECK_EQ(guest_read(g, counter, 2), (0xfff0 + 300) & 0xffff);
    for (u64 n = 1; n <= 300; n++) {
      CHECK_EQ(guest_read(g, 0x10010 + 2 * n + 2, 2), n);
      CHECK_EQ(guest_read(g, 0x20000 + 2 * n + 0x100, 2), n);
    }
    guest_free(g);
  }
}

/* SP goes round between two pushes; what is above it in ESP stays. */
GUEST_BLOB(wrap, ".code16\n" SEGMENTS /* */
                 "mov $0x12340004, %esp\n mov $100, %cx\n xor %eax, %eax\n"
                 "1: pushl %ecx\n push %cx\n call 2f\n pop %dx\n add %dx, %ax\n popl %edx\n add %edx, %eax\n loop 1b\n"
                 "mov %eax, %ebx\n" REPORT(1) "2: push %bp\n mov %sp, %bp\n mov 4(%bp), %si\n add %si, %di\n leave\n ret $0\n");

static void stack_wraps(void) {
  for (unsigned k = 0; k < N_SEGMENTS; k++) {
    struct guest *g = REAL(wrap, segments[k]);
    CHECK_EQ(guest_next(g), 1);
    CHECK_EQ(guest_regs(g).rbx, 10100);
    CHECK_EQ(guest_regs(g).rdi & 0xffff, 5050);
    CHECK_EQ(guest_regs(g).rsp, 0x12340004);
    CHECK_EQ(guest_read(g, 0x3fffe, 2), 1);
    CHECK_EQ(guest_read(g, 0x30000, 4), 1);
    guest_free(g);
  }
}

/* Half an operand at the end of the segment: #GP each time; the handler goes on behind it. */
GUEST_BLOB(offset,
           ".code16\n" SEGMENTS /* */
           "mov $200, %cx\n xor %dx, %dx\n"
           "1: mov $0xfffe, %bx\n mov %cx, (%bx)\n add (%bx), %dx\n inc %bx\n movb $7, (%bx)\n mov (%bx), %si\n add 0xff(%bx), "
           "%dx\n loop 1b\n" REPORT(1) "handler: push %bp\n mov %sp, %bp\n addw $2, 2(%bp)\n incw %cs:0x7000\n pop %bp\n iret\n");

static void offset_wraps(void) {
  struct guest *g = REAL(offset, 0x800);
  extern const u8 handler[];
  guest_write(g, 4 * 13, 4, 0x8000000 | (u64)(handler - offset_start));
  guest_write(g, 0xf000, 2, 0);
  guest_write(g, 0x10010 + 0xfe, 2, 3); /* FFFFh + FFh */
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_read(g, 0xf000, 2), 200);
  CHECK_EQ(guest_regs(g).rdx & 0xffff, (20100 + 600) & 0xffff);
  CHECK_EQ(guest_read(g, 0x2000e, 2), 0x0701);
  guest_free(g);
}

/* ---- segment registers ---- */

GUEST_BLOB(loads, ".code16\n" SEGMENTS /* */
                  "mov $200, %cx\n xor %dx, %dx\n xor %di, %di\n"
                  "1: mov %cx, %ax\n add $0x4000, %ax\n mov %ax, %ds\n mov %cx, 2\n mov %ds, 4\n mov %cx, %bp\n mov %bp, 0\n"
                  "push %ds\n pop %es\n add %es:2, %dx\n lds 2, %bx\n add %bx, %di\n mov %ds, %si\n sub %ax, %si\n jnz 2f\n"
                  "mov %ax, %fs\n add %fs:0, %dx\n mov 4, %gs\n add %gs:2, %dx\n loop 1b\n" REPORT(1) "2:" REPORT(2));

static void check_loads(struct guest *g, unsigned dpl) {
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_regs(g).rdi & 0xffff, 20100);
  CHECK_EQ(guest_regs(g).rdx & 0xffff, 60300);
  struct kvm_sregs s = guest_sregs(g);
  struct kvm_segment all[] = {s.ds, s.es, s.fs, s.gs};
  for (unsigned n = 0; n < 4; n++) {
    CHECK_EQ(all[n].selector, 0x4001);
    CHECK_EQ(all[n].base, 0x40010);
    CHECK_EQ(all[n].limit, 0xffff);
    CHECK_EQ(all[n].type, 3);
    CHECK_EQ(all[n].s, 1);
    CHECK_EQ(all[n].present, 1);
    CHECK_EQ(all[n].dpl, dpl);
    CHECK_EQ(all[n].unusable | all[n].l | all[n].db, 0);
  }
  for (u64 n = 1; n <= 200; n++) CHECK_EQ(guest_read(g, 0x40000 + 16 * n, 2), n);
  guest_free(g);
}

static void segment_loads(void) {
  for (unsigned k = 0; k < N_SEGMENTS; k++) check_loads(REAL(loads, segments[k]), 0);
}

static struct guest *v86(const u8 *start, const u8 *end, u32 flags) {
  static const u8 iret[] = {0xcf};
  struct guest *g = guest_new();
  guest_protected(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, iret, sizeof(iret));
  guest_load(g, 0x50000, start, (size_t)(end - start));
  u32 frame[9] = {0x10, 0x4fff, VM | 2 | flags, 0xf00, 0x3000, 0x1111, 0x2222, 0x3333, 0x4444};
  struct kvm_regs r = guest_regs(g);
  r.rsp = GUEST_STACK0 - sizeof(frame);
  guest_load(g, r.rsp, frame, sizeof(frame));
  guest_set_regs(g, &r);
  return g;
}
#define V86(name, flags) v86(name##_start, name##_end, flags)

static void segment_loads_v86(void) {
  check_loads(V86(loads, 0), 3);
}

/* PUSHF by IOPL: after some rounds it may not. */
GUEST_BLOB(pushf, ".code16\n"
                  "mov $100, %cx\n 1: cmp $1, %cx\n pushf\n pop %ax\n xor %ax, %dx\n loop 1b\n" REPORT(1));

static void pushf_v86(void) {
  struct guest *g = V86(pushf, IOPL3);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_regs(g).rsp, 0xf00);
  guest_free(g);
  g = V86(pushf, 0);
  CHECK_EQ(guest_next(g), TRAP(13));
  guest_free(g);
}

/* ---- code ---- */

/* The same bytes by two code segments in turn: each has its own instruction pointers. */
GUEST_BLOB(shared, ".code16\n" SEGMENTS /* */
                   "mov $300, %cx\n xor %dx, %dx\n xor %di, %di\n"
                   "1: lcall $0x800, $2f - shared_start\n lcall $0x7e5, $2f - shared_start + 0x1b0\n loop 1b\n" REPORT(
                       1) "2: mov $3, %si\n 3: call shared_four\n shared_four: pop %ax\n call 5f\n dec %si\n jnz 3b\n lret\n 5: "
                          "add %ax, %dx\n adc $0, %di\n ret\n");

static void shared_code(void) {
  extern const u8 shared_four[];
  struct guest *g = REAL(shared, 0x800);
  u32 ip = (u32)(shared_four - shared_start), sum = 900 * ip + 900 * (ip + 0x1b0);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ((guest_regs(g).rdi & 0xffff) << 16 | (guest_regs(g).rdx & 0xffff), sum);
  guest_free(g);
}

/* A jump over the end of the segment, whose target would be in the same page if it did not go round. */
static void ip_wraps(u32 base) {
  static const u8 high[] = {0x43, 0xeb, 0x1d},                      /* fff0: inc bx; jmp 0010 */
      low[] = {0x01, 0xd8, 0x49, 0x74, 3,    0xe9,      0xd8, 0xff, /* 0010: add ax, bx; dec cx; jz 0018; jmp fff0 */
               0x89, 0xc2, 0xb0, 1,    0xe6, GUEST_PORT},           /* 0018: mov dx, ax; report 1 */
      not_here[] = {0xb0, 9, 0xe6, GUEST_PORT};
  struct guest *g = guest_new();
  guest_load(g, base + 0xfff0, high, sizeof(high));
  guest_load(g, base + 0x10, low, sizeof(low));
  guest_load(g, base + 0x10010, not_here, sizeof(not_here));
  guest_real(g, (u16)(base >> 4), 0xfff0);
  struct kvm_regs r = guest_regs(g);
  r.rax = r.rbx = 0;
  r.rcx = 200;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_regs(g).rdx & 0xffff, 20100);
  guest_free(g);
}
static void ip(void) {
  ip_wraps(0x10000);
  ip_wraps(0x10800);
  ip_wraps(0x10ff0);
}

/* Each round changes an instruction of the loop, before and behind the store, and one of another block. */
GUEST_BLOB(written,
           ".code16\n" SEGMENTS /* */
           "mov $200, %cx\n xor %dx, %dx\n xor %di, %di\n"
           "1: mov $0, %bx\n 2: add %bx, %dx\n mov %cx, %cs:1b + 1 - written_start\n mov %cx, %cs:3f + 1 - written_start\n 3: "
           "mov $0, %bx\n add %bx, %di\n"
           "mov %cx, %cs:5f + 1 - written_start\n call 5f\n add %ax, %di\n loop 1b\n" REPORT(1) "5: mov $0, %ax\n ret\n");

static void written_code(void) {
  struct guest *g = REAL(written, 0x800);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_regs(g).rdx & 0xffff, 20100 - 1);
  CHECK_EQ(guest_regs(g).rdi & 0xffff, 40200);
  guest_free(g);
}

/* ---- string instructions, both directions and sizes of addresses ---- */

GUEST_BLOB(strings, ".code16\n" SEGMENTS /* */
                    "mov $150, %cx\n mov $0xffd0, %si\n mov $0xff80, %di\n cld\n"
                    "1: lodsw\n add %ax, %dx\n stosb\n movsb\n stosw\n cmp $100, %cx\n jne 2f\n std\n 2: cmp $60, %cx\n jne 3f\n "
                    "cld\n 3: loop 1b\n cld\n" REPORT(1));

static void string_instructions(void) {
  struct guest *g = REAL(strings, 0x800);
  u8 ds[0x10000], es[0x10000];
  for (unsigned n = 0; n < 0x10000; n++) ds[n] = (u8)(n * 7 + (n >> 8)), es[n] = (u8)(n >> 3);
  guest_load(g, 0x40000, ds, sizeof(ds));
  guest_load(g, 0x50000, es, sizeof(es));
  struct kvm_sregs s = guest_sregs(g);
  guest_set_sregs(g, &s);
  guest_write(g, GUEST_CODE + 1, 2, 0x4000); /* DS */
  guest_write(g, GUEST_CODE + 6, 2, 0x5000); /* ES */
  u16 si = 0xffd0, di = 0xff80, dx = (u16)guest_regs(g).rdx, by = 1;
  for (unsigned cx = 150; cx; cx--) {
    u16 ax = (u16)(ds[si] | ds[(u16)(si + 1)] << 8);
    si = (u16)(si + 2 * by);
    dx = (u16)(dx + ax);
    es[di] = (u8)ax, di = (u16)(di + by);
    es[di] = ds[si], di = (u16)(di + by), si = (u16)(si + by);
    es[di] = (u8)ax, es[(u16)(di + 1)] = (u8)(ax >> 8), di = (u16)(di + 2 * by);
    if (cx == 100) by = 0xffff;
    if (cx == 60) by = 1;
  }
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_regs(g).rsi & 0xffff, si);
  CHECK_EQ(guest_regs(g).rdi & 0xffff, di);
  CHECK_EQ(guest_regs(g).rdx & 0xffff, dx);
  CHECK_EQ(memcmp(g->mem + 0x50000, es, sizeof(es)), 0);
  guest_free(g);
}

/* ---- real mode with limits of protected mode ---- */

GUEST_BLOB(beyond, ".code16\n"
                   "mov $100, %cx\n xor %eax, %eax\n mov $0x200000, %ebx\n"
                   "1: mov %ecx, (%ebx)\n add (%ebx), %eax\n add $4, %ebx\n loop 1b\n mov %eax, %edx\n" REPORT(1));

static void beyond_64k(void) {
  struct guest *g = REAL(beyond, 0x800);
  struct kvm_sregs s = guest_sregs(g);
  s.ds.limit = 0xffffffff;
  s.ds.g = 1;
  guest_set_sregs(g, &s);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_regs(g).rdx & 0xffff, 5050);
  CHECK_EQ(guest_read(g, 0x200000 + 4 * 99, 2), 1);
  guest_free(g);
}

/* ---- protected mode ---- */

/* 16-bit segments of one's own; code at GUEST_CODE. */
static struct guest *protected16(const u8 *code, unsigned size, u32 code_limit, u32 data_base, u32 data_limit,
                                 unsigned data_access) {
  static const u8 far[] = {0xea, 0, 0, 0, 0, SEL_FREE, 0};
  struct guest *g = guest_new();
  guest_protected(g, 0x20000);
  guest_load(g, 0x20000, far, sizeof(far));
  guest_load(g, GUEST_CODE, code, size);
  guest_gdt(g, SEL_FREE, GUEST_CODE, code_limit, D_CODE, 0);
  guest_gdt(g, SEL_FREE + 8, data_base, data_limit, data_access, 0);
  guest_gdt(g, SEL_FREE + 16, 0x30000, 0xffff, D_DATA, 0);
  struct kvm_regs r = guest_regs(g);
  r.rax = r.rbx = r.rcx = r.rdx = 0;
  r.rsp = 0xff00;
  guest_set_regs(g, &r);
  return g;
}
#define LOADS 0xb8, (SEL_FREE + 16), 0, 0x8e, 0xd0, 0xb8, (SEL_FREE + 8), 0, 0x8e, 0xd8, 0x31, 0xc0 /* ss, ds; xor ax, ax */
static const u8 LOADS_BYTES[] = {LOADS};

/* A branch to behind the limit, and code that ends with it. */
static void code_limit(void) {
  static const u8 taken[] = {LOADS, 0x40, 0x3d, 100,  0,   0x74,
                             3,     0xeb, 0xf8, 0x90, 0x90}, /* 1: inc ax; cmp ax, 100; je 2f; jmp 1b */
      called[] = {LOADS, 0x40, 0x3d, 100,  0,   0x75,
                  0xfa,  0xe8, 0x00, 0x01, 0x90}, /* 1: inc ax; cmp ax, 100; jne 1b; call far ahead */
      through[] = {LOADS, 0x40, 0x3d, 100, 0, 0x75, 0xfa};
  struct guest *g = protected16(taken, sizeof(taken), sizeof(LOADS_BYTES) + 7, 0, 0xffff, D_DATA);
  CHECK_EQ(guest_next(g), TRAP(13));
  CHECK_EQ(guest_regs(g).rax, 100);
  CHECK_EQ(guest_stack(g, 1, 4), sizeof(LOADS_BYTES) + 4);
  guest_free(g);
  g = protected16(called, sizeof(called), sizeof(LOADS_BYTES) + 0x20, 0, 0xffff, D_DATA);
  CHECK_EQ(guest_next(g), TRAP(13));
  CHECK_EQ(guest_regs(g).rax, 100);
  CHECK_EQ(guest_stack(g, 1, 4), sizeof(LOADS_BYTES) + 6);
  guest_free(g);
  g = protected16(through, sizeof(through), sizeof(LOADS_BYTES) + 5, 0, 0xffff, D_DATA);
  CHECK_EQ(guest_next(g), TRAP(13));
  CHECK_EQ(guest_regs(g).rax, 100);
  CHECK_EQ(guest_stack(g, 1, 4), sizeof(LOADS_BYTES) + 6);
  guest_free(g);
}

/* Stores (or loads) words at rising offsets until one is refused: AX counts. */
static unsigned reach(bool store, u32 limit, unsigned access, u16 from) {
  u8 code[] = {LOADS, 0xbb, 0,    0, 0x40, 0x89,
               0x17,  0x83, 0xc3, 2, 0xeb, 0xf8}; /* mov bx, from; 1: inc ax; mov [bx], dx; add bx, 2; jmp 1b */
  code[sizeof(LOADS_BYTES) + 1] = from & 0xff;
  code[sizeof(LOADS_BYTES) + 2] = (u8)(from >> 8);
  code[sizeof(LOADS_BYTES) + 4] = store ? 0x89 : 0x8b;
  struct guest *g = protected16(code, sizeof(code), 0xffff, 0x12345, limit, access);
  unsigned got = guest_next(g), n = (unsigned)guest_regs(g).rax & 0xffff;
  CHECK_EQ(got, TRAP(13));
  CHECK_EQ(guest_stack(g, 0, 4), 0);
  CHECK_EQ(guest_stack(g, 1, 4), sizeof(LOADS_BYTES) + 4);
  CHECK_EQ(guest_regs(g).rbx & 0xffff, (from + 2 * (n - 1)) & 0xffff);
  guest_free(g);
  return n;
}

static void data_limit(void) {
  CHECK_EQ(reach(true, 0x1ff, D_DATA, 0), 0x101);
  CHECK_EQ(reach(true, 0x200, D_DATA, 0), 0x101);
  CHECK_EQ(reach(true, 0x201, D_DATA, 0), 0x102);
  CHECK_EQ(reach(false, 0x1ff, D_DATA, 0), 0x101);
  CHECK_EQ(reach(false, 0x1ff, 0x91, 0), 0x101); /* read-only */
  CHECK_EQ(reach(true, 0x1ff, 0x91, 0), 1);
  CHECK_EQ(reach(false, 0x1ff, D_CODE, 0), 0x101); /* code that may be read */
  CHECK_EQ(reach(true, 0x1ff, D_CODE, 0), 1);
  CHECK_EQ(reach(true, 0x1ff, 0x97, 0x200), 0x7f01); /* expand-down */
  CHECK_EQ(reach(true, 0x1ff, 0x97, 0x1fe), 1);
  CHECK_EQ(reach(true, 0xffff, D_DATA, 1), 0x8000);
  CHECK_EQ(reach(true, 0, D_DATA, 0), 1);
}

/* ---- 32-bit segments that are not flat ---- */

/* The loop loads ES and FS with DS and another data segment in turn, which begins 16 bytes later. */
GUEST_BLOB(
    based,
    ".code32\n"
    "mov $0x98, %eax\n mov %eax, %ss\n mov $0x90, %eax\n mov %eax, %ds\n xor %eax, %eax\n xor %edx, %edx\n mov $200, %ecx\n"
    "1: mov $0x90, %ebx\n test $1, %cl\n jz 2f\n mov $0xa0, %ebx\n 2: mov %ebx, %es\n push %ebx\n pop %fs\n mov %ecx, "
    "0x100(,%ecx,4)\n"
    "add %es:0x100(,%ecx,4), %eax\n add %fs:0x100(,%ecx,4), %edx\n call 3f\n dec %ecx\n jnz 1b\n mov %eax, %ebx\n" REPORT(
        1) "3: add %ecx, %eax\n ret\n");

static void based32(void) {
  struct guest *g = protected16(based_start, (unsigned)(based_end - based_start), 0x1000, 0x12345, 0x4ff, D_DATA);
  guest_gdt(g, SEL_FREE, GUEST_CODE, 0x1000, D_CODE, D_32);
  guest_gdt(g, SEL_FREE + 8, 0x12345, 0x4ff, D_DATA, D_32);
  guest_gdt(g, SEL_FREE + 16, 0x30000, 0xffff, D_DATA, D_32);
  guest_gdt(g, SEL_FREE + 24, 0x12345 + 16, 0x4ff, D_DATA, D_32);
  CHECK_EQ(guest_next(g), 1);
  /* Even ones find themselves, odd ones what was written four rounds before. */
  u32 sum = 0;
  for (u32 n = 200; n; n--) sum += n & 1 ? (n + 4 > 200 ? 0 : n + 4) : n;
  CHECK_EQ(guest_regs(g).rdx, sum);
  CHECK_EQ(guest_regs(g).rbx, sum + 20100);
  CHECK_EQ(guest_regs(g).rsp, 0xff00);
  guest_free(g);
}

/* The same loop on behind the limit of DS. */
static void limit32(void) {
  static const u8 code[] = {0xb8, SEL_FREE + 8, 0,    0,    0,    0x8e,
                            0xd8, 0x31,         0xc0, 0x31, 0xdb, /* ds; xor eax, eax; xor ebx, ebx */
                            0x40, 0x89,         0x1c, 0x9d, 0xfc, 0xff,
                            0xff, 0xff,         0x43, 0xeb, 0xf5}; /* 1: inc eax; mov [ebx * 4 - 4], ebx; inc ebx; jmp 1b */
  for (unsigned wraps = 0; wraps < 2; wraps++) {
    struct guest *g = protected16(code, sizeof(code), 0x1000, 0x12345, 0x4ff, D_DATA);
    guest_gdt(g, SEL_FREE, GUEST_CODE, 0x1000, D_CODE, D_32);
    guest_gdt(g, SEL_FREE + 8, 0x12345, 0x4fe, D_DATA, D_32);
    g->mem[GUEST_CODE + 10] = wraps ? 0xdb : 0xc9; /* xor ecx, ecx: EBX starts at 1 */
    struct kvm_regs r = guest_regs(g);
    r.rbx = 1;
    guest_set_regs(g, &r);
    CHECK_EQ(guest_next(g), TRAP(13));
    CHECK_EQ(guest_regs(g).rax, wraps ? 1 : 0x140);
    CHECK_EQ(guest_stack(g, 1, 4), 12);
    guest_free(g);
  }
}

GUEST_MAIN({"memory", memory}, {"stack_wraps", stack_wraps}, {"offset_wraps", offset_wraps}, {"segment_loads", segment_loads},
           {"segment_loads_v86", segment_loads_v86}, {"pushf_v86", pushf_v86}, {"shared_code", shared_code}, {"ip", ip},
           {"written_code", written_code}, {"string_instructions", string_instructions}, {"beyond_64k", beyond_64k},
           {"code_limit", code_limit}, {"data_limit", data_limit}, {"based32", based32}, {"limit32", limit32})
