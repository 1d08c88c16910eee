/* Single steps of the debugger through some five hundred instructions: each stop is where the assembler says that the next one
 * begins.  The assembler writes the lengths next to the code; what it chose and every other encoding of the debug-register
 * selftest's XOR are among them. */
#include <string.h>
#include "harness.h"

extern const u8 step_lengths[], step_lengths_end[];

/* An instruction and its length. */
#define I(text) "771: " text "\n772: .pushsection .step_lengths, \"a\"\n .byte 772b - 771b\n .popsection\n"
/* Encoded by hand. */
#define B(bytes) I(".byte " bytes)

#define EACH64 ".irp r, rax, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15\n"
#define EACH32 ".irp r, eax, ecx, edx, esi, edi, ebp, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d\n"
#define EACH8  ".irp r, al, cl, dl, sil, dil, bpl, r8b, r9b, r10b, r11b, r12b, r13b, r14b, r15b\n"
#define EACHX  ".irp r, xmm0, xmm3, xmm7, xmm8, xmm12, xmm15\n"
#define END    ".endr\n"

/* RBX points at memory, and RSP at a stack; both stay. */
GUEST_BLOB(steps, ".pushsection .step_lengths, \"a\"\n .globl step_lengths\n step_lengths:\n .popsection\n"
           /* the selftest's list, with each encoding of XOR */
           I("sti") B("0x31, 0xc0") B("0x33, 0xc0") B("0x48, 0x31, 0xc0") B("0x48, 0x33, 0xc0") B("0x40, 0x31, 0xc0")
               B("0x66, 0x48, 0x31, 0xc0") B("0x2e, 0x31, 0xc0") B("0xf2, 0x31, 0xc0") I("push %rbx") I("cpuid") I("pop %rbx")
                   I("mov $0x1b, %ecx") I("rdmsr") I("cli")
           /* prefixes that mean nothing, up to 15 bytes; NOPs of every length */
           B("0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x90") I("nop") I("nopw (%rax)")
               I("nopl 8(%rax)") I("nopl 8(%rax,%rax)") I("nopw 8(%rax,%rax)") I("nopl 0x1000(%rax)") I("nopl 0x1000(%rax,%rax)")
                   I("nopw 0x1000(%rax,%rax)") I("cs nopw 0x1000(%rax,%rax)") B("0x0f, 0x0d, 0x0b") B("0xf3, 0x0f, 0x1e, 0xfa")
                       B("0xf3, 0x90")
           /* branches, taken and not; a call, a return */
           I("jmp 1f") "1:" B("0xe9, 0, 0, 0, 0") I("xor %eax, %eax") I("jz 1f") "1:" I("jnz 1f") "1:" B("0x0f, 0x84, 0, 0, 0, 0")
               B("0x0f, 0x85, 0, 0, 0, 0") B("0xe8, 0, 0, 0, 0") I("pop %rax") B("0xe3, 0") I("mov $1, %ecx") B("0xe2, 0")
                   B("0x67, 0xe3, 0") I("pushfq") I("popfq")
           /* moffs, immediates of each size, enter and leave */
           I("movabs %al, 0x60000") I("movabs 0x60000, %rax") I("movabs %eax, 0x60008") I("addr32 mov 0x60000, %eax") I(
               "movw $0x1234, (%rbx)") I("movq $-5, 0x100(%rbx)") I("pushq $0x12345678") I("pop %rax") I("push $5") I("pop %rax")
               I("mov %rsp, %rbp") I("enter $16, $0") I("leave") I("lock addl $1, (%rbx)") I("lock addl $0x12345, 0x123(%rbx)")
                   I("xchg %eax, (%rbx)") I("cwd") I("cqo") I("cbw") I("xlat") I("mov %ds, %eax") I("sahf") I("lahf") I("stc")
                       I("cmc") I("cld") I("fninit") I("fld1") I("fstps (%rbx)") I("fldl 0x200(%rbx)") I("fstp %st(0)")
                           EACH64 I("xor %\\r, %\\r") I("add $1, %\\r") I("add $0x12345678, %\\r")
                               I("mov $0x1122334455667788, %\\r") I("mov $-1, %\\r") I("lea 8(%rbx), %\\r")
                                   I("lea 0x1000(%rbx), %\\r") I("mov (%rbx), %\\r") I("mov %\\r, 8(%rbx)")
                                       I("lea (%rbx,%\\r,8), %\\r") I("test %\\r, %\\r") I("bswap %\\r") I("shl $3, %\\r")
                                           I("imul $5, (%rbx), %\\r") I("imul $0x1000, %\\r, %\\r") I("push %\\r") I("pop %\\r")
                                               I("cmovz (%rbx), %\\r") I("bt $3, %\\r") I("xchg %\\r, %rax")
                                                   END EACH32 I("xor %\\r, %\\r") I("xor $1, %\\r") I("or $0x12345678, %\\r")
                                                       I("mov $5, %\\r") I("mov (%rbx), %\\r") I("mov 0x12345(%rip), %\\r")
                                                           I("shld $3, %\\r, (%rbx)") I("sar %cl, %\\r") I("bsf (%rbx), %\\r")
                                                               I("fs mov (%rbx), %\\r") END EACH8 I("mov $1, %\\r")
                                                                   I("add %\\r, (%rbx)") I("setz %\\r") I("test $1, %\\r")
                                                                       I("movzbl %\\r, %eax") END EACHX I("movaps %xmm1, %\\r")
                                                                           I("movups 16(%rbx), %\\r") I("addps %\\r, %xmm2")
                                                                               I("pxor %\\r, %\\r") I("movd %eax, %\\r")
                                                                                   I("movq %\\r, 0x100(%rbx)")
                                                                                       I("pshufd $0x1b, %\\r, %xmm1")
                                                                                           I("cvtsi2sd %rax, %\\r") END
           ".pushsection .step_lengths, \"a\"\n .globl step_lengths_end\n step_lengths_end:\n .popsection\n" REPORT(1));

static void all(void) {
  struct guest *g = guest_new();
  guest_long(g, GUEST_CODE);
  guest_load_blob(g, steps);
  struct kvm_sregs s = guest_sregs(g);
  s.cr4 |= 0x600; /* SSE */
  guest_set_sregs(g, &s);
  struct kvm_regs r = guest_regs(g);
  r.rbx = GUEST_DATA, r.rsp = GUEST_STACK0 - 64;
  guest_set_regs(g, &r);
  struct kvm_guest_debug d = {.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_GUEST_DEBUG, &d), 0);
  u64 at = GUEST_CODE;
  size_t n = (size_t)(step_lengths_end - step_lengths);
  CHECK(n >= 500);
  for (size_t k = 0; k < n; k++) {
    at += step_lengths[k];
    unsigned why = guest_next(g);
    CHECK_EQ(why, EXIT(KVM_EXIT_DEBUG));
    CHECK_EQ(g->run->debug.arch.pc, at);
    CHECK_EQ(g->run->debug.arch.dr6, 0xffff4ff0);
    if (why != EXIT(KVM_EXIT_DEBUG) || g->run->debug.arch.pc != at) break; /* the rest would only follow from it */
  }
  d.control = 0;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_GUEST_DEBUG, &d), 0);
  CHECK_EQ(guest_next(g), 1);
  guest_free(g);
}

GUEST_MAIN({"all", all})
