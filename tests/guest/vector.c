/* SSE to AVX-512 as system software sees them: what enables them, exceptions, upper parts of registers, operands across pages
 * that are not there and on devices, state through the ioctls.  What they compute is the differential's business (tests/diff). */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include "inside.h"

#define UD FAULT(6, 0)
#define NM FAULT(7, 0)
#define XM FAULT(19, 0)

#define CR0_EM         4ull
#define CR0_TS         8ull
#define CR4_OSFXSR     0x200ull
#define CR4_OSXMMEXCPT 0x400ull
#define CR4_OSXSAVE    0x40000ull
#define CR4_ALL        (CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE)

#define EDGE 0x50001000ull /* a page ends here, and there is none behind it */
#define DATA (GUEST_DATA + 0x800)

static void xsetbv(u64 v) {
  __asm__ volatile("xsetbv" ::"a"((u32)v), "d"((u32)(v >> 32)), "c"(0));
}
static void enable(u64 xcr0) {
  write_cr0(read_cr0() & ~(CR0_EM | CR0_TS));
  write_cr4(read_cr4() | CR4_ALL);
  xsetbv(xcr0);
}
static void set_mxcsr(u32 v) {
  __asm__ volatile("ldmxcsr %0" : : "m"(v));
}
static u32 mxcsr(void) {
  u32 v;
  __asm__ volatile("stmxcsr %0" : "=m"(v));
  return v;
}

static bool has_avx512(struct guest *g) {
  return guest_supports(g, 7, 1, 16) && guest_supports(g, 7, 1, 30) && guest_supports(g, 7, 1, 31); /* F BW VL */
}

/* ---- #UD and #NM ---- */

#define SSE(text) TRY(text, "b"(DATA))
#define EM_OR_OSFXSR(text)                                                                                                       \
  do {                                                                                                                           \
    enable(7);                                                                                                                   \
    EXPECT_EQ(SSE(text), NO_FAULT);                                                                                              \
    write_cr0(read_cr0() | CR0_TS);                                                                                              \
    EXPECT_EQ(SSE(text), NM);                                                                                                    \
    write_cr0(read_cr0() | CR0_EM);                                                                                              \
    EXPECT_EQ(SSE(text), UD);                                                                                                    \
    enable(7);                                                                                                                   \
    write_cr4(read_cr4() & ~CR4_OSFXSR);                                                                                         \
    EXPECT_EQ(SSE(text), UD);                                                                                                    \
    write_cr0(read_cr0() | CR0_TS);                                                                                              \
    EXPECT_EQ(SSE(text), UD);                                                                                                    \
  } while (0)
#define XCR0_AND_OSXSAVE(text, needs, lacks)                                                                                     \
  do {                                                                                                                           \
    enable(needs);                                                                                                               \
    EXPECT_EQ(SSE(text), NO_FAULT);                                                                                              \
    write_cr4(read_cr4() & ~CR4_OSFXSR);                                                                                         \
    write_cr0(read_cr0() | CR0_EM);                                                                                              \
    EXPECT_EQ(SSE(text), NO_FAULT); /* these are SSE's */                                                                        \
    write_cr0(read_cr0() | CR0_TS);                                                                                              \
    EXPECT_EQ(SSE(text), NM);                                                                                                    \
    enable(lacks);                                                                                                               \
    EXPECT_EQ(SSE(text), UD);                                                                                                    \
    write_cr0(read_cr0() | CR0_TS);                                                                                              \
    EXPECT_EQ(SSE(text), UD);                                                                                                    \
    enable(needs);                                                                                                               \
    write_cr4(read_cr4() & ~CR4_OSXSAVE);                                                                                        \
    EXPECT_EQ(SSE(text), UD);                                                                                                    \
  } while (0)

static void guest_enabling(void) {
  EM_OR_OSFXSR("addps %%xmm1, %%xmm0");
  EM_OR_OSFXSR("movaps (%%rbx), %%xmm0");
  EM_OR_OSFXSR("stmxcsr (%%rbx)");
  EM_OR_OSFXSR("cvtpi2ps (%%rbx), %%xmm0");
  XCR0_AND_OSXSAVE("vaddps %%xmm2, %%xmm1, %%xmm0", 7, 3);
  XCR0_AND_OSXSAVE("vmovups (%%rbx), %%ymm0", 7, 1);
  XCR0_AND_OSXSAVE("vstmxcsr (%%rbx)", 7, 3);
  XCR0_AND_OSXSAVE("vzeroupper", 7, 3);
  XCR0_AND_OSXSAVE("vmaskmovps (%%rbx), %%xmm1, %%xmm0", 7, 3);
  XCR0_AND_OSXSAVE("vpgatherdd %%xmm1, (%%rbx, %%xmm2), %%xmm3", 7, 3);
  done();
}
static void enabling(void) {
  struct guest *g = inside_start(guest_enabling);
  if (guest_supports(g, 7, 1, 5))
    inside_run(g);
  else
    guest_free(g);
}

static void guest_enabling512(void) {
  XCR0_AND_OSXSAVE("vpaddd %%zmm2, %%zmm1, %%zmm0", 0xe7, 7);
  XCR0_AND_OSXSAVE("vmovups (%%rbx), %%xmm17", 0xe7, 7);
  XCR0_AND_OSXSAVE("kmovq (%%rbx), %%k1", 0xe7, 7);
  XCR0_AND_OSXSAVE("kortestw %%k1, %%k1", 0xe7, 7);
  XCR0_AND_OSXSAVE("kxnorw %%k1, %%k1, %%k1\n vpxord %%xmm1, %%xmm1, %%xmm1\n vpscatterdd %%xmm2, (%%rbx, %%xmm1)%{%%k1%}", 0xe7,
                   7);
  done();
}
static void enabling512(void) {
  struct guest *g = inside_start(guest_enabling512);
  if (has_avx512(g))
    inside_run(g);
  else
    guest_free(g);
}

/* VEX and EVEX do not exist in real-address mode: C5 and 62 are LDS and BOUND, whose register forms are undefined. */
GUEST_BLOB(real, ".code16\n .byte 0xc5, 0xf8, 0x58, 0xc1\n" REPORT(1) "handler: " REPORT(2));
static void real_mode(void) {
  struct guest *g = guest_new();
  guest_real(g, 0, GUEST_CODE);
  guest_load_blob(g, real);
  guest_write(g, 6 * 4, 4, GUEST_CODE + 8); /* #UD: the handler */
  CHECK_EQ(guest_next(g), 2);
  guest_free(g);
}

/* ---- floating-point exceptions ---- */

static u64 at(u64 where) {
  return *(volatile u64 *)(uintptr_t)where;
}
static void put(u64 where, u64 v) {
  *(volatile u64 *)(uintptr_t)where = v;
}

static void guest_exceptions(void) {
  enable(7);
  put(DATA, 0x3f800000); /* 1.0f */
  put(DATA + 8, 0);
  put(DATA + 16, 0x7f800001); /* a signalling NaN */
  put(DATA + 24, 0);
  set_mxcsr(0x1f80 & ~0x200u); /* division by zero unmasked */
  EXPECT_EQ(TRY("movups (%%rbx), %%xmm0\n xorps %%xmm1, %%xmm1\n divss %%xmm1, %%xmm0", "b"(DATA)), XM);
  EXPECT_EQ(mxcsr(), 0x1d84);
  __asm__ volatile("movss %%xmm0, (%0)" ::"r"(DATA + 64) : "memory");
  EXPECT_EQ((u32)at(DATA + 64), 0x3f800000); /* the destination is as it was */
  write_cr4(read_cr4() & ~CR4_OSXMMEXCPT);
  EXPECT_EQ(TRY("divss %%xmm1, %%xmm0", "b"(0)), UD);
  write_cr4(read_cr4() | CR4_OSXMMEXCPT);
  set_mxcsr(0x1f80);
  EXPECT_EQ(TRY("divss %%xmm1, %%xmm0", "b"(0)), NO_FAULT);
  EXPECT_EQ(mxcsr(), 0x1f84);
  /* Operands are looked at before the result is: of an unmasked invalid operand and an inexact result only the first is told. */
  set_mxcsr(0x1f80 & ~0x80u);
  put(DATA, 0x3f8000003f800001);
  EXPECT_EQ(TRY("movups (%%rbx), %%xmm0\n movups 16(%%rbx), %%xmm1\n mulps %%xmm0, %%xmm1", "b"(DATA)), XM);
  EXPECT_EQ(mxcsr(), 0x1f01);
  /* Reserved bits. */
  put(DATA, 0x11f80);
  EXPECT_EQ(TRY("ldmxcsr (%%rbx)", "b"(DATA)), GP0);
  EXPECT_EQ(mxcsr(), 0x1f01);
  /* Rounding and FTZ reach the instructions. */
  put(DATA, 0x00800000); /* the smallest normal number */
  put(DATA + 8, 0x3f000000);
  set_mxcsr(0x9f80);
  EXPECT_EQ(TRY("movss (%%rbx), %%xmm0\n mulss 8(%%rbx), %%xmm0\n movss %%xmm0, 64(%%rbx)", "b"(DATA)), NO_FAULT);
  EXPECT_EQ((u32)at(DATA + 64), 0);
  EXPECT_EQ(mxcsr(), 0x9fb0);
  set_mxcsr(0x1f80);
  EXPECT_EQ(TRY("movss (%%rbx), %%xmm0\n mulss 8(%%rbx), %%xmm0\n movss %%xmm0, 64(%%rbx)", "b"(DATA)), NO_FAULT);
  EXPECT_EQ((u32)at(DATA + 64), 0x00400000);
  EXPECT_EQ(mxcsr(), 0x1f80); /* exact: no flag while underflow is masked */
  set_mxcsr(0x1f80 & ~0x800u);
  EXPECT_EQ(TRY("movss (%%rbx), %%xmm0\n mulss 8(%%rbx), %%xmm0", "b"(DATA)), XM);
  EXPECT_EQ(mxcsr(), 0x1790);
  done();
}
static void exceptions(void) {
  struct guest *g = inside_start(guest_exceptions);
  inside_run(g);
}

/* A store with an unmasked exception leaves memory alone. */
static void guest_store_exception(void) {
  enable(7);
  put(DATA, 0x477ff000477ff000); /* 65520.0f: too large for half precision */
  put(DATA + 8, 0x477ff000477ff000);
  put(DATA + 64, 0x5a5a5a5a5a5a5a5a);
  set_mxcsr(0x1f80 & ~0x400u);
  EXPECT_EQ(TRY("vmovups (%%rbx), %%xmm0\n vcvtps2ph $0, %%xmm0, 64(%%rbx)", "b"(DATA)), XM);
  EXPECT_EQ(at(DATA + 64), 0x5a5a5a5a5a5a5a5a);
  EXPECT_EQ(mxcsr() & 8, 8);
  done();
}
static void store_exception(void) {
  struct guest *g = inside_start(guest_store_exception);
  if (guest_supports(g, 1, 2, 29))
    inside_run(g); /* F16C */
  else
    guest_free(g);
}

/* ---- upper parts ---- */

static void fill(u64 where) {
  for (unsigned n = 0; n < 8; n++) put(where + 8 * n, 0x1111111111111111ull * (n + 1));
}
static u32 parts(u64 where) { /* a bit for each word that is not zero */
  u32 bits = 0;
  for (unsigned n = 0; n < 8; n++) bits |= (u32)(at(where + 8 * n) != 0) << n;
  return bits;
}
#define PARTS_AFTER(text)                                                                                                        \
  ({                                                                                                                             \
    fill(DATA);                                                                                                                  \
    __asm__ volatile("vmovups (%0), %%zmm1\n vmovups (%0), %%zmm2\n" text "\n vmovups %%zmm1, 64(%0)" ::"b"(DATA) : "memory");   \
    parts(DATA + 64);                                                                                                            \
  })

static void guest_uppers(void) {
  enable(0xe7);
  EXPECT_EQ(PARTS_AFTER("paddd %%xmm2, %%xmm1"), 0xff); /* legacy forms keep them */
  EXPECT_EQ(PARTS_AFTER("movaps (%%rbx), %%xmm1"), 0xff);
  EXPECT_EQ(PARTS_AFTER("cvtsi2sd %%rbx, %%xmm1"), 0xff);
  EXPECT_EQ(PARTS_AFTER("vpaddd %%xmm2, %%xmm1, %%xmm1"), 0x03);
  EXPECT_EQ(PARTS_AFTER("vpaddd %%ymm2, %%ymm1, %%ymm1"), 0x0f);
  EXPECT_EQ(PARTS_AFTER("vmovd %%ebx, %%xmm1"), 0x01);
  EXPECT_EQ(PARTS_AFTER("vmovss (%%rbx), %%xmm1"), 0x01);
  EXPECT_EQ(PARTS_AFTER("vzeroupper"), 0x03);
  EXPECT_EQ(PARTS_AFTER("vzeroall"), 0);
  EXPECT_EQ(PARTS_AFTER("vzeroall\n vmovups (%%rbx), %%zmm17\n vzeroall\n vmovups %%zmm17, %%zmm1"), 0xff);
  EXPECT_EQ(PARTS_AFTER("kxorq %%k1, %%k1, %%k1\n vpaddd %%xmm2, %%xmm2, %%xmm1%{%%k1%}"), 0x03); /* merging, but not above */
  EXPECT_EQ(PARTS_AFTER("kxorq %%k1, %%k1, %%k1\n vpaddd %%zmm2, %%zmm2, %%zmm1%{%%k1%}%{z%}"), 0);
  done();
}
static void uppers(void) {
  struct guest *g = inside_start(guest_uppers);
  if (has_avx512(g))
    inside_run(g);
  else
    guest_free(g);
}

/* ---- operands at the end of what is mapped ---- */

static volatile u64 mask_arg;
#define MASKED(mask, text, where) (mask_arg = (mask), TRY("kmovq mask_arg(%%rip), %%k1\n" text, "b"((u64)(where))))

static void guest_masks(void) {
  enable(0xe7);
  for (u64 n = 0; n < 16; n++) put(EDGE - 128 + 8 * n, 0x0101010101010101ull * (n + 1));
  /* The last 20 bytes before the edge. */
  EXPECT_EQ(MASKED(0xfffff, "vmovdqu8 (%%rbx), %%zmm0%{%%k1%}%{z%}", EDGE - 20), NO_FAULT);
  EXPECT_EQ(MASKED(0x1fffff, "vmovdqu8 (%%rbx), %%zmm0%{%%k1%}%{z%}", EDGE - 20), PF(0));
  EXPECT_EQ(fault_address, EDGE);
  EXPECT_EQ(MASKED(0x1f, "vmovdqu32 (%%rbx), %%zmm0%{%%k1%}%{z%}", EDGE - 20), NO_FAULT);
  EXPECT_EQ(MASKED(0x3f, "vmovdqu32 (%%rbx), %%zmm0%{%%k1%}%{z%}", EDGE - 20), PF(0));
  EXPECT_EQ(MASKED(0, "vaddps (%%rbx), %%zmm1, %%zmm0%{%%k1%}", EDGE), NO_FAULT);
  EXPECT_EQ(MASKED(0, "vaddps (%%rbx)%{1to16%}, %%zmm1, %%zmm0%{%%k1%}", EDGE), NO_FAULT);
  EXPECT_EQ(MASKED(1, "vaddps (%%rbx)%{1to16%}, %%zmm1, %%zmm0%{%%k1%}", EDGE), PF(0));
  EXPECT_EQ(MASKED(0, "vaddss (%%rbx), %%xmm1, %%xmm0%{%%k1%}", EDGE), NO_FAULT);
  EXPECT_EQ(MASKED(0, "vpshufd $0, (%%rbx), %%zmm0%{%%k1%}", EDGE), PF(0)); /* a class without fault suppression */
  EXPECT_EQ(MASKED(0xf00f, "vpexpandd (%%rbx), %%zmm0%{%%k1%}%{z%}", EDGE - 32), NO_FAULT);
  EXPECT_EQ(MASKED(0xf01f, "vpexpandd (%%rbx), %%zmm0%{%%k1%}%{z%}", EDGE - 32), PF(0));
  /* Stores: nothing is written before all that is selected can be. */
  __asm__ volatile("vpternlogd $255, %%zmm3, %%zmm3, %%zmm3" ::: "memory");
  EXPECT_EQ(MASKED(0x1f, "vmovdqu32 %%zmm3, (%%rbx)%{%%k1%}", EDGE - 16), PF(2));
  EXPECT_EQ(at(EDGE - 16), 0x0f0f0f0f0f0f0f0f);
  EXPECT_EQ(at(EDGE - 8), 0x1010101010101010);
  EXPECT_EQ(MASKED(5, "vmovdqu32 %%zmm3, (%%rbx)%{%%k1%}", EDGE - 16), NO_FAULT);
  EXPECT_EQ(at(EDGE - 16), 0x0f0f0f0fffffffff);
  EXPECT_EQ(at(EDGE - 8), 0x10101010ffffffff);
  EXPECT_EQ(MASKED(0x8001, "vpcompressd %%zmm3, (%%rbx)%{%%k1%}", EDGE - 8), NO_FAULT);
  EXPECT_EQ(at(EDGE - 8), ~0ull);
  EXPECT_EQ(MASKED(0x8003, "vpcompressd %%zmm3, (%%rbx)%{%%k1%}", EDGE - 8), PF(2));
  done();
}
static struct guest *start_edge(void (*f)(void)) {
  struct guest *g = inside_start(f);
  guest_map(g, EDGE - 0x1000, 0x200000, 0x1000, P_W);
  return g;
}
static void masks(void) {
  struct guest *g = start_edge(guest_masks);
  if (has_avx512(g))
    inside_run(g);
  else
    guest_free(g);
}

/* What faults half way has done what its mask says, and goes on from there. */
#define INDEXED(text) TRY(text, "b"(base), "i"(DATA))
static u64 mask_left(void) {
  u64 v;
  __asm__ volatile("kmovq %%k1, %0" : "=r"(v));
  return v;
}

static void guest_gathers(void) {
  enable(0xe7);
  put(DATA, 0x0000000400000000); /* 0, 4, 8, 12 */
  put(DATA + 8, 0x0000000c00000008);
  put(EDGE - 16, 0x4444444433333333);
  put(EDGE - 8, 0x2222222211111111);
  u64 base = EDGE - 8;
  __asm__ volatile("vmovups (%0), %%xmm1\n kxnorw %%k1, %%k1, %%k1\n vpxor %%xmm0, %%xmm0, %%xmm0" ::"r"((u64)DATA) : "memory");
  EXPECT_EQ(INDEXED("vpgatherdd (%%rbx, %%xmm1), %%xmm0%{%%k1%}"), PF(0));
  EXPECT_EQ(fault_address, EDGE);
  EXPECT_EQ(mask_left() & 15, 12);
  __asm__ volatile("vmovups %%xmm0, (%0)" ::"r"((u64)DATA + 64) : "memory");
  EXPECT_EQ(at(DATA + 64), 0x2222222211111111);
  EXPECT_EQ(at(DATA + 72), 0);
  base = EDGE - 24;
  EXPECT_EQ(INDEXED("vpgatherdd (%%rbx, %%xmm1), %%xmm0%{%%k1%}\n vmovups %%xmm0, %c1+64"), NO_FAULT);
  EXPECT_EQ(mask_left(), 0);
  EXPECT_EQ(at(DATA + 64), 0x2222222211111111);
  EXPECT_EQ(at(DATA + 72), 0x4444444433333333);
  /* Scatters likewise. */
  base = EDGE - 8;
  put(EDGE - 8, 0);
  __asm__ volatile("kxnorw %k1, %k1, %k1");
  EXPECT_EQ(INDEXED("vpscatterdd %%xmm0, (%%rbx, %%xmm1)%{%%k1%}"), PF(2));
  EXPECT_EQ(fault_address, EDGE);
  EXPECT_EQ(mask_left() & 15, 12);
  EXPECT_EQ(at(EDGE - 8), 0x2222222211111111);
  done();
}
static void gathers(void) {
  struct guest *g = start_edge(guest_gathers);
  if (has_avx512(g))
    inside_run(g);
  else
    guest_free(g);
}

/* ---- devices ---- */

#define DEVICE     0x40000000ull
#define DEVICE_LIN 0x58000000ull

static void device_read(struct guest *g, u64 gpa, unsigned len, u64 answer) {
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_MMIO);
  CHECK_EQ(g->run->mmio.phys_addr, gpa);
  CHECK_EQ(g->run->mmio.len, len);
  CHECK_EQ(g->run->mmio.is_write, 0);
  memcpy(g->run->mmio.data, &answer, len);
}
static void device_write(struct guest *g, u64 gpa, unsigned len, u64 want) {
  u64 got = 0;
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_MMIO);
  CHECK_EQ(g->run->mmio.phys_addr, gpa);
  CHECK_EQ(g->run->mmio.len, len);
  CHECK_EQ(g->run->mmio.is_write, 1);
  memcpy(&got, g->run->mmio.data, len);
  CHECK_EQ(got, want);
}

static void guest_devices(void) {
  u64 base = DEVICE_LIN;
  enable(0xe7);
  put(DATA, 0x0000000400000000);
  put(DATA + 8, 0x0000000c00000008);
  EXPECT_EQ(INDEXED("vmovups (%%rbx), %%ymm0\n vmovups %%ymm0, %c1+64"), NO_FAULT);
  for (unsigned n = 0; n < 4; n++) EXPECT_EQ(at(DATA + 64 + 8 * n), 0x1000 + n);
  EXPECT_EQ(INDEXED("vmovups %%ymm0, 64(%%rbx)"), NO_FAULT);
  /* Elements of a gather are separate reads: an answer belongs to one of them. */
  EXPECT_EQ(INDEXED("vmovups %c1, %%xmm1\n mov $11, %%eax\n kmovw %%eax, %%k1\n vpxor %%xmm0, %%xmm0, %%xmm0\n"
                    "vpgatherdd (%%rbx, %%xmm1), %%xmm0%{%%k1%}\n vmovups %%xmm0, %c1+64"),
            NO_FAULT);
  EXPECT_EQ(at(DATA + 64), 0x0000002100000020);
  EXPECT_EQ(at(DATA + 72), 0x0000002300000000);
  EXPECT_EQ(INDEXED("mov $5, %%eax\n kmovw %%eax, %%k1\n vpscatterdd %%xmm0, (%%rbx, %%xmm1)%{%%k1%}"), NO_FAULT);
  EXPECT_EQ(INDEXED("mov $6, %%eax\n kmovw %%eax, %%k1\n vmovdqu32 %%xmm0, (%%rbx)%{%%k1%}"), NO_FAULT);
  done();
}
static void devices(void) {
  struct guest *g = inside_start(guest_devices);
  guest_map(g, DEVICE_LIN, DEVICE, 0x1000, P_W);
  if (has_avx512(g)) {
    for (unsigned n = 0; n < 4; n++) device_read(g, DEVICE + 8 * n, 8, 0x1000 + n);
    for (unsigned n = 0; n < 4; n++) device_write(g, DEVICE + 64 + 8 * n, 8, 0x1000 + n);
    device_read(g, DEVICE, 4, 0x20);
    device_read(g, DEVICE + 4, 4, 0x21);
    device_read(g, DEVICE + 12, 4, 0x23);
    device_write(g, DEVICE, 4, 0x20);
    device_write(g, DEVICE + 8, 4, 0);
    device_write(g, DEVICE + 4, 8, 0x21);
    CHECK_EQ(guest_next(g), DONE);
    inside_check();
  }
  guest_free(g);
}

/* ---- state ---- */

#define XSTATE_BV 512u
static const struct {
  u32 component, at, size;
} areas[] = {
    {1, 160, 256}, {2, 576, 256}, {5, 1088, 64}, {6, 1152, 512}, {7, 1664, 1024}}; /* the standard format (SDM Vol. 1, 13.4) */

static void guest_state(void) {
  enable(0xe7);
  __asm__ volatile("vmovups %%zmm5, (%0)\n vmovups %%zmm21, 64(%0)\n kmovq %%k6, 128(%0)" ::"r"((u64)DATA) : "memory");
  report(1);
  __asm__ volatile("vpaddb %zmm5, %zmm5, %zmm5\n vpaddb %zmm21, %zmm21, %zmm21\n kaddq %k6, %k6, %k6");
  done();
}

/* All of it goes in and out through KVM_SET_XSAVE and KVM_GET_XSAVE. */
static void state(void) {
  struct guest *g = inside_start(guest_state);
  struct kvm_xsave x;
  u8 *b = (u8 *)x.region;
  u64 bv = 0xe7;
  if (has_avx512(g)) {
    CHECK(guest_ioctl(g->vm, KVM_CHECK_EXTENSION, (void *)(uintptr_t)KVM_CAP_XSAVE2) >= (int)sizeof(x));
    CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_XSAVE, &x), 0);
    for (unsigned k = 0; k < sizeof(areas) / sizeof(areas[0]); k++)
      for (u32 n = 0; n < areas[k].size; n++) b[areas[k].at + n] = (u8)(areas[k].component * 37 + n * 11);
    memcpy(b + XSTATE_BV, &bv, 8);
    CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_XSAVE, &x), 0);
    CHECK_EQ(guest_next(g), 1);
    const u8 *m = g->mem + DATA;
    CHECK(!memcmp(m, b + 160 + 5 * 16, 16) && !memcmp(m + 16, b + 576 + 5 * 16, 16) && !memcmp(m + 32, b + 1152 + 5 * 32, 32));
    CHECK(!memcmp(m + 64, b + 1664 + 5 * 64, 64) && !memcmp(m + 128, b + 1088 + 6 * 8, 8));
    CHECK_EQ(guest_next(g), DONE);
    struct kvm_xsave y;
    const u8 *a = (u8 *)y.region;
    CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_XSAVE, &y), 0);
    for (u32 n = 0; n < 64; n++) CHECK_EQ(a[1664 + 5 * 64 + n], (u8)(2 * b[1664 + 5 * 64 + n]));
    for (u32 n = 0; n < 32; n++) CHECK_EQ(a[1152 + 5 * 32 + n], (u8)(2 * b[1152 + 5 * 32 + n]));
    CHECK(!memcmp(a + 1664 + 6 * 64, b + 1664 + 6 * 64, 640));
    u64 k6, was;
    memcpy(&k6, a + 1088 + 48, 8);
    memcpy(&was, b + 1088 + 48, 8);
    CHECK_EQ(k6, 2 * was);
  }
  guest_free(g);
}

/* The guest's MXCSR is the guest's, the client's is the client's, also where guest memory is gone in the middle. */
static void guest_control(void) {
  enable(7);
  set_mxcsr(0xff80); /* truncation and FTZ */
  __asm__ volatile("xorps %%xmm0, %%xmm0\n cvtsi2ss %0, %%xmm0\n divss %%xmm0, %%xmm0\n sqrtss %%xmm0, %%xmm1\n cvtsi2sd %1, "
                   "%%xmm2\n cvtsd2ss %%xmm2, %%xmm3" ::"r"(3),
                   "r"(0x7fffffff));
  report(1);
  __asm__ volatile(
      "divss %%xmm0, %%xmm3\n pcmpeqd %%xmm4, %%xmm4\n psrld $9, %%xmm4\n addss %%xmm4, %%xmm3\n movups (%0), %%xmm0" ::"r"(
          0x50000000ul));
  done();
}
static u32 guest_mxcsr(struct guest *g) {
  struct kvm_xsave x;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_XSAVE, &x), 0);
  return x.region[6];
}
static void control(void) {
  struct guest *g = inside_start(guest_control);
  u32 mine = 0x3fa0, now; /* rounding down, an old flag */
  u8 *p = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  guest_add_slot(g, 0, 0x30000000, p, 0x1000);
  guest_map(g, 0x50000000, 0x30000000, 0x1000, P_W);
  mprotect(p, 0x1000, PROT_NONE);
  __asm__ volatile("ldmxcsr %0" : : "m"(mine));
  unsigned r = guest_next(g);
  __asm__ volatile("stmxcsr %0" : "=m"(now));
  CHECK_EQ(r, 1);
  CHECK_EQ(now, mine);
  CHECK_EQ(guest_mxcsr(g), 0xffa0); /* inexact */
  CHECK_EQ(guest_run(g), -1);       /* EFAULT */
  __asm__ volatile("stmxcsr %0" : "=m"(now));
  CHECK_EQ(now, mine);
  CHECK_EQ(guest_mxcsr(g), 0xffa2); /* and a denormal operand */
  mine = 0x1f80;
  __asm__ volatile("ldmxcsr %0" : : "m"(mine));
  munmap(p, 0x1000);
  guest_free(g);
}

/* ---- memory that the client has taken away ---- */

#define TAKEN 0x52000000ul

/* The first access of each kind finds the page's translation missing, the second finds it there. */
static void guest_taken(void) {
  enable(0xe7);
  for (unsigned n = 0; n < 2; n++) {
    if (!n) invlpg(TAKEN);
    report(1);
    EXPECT_EQ(MASKED(0, "vextracti32x4 $1, %%zmm0, (%%rbx)%{%%k1%}", TAKEN + 64), NO_FAULT); /* class E6NF: all of it is accessed */
    report(2);
    if (!n) invlpg(TAKEN);
    report(3);
    EXPECT_EQ(MASKED(0, "vmovdqu32 %%zmm0, (%%rbx)%{%%k1%}", TAKEN + 64), NO_FAULT); /* E4: nothing is */
    report(4);
  }
  done();
}

static void taken(void) {
  struct guest *g = inside_start(guest_taken);
  u8 *page = mmap(NULL, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (!has_avx512(g)) {
    guest_free(g);
    return;
  }
  guest_add_slot(g, 0, TAKEN, page, 0x1000);
  guest_map(g, TAKEN, TAKEN, 0x1000, P_W);
  for (unsigned n = 0; n < 2; n++) {
    CHECK_EQ(guest_next(g), 1);
    mprotect(page, 0x1000, PROT_NONE);
    CHECK_EQ(guest_run(g), -1);
    CHECK_EQ(errno, EFAULT);
    mprotect(page, 0x1000, PROT_READ | PROT_WRITE);
    CHECK_EQ(guest_next(g), 2);
    CHECK_EQ(guest_next(g), 3);
    mprotect(page, 0x1000, PROT_NONE);
    CHECK_EQ(guest_next(g), 4);
    mprotect(page, 0x1000, PROT_READ | PROT_WRITE);
  }
  CHECK_EQ(guest_next(g), DONE);
  inside_check();
  guest_free(g);
  munmap(page, 0x1000);
}

GUEST_MAIN({"enabling", enabling}, {"enabling512", enabling512}, {"real_mode", real_mode}, {"exceptions", exceptions},
           {"store_exception", store_exception}, {"uppers", uppers}, {"masks", masks}, {"gathers", gathers}, {"devices", devices},
           {"state", state}, {"control", control}, {"taken", taken})
