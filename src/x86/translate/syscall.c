/* SYSCALL and SYSRET between 64-bit programs and kernels without leaving translated code.
 *
 * Called like x86_code_interpret, and goes there for everything that is not plain: what x86_syscall() and x86_sysret() do
 * (cpu/syscall.c) is done here for CPL 3 to 0 and back, without single-stepping.  Guest RCX and R11 are written by both
 * instructions: they are scratch registers here.
 */
#include "x86/translate/private.h"

#define AT(f, n) (offsetof(struct x86_seg, f) == (n))
_Static_assert(AT(base, 0) && AT(limit, 8) && AT(sel, 12) && AT(type, 14) && AT(s, 15) && AT(dpl, 16) && AT(present, 17) &&
                   AT(l, 19) && AT(db, 20) && AT(g, 21) && AT(flat, 23) && sizeof(struct x86_seg) == 24,
               "SEGMENT");
_Static_assert(offsetof(struct x86_code_target, lin) == 0 && offsetof(struct x86_code_target, generation) == 8 &&
                   offsetof(struct x86_code_target, code) == 16,
               "GO");

/* The flat segments: words of type and s, of dpl to l, of db to flat. */
#define CODE_TYPE  0x010b
#define DATA_TYPE  0x0103
#define CODE_WORD  0x01000100 /* + dpl */
#define DATA_WORD  0x00000100
#define CODE_WORD2 0x00000100 /* g */
#define DATA_WORD2 0x01000101 /* db, g, flat */

#define SEGMENT(reg, type, word, word2)                                                                                          \
  "movq $0, %%gs:%c[" reg "]\n\tmovl $-1, %%gs:%c[" reg "]+8\n\tmovw %%ax, %%gs:%c[" reg "]+12\n\tmovw $" type ", %%gs:%c[" reg  \
  "]+14\n\tmovl $" word ", %%gs:%c[" reg "]+16\n\tmovl $" word2 ", %%gs:%c[" reg "]+20\n\t"
#define STR(x)  STR_(x)
#define STR_(x) #x

/* EAX: flags; they go to RFLAGS, and to where translated code keeps the arithmetic ones.  ECX changes. */
#define SET_FLAGS                                                                                                                \
  "movq %%rax, %%gs:%c[rflags]\n\tmovl %%eax, %%ecx\n\tandl $0xd5, %%ecx\n\tshll $8, %%ecx\n\tshrl $11, %%eax\n\tandl $1, "      \
  "%%eax\n\torl %%eax, %%ecx\n\tmovw %%cx, %%gs:%c[flags]\n\t"

/* EAX: the rights; now: the generation of code addresses; to: loads RAX with the address to go to. */
#define GO(now, to)                                                                                                              \
  "movb %%al, %%gs:%c[right]\n\tmovl %%eax, %%ecx\n\tshll $" STR(                                                                \
      TABLE_SHIFT) ", %%ecx\n\taddq %%gs:%c[self], %%rcx\n\t"                                                                    \
                   "addq $%c[tables], %%rcx\n\tmovq %%rcx, %%gs:%c[tlb]\n\tmovq %%gs:%c[" now                                    \
                   ", %%rcx\n\tleaq (%%rax,%%rcx,4), %%rcx\n\t"                                                                  \
                   "movq %%rcx, %%gs:%c[generation]\n\t" to                                                                      \
                   "movq %%rax, %%gs:%c[rip_]\n\tmovl %%gs:%c[link]+4, %%ecx\n\tcrc32q %%rax, %%rcx\n\t"                           \
                   "andl $%c[target_mask], %%ecx\n\tcmpq %%gs:%c[targets](%%rcx), "                                             \
                   "%%rax\n\tjne 8f\n\t"                                                                                         \
                   "movq %%gs:%c[generation], %%rax\n\tcmpq %%gs:%c[targets]+8(%%rcx), %%rax\n\tjne 8f\n\tmovq %%gs:%c[rip_], "  \
                   "%%rax\n\t"                                                                                                   \
                   "andq $-4096, %%rax\n\tmovq %%rax, %%gs:%c[page]\n\tmovq %%gs:%c[host_rsp], %%rsp\n\tjmpq *%%gs:%c[targets]+16(%%rcx)\n"     \
                   "8:\tmovl $0, %%gs:%c[link]\n\tjmp x86_code_leave\n\t"

#define TABLE_SHIFT 17
#define SALT        0x9e3779b1
_Static_assert(SALT == X86_CODE_SALT && offsetof(struct x86_vcpu, code.salt) == offsetof(struct x86_vcpu, code.link) + 4, "GO");
_Static_assert(X86_TLB_SIZE * sizeof(struct x86_tlb_entry) == 1u << TABLE_SHIFT && sizeof(struct x86_code_target) == 32 &&
                   TLB_SUPER == 0 && TLB_USER == 2 && TLB_COUNT <= 4,
               "GO");

__attribute__((used)) static void sequences(void) {
  __asm__ volatile(
      ".pushsection .text\n\t"
      ".globl x86_code_syscall\n\t.hidden x86_code_syscall\nx86_code_syscall:\n\t"
      "testb $1, %%gs:%c[efer]\n\tje x86_code_interpret\n\t"
      "movzwl %c[next](%%rcx), %%r14d\n\taddq %%rax, %%r14\n\taddq %%gs:%c[page], %%r14\n\t" /* RCX: behind the instruction */
      "movzwl %%gs:%c[flags], %%eax\n\tmovl %%eax, %%ecx\n\tshrl $8, %%ecx\n\tandl $0xd5, %%ecx\n\tandl $1, %%eax\n\tshll $11, "
      "%%eax\n\t"
      "orl %%eax, %%ecx\n\tmovl %%gs:%c[rflags], %%r11d\n\tandl $%c[not_arith_rf], %%r11d\n\torl %%ecx, %%r11d\n\t" /* R11: RFLAGS
                                                                                                                     */
      "movl %%gs:%c[sfmask], %%eax\n\tnotl %%eax\n\tandl %%r11d, %%eax\n\torl $2, %%eax\n\t" SET_FLAGS
      "movzwl %%gs:%c[star]+4, %%eax\n\tandl $0xfffc, %%eax\n\t" SEGMENT(
          "cs", STR(CODE_TYPE), STR(CODE_WORD),
          STR(CODE_WORD2)) "addl $8, %%eax\n\t" SEGMENT("ss", STR(DATA_TYPE), STR(DATA_WORD),
                                                        STR(DATA_WORD2)) "movb $0, %%gs:%c[cpl]\n\txorl %%eax, %%eax\n\ttestl "
                                                                         "%[smap], %%gs:%c[cr4]\n\tje 1f\n\ttestl %[ac], "
                                                                         "%%gs:%c[rflags]\n\tjne 1f\n\t"
                                                                         "movl %[super_smap], %%eax\n1:\t" GO(
                                                                             "super]", "movl $0, %%gs:%c[link]+4\n\tmovq %%gs:%c[lstar], %%rax\n\t")

      /* SYSRET to 64-bit mode, of a processor that is not AMD's. */
      ".globl x86_code_sysret\n\t.hidden x86_code_sysret\nx86_code_sysret:\n\t"
      "testb $1, %%gs:%c[efer]\n\tje x86_code_interpret\n\tcmpb $0, %%gs:%c[irq_waits]\n\tjne x86_code_interpret\n\t"
      "testl %[special], %%r11d\n\tjne x86_code_interpret\n\tmovq %%rax, %%gs:%c[scratch]\n\tmovq %%r14, %%rax\n\tshrq $47, "
      "%%rax\n\tmovq %%gs:%c[scratch], %%rax\n\tjne x86_code_interpret\n\t"
      "movl %%r11d, %%eax\n\tandl $0x3c7fd7, %%eax\n\torl $2, %%eax\n\t" SET_FLAGS
      "movzwl %%gs:%c[star]+6, %%eax\n\taddl $16, %%eax\n\torl $3, %%eax\n\t" SEGMENT(
          "cs", STR(CODE_TYPE), STR(CODE_WORD) "+3",
          STR(CODE_WORD2)) "subl $8, %%eax\n\t" SEGMENT("ss", STR(DATA_TYPE), STR(DATA_WORD) "+3",
                                                        STR(DATA_WORD2)) "movb $3, %%gs:%c[cpl]\n\tmovl $2, "
                                                                         "%%eax\n\t" GO("super]+8",
                                                                                        "movl %%gs:%c[super]+8, %%ecx\n\timull $" STR(SALT) ", %%ecx, %%ecx\n\tshrl $16, %%ecx\n\tmovl %%ecx, %%gs:%c[link]+4\n\tmovq %%r14, %%rax\n\t") ".popsection"
      :
      : [efer] "i"(GS_OF(efer)), [next] "i"(offsetof(struct x86_insn, next)), [page] "i"(GS_OF(code.page)),
        [flags] "i"(GS_OF(code.flags)), [rflags] "i"(GS_OF(rflags)), [not_arith_rf] "i"((s32) ~(FL_ARITH | FL_RF)),
        [sfmask] "i"(GS_OF(sfmask)), [star] "i"(GS_OF(star)), [cs] "i"(GS_OF(seg) + SEG_CS * (s32)sizeof(struct x86_seg)),
        [ss] "i"(GS_OF(seg) + SEG_SS * (s32)sizeof(struct x86_seg)), [cpl] "i"(GS_OF(cpl)), [smap] "i"(CR4_SMAP),
        [cr4] "i"(GS_OF(cr4)), [ac] "i"(FL_AC), [super_smap] "i"(TLB_SUPER_SMAP), 
        [right] "i"(GS_OF(mmu.right)), [self] "i"(GS_OF(code.self)), [tables] "i"(GS_OF(mmu.tables)), [tlb] "i"(GS_OF(tlb)),
        [super] "i"(GS_OF(mmu.gen.now)), [generation] "i"(GS_OF(code.generation)), [lstar] "i"(GS_OF(lstar)),
        [rip_] "i"(GS_OF(regs) + 8 * X86_REG_RIP), [target_mask] "i"(X86_TARGET_MASK),
        [targets] "i"(GS_OF(code.targets)), [link] "i"(GS_OF(code.link)), [irq_waits] "i"(GS_OF(irq_waits)),
        [special] "i"(FL_TF | FL_AC), [scratch] "i"(GS_OF(code.scratch)), [host_rsp] "i"(GS_OF(code.host_rsp)));
}
