/* 32-bit code that runs often, under segments that change: flat ones and others, other code sizes at the same address, and the end of the 4 GiB.  What is known
 * of such code must not outlive the segments it was found under. */
#include <string.h>
#include "harness.h"

#define ROUNDS 200
#define BASED  SEL_FREE /* starts at 1000h */
#define SMALL  (SEL_FREE + 8) /* flat, but the stack pointer has 16 bits */
#define HERE   0x60000
#define THERE  0x61000
#define FAR    0x62000 /* far pointers: {HERE, SEL_DATA}, {HERE, BASED} */

/* EDI: the sum of what is read in each round, EBX: HERE.  Odd rounds begin with another selector in EAX. */
#define HOT(name, selector, load, back, read)                                                                                    \
  GUEST_BLOB(name, ".code32\n xor %edi, %edi\n mov $200, %ecx\n mov $0x60000, %ebx\n"                                            \
                   "1: mov $0x10, %eax\n mov $0x62000, %esi\n test $1, %cl\n jz 2f\n mov $" selector ", %eax\n add $6, %esi\n"   \
                   "2: " load "\n " read "\n mov $0x10, %eax\n " back "\n " read "\n dec %ecx\n jnz 1b\n" REPORT(1))

HOT(by_ds, "0x88", "mov %eax, %ds", "mov %eax, %ds", "add 0x60000, %edi");
HOT(by_pop, "0x88", "push %eax\n pop %ds", "push %eax\n pop %ds", "add (%ebx), %edi");
HOT(by_es, "0x88", "mov %eax, %es", "mov %eax, %es", "add %es:(%ebx), %edi");
HOT(by_lds, "0x88", "lds (%esi), %edx", "mov %eax, %ds", "add (%edx), %edi");
HOT(by_les, "0x88", "les (%esi), %edx", "mov %eax, %es", "add %es:(%edx), %edi");
HOT(by_ss, "0x88", "mov %eax, %ss\n mov %ebx, %esp", "mov %eax, %ss", "pop %edx\n add %edx, %edi\n push %edx");
HOT(by_lss, "0x88", "lss (%esi), %esp", "mov %eax, %ss", "add (%esp), %edi");
HOT(by_fs, "0x88", "mov %eax, %fs", "mov %eax, %fs", "add %fs:0x60000, %edi");
HOT(by_gs, "0x88", "mov %eax, %gs", "mov %eax, %gs", "add %gs:-8(%ebx,%ebp), %edi");

static void data(struct guest *g) {
  guest_gdt(g, BASED, 0x1000, ~0u, D_DATA, D_G | D_32);
  guest_gdt(g, SMALL, 0, ~0u, D_DATA, D_G);
  guest_write(g, HERE, 4, 1);
  guest_write(g, THERE, 4, 0x10000);
  guest_write(g, FAR, 6, HERE | (u64)SEL_DATA << 32);
  guest_write(g, FAR + 6, 6, HERE | (u64)BASED << 32);
}

static void run(const u8 *start, const u8 *end, u64 want) {
  struct guest *g = guest_new();
  guest_protected(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, start, (size_t)(end - start));
  data(g);
  struct kvm_regs r = guest_regs(g);
  r.rbp = 8;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_regs(g).rdi, want);
  guest_free(g);
}

static void loads(void) {
  u64 want = ROUNDS / 2 * 0x10000 + ROUNDS / 2 + ROUNDS;
#define RUN(name) run(name##_start, name##_end, want)
  RUN(by_ds), RUN(by_pop), RUN(by_es), RUN(by_lds), RUN(by_les), RUN(by_ss), RUN(by_lss), RUN(by_fs), RUN(by_gs);
}

/* A flat stack segment whose pointer has 16 bits: what is pushed goes elsewhere. */
HOT(small, "0x90", "mov %eax, %ss\n mov $0x60004, %esp\n push %ecx", "mov %eax, %ss\n movl $1, (%ebx)\n mov $0x30000, %esp", "add (%ebx), %edi");

static void small_stack(void) {
  u64 want = ROUNDS / 2 + ROUNDS;
  for (unsigned n = ROUNDS; n; n -= 2) want += n;
  run(small_start, small_end, want);
}

/* The client changes a segment between two rounds of the same code. */
GUEST_BLOB(rounds, ".code32\n mov $0x60000, %ebx\n"
                   "1: mov $50, %ecx\n 2: mov %es:(%ebx), %eax\n mov (%ebx), %edi\n mov %fs:(%ebx), %esi\n dec %ecx\n jnz 2b\n" REPORT(1) "jmp 1b\n");

static void round_with(struct guest *g, const struct kvm_sregs *s, u64 edi, u64 esi) {
  guest_set_sregs(g, s);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_regs(g).rdi, edi);
  CHECK_EQ(guest_regs(g).rsi, esi);
}

static void client(void) {
  struct guest *g = guest_new();
  guest_protected(g, GUEST_CODE);
  guest_load_blob(g, rounds);
  data(g);
  struct kvm_sregs s = guest_sregs(g), with = s;
  round_with(g, &s, 1, 1);
  with.ds.base = with.fs.base = 0x1000;
  round_with(g, &with, 0x10000, 0x10000);
  round_with(g, &s, 1, 1);
  with.ds.base = 0;
  round_with(g, &with, 1, 0x10000);
  with.cs.base = 0x1000; /* the same EIP, and another copy of the code */
  guest_load(g, GUEST_CODE + 0x1000, rounds_start, (size_t)(rounds_end - rounds_start));
  guest_write(g, GUEST_CODE + 0x1001, 4, THERE);
  round_with(g, &with, 1, 0x10000);
  round_with(g, &s, 1, 1);
  with = s;
  with.fs.limit = HERE + 2;
  with.fs.g = 0;
  guest_set_sregs(g, &with);
  CHECK_EQ(guest_next(g), TRAP(13));
  guest_free(g);
}

/* FS without a descriptor, after it had one. */
GUEST_BLOB(null, ".code32\n mov $0x60000, %ebx\n mov $100, %ecx\n"
                 "1: mov %fs:(%ebx), %esi\n dec %ecx\n jnz 1b\n" REPORT(1) "xor %eax, %eax\n mov %eax, %fs\n inc %ecx\n jmp 1b\n");

static void null_segment(void) {
  struct guest *g = guest_new();
  guest_protected(g, GUEST_CODE);
  guest_load_blob(g, null);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_next(g), TRAP(13));
  CHECK_EQ(guest_stack(g, 0, 4), 0);
  guest_free(g);
}

/* The same bytes as 64-bit and as 32-bit code: INC RAX, or DEC EAX and INC EAX; both are called in turn from code that is linked to them. */
GUEST_BLOB(sizes, ".code64\n xor %eax, %eax\n xor %ebx, %ebx\n mov $100, %ecx\n jmp 1f\n"
                  ".balign 16\n 9: .byte 0x48, 0xff, 0xc0\n ret\n"
                  "1: mov $" AT(sizes, 9b) ", %edx\n call *%rdx\n call 9b\n push $0x18\n push $" AT(sizes, 3f) "\n lretq\n"
                  ".code32\n 3: xchg %eax, %ebx\n call *%edx\n call 9b\n inc %eax\n xchg %eax, %ebx\n ljmp $0x08, $" AT(sizes, 4f) "\n"
                  ".code64\n 4: dec %ecx\n jnz 1b\n" REPORT(1));

static void code_sizes(void) {
  struct guest *g = guest_new();
  guest_long(g, GUEST_CODE);
  guest_load_blob(g, sizes);
  struct kvm_regs r = guest_regs(g);
  r.rsp = GUEST_STACK0;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_regs(g).rax & ~0xffull, 200 & ~0xffull);
  CHECK_EQ(guest_regs(g).rbx, 100);
  CHECK_EQ(guest_regs(g).rcx, 0);
  guest_free(g);
}

/* Compatibility mode: addresses have 32 bits whatever is above them in the registers. */
GUEST_BLOB(upper, ".code64\n mov $0x60000, %ebx\n bts $40, %rbx\n mov $0x30000, %esi\n bts $63, %rsi\n mov $100, %ecx\n xor %edi, %edi\n"
                  "push $0x18\n push $" AT(upper, 3f) "\n lretq\n"
                  ".code32\n 3: mov $0xfff00000, %edx\n"
                  "1: add (%ebx), %edi\n add -0x30000(%ebx,%esi), %edi\n add 0x100000(%ebx,%edx), %edi\n push %edi\n pop %edi\n dec %ecx\n jnz 1b\n" REPORT(1));

static void upper_halves(void) {
  struct guest *g = guest_new();
  guest_long(g, GUEST_CODE);
  guest_load_blob(g, upper);
  guest_write(g, HERE, 4, 1);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ((u32)guest_regs(g).rdi, 300);
  CHECK_EQ(guest_regs(g).rsp, GUEST_STACK0);
  guest_free(g);
}

/* The last page before 4 GiB and the first one behind: jumps, calls and returns, the stack, and displacements go round. */
#define LAST 0xfffff000u
GUEST_BLOB(end, ".code32\n mov $100, %ecx\n xor %edi, %edi\n mov $4, %esp\n"
                "1: push %ecx\n push %ecx\n pop %eax\n add %eax, %edi\n pop %eax\n add %eax, %edi\n"
                ".byte 0xe8\n .long 0xffffffe0 - " AT(end, 2f) "\n 2: add $0x100, %edi\n dec %ecx\n jnz 1b\n" REPORT(1)
                ".org end_start + 0x100\n add $0x1000, %edi\n ret\n");
/* At ffffffe0: inc %edi; lea 0(%esp), %eax, which is 0; add -4(%eax), %edi; jmp GUEST_CODE + 0x100. */
static const u8 at_end[] = {0x47, 0x8d, 0x44, 0x24, 0, 0x03, 0x78, 0xfc, 0xe9, 0x13, 0x81, 0, 0};

static void the_end(void) {
  static u8 last[0x1000] __attribute__((aligned(4096)));
  struct guest *g = guest_new();
  guest_protected(g, GUEST_CODE);
  guest_load_blob(g, end);
  memcpy(last + 0xfe0, at_end, sizeof(at_end));
  guest_add_slot(g, 0, LAST, last, sizeof(last));
  u64 want = ROUNDS / 2 * 0x1101;
  for (unsigned n = 1; n <= 100; n++) want += 3 * n;
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(guest_regs(g).rdi, want);
  CHECK_EQ(guest_regs(g).rsp, 4);
  CHECK_EQ(last[0xffc], 1);
  guest_free(g);
}

GUEST_MAIN({"loads", loads}, {"small-stack", small_stack}, {"client", client}, {"null-segment", null_segment}, {"code-sizes", code_sizes},
           {"upper-halves", upper_halves}, {"the-end", the_end})
