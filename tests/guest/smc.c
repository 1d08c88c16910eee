/* Code that changes: stores of every kind to code that has run, through aliases and page borders, by the page walk and by event
 * delivery; new mappings; slots that move; the client's writes (SDM Vol. 3A 8.1.3, 11.6).  Changes by other vCPUs: crossmod.c. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "inside.h"

#define CODE  0x200000ul /* four pages, with an alias */
#define ALIAS 0x40000000ul
#define PAGE  0x40010000ul /* mapped to one page, then to another */
#define P     1ull
#define W     2ull

/* ---- guest side ---- */

typedef u32 fn(void);
static u32 run(u64 at) {
  return ((fn *)(uintptr_t)at)();
}
static void put(u64 at, const u8 *bytes, unsigned n) {
  for (unsigned k = 0; k < n; k++) ((volatile u8 *)(uintptr_t)at)[k] = bytes[k];
}
static void put32(u64 at, u32 v) {
  *(volatile u32 *)(uintptr_t)at = v;
}
/* mov $v, %eax; ret */
static void put_function(u64 at, u32 v) {
  *(volatile u8 *)(uintptr_t)at = 0xb8;
  put32(at + 1, v);
  *(volatile u8 *)(uintptr_t)(at + 5) = 0xc3;
}

/* A store to the instruction behind it, and to one n NOPs further on in the same run of instructions. */
static void guest_next_insn(void) {
  for (unsigned nops = 0; nops < 40; nops += 3) {
    u64 at = CODE + 0x100;
    static const u8 store[] = {0xc7, 0x05}; /* movl $v, disp(%rip) */
    put(at, store, sizeof(store));
    put32(at + 2, nops + 1);
    for (unsigned n = 0; n < nops; n++) *(volatile u8 *)(uintptr_t)(at + 10 + n) = 0x90;
    put_function(at + 10 + nops, 0);
    for (u32 v = 1; v < 50; v++) {
      put32(at + 6, v);
      EXPECT_EQ(run(at), v);
    }
  }
  done();
}

/* A loop that changes an instruction before the store: it counts by 1, 2, 3... */
static void guest_loop(void) {
  static const u8 code[] = {0x31, 0xc0, 0x31, 0xc9,                /* xor %eax, %eax; xor %ecx, %ecx */
                            0x05, 1,    0,    0,    0,             /* 1: add $1, %eax */
                            0xff, 0xc1,                            /* inc %ecx */
                            0x83, 0x05, 0xf3, 0xff, 0xff, 0xff, 1, /* addl $1, 1b + 1(%rip) */
                            0x83, 0xf9, 100,  0x75, 0xed,          /* cmp $100, %ecx; jne 1b */
                            0xc3};
  for (unsigned n = 0; n < 20; n++) {
    put(CODE, code, sizeof(code));
    EXPECT_EQ(run(CODE), 5050);
  }
  done();
}

/* A store to the last byte of an undefined encoding makes it one that exists: 0F 01 CC becomes SMSW %eax. */
static void guest_undefined(void) {
  static const u8 code[] = {0xc6, 0x05, 2,    0, 0, 0, 0xe0, /* movb $0xe0, 1f + 2(%rip) */
                            0x0f, 0x01, 0xcc,                /* 1: */
                            0xc3};
  for (unsigned n = 0; n < 3; n++) {
    put(CODE, code, sizeof(code));
    EXPECT_EQ(run(CODE) & 1, 1);
  }
  done();
}

/* Every kind of store to the operand of the MOV at TARGET, which has run: EAX is v, %0 the operand's address; what the function
 * returns then.  The operand is aligned to 16 bytes. */
#define TARGET (CODE + 15)
#define KIND(text, result)                                                                                                       \
  do {                                                                                                                           \
    for (u32 v = 1; v < 4; v++) {                                                                                                \
      put_function(TARGET, 0);                                                                                                   \
      EXPECT_EQ(run(TARGET), 0);                                                                                                 \
      EXPECT_EQ(TRY("mov %1, %%eax\n" text, "r"(TARGET + 1), "r"(v)), NO_FAULT);                                                 \
      EXPECT_EQ(run(TARGET), result);                                                                                            \
    }                                                                                                                            \
  } while (0)
#define WITH_RET "mov $0xc300000000, %%rdx\n or %%rdx, %%rax\n" /* 8 bytes: what follows the operand stays a RET */

static volatile u64 pair[4] __attribute__((used));

static void guest_stores(void) {
  KIND("movb %%al, (%0)", v);
  KIND("movb %%al, 1(%0)", v << 8);
  KIND("movw %%ax, (%0)", v);
  KIND("movl %%eax, (%0)", v);
  KIND(WITH_RET "movq %%rax, (%0)", v);
  KIND("movl $77, (%0)", 77);
  KIND("movnti %%eax, (%0)", v);
  KIND("addl %%eax, (%0)", v);
  KIND("lock addl %%eax, (%0)", v);
  KIND("lock orb %%al, 3(%0)", v << 24);
  KIND("notl (%0)", ~0u);
  KIND("incl (%0)\n shll $3, (%0)", 8);
  KIND("shldl $4, %%eax, (%0)\n subl %%eax, (%0)", -v);
  KIND("btsl %%eax, (%0)", 1u << v);
  KIND("lock btcl %%eax, (%0)", 1u << v);
  KIND("xchgl %%eax, (%0)", v);
  KIND("lock xaddl %%eax, (%0)", v);
  KIND("mov %%eax, %%edx\n xor %%eax, %%eax\n cmpxchgl %%edx, (%0)", v);
  KIND("mov %%eax, %%edx\n xor %%eax, %%eax\n lock cmpxchgl %%edx, (%0)", v);
  KIND("mov %0, %%rsi\n mov %%rbx, %%rdi\n mov %%eax, %%ebx\n xor %%eax, %%eax\n mov 4(%%rsi), %%edx\n mov %%edx, %%ecx\n"
       "lock cmpxchg8b (%%rsi)\n mov %%rdi, %%rbx",
       v);
  KIND("mov %0, %%rsi\n mov %%rbx, %%rdi\n" WITH_RET
       "mov %%rax, %%rbx\n mov (%%rsi), %%rax\n mov 8(%%rsi), %%rdx\n mov %%rdx, %%rcx\n"
       "lock cmpxchg16b (%%rsi)\n mov %%rdi, %%rbx",
       v);
  KIND("sete (%0)\n setne 1(%0)\n movw $5, (%0)", 5);
  KIND("cmp $3, %%eax\n sete 2(%0)", v == 3 ? 0x10000 : 0);
  KIND("mov %0, %%rdi\n stosl", v);
  KIND("mov %0, %%rdi\n mov $4, %%ecx\n rep stosb", v * 0x1010101);
  KIND("mov %%eax, pair(%%rip)\n lea pair(%%rip), %%rsi\n mov %0, %%rdi\n movsl", v);
  KIND("mov %%eax, pair(%%rip)\n lea pair(%%rip), %%rsi\n mov %0, %%rdi\n mov $4, %%ecx\n rep movsb", v);
  KIND("mov %%eax, pair(%%rip)\n lea pair+3(%%rip), %%rsi\n lea 3(%0), %%rdi\n mov $4, %%ecx\n std\n rep movsb\n cld", v);
  KIND("movd %%eax, %%xmm0\n movss %%xmm0, (%0)", v);
  KIND("movd %%eax, %%xmm0\n pextrd $0, %%xmm0, (%0)", v);
  KIND(WITH_RET "movq %%rax, %%xmm0\n movlps %%xmm0, (%0)", v);
  KIND(WITH_RET "movq %%rax, %%xmm0\n movups %%xmm0, (%0)", v);
  KIND(WITH_RET "movq %%rax, %%xmm0\n movntdq %%xmm0, (%0)", v);
  KIND(WITH_RET "movq %%rax, %%xmm0\n pcmpeqd %%xmm1, %%xmm1\n mov %0, %%rdi\n maskmovdqu %%xmm1, %%xmm0", v);
  KIND("mov %%eax, pair(%%rip)\n fildl pair(%%rip)\n fistpl (%0)", v);
  KIND(WITH_RET "lea 8(%0), %%rsp\n push %%rax", v);
  KIND(WITH_RET "mov %%rax, pair(%%rip)\n lea 8(%0), %%rsp\n pushq pair(%%rip)", v);
  KIND(WITH_RET "push %%rax\n pop (%0)", v);
  KIND("ldmxcsr mxcsr(%%rip)\n stmxcsr (%0)", 0x1f80);
  KIND("sldt (%0)\n movw %%ax, (%0)", v);
  KIND("mov %%ds, (%0)", SEL_DATA);
  done();
}
__asm__(".pushsection .data\nmxcsr: .long 0x1f80\n.popsection");

/* The frame of an event goes into code: the last byte of SS, a zero, makes ADD %EAX of 32 bits one of 8 bits. */
static u64 run_add(u64 at) {
  pair[0] = 0;
  __asm__ volatile("call *%0" ::"r"(at), "a"(0x101), "d"(pair) : "memory", "cc");
  return pair[0];
}
static void guest_frames(void) {
  static const u8 add[] = {0x01, 0x02, 0xc3}; /* add %eax, (%rdx); ret */
  for (unsigned k = 0; k < 3; k++) {
    put(TARGET, add, sizeof(add));
    EXPECT_EQ(run_add(TARGET), 0x101);
    EXPECT_EQ(TRY("mov %0, %%rsp\n int $0x40", "r"(TARGET + 1)), NO_FAULT);
    EXPECT_EQ(run_add(TARGET), 1);
  }
  done();
}
HANDLER take_nothing(struct frame *f) {}

/* The other side of a page border, and the second half of an instruction across it. */
static void guest_border(void) {
  u64 edge = CODE + 0x1000;
  for (u32 v = 1; v < 10; v++) {
    put_function(edge, 0);
    EXPECT_EQ(run(edge), 0);
    *(volatile u64 *)(uintptr_t)(edge - 3) = 0xb8000000 | (u64)v << 32; /* 3 bytes, MOV's opcode and operand */
    EXPECT_EQ(run(edge), v);
    for (unsigned k = 1; k < 5; k++) { /* k bytes of the MOV on the first page */
      put_function(edge - k, 0);
      EXPECT_EQ(run(edge - k), 0);
      put32(edge - k + 1, v);
      EXPECT_EQ(run(edge - k), v);
      *(volatile u8 *)(uintptr_t)(edge - k + 4) = 0x80; /* its last byte alone */
      EXPECT_EQ(run(edge - k), v | 0x80000000);
      EXPECT_EQ(TRY("lock addl $1, (%0)", "r"(edge - k + 1)), NO_FAULT);
      EXPECT_EQ(run(edge - k), (v | 0x80000000) + 1);
    }
  }
  done();
}

/* Both linear pages are one page: the instruction across the border ends where that page begins. */
#define FOLD 0x40020000ul
static void guest_fold(void) {
  for (u32 v = 1; v < 100; v++) {
    u64 at = FOLD + 0x1000 - 2;
    put_function(at, v);
    EXPECT_EQ(run(at), v);
    put32(FOLD - 1 + (v & 1 ? 0 : 0x1000), v << 8 | v); /* its end: by either address */
    EXPECT_EQ(run(at), v | v << 8);
    *(volatile u8 *)(FOLD + 0xfff) = 7; /* its beginning */
    EXPECT_EQ(run(at), 7 | v << 8);
  }
  done();
}

/* Stores by another linear address count after a jump. */
static void guest_alias(void) {
  for (u32 v = 1; v < 100; v++) {
    put_function(ALIAS + 0x100, v);
    EXPECT_EQ(run(CODE + 0x100), v);
    put32(CODE + 0x101, v + 1000);
    EXPECT_EQ(run(ALIAS + 0x100), v + 1000);
    EXPECT_EQ(run(CODE + 0x100), v + 1000);
  }
  done();
}

/* REP STOSB and MOVSB over what follows them, a page and more. */
static void guest_string(void) {
  static const u8 stos[] = {0xf3, 0xaa, 0xb8, 0x44, 0x44, 0x44, 0x44}; /* rep stosb; mov $0x44444444, %eax; NOPs; ret */
  for (unsigned k = 0; k < 3; k++) {
    put(CODE, stos, sizeof(stos));
    for (unsigned n = sizeof(stos); n < 0x2800; n++) *(volatile u8 *)(CODE + n) = 0xcc;
    *(volatile u8 *)(CODE + 0x2800) = 0xc3;
    EXPECT_EQ(TRY("mov %0, %%rax\n lea 2(%%rax), %%rdi\n mov $0x27fe, %%ecx\n mov %%rax, %%rdx\n mov $0x90, %%eax\n call "
                  "*%%rdx\n cmp $0x90, %%eax\n"
                  "je 1f\n ud2",
                  "r"(CODE)),
              NO_FAULT);
    /* A copy of itself further on, onto code that has run. */
    put_function(CODE + 0x3000, 1);
    put_function(CODE + 0x3100, 2 + k);
    EXPECT_EQ(run(CODE + 0x3000), 1);
    EXPECT_EQ(TRY("mov %0, %%rdi\n mov %1, %%rsi\n mov $6, %%ecx\n rep movsb", "r"(CODE + 0x3000), "r"(CODE + 0x3100)), NO_FAULT);
    EXPECT_EQ(run(CODE + 0x3000), 2 + k);
  }
  done();
}

/* The same bytes under single step: the change of the next instruction is seen there too. */
static volatile u32 steps;
HANDLER take_step(struct frame *f) {
  steps = steps + 1;
}
static void guest_stepped(void) {
  static const u8 store[] = {0xc7, 0x05, 1, 0, 0, 0};
  put(CODE, store, sizeof(store));
  put_function(CODE + 10, 0);
  for (u32 v = 1; v < 10; v++) {
    put32(CODE + 6, v);
    steps = 0;
    u32 got;
    __asm__ volatile("pushfq\n orl $0x100, (%%rsp)\n popfq\n call *%1\n pushfq\n andl $~0x100, (%%rsp)\n popfq"
                     : "=a"(got)
                     : "r"(CODE)
                     : "memory", "cc");
    EXPECT_EQ(got, v);
    EXPECT_EQ(steps, 7); /* CALL, MOVL, MOV, RET, PUSHFQ, ANDL, POPFQ */
  }
  done();
}

/* ---- mappings ---- */

static volatile u64 *pte;

/* PAGE leads to other memory: INVLPG, or MOV CR3, or a page that was absent. */
static void guest_remap(void) {
  u64 cr3 = read_cr3();
  put_function(CODE, 1);
  put_function(CODE + 0x1000, 2);
  put_function(CODE + 0x2000, 3);
  for (unsigned k = 0; k < 300; k++) {
    *pte = (CODE + (k % 3 << 12)) | P | (k & 1 ? W : 0);
    if (k & 4)
      write_cr3(cr3);
    else
      invlpg(PAGE);
    EXPECT_EQ(run(PAGE), 1 + k % 3);
    if (k % 7) continue;
    *pte = 0;
    invlpg(PAGE);
    EXPECT_EQ(try_call(PAGE), PF(ERR_I));
  }
  done();
}

/* A page-table entry is an instruction too: ADD while it is not accessed, AND afterwards.  The walk changes it. */
static void guest_walk(void) {
  volatile u64 *table = (u64 *)(uintptr_t)((u64)(uintptr_t)pte & ~0xffful);
  u64 at = (u64)(uintptr_t)&table[0x100], page = PAGE & ~0x1ffffful;
  for (unsigned k = 0; k < 4; k++) {
    table[0x100] = 0x20c103; /* add %ecx, %eax; and %al, (%rax); add %al, (%rax) twice; frame 0x20c000 */
    table[0x101] = 0xc3;
    invlpg(page + 0x100000);
    u32 before, after;
    __asm__ volatile("call *%1" : "=a"(before) : "r"(at), "a"(0x60000), "c"(0x1000) : "memory", "cc");
    EXPECT_EQ(before, 0x61000);
    EXPECT_EQ(try_read(page + 0x100000), NO_FAULT);
    EXPECT_EQ(table[0x100], 0x20c123);
    __asm__ volatile("call *%1" : "=a"(after) : "r"(at), "a"(0x61000), "c"(0x61fff) : "memory", "cc");
    EXPECT_EQ(after, 0x61000);
  }
  done();
}

/* ---- host side ---- */

static struct guest *start(void (*f)(void)) {
  struct guest *g = inside_start(f);
  guest_map(g, ALIAS, CODE, 0x4000, P_W);
  guest_map(g, PAGE, CODE, 0x1000, P_W);
  for (unsigned n = 0; n < 3; n++) guest_map(g, FOLD - 0x1000 + n * 0x1000, CODE + 0x3000, 0x1000, P_W);
  u64 table = g->cr3;
  for (unsigned shift = 39; shift > 12; shift -= 9) table = guest_read(g, table + 8 * (PAGE >> shift & 511), 8) & ~0xfffull;
  pte = (u64 *)(uintptr_t)(table + 8 * (PAGE >> 12 & 511));
  HANDLE(g, 0x40, take_nothing);
  return g;
}

#define INSIDE(name)                                                                                                             \
  static void run_##name(void) {                                                                                                 \
    struct guest *g = start(guest_##name);                                                                                       \
    inside_run(g);                                                                                                               \
  }
INSIDE(next_insn)
INSIDE(loop)
INSIDE(undefined)
INSIDE(stores)
INSIDE(frames)
INSIDE(border)
INSIDE(fold)
INSIDE(alias)
INSIDE(string)
INSIDE(remap)
INSIDE(walk)
static void run_stepped(void) {
  struct guest *g = start(guest_stepped);
  HANDLE(g, 1, take_step);
  inside_run(g);
}

/* ---- the client ---- */

static const u8 reports[] = {0xb0, 1, 0xe6, GUEST_PORT, 0xeb, 0xfa}; /* 1: mov $1, %al; report; jmp 1b */

static struct guest *start_code(const u8 *code, unsigned size) {
  struct guest *g = guest_new();
  guest_long(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, code, size);
  return g;
}

/* While the vCPU is out of KVM_RUN: a plain store, and a file read into guest memory. */
static void client_writes(void) {
  struct guest *g = start_code(reports, sizeof(reports));
  FILE *f = tmpfile();
  for (unsigned n = 0; n < 256; n++) CHECK_EQ(fputc((int)n, f), n);
  fflush(f);
  for (unsigned n = 0; n < 256; n++) {
    if (n & 1)
      CHECK_EQ(pread(fileno(f), g->mem + GUEST_CODE + 1, 1, n), 1);
    else
      g->mem[GUEST_CODE + 1] = (u8)n;
    CHECK_EQ(guest_next(g), n);
  }
  fclose(f);
  guest_free(g);
}

/* Between the exit of a port and its completion: what follows the OUT is new. */
static void client_writes_ahead(void) {
  static const u8 code[] = {0xb0, 1, 0xe6, GUEST_PORT, 0xb0, 2, 0xe6, GUEST_PORT, 0xeb, 0xf6};
  struct guest *g = start_code(code, sizeof(code));
  for (unsigned n = 3; n < 200; n++) {
    CHECK_EQ(guest_run(g), 0);
    CHECK_EQ(*((u8 *)g->run + g->run->io.data_offset), 1);
    g->mem[GUEST_CODE + 5] = (u8)n;
    CHECK_EQ(guest_run(g), 0);
    CHECK_EQ(*((u8 *)g->run + g->run->io.data_offset), n);
  }
  guest_free(g);
}

/* The client's memory itself is replaced under the slot. */
static void client_remaps(void) {
  struct guest *g = start_code(reports, sizeof(reports));
  for (unsigned n = 1; n < 20; n++) {
    CHECK_EQ(guest_next(g), n);
    u8 page[0x1000];
    memcpy(page, g->mem + GUEST_CODE, sizeof(page));
    page[1] = (u8)(n + 1);
    CHECK(mmap(g->mem + GUEST_CODE, 0x1000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
          MAP_FAILED);
    memcpy(g->mem + GUEST_CODE, page, sizeof(page));
  }
  guest_free(g);
}

#define SLOT_GPA 0x10000000u
static u8 backing[2][0x1000] __attribute__((aligned(4096)));

static void set_slot(struct guest *g, u64 gpa, size_t size, void *host, u32 flags) {
  struct kvm_userspace_memory_region r = {
      .slot = 9, .flags = flags, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (u64)(uintptr_t)host};
  CHECK_EQ(guest_ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &r), 0);
}

/* A slot with code is deleted, made anew elsewhere in the client, moved, and made read-only. */
static void slots(void) {
  struct guest *g = start_code((const u8[]){0xff, 0xe3}, 2); /* jmp *%rbx */
  for (unsigned k = 0; k < 2; k++) {
    memcpy(backing[k], reports, sizeof(reports));
    backing[k][1] = (u8)(k + 1);
  }
  guest_map(g, 0x50000000, SLOT_GPA, 0x2000, P_W);
  set_slot(g, SLOT_GPA, 0x1000, backing[0], 0);
  struct kvm_regs r = guest_regs(g);
  r.rbx = 0x50000000;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_next(g), 1);
  set_slot(g, SLOT_GPA, 0, NULL, 0);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_INTERNAL_ERROR));
  set_slot(g, SLOT_GPA, 0x1000, backing[1], 0);
  CHECK_EQ(guest_next(g), 2);
  set_slot(g, SLOT_GPA + 0x1000, 0x1000, backing[1], 0);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_INTERNAL_ERROR));
  r = guest_regs(g);
  r.rip = 0x50001000;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), 2);
  set_slot(g, SLOT_GPA + 0x1000, 0, NULL, 0);
  set_slot(g, SLOT_GPA, 0x1000, backing[0], KVM_MEM_READONLY);
  guest_resume_at(g, 0x50000000);
  CHECK_EQ(guest_next(g), 1);
  backing[0][1] = 7;
  CHECK_EQ(guest_next(g), 7);
  guest_free(g);
}

/* A store to code in a logged slot is logged, each time. */
static void logged(void) {
  static const u8 code[] = {0xff, 0x05, 1, 0, 0,    0,         0xb8,
                            0,    0,    0, 0, 0xe6, GUEST_PORT}; /* incl 1f + 1; 1: mov $0, %eax; report */
  struct guest *g = start_code((const u8[]){0xff, 0xe3}, 2);
  memcpy(backing[0], code, sizeof(code));
  guest_map(g, 0x50000000, SLOT_GPA, 0x1000, P_W);
  set_slot(g, SLOT_GPA, 0x1000, backing[0], KVM_MEM_LOG_DIRTY_PAGES);
  for (unsigned n = 1; n < 20; n++) {
    u64 bitmap = 0;
    struct kvm_dirty_log log = {.slot = 9, .dirty_bitmap = &bitmap};
    struct kvm_regs r = guest_regs(g);
    r.rip = r.rbx = 0x50000000;
    guest_set_regs(g, &r);
    CHECK_EQ(guest_next(g), n);
    CHECK_EQ(guest_ioctl(g->vm, KVM_GET_DIRTY_LOG, &log), 0);
    CHECK_EQ(bitmap, 1);
    CHECK_EQ(guest_ioctl(g->vm, KVM_GET_DIRTY_LOG, &log), 0);
    CHECK_EQ(bitmap, 0);
  }
  guest_free(g);
}

GUEST_MAIN({"next-insn", run_next_insn}, {"loop", run_loop}, {"undefined", run_undefined}, {"stores", run_stores},
           {"frames", run_frames}, {"border", run_border}, {"fold", run_fold}, {"alias", run_alias}, {"string", run_string}, {"stepped", run_stepped},
           {"remap", run_remap}, {"walk", run_walk}, {"client-writes", client_writes},
           {"client-writes-ahead", client_writes_ahead}, {"client-remaps", client_remaps}, {"slots", slots}, {"logged", logged})
