/* Cached translations and rights: what has to be seen at once, and what after INVLPG, MOV CR3, CR4.PGE, INVPCID (SDM Vol.
 * 3A 4.10). */
#include "inside.h"

#define P  1ull
#define W  2ull
#define U  4ull
#define A  0x20ull
#define D  0x40ull
#define PS 0x80ull
#define G  0x100ull
#define NX (1ull << 63)

#define CR0_WP    0x10000ull
#define CR4_PGE   0x80ull
#define CR4_PCIDE 0x20000ull
#define CR4_SMEP  0x100000ull
#define CR4_SMAP  0x200000ull
#define CR4_PKE   0x400000ull
#define MSR_EFER  0xc0000080u
#define EFER_NX   0x800ull

#define PAGE    0x40000000ul /* a page of its own table */
#define LARGE   0x40200000ul
#define HUGE_   0x80000000ul
#define RET_OFF 0x10 /* of a RET in each frame */
static u64 frame(unsigned n) {
  return 0x200000 + n * 0x1000;
}

/* ---- guest side ---- */

#define AT_LAST(access) ((access) == NO_FAULT ? NO_FAULT : (access)) /* tries again: more rights may take a second time (4.10.4.3) */

static u64 *entry(u64 lin, unsigned level) {
  u64 *table = (u64 *)(uintptr_t)(read_cr3() & 0xffffffffff000);
  for (unsigned n = 4; n > level; n--) table = (u64 *)(uintptr_t)(table[lin >> (3 + 9 * n) & 511] & 0xffffffffff000);
  return &table[lin >> (3 + 9 * level) & 511];
}
static void set(u64 lin, unsigned level, u64 e) {
  *(volatile u64 *)entry(lin, level) = e;
}
static u64 get(u64 lin, unsigned level) {
  return *(volatile u64 *)entry(lin, level);
}
static u8 at(u64 lin) {
  return *(volatile u8 *)(uintptr_t)lin;
}

/* Maps frame n (its first byte is n) at PAGE. */
static void page(unsigned n, u64 flags) {
  set(PAGE, 1, frame(n) | P | flags);
}
static void fresh(unsigned n, u64 flags) {
  page(n, flags);
  invlpg(PAGE);
}

static void guest_invlpg(void) {
  for (unsigned k = 0; k < 10; k++) {
    fresh(k % 4, W | (k & 1 ? U : 0) | (k & 2 ? G : 0));
    EXPECT_EQ(at(PAGE), k % 4);
    EXPECT_EQ(try_call(PAGE + RET_OFF), NO_FAULT);
  }
  set(PAGE, 1, 0); /* gone */
  invlpg(PAGE + 0xfff);
  EXPECT_EQ(try_read(PAGE), PF(0));
  EXPECT_EQ(try_write(PAGE), PF(ERR_W));
  EXPECT_EQ(fault_address, PAGE);
  done();
}

/* Any address in a large page drops all of it. */
static void guest_large(void) {
  EXPECT_EQ(at(LARGE), 0);
  EXPECT_EQ(at(LARGE + 0x1000), 1);
  set(LARGE, 2, P | W | PS); /* gpa 0 */
  *(volatile u8 *)0x60000 = 77;
  *(volatile u8 *)0x61000 = 78;
  invlpg(LARGE + 0x123456);
  EXPECT_EQ(at(LARGE + 0x60000), 77);
  EXPECT_EQ(at(LARGE + 0x61000), 78);
  EXPECT_EQ(at(HUGE_ + 0x60000), 77);
  EXPECT_EQ(at(HUGE_ + 0x201000), 1);
  set(HUGE_, 3, 0);
  invlpg(HUGE_ + 0x3ffff000);
  EXPECT_EQ(try_read(HUGE_ + 0x60000), PF(0));
  EXPECT_EQ(try_read(HUGE_ + 0x201000), PF(0));
  EXPECT_EQ(at(LARGE + 0x61000), 78);
  done();
}

/* What is cached of the tables above (4.10.3) goes with INVLPG of any address, with MOV CR3, and with a page fault at an address that they lead to
 * (4.10.4.1).  Two tables for the same 2 MiB, two directories for the same 1 GiB: their pages show which one a walk went through. */
#define TABLED 0x40400000ul
#define WIDE   0xc0000000ul
enum { TABLE_1 = 20, TABLE_2, DIRECTORY_1, DIRECTORY_2 }; /* frames */

static void guest_structures(void) {
  for (unsigned n = 0; n < 512; n++) {
    ((u64 *)(uintptr_t)frame(TABLE_1))[n] = frame(1) | P | W | U;
    ((u64 *)(uintptr_t)frame(TABLE_2))[n] = frame(2) | P | W | U;
    ((u64 *)(uintptr_t)frame(DIRECTORY_1))[n] = frame(TABLE_1) | P | W | U;
    ((u64 *)(uintptr_t)frame(DIRECTORY_2))[n] = frame(TABLE_2) | P | W | U;
  }
  u64 next = 0; /* each access is to a page that no translation is cached of */
#define NEXT(start) ((start) + (next++ << 12))
  for (unsigned k = 0; k < 4; k++) {
    set(TABLED, 2, frame(k & 1 ? TABLE_2 : TABLE_1) | P | W);
    k & 2 ? (void)write_cr3(read_cr3()) : invlpg(PAGE);
    EXPECT_EQ(at(NEXT(TABLED)), k & 1 ? 2 : 1);
    EXPECT_EQ(at(NEXT(TABLED)), k & 1 ? 2 : 1);
    set(WIDE, 3, frame(k & 1 ? DIRECTORY_2 : DIRECTORY_1) | P | W);
    k & 2 ? (void)write_cr3(read_cr3()) : invlpg(PAGE);
    for (unsigned n = 0; n < 3; n++) EXPECT_EQ(at(WIDE + (n << 21) + (next++ << 12)), k & 1 ? 2 : 1);
  }
  set(TABLED, 2, frame(TABLE_1) | P); /* rights from above */
  invlpg(PAGE);
  EXPECT_EQ(at(NEXT(TABLED)), 1);
  EXPECT_EQ(try_write(NEXT(TABLED) + 0x800), PF(ERR_P | ERR_W));
  EXPECT_EQ(user_run(GUEST_USER, NEXT(TABLED)), PF(ERR_P | ERR_U));
  set(TABLED, 2, frame(TABLE_1) | P | W | U);
  EXPECT_EQ(AT_LAST(try_write(TABLED + (next << 12) + 0x800)), NO_FAULT);
  EXPECT_EQ(AT_LAST(user_run(GUEST_USER, TABLED + (next << 12))), NO_FAULT);
  EXPECT_EQ(at(NEXT(TABLED)), 1);
  set(TABLED, 2, frame(TABLE_1) | P | W | NX);
  invlpg(PAGE);
  EXPECT_EQ(at(NEXT(TABLED)), 1);
  EXPECT_EQ(try_call(NEXT(TABLED) + RET_OFF), PF(ERR_P | ERR_I));
  ((u64 *)(uintptr_t)frame(TABLE_1))[next] = 0; /* a fault */
  EXPECT_EQ(try_read(NEXT(TABLED)), PF(0));
  set(TABLED, 2, frame(TABLE_2) | P | W);
  EXPECT_EQ(at(NEXT(TABLED)), 2);
  set(TABLED, 2, 0);
  invlpg(PAGE);
  EXPECT_EQ(try_read(NEXT(TABLED)), PF(0));
  done();
}

/* A page of a device is cached as any other. */
#define DEVICE       0xd0000000ul
#define DEVICE_READS 0x11

static void guest_device(void) {
  set(PAGE, 1, DEVICE | P | W);
  invlpg(PAGE);
  for (unsigned n = 0; n < 3; n++) EXPECT_EQ(at(PAGE + n), DEVICE_READS);
  EXPECT_EQ(get(PAGE, 1) & (A | D), A);
  EXPECT_EQ(try_write(PAGE), NO_FAULT);
  EXPECT_EQ(get(PAGE, 1) & (A | D), A | D);
  EXPECT_EQ(try_write(PAGE), NO_FAULT);
  EXPECT_EQ(user_run(GUEST_USER, PAGE), PF(ERR_P | ERR_U));
  EXPECT_EQ(try_write(PAGE), NO_FAULT);
  set(PAGE, 1, DEVICE | P);
  invlpg(PAGE);
  EXPECT_EQ(at(PAGE), DEVICE_READS);
  EXPECT_EQ(try_write(PAGE), PF(ERR_P | ERR_W));
  EXPECT_EQ(at(PAGE), DEVICE_READS);
  fresh(2, W);
  EXPECT_EQ(at(PAGE), 2);
  set(PAGE, 1, DEVICE | P | W | U);
  invlpg(PAGE);
  EXPECT_EQ(at(PAGE), DEVICE_READS);
  EXPECT_EQ(user_run(GUEST_USER, PAGE), NO_FAULT);
  set(PAGE, 1, 0);
  invlpg(PAGE);
  EXPECT_EQ(try_read(PAGE), PF(0));
  set(PAGE, 1, DEVICE | P | W);
  EXPECT_EQ(at(PAGE), DEVICE_READS);
  report(1); /* becomes memory */
  EXPECT_EQ(at(PAGE), 0x33);
  report(2); /* and a device again */
  EXPECT_EQ(at(PAGE), DEVICE_READS);
  done();
}

/* MOV CR3 drops what is not global, changing CR4.PGE everything. */
static void guest_global(void) {
  u64 cr3 = read_cr3(), cr4 = read_cr4();
  fresh(0, W);
  EXPECT_EQ(at(PAGE), 0);
  page(1, W);
  write_cr3(cr3);
  EXPECT_EQ(at(PAGE), 1);
  page(2, W | G); /* without CR4.PGE the bit means nothing */
  write_cr3(cr3);
  EXPECT_EQ(at(PAGE), 2);
  page(3, W | G);
  write_cr3(cr3);
  EXPECT_EQ(at(PAGE), 3);
  write_cr4(cr4 | CR4_PGE);
  EXPECT_EQ(at(PAGE), 3);
  page(1, W | G);
  write_cr3(cr3);
  EXPECT(at(PAGE) == 1 || at(PAGE) == 3);
  invlpg(PAGE);
  EXPECT_EQ(at(PAGE), 1);
  page(2, W | G);
  write_cr4(cr4);
  EXPECT_EQ(at(PAGE), 2);
  page(0, W);
  write_cr4(cr4 | CR4_PGE);
  EXPECT_EQ(at(PAGE), 0);
  done();
}

/* More rights need no invalidation: an access may fault once more, but not twice (4.10.4.3). */
static void guest_upgrade(void) {
  set(PAGE, 1, 0);
  invlpg(PAGE);
  EXPECT_EQ(try_read(PAGE), PF(0));
  page(1, 0); /* absence is never cached */
  EXPECT_EQ(try_read(PAGE), NO_FAULT);
  EXPECT_EQ(try_write(PAGE), PF(ERR_P | ERR_W));
  page(1, W);
  EXPECT_EQ(AT_LAST(try_write(PAGE)), NO_FAULT);
  EXPECT_EQ(user_run(GUEST_USER, PAGE), PF(ERR_P | ERR_U));
  page(1, W | U);
  EXPECT_EQ(AT_LAST(user_run(GUEST_USER, PAGE)), NO_FAULT);
  EXPECT_EQ(AT_LAST(user_run(GUEST_USER + 16, PAGE)), NO_FAULT);
  page(1, W | NX);
  invlpg(PAGE);
  EXPECT_EQ(try_call(PAGE + RET_OFF), PF(ERR_P | ERR_I));
  page(1, W);
  EXPECT_EQ(AT_LAST(try_call(PAGE + RET_OFF)), NO_FAULT);
  done();
}

/* Fewer rights hold after INVLPG. */
static void guest_downgrade(void) {
  fresh(1, W | U);
  EXPECT_EQ(try_write(PAGE), NO_FAULT);
  EXPECT_EQ(user_run(GUEST_USER + 16, PAGE), NO_FAULT);
  fresh(1, U);
  EXPECT_EQ(try_write(PAGE), PF(ERR_P | ERR_W));
  EXPECT_EQ(try_rmw(PAGE), PF(ERR_P | ERR_W));
  EXPECT_EQ(user_run(GUEST_USER + 16, PAGE), PF(ERR_P | ERR_W | ERR_U));
  EXPECT_EQ(user_run(GUEST_USER, PAGE), NO_FAULT);
  fresh(1, 0);
  EXPECT_EQ(user_run(GUEST_USER, PAGE), PF(ERR_P | ERR_U));
  EXPECT_EQ(try_call(PAGE + RET_OFF), NO_FAULT);
  fresh(1, NX);
  EXPECT_EQ(try_call(PAGE + RET_OFF), PF(ERR_P | ERR_I));
  EXPECT_EQ(try_read(PAGE), NO_FAULT);
  done();
}

/* CR0.WP, CR4.SMEP, EFER.NXE act on what is cached. */
static void guest_controls(void) {
  u64 cr0 = read_cr0(), cr4 = read_cr4(), efer = rdmsr(MSR_EFER);
  fresh(1, U);
  for (unsigned k = 0; k < 4; k++) {
    write_cr0(cr0 & ~CR0_WP);
    EXPECT_EQ(try_write(PAGE), NO_FAULT);
    EXPECT_EQ(user_run(GUEST_USER + 16, PAGE), PF(ERR_P | ERR_W | ERR_U));
    write_cr0(cr0 | CR0_WP);
    EXPECT_EQ(try_write(PAGE), PF(ERR_P | ERR_W));
    EXPECT_EQ(try_call(PAGE + RET_OFF), NO_FAULT);
    write_cr4(cr4 | CR4_SMEP);
    EXPECT_EQ(try_call(PAGE + RET_OFF), PF(ERR_P | ERR_I));
    EXPECT_EQ(try_read(PAGE), NO_FAULT);
    EXPECT_EQ(user_run(GUEST_USER, PAGE), NO_FAULT);
    write_cr4(cr4);
    fresh(1, U | NX);
    EXPECT_EQ(try_read(PAGE), NO_FAULT);
    EXPECT_EQ(try_call(PAGE + RET_OFF), PF(ERR_P | ERR_I));
    wrmsr(MSR_EFER, efer & ~EFER_NX);
    invlpg(PAGE);
    EXPECT_EQ(try_read(PAGE), PF(ERR_P | ERR_RSVD));
    EXPECT_EQ(try_call(PAGE + RET_OFF), PF(ERR_P | ERR_RSVD)); /* no I flag without NXE and SMEP */
    wrmsr(MSR_EFER, efer);
    fresh(1, U);
  }
  done();
}

/* ---- SMAP ---- */

#define SET_AC   "pushfq\n orl $0x40000, (%%rsp)\n popfq\n"
#define CLEAR_AC "pushfq\n andl $~0x40000, (%%rsp)\n popfq\n"

static void guest_smap(void) {
  u64 cr4 = read_cr4();
  fresh(1, W | U);
  EXPECT_EQ(try_read(PAGE), NO_FAULT);
  EXPECT_EQ(TRY("stac"), NO_FAULT); /* works without CR4.SMAP */
  write_cr4(cr4 | CR4_SMAP);
  for (unsigned k = 0; k < 3; k++) {
    EXPECT_EQ(TRY("clac\n movb (%0), %%al", "r"(PAGE)), PF(ERR_P));
    EXPECT_EQ(TRY("clac\n movb %%al, (%0)", "r"(PAGE)), PF(ERR_P | ERR_W));
    EXPECT_EQ(TRY("stac\n movb (%0), %%al\n movb %%al, (%0)\n clac", "r"(PAGE)), NO_FAULT);
    EXPECT_EQ(TRY("stac\n movb (%0), %%al\n clac\n movb (%0), %%al", "r"(PAGE)), PF(ERR_P));
    EXPECT_EQ(TRY(SET_AC "movb (%0), %%al\n" CLEAR_AC, "r"(PAGE)), NO_FAULT);
    EXPECT_EQ(TRY(SET_AC "movb (%0), %%al\n" CLEAR_AC "lock incb (%0)\n", "r"(PAGE)), PF(ERR_P | ERR_W));
    EXPECT_EQ(try_call(PAGE + RET_OFF), NO_FAULT); /* fetches are SMEP's */
    EXPECT_EQ(user_run(GUEST_USER + 16, PAGE), NO_FAULT);
    EXPECT_EQ(user_run(GUEST_USER + 32, 0), FAULT(6, 0)); /* STAC is #UD there */
  }
  write_cr4(cr4);
  EXPECT_EQ(try_read(PAGE), NO_FAULT);
  done();
}

/* ---- implicit supervisor accesses: SMAP holds for them whatever AC says, and keys do too (4.6.1, 4.6.2) ---- */

#define LDT_USER     (PAGE + 0x100)
#define SEL_LDT_DATA 0x0c
#define TSS_OFF      0xf80 /* the TSS ends with its page; the I/O bitmap is on the next, PAGE */

/* An LDT in the page, with a data segment that is not accessed yet. */
static void load_ldt(void) {
  volatile u64 *gdt = (u64 *)(uintptr_t)GUEST_GDT;
  *(volatile u64 *)(uintptr_t)(frame(1) + 0x108) = 0x00cf92000000ffff;
  gdt[SEL_FREE / 8] = (LDT_USER & 0xffffff) << 16 | (LDT_USER >> 24 & 0xff) << 56 | 0x82ull << 40 | 0x1f;
  gdt[SEL_FREE / 8 + 1] = LDT_USER >> 32;
  __asm__ volatile("lldt %w0" ::"r"(SEL_FREE));
}

static void guest_implicit(void) {
  u64 cr4 = read_cr4();
  fresh(1, W | U);
  load_ldt();
  write_cr4(cr4 | CR4_SMAP);
  EXPECT_EQ(TRY("clac\n mov %0, %%es", "r"(SEL_LDT_DATA)), PF(ERR_P));
  EXPECT_EQ(fault_address, LDT_USER + 8);
  EXPECT_EQ(TRY("stac\n mov %0, %%es", "r"(SEL_LDT_DATA)), PF(ERR_P));
  EXPECT_EQ(TRY("stac\n lar %0, %%eax", "r"(SEL_LDT_DATA)), PF(ERR_P));
  write_cr4(cr4);
  fresh(1, U);
  EXPECT_EQ(TRY("lar %0, %%eax", "r"(SEL_LDT_DATA)), NO_FAULT);
  EXPECT_EQ(TRY("mov %0, %%es", "r"(SEL_LDT_DATA)), PF(ERR_P | ERR_W)); /* the accessed bit */
  EXPECT_EQ(fault_address & ~7ul, LDT_USER + 8);
  fresh(1, W | U);
  EXPECT_EQ(TRY("mov %0, %%es", "r"(SEL_LDT_DATA)), NO_FAULT);
  fresh(1, U);
  EXPECT_EQ(TRY("mov %0, %%es", "r"(SEL_LDT_DATA)), NO_FAULT);
  done();
}

/* The I/O bitmap of user code's IN: read with supervisor rights, so a user page is SMAP's. */
static void guest_io_bitmap(void) {
  u64 cr4 = read_cr4();
  volatile u64 *gdt = (u64 *)(uintptr_t)GUEST_GDT;
  u64 tss = PAGE - 0x1000 + TSS_OFF;
  set(PAGE - 0x1000, 1, frame(5) | P | W);
  fresh(6, U);
  for (unsigned n = 0; n < 0x68; n++) *(volatile u8 *)(uintptr_t)(tss + n) = *(volatile u8 *)(uintptr_t)(GUEST_TSS + n);
  *(volatile u16 *)(uintptr_t)(tss + 0x66) = 0x1000 - TSS_OFF;
  *(volatile u32 *)(uintptr_t)frame(6) = 0;
  gdt[SEL_FREE / 8] = (tss & 0xffffff) << 16 | (tss >> 24 & 0xff) << 56 | 0x89ull << 40 | 0xff;
  gdt[SEL_FREE / 8 + 1] = tss >> 32;
  __asm__ volatile("ltr %w0" ::"r"(SEL_FREE));
  EXPECT_EQ(user_run(GUEST_USER + 48, 0), NO_FAULT);
  write_cr4(cr4 | CR4_SMAP);
  EXPECT_EQ(user_run(GUEST_USER + 48, 0), PF(ERR_P));
  EXPECT_EQ(fault_address, PAGE);
  write_cr4(cr4);
  fresh(6, 0); /* and a supervisor page is not refused */
  EXPECT_EQ(user_run(GUEST_USER + 48, 0), NO_FAULT);
  *(volatile u8 *)(uintptr_t)frame(6) = 1;
  EXPECT_EQ(user_run(GUEST_USER + 48, 0), GP0);
  done();
}

/* ---- protection keys ---- */

static void wrpkru(u32 v) {
  __asm__ volatile("wrpkru" ::"a"(v), "c"(0), "d"(0) : "memory");
}
static u32 rdpkru(void) {
  u32 v, d;
  __asm__ volatile("rdpkru" : "=a"(v), "=d"(d) : "c"(0) : "memory");
  return d ? ~0u : v;
}
#define KEY(n) ((u64)(n) << 59)

static void guest_keys(void) {
  u64 cr0 = read_cr0(), cr4 = read_cr4();
  EXPECT_EQ(TRY("xor %%ecx, %%ecx\n rdpkru"), FAULT(6, 0));
  EXPECT_EQ(write_cr4(cr4 | CR4_PKE), NO_FAULT);
  EXPECT_EQ(TRY("mov $1, %%ecx\n rdpkru"), GP0);
  EXPECT_EQ(TRY("mov $1, %%ecx\n xor %%edx, %%edx\n xor %%eax, %%eax\n wrpkru"), GP0);
  EXPECT_EQ(TRY("xor %%ecx, %%ecx\n mov $1, %%edx\n xor %%eax, %%eax\n wrpkru"), GP0);
  fresh(1, W | U | KEY(3));
  for (unsigned k = 0; k < 3; k++) {
    wrpkru(0);
    EXPECT_EQ(rdpkru(), 0);
    EXPECT_EQ(try_write(PAGE), NO_FAULT);
    EXPECT_EQ(user_run(GUEST_USER + 16, PAGE), NO_FAULT);
    wrpkru(2u << 6); /* no writes */
    EXPECT_EQ(rdpkru(), 2u << 6);
    EXPECT_EQ(try_read(PAGE), NO_FAULT);
    EXPECT_EQ(try_write(PAGE), PF(ERR_P | ERR_W | ERR_PK));
    EXPECT_EQ(user_run(GUEST_USER + 16, PAGE), PF(ERR_P | ERR_W | ERR_U | ERR_PK));
    write_cr0(cr0 & ~CR0_WP);
    EXPECT_EQ(try_write(PAGE), NO_FAULT);
    EXPECT_EQ(user_run(GUEST_USER + 16, PAGE), PF(ERR_P | ERR_W | ERR_U | ERR_PK));
    write_cr0(cr0);
    wrpkru(1u << 6); /* no accesses */
    EXPECT_EQ(try_read(PAGE), PF(ERR_P | ERR_PK));
    EXPECT_EQ(try_call(PAGE + RET_OFF), NO_FAULT);
    EXPECT_EQ(user_run(GUEST_USER, PAGE), PF(ERR_P | ERR_U | ERR_PK));
    EXPECT_EQ(write_cr4(cr4), NO_FAULT);
    EXPECT_EQ(try_read(PAGE), NO_FAULT);
    EXPECT_EQ(write_cr4(cr4 | CR4_PKE), NO_FAULT);
    EXPECT_EQ(try_read(PAGE), PF(ERR_P | ERR_PK));
  }
  load_ldt(); /* implicit accesses obey the key of a user page */
  EXPECT_EQ(TRY("lar %0, %%eax", "r"(SEL_LDT_DATA)), PF(ERR_P | ERR_PK));
  done();
}

/* ---- accessed and dirty ---- */

static void guest_dirty(void) {
  fresh(1, W | U);
  EXPECT_EQ(get(PAGE, 1) & (A | D), 0);
  EXPECT_EQ(at(PAGE), 1);
  EXPECT_EQ(get(PAGE, 1) & (A | D), A);
  EXPECT_EQ(try_write(PAGE), NO_FAULT); /* cached as clean */
  EXPECT_EQ(get(PAGE, 1) & (A | D), A | D);
  fresh(1, W | U);
  EXPECT_EQ(try_rmw(PAGE), NO_FAULT);
  EXPECT_EQ(get(PAGE, 1) & (A | D), A | D);
  fresh(1, W | U);
  EXPECT_EQ(try_call(PAGE + RET_OFF), NO_FAULT);
  EXPECT_EQ(get(PAGE, 1) & (A | D), A);
  fresh(1, W | U);
  EXPECT_EQ(user_run(GUEST_USER, PAGE), NO_FAULT);
  EXPECT_EQ(get(PAGE, 1) & (A | D), A);
  EXPECT_EQ(user_run(GUEST_USER + 16, PAGE), NO_FAULT);
  EXPECT_EQ(get(PAGE, 1) & (A | D), A | D);
  fresh(1, W | U); /* CMPXCHG that fails still writes */
  EXPECT_EQ(TRY("mov $0x77, %%eax\n lock cmpxchg %%cl, (%0)", "r"(PAGE + 0x800)), NO_FAULT);
  EXPECT_EQ(get(PAGE, 1) & (A | D), A | D);
  fresh(1, U);
  EXPECT_EQ(try_write(PAGE), PF(ERR_P | ERR_W));
  EXPECT_EQ(get(PAGE, 1) & (A | D), 0);
  done();
}

/* ---- PCID ---- */

#define NO_FLUSH (1ull << 63)

static u32 invpcid(u64 type, u64 pcid, u64 lin) {
  volatile u64 d[2] = {pcid, lin};
  return TRY("invpcid (%1), %0", "r"(type), "r"(d));
}

/* What a type of INVPCID must drop: the page of this PCID, or of another one that is entered without a flush. */
static void invpcid_drops(u64 type, u64 flags, u64 pcid) {
  u64 cr3 = read_cr3() & ~0xfffull;
  write_cr3(cr3 | 1);
  fresh(0, W | flags);
  EXPECT_EQ(at(PAGE), 0);
  if (pcid != 1) EXPECT_EQ(write_cr3(cr3 | pcid | NO_FLUSH), NO_FAULT);
  page(3, W | flags);
  EXPECT_EQ(invpcid(type, 1, PAGE), NO_FAULT);
  if (pcid != 1) EXPECT_EQ(write_cr3(cr3 | 1 | NO_FLUSH), NO_FAULT);
  EXPECT_EQ(at(PAGE), 3);
}

static void guest_pcid(void) {
  u64 cr3 = read_cr3(), cr4 = read_cr4();
  EXPECT_EQ(write_cr3(cr3 | NO_FLUSH), GP0); /* reserved without CR4.PCIDE */
  EXPECT_EQ(write_cr3(cr3 | 1ull << 62), GP0);
  EXPECT_EQ(invpcid(0, 1, PAGE), GP0);
  EXPECT_EQ(invpcid(1, 1, PAGE), GP0);
  EXPECT_EQ(invpcid(2, 1, PAGE), NO_FAULT);
  EXPECT_EQ(invpcid(0, 0, PAGE), NO_FAULT);
  write_cr3(cr3 | 0x18); /* PWT and PCD here, a PCID after */
  EXPECT_EQ(write_cr4(cr4 | CR4_PCIDE), GP0);
  EXPECT_EQ(read_cr4(), cr4);
  write_cr3(cr3);
  EXPECT_EQ(write_cr4(cr4 | CR4_PCIDE | CR4_PGE), NO_FAULT);
  EXPECT_EQ(write_cr3(cr3 | 0xfff | NO_FLUSH), NO_FAULT);
  EXPECT_EQ(read_cr3(), cr3 | 0xfff); /* bit 63 is not kept */
  EXPECT_EQ(write_cr3(cr3 | 1ull << 62), GP0);
  write_cr3(cr3 | 1);
  EXPECT_EQ(invpcid(4, 0, PAGE), GP0);
  EXPECT_EQ(invpcid(1ull << 32, 0, PAGE), GP0);
  EXPECT_EQ(invpcid(0, 0x1000, PAGE), GP0);
  EXPECT_EQ(invpcid(2, 1ull << 63, PAGE), GP0);
  EXPECT_EQ(invpcid(0, 1, 1ull << 48), GP0);
  EXPECT_EQ(invpcid(1, 1, 1ull << 48), NO_FAULT); /* has no address */
  set(PAGE, 1, 0);
  invlpg(PAGE);
  EXPECT_EQ(TRY("invpcid (%1), %0", "r"(7ul), "r"(PAGE)), PF(0)); /* the descriptor is read before the type is looked at */
  EXPECT_EQ(user_run(GUEST_USER + 64, PAGE), GP0);
  for (u64 type = 0; type < 4; type++)
    for (u64 pcid = 1; pcid < 3; pcid++) invpcid_drops(type, 0, pcid);
  invpcid_drops(2, G, 1);
  invpcid_drops(2, G, 2);
  for (u64 pcid = 1; pcid < 4; pcid++) { /* MOV CR3 with bit 63 clear drops its PCID's */
    write_cr3(cr3 | pcid);
    fresh(1, W);
    EXPECT_EQ(at(PAGE), 1);
    page(2, W);
    write_cr3(cr3 | pcid);
    EXPECT_EQ(at(PAGE), 2);
  }
  fresh(1, W);
  EXPECT_EQ(at(PAGE), 1);
  page(2, W);
  EXPECT_EQ(write_cr4(cr4 | CR4_PGE), NO_FAULT); /* PCIDE from 1 to 0 drops all */
  EXPECT_EQ(at(PAGE), 2);
  done();
}

/* A PCID that comes back finds what it knew, but no more than it may: frame 1 has become code, or has been invalidated, while it was away. */
static void guest_away(void) {
  typedef u32 fn(void);
  u64 cr3 = read_cr3();
  write_cr4(read_cr4() | CR4_PCIDE | CR4_PGE);
  volatile u8 *code = (volatile u8 *)(uintptr_t)(frame(1) + 0x100), *same = (volatile u8 *)(PAGE + 0x100);
  fn *run = (fn *)(uintptr_t)(frame(1) + 0x100);
  code[0] = 0xb8, code[1] = 0, code[2] = code[3] = code[4] = 0, code[5] = 0xc3; /* mov $0, %eax; ret */
  write_cr3(cr3 | 1);
  for (u32 n = 1; n < 60; n++) {
    write_cr3(cr3 | 1 | NO_FLUSH);
    fresh(1, W);
    same[1] = (u8)(2 * n); /* the TLB may write there now */
    write_cr3(cr3 | 2 | NO_FLUSH);
    for (unsigned k = 0; k < 20; k++) EXPECT_EQ(run(), 2 * n);
    write_cr3(cr3 | 1 | NO_FLUSH);
    same[1] = (u8)(2 * n + 1);
    EXPECT_EQ(run(), 2 * n + 1);
    write_cr3(cr3 | 2 | NO_FLUSH);
    EXPECT_EQ(run(), 2 * n + 1);
    page(2, W); /* as other processors do it: the entry, then the PCID's translation */
    EXPECT_EQ(invpcid(n & 1, 1, PAGE), NO_FAULT);
    write_cr3(cr3 | 1 | NO_FLUSH);
    EXPECT_EQ(at(PAGE), 2);
    page(3, W);
    invlpg(PAGE);
    EXPECT_EQ(at(PAGE), 3);
    write_cr3(cr3 | 17 | NO_FLUSH); /* many PCIDs, some of them in one place of the engine */
    EXPECT(at(PAGE) <= 3);
    page(1, W);
    write_cr3(cr3 | 1); /* drops its own */
    EXPECT_EQ(at(PAGE), 1);
  }
  done();
}

/* ---- host side ---- */

static void large_page(struct guest *g, u64 lin, unsigned level, u64 e) {
  guest_map(g, lin, 0, 0x1000, P_W); /* makes the tables above it */
  u64 table = g->cr3;
  for (unsigned n = 4; n > level; n--) table = guest_read(g, table + 8 * (lin >> (3 + 9 * n) & 511), 8) & ~0xfffull;
  guest_write(g, table + 8 * (lin >> (3 + 9 * level) & 511), 8, e);
}

static struct guest *start(void (*f)(void)) {
  static const u8 user[][16] = {
      {0x8a, 0x03, 0xcd, 0x81},                   /* mov (%rbx), %al */
      {0xc6, 0x43, 0x01, 9, 0xcd, 0x81},          /* movb $9, 1(%rbx) */
      {0x0f, 0x01, 0xcb, 0xcd, 0x81},             /* stac */
      {0xe4, 0, 0xcd, 0x81},                      /* in $0, %al */
      {0x66, 0x0f, 0x38, 0x82, 0x03, 0xcd, 0x81}, /* invpcid (%rbx), %rax */
  };
  struct guest *g = inside_start(f);
  guest_load(g, GUEST_USER, user, sizeof(user));
  for (unsigned n = 0; n < 512; n++) {
    guest_write(g, frame(n), 1, n);
    guest_write(g, frame(n) + RET_OFF, 1, 0xc3);
  }
  guest_map(g, PAGE - 0x1000, frame(0), 0x3000, P_W);
  large_page(g, LARGE, 2, frame(0) | P | W | PS);
  large_page(g, HUGE_, 3, P | W | PS);
  return g;
}

#define INSIDE(name)                                                                                                             \
  static void run_##name(void) {                                                                                                 \
    struct guest *g = start(guest_##name);                                                                                       \
    inside_run(g);                                                                                                               \
  }
INSIDE(invlpg)
INSIDE(large)
INSIDE(structures)
INSIDE(global)
INSIDE(upgrade)
INSIDE(downgrade)
INSIDE(controls)
INSIDE(smap)
INSIDE(implicit)
INSIDE(dirty)
INSIDE(pcid)
INSIDE(away)

/* Port 0 is the client's. */
static void run_io_bitmap(void) {
  struct guest *g = start(guest_io_bitmap);
  unsigned exits = 0, r;
  while ((r = guest_next(g)) == EXIT(KVM_EXIT_IO) && g->run->io.port == 0) exits++;
  CHECK_EQ(r, DONE);
  CHECK_EQ(exits, 2);
  inside_check();
  guest_free(g);
}

static void run_device(void) {
  static u8 memory[0x1000] __attribute__((aligned(4096)));
  struct guest *g = start(guest_device);
  unsigned reads = 0, writes = 0, r;
  memory[0] = 0x33;
  while ((r = guest_next(g)) != DONE) {
    if (r == EXIT(KVM_EXIT_MMIO)) {
      CHECK_EQ(g->run->mmio.phys_addr & ~0xfffull, DEVICE);
      g->run->mmio.is_write ? writes++ : reads++;
      g->run->mmio.data[0] = DEVICE_READS;
      continue;
    }
    if (r > 2) break;
    struct kvm_userspace_memory_region region = {
        .slot = 30, .guest_phys_addr = DEVICE, .memory_size = r == 1 ? sizeof(memory) : 0, .userspace_addr = (uintptr_t)memory};
    CHECK_EQ(guest_ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &region), 0);
  }
  CHECK_EQ(r, DONE);
  CHECK_EQ(reads, 9);
  CHECK_EQ(writes, 3);
  inside_check();
  guest_free(g);
}

static void run_keys(void) {
  struct guest *g = start(guest_keys);
  guest_cpuid(g, 7, 2, 0, 1u << 3); /* the engine has the keys on every host */
  inside_run(g);
}

/* ---- protection keys: what a new PKRU drops ---- */

#define KEYED_PAGES 32u
#define OWN_KEY     5u /* of page 3; the others have key 0 */

static volatile u64 keyed;

static void touch_keyed(u32 except) {
  for (unsigned n = 0; n < KEYED_PAGES; n++)
    if (n != except) (void)*(volatile u8 *)(keyed + n * 0x1000ul);
}

/* Reports are numbered by how many translations had to be made anew since the last one. */
static void guest_drops_keys(void) {
  u64 own = keyed + 3 * 0x1000;
  write_cr4(read_cr4() | 0x400000);
  for (unsigned n = 0; n < 3; n++) { /* what faults and reports need is there, too */
    wrpkru(3u << 2 * OWN_KEY);
    try_read(own);
    try_write(own);
    report(0x40);
    wrpkru(0);
    touch_keyed(~0u);
  }
  report(0x40);
  wrpkru(3u << 2 * 6); /* a key that no page has */
  touch_keyed(~0u);
  report(0);
  wrpkru(3u << 2 * OWN_KEY); /* one that one page has */
  touch_keyed(3);
  report(0);
  EXPECT_EQ(try_read(own), PF(ERR_P | ERR_PK));
  wrpkru(2u << 2 * OWN_KEY);
  EXPECT_EQ(try_write(own), PF(ERR_P | ERR_W | ERR_PK));
  report(0);
  touch_keyed(~0u);
  report(1);
  wrpkru(0);
  touch_keyed(~0u);
  report(1);
  EXPECT_EQ(try_write(own), NO_FAULT);
  report(1); /* the first store */
  wrpkru(2); /* the one that all the others have */
  touch_keyed(~0u);
  report(KEYED_PAGES - 1);
  wrpkru(0);
  EXPECT_EQ(try_write(keyed), NO_FAULT);
  report(0x40);
  done();
}

static void set_key(struct guest *g, u64 lin, u64 key) {
  u64 table = g->cr3;
  for (unsigned shift = 39; shift > 12; shift -= 9) table = guest_read(g, table + (lin >> shift & 511) * 8, 8) & 0xffffffffff000ull;
  u64 at = table + (lin >> 12 & 511) * 8;
  guest_write(g, at, 8, guest_read(g, at, 8) | key << 59);
}

/* Whether exactly as many were made anew as reported. */
static bool drops_exactly(void) {
  static u8 pages[KEYED_PAGES * 0x1000] __attribute__((aligned(4096)));
  struct guest *g = inside_start(guest_drops_keys);
  guest_cpuid(g, 7, 2, 0, 1u << 3); /* the engine has the keys on every host */
  guest_add_slot(g, 0, keyed, pages, sizeof(pages));
  guest_map(g, keyed, keyed, sizeof(pages), P_W | P_U);
  set_key(g, keyed + 3 * 0x1000, OWN_KEY);
  u64 last = 0;
  unsigned r;
  bool exactly = true;
  while ((r = guest_next(g)) < DONE) {
    u64 now = guest_stat(g->vcpu, "tlb_fills");
    if (r != 0x40) exactly &= now - last == r;
    last = now;
  }
  CHECK_EQ(r, DONE);
  inside_check();
  guest_free(g);
  return exactly;
}

/* The pages must share no place in the TLB with the test's image and stack, wherever those are: one of eight places is free of them. */
static void key_drops(void) {
  bool exactly = false;
  for (unsigned n = 0; n < 8 && !exactly; n++) {
    keyed = 0x42000000 + n * 0x200000ul;
    exactly = drops_exactly();
  }
  CHECK(exactly);
}

GUEST_MAIN({"invlpg", run_invlpg}, {"large", run_large}, {"structures", run_structures}, {"global", run_global}, {"upgrade", run_upgrade},
           {"downgrade", run_downgrade}, {"controls", run_controls}, {"smap", run_smap}, {"implicit", run_implicit},
           {"io-bitmap", run_io_bitmap}, {"device", run_device}, {"keys", run_keys}, {"dirty", run_dirty}, {"pcid", run_pcid}, {"away", run_away}, {"key-drops", key_drops})
