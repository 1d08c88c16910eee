/* The sequences every translation shares: in, out, into the interpreter, vector registers.
 *
 * Translated code runs with the GS base at the vCPU and guest registers where x86_translate_home says; its stack is aligned to 16
 * bytes.  These sequences are assembly inside a function that is never called, so that the compiler supplies the offsets.
 */
#include "x86/translate/private.h"

const u8 x86_translate_home[16] = {H_R13, H_R14, H_RDX, H_RBX, H_R15, H_RBP,  H_RSI,  H_RDI,
                                   H_R8,  H_R9,  H_R10, H_R11, H_R12, H_NONE, H_NONE, H_NONE};

#define FRAMES_MAX 8192 /* bytes of them: the client's thread may have a small stack */

#define SAVE_GUEST                                                                                                               \
  "movq %%r13, %%gs:%c[regs]\n\tmovq %%r14, %%gs:%c[regs]+8\n\tmovq %%rdx, %%gs:%c[regs]+16\n\tmovq %%rbx, %%gs:%c[regs]+24\n\t" \
  "movq %%r15, %%gs:%c[regs]+32\n\tmovq %%rbp, %%gs:%c[regs]+40\n\tmovq %%rsi, %%gs:%c[regs]+48\n\tmovq %%rdi, "                 \
  "%%gs:%c[regs]+56\n\t"                                                                                                         \
  "movq %%r8, %%gs:%c[regs]+64\n\tmovq %%r9, %%gs:%c[regs]+72\n\tmovq %%r10, %%gs:%c[regs]+80\n\tmovq %%r11, "                   \
  "%%gs:%c[regs]+88\n\t"                                                                                                         \
  "movq %%r12, %%gs:%c[regs]+96\n\t"
#define LOAD_GUEST                                                                                                               \
  "movq %%gs:%c[regs], %%r13\n\tmovq %%gs:%c[regs]+8, %%r14\n\tmovq %%gs:%c[regs]+16, %%rdx\n\tmovq %%gs:%c[regs]+24, %%rbx\n\t" \
  "movq %%gs:%c[regs]+32, %%r15\n\tmovq %%gs:%c[regs]+40, %%rbp\n\tmovq %%gs:%c[regs]+48, %%rsi\n\tmovq %%gs:%c[regs]+56, "      \
  "%%rdi\n\t"                                                                                                                    \
  "movq %%gs:%c[regs]+64, %%r8\n\tmovq %%gs:%c[regs]+72, %%r9\n\tmovq %%gs:%c[regs]+80, %%r10\n\tmovq %%gs:%c[regs]+88, "        \
  "%%r11\n\t"                                                                                                                    \
  "movq %%gs:%c[regs]+96, %%r12\n\t"

/* Between RFLAGS in memory and what LAHF and SETO give: AH has five flags in their places, AL has OF.  EAX and EDX change. */
#define MERGE_FLAGS                                                                                                              \
  "movzwl %%gs:%c[flags], %%eax\n\tmovl %%eax, %%edx\n\tshrl $8, %%edx\n\tandl $0xd5, %%edx\n\tandl $1, %%eax\n\tshll $11, "     \
  "%%eax\n\t"                                                                                                                    \
  "orl %%eax, %%edx\n\tandq $~0x8d5, %%gs:%c[rflags]\n\torq %%rdx, %%gs:%c[rflags]\n\t"
#define SPLIT_FLAGS                                                                                                              \
  "movl %%gs:%c[rflags], %%eax\n\tmovl %%eax, %%edx\n\tandl $0xd5, %%edx\n\tshll $8, %%edx\n\tshrl $11, %%eax\n\tandl $1, "      \
  "%%eax\n\t"                                                                                                                    \
  "orl %%eax, %%edx\n\tmovw %%dx, %%gs:%c[flags]\n\t"

#define EACH16(m)    m(0) m(1) m(2) m(3) m(4) m(5) m(6) m(7) m(8) m(9) m(10) m(11) m(12) m(13) m(14) m(15)
#define EACH_HIGH(m) m(16) m(17) m(18) m(19) m(20) m(21) m(22) m(23) m(24) m(25) m(26) m(27) m(28) m(29) m(30) m(31)
#define STORE_XMM(n) "movups %%xmm" #n ", %%gs:%c[zmm]+" #n "*64\n\t"
#define LOAD_XMM(n)  "movups %%gs:%c[zmm]+" #n "*64, %%xmm" #n "\n\t"
#define STORE_YMM(n) "vmovups %%ymm" #n ", %%gs:%c[zmm]+" #n "*64\n\t"
#define LOAD_YMM(n)  "vmovups %%gs:%c[zmm]+" #n "*64, %%ymm" #n "\n\t"
#define STORE_ZMM(n) "vmovups %%zmm" #n ", %%gs:%c[zmm]+" #n "*64\n\t"
#define LOAD_ZMM(n)  "vmovups %%gs:%c[zmm]+" #n "*64, %%zmm" #n "\n\t"
#define STORE_K(n)   "kmovq %%k" #n ", %%gs:%c[k]+" #n "*8\n\t"
#define LOAD_K(n)    "kmovq %%gs:%c[k]+" #n "*8, %%k" #n "\n\t"
#define EACH8(m)     m(0) m(1) m(2) m(3) m(4) m(5) m(6) m(7)

/* The client's thread goes on: no upper halves are left that would slow its SSE code. */
#define SAVE_VECTORS                                                                                                             \
  "cmpb $0, %%gs:%c[vectors]\n\tje 9f\n\tmovb $0, %%gs:%c[vectors]\n\tcmpb $0, %%gs:%c[wide]\n\tjne 7f\n\tcmpb $0, "             \
  "%%gs:%c[avx]\n\tjne 8f\n\t" EACH16(STORE_XMM) "jmp 9f\n8:\t" EACH16(STORE_YMM) "vzeroupper\n\tjmp 9f\n7:\t" EACH16(STORE_ZMM) \
      EACH_HIGH(STORE_ZMM) EACH8(STORE_K) "vzeroupper\n9:\n\t"

/* For unwinders (gdb, perf): a sequence is in the frame of x86_code_enter(), or is called by translated code, which has that
 * frame (gdbjit.c). */
#define CFI_ENTERED                                                                                                              \
  ".cfi_startproc\n\t.cfi_def_cfa %%rsp, 80\n\t.cfi_offset %%rbx, -16\n\t.cfi_offset %%rbp, -24\n\t.cfi_offset %%r12, -32\n\t"   \
  ".cfi_offset %%r13, -40\n\t.cfi_offset %%r14, -48\n\t.cfi_offset %%r15, -56\n\t"
#define CFI_CALLED ".cfi_startproc\n\t"
#define CFI_END    ".cfi_endproc\n\t"
#define PUSH(r)    "pushq %%" #r "\n\t.cfi_adjust_cfa_offset 8\n\t.cfi_rel_offset %%" #r ", 0\n\t"
#define POP(r)     "popq %%" #r "\n\t.cfi_adjust_cfa_offset -8\n\t"
#define ALIGN_RSP  "subq $8, %%rsp\n\t.cfi_adjust_cfa_offset 8\n\t"
#define UNALIGN    "addq $8, %%rsp\n\t.cfi_adjust_cfa_offset -8\n\t"
#define NO_FRAMES  "addq $24, %%rsp\n\t.cfi_adjust_cfa_offset -24\n\t"

/* EAX and EDX change. */
#define SAVE_X87 "cmpb $0, %%gs:%c[x87]\n\tje 4f\n\tcall x86_code_save_x87\n4:\n\t"

__attribute__((used)) static void sequences(void) {
  __asm__ volatile(
      ".pushsection .text.x86_code_entry, \"ax\", @progbits\n\t"
      /* int x86_code_enter(struct x86_vcpu *c, const void *code): flags are expected in memory there. */
      ".globl x86_code_enter\n\t.hidden x86_code_enter\n\t.type x86_code_enter, @function\nx86_code_enter:\n\t" CFI_CALLED PUSH(
          rbx) PUSH(rbp) PUSH(r12) PUSH(r13) PUSH(r14) PUSH(r15) ALIGN_RSP
      /* The lowest frame; translated code may put so many below it (branch.c). */
      "pushq %%gs:%c[no_return]\n\t.cfi_adjust_cfa_offset 8\n\tleaq x86_code_stray(%%rip), %%rax\n\t"
      "pushq %%rax\n\t.cfi_adjust_cfa_offset 8\n\tmovq %%rsp, %%gs:%c[host_rsp]\n\t"
      "leaq -%c[frames](%%rsp), %%rax\n\tmovq %%rax, %%gs:%c[host_rsp_min]\n\t"
      "movq %%rsi, %%rcx\n\t" SPLIT_FLAGS LOAD_GUEST "jmpq *%%rcx\n\t" CFI_END

      /* A return to what no guest knows. */
      ".globl x86_code_stray\n\t.hidden x86_code_stray\nx86_code_stray:\n\t"
      "movq %%rax, %%gs:%c[rip_]\n\tmovl $0, %%gs:%c[link]\n"

      /* Out: flags in memory, RIP set, result 0. */
      ".globl x86_code_leave\n\t.hidden x86_code_leave\nx86_code_leave:\n\tmovq %%gs:%c[host_rsp], %%rsp\n\t" CFI_ENTERED SAVE_GUEST SAVE_VECTORS SAVE_X87
          MERGE_FLAGS "xorl %%eax, %%eax\n"
      "5:\t" NO_FRAMES POP(r15) POP(r14) POP(r13) POP(r12) POP(rbp) POP(
          rbx) "retq\n\t" CFI_END

               /* The interpreter runs the instruction RCX of the block that starts EAX bytes into the page.  Called; flags in
                * memory before and after. A result that ends the block goes to whoever entered; so does a block that was
                * invalidated, and a request. */
               ".globl x86_code_interpret_at\n\t.hidden x86_code_interpret_at\nx86_code_interpret_at:\n\tjmp 1f\n\t" /* the block's instruction pointer is in RAX */
               ".globl x86_code_interpret\n\t.hidden x86_code_interpret\nx86_code_interpret:\n\t" CFI_CALLED
               "addq %%gs:%c[page], %%rax\n1:\t" SAVE_GUEST
               "movq %%rax, %%gs:%c[rip_]\n\t" SAVE_VECTORS SAVE_X87 MERGE_FLAGS
               "movq %%rcx, %%gs:%c[cur]\n\tmovq %%gs:%c[self], %%rdi\n\tmovq %%rcx, %%rsi\n\t" ALIGN_RSP "callq *(%%rcx)\n\t"
               "movzbl %%gs:%c[stop], %%edx\n\torl %%eax, %%edx\n\tjne 6f\n\t"
               "movl %[end], %%eax\n\tmovq %%gs:%c[cur], %%rcx\n\tleaq x86_exec_stop(%%rip), %%rdx\n\tcmpq %%rdx, (%%rcx)\n\tje "
               "6f\n\t"
               "cmpq $0, %%gs:%c[requests]\n\tjne 6f\n\t"
               "movq $0, %%gs:%c[cur]\n\t" SPLIT_FLAGS LOAD_GUEST UNALIGN "retq\n\t.cfi_adjust_cfa_offset 8\n"
               /* The block ends here: to the next one, or out.  The return address is used up by a return to somewhere else, which the processor expects where it
                * was called from: one wrong guess.  To drop it would be one for each return up to KVM_RUN's, or of the guest's functions. */
               "6:\tmovq %%gs:%c[self], %%rdi\n\tmovl %%eax, %%esi\n\tmovq %%gs:%c[generation], %%rbx\n\tcallq x86_code_next\n\t" UNALIGN
               "leaq 3f(%%rip), %%rcx\n\tmovq %%rcx, (%%rsp)\n\tretq\n3:\t.cfi_adjust_cfa_offset -8\n\t"
               "cmpq %%gs:%c[generation], %%rbx\n\tjne 8f\n\ttestq %%rax, %%rax\n\tje 8f\n\t"
               "movq %%rax, %%rcx\n\t" SPLIT_FLAGS LOAD_GUEST "jmpq *%%rcx\n\t" CFI_END
               /* Without the frames of calls. */
               "8:\tmovq %%gs:%c[host_rsp], %%rsp\n\t" CFI_ENTERED "testq %%rax, %%rax\n\tje 7f\n\t"
               "movq %%rax, %%rcx\n\t" SPLIT_FLAGS LOAD_GUEST "jmpq *%%rcx\n"
               "7:\tmovl %%gs:%c[result], %%eax\n\tjmp 5b\n\t" CFI_END

               /* Called; flags in memory.  Sets the level to what there is. */
               ".globl x86_code_load_vectors\n\t.hidden x86_code_load_vectors\nx86_code_load_vectors:\n\t" CFI_CALLED SAVE_GUEST
               "movq %%gs:%c[self], %%rdi\n\t" ALIGN_RSP "callq x86_code_vector_level\n\t" UNALIGN
               "testl %%eax, %%eax\n\tje 9f\n\tmovb %%al, %%gs:%c[vectors]\n\tcmpb $0, %%gs:%c[wide]\n\tjne 7f\n\tcmpb $0, "
               "%%gs:%c[avx]\n\tjne 8f\n\t" EACH16(LOAD_XMM) "jmp 9f\n8:\t" EACH16(LOAD_YMM) "jmp 9f\n7:\t" EACH16(LOAD_ZMM)
                   EACH_HIGH(LOAD_ZMM)
                       EACH8(LOAD_K) "9:\t" LOAD_GUEST "retq\n\t" CFI_END

                                     /* Called; flags in memory; RAX changes.  Sets c->code.x87 when the guest may use them
                                        (CR0.EM and TS) and masks all exceptions. */
                                     ".globl x86_code_load_x87\n\t.hidden x86_code_load_x87\nx86_code_load_x87:\n\t" CFI_CALLED
                                     "testb %[em_ts], %%gs:%c[cr0]\n\tjne 9f\n\tmovb %%gs:%c[fx], %%al\n\tnotb %%al\n\ttestb "
                                     "$0x3f, %%al\n\tjne 9f\n\t"
                                     "movb $1, %%gs:%c[x87]\n\tmovl $-1, %%gs:%c[x87_ip]\n\tfnstcw %%gs:%c[host_fcw]\n\t"
                                     "movq $1, %%gs:%c[header]\n\tmovq %%rdx, %%gs:%c[regs]+16\n\tmovl $1, %%eax\n\txorl %%edx, "
                                     "%%edx\n\t"
                                     "xrstor64 %%gs:%c[fx]\n\tmovq %%gs:%c[regs]+16, %%rdx\n9:\tretq\n\t" CFI_END

                                     "x86_code_save_x87:\n\t" CFI_CALLED
                                     "movb $0, %%gs:%c[x87]\n\tmovl $1, %%eax\n\txorl %%edx, %%edx\n\txsave64 %%gs:%c[fx]\n\t"
                                     "movl %%gs:%c[x87_ip], %%eax\n\ttestl %%eax, %%eax\n\tjs 9f\n\taddq %%gs:%c[x87_page], "
                                     "%%rax\n\tmovq %%rax, %%gs:%c[fx]+8\n"
                                     "9:\tfninit\n\tfldcw %%gs:%c[host_fcw]\n\tretq\n\t" CFI_END ".popsection"
      :
      : [regs] "i"(GS_OF(regs)), [flags] "i"(GS_OF(code.flags)), [rflags] "i"(GS_OF(rflags)), [page] "i"(GS_OF(code.page)),
        [rip_] "i"(GS_OF(regs) + 8 * X86_REG_RIP), [cur] "i"(GS_OF(cur)), [self] "i"(GS_OF(code.self)), [stop] "i"(GS_OF(stop)),
        [vectors] "i"(GS_OF(code.vectors)), [wide] "i"(GS_OF(code.wide)), [avx] "i"(GS_OF(code.avx)), [zmm] "i"(GS_OF(fpu.zmm)),
        [k] "i"(GS_OF(fpu.k)), [requests] "i"(GS_OF(core.requests)), [end] "i"(X86_END), [result] "i"(GS_OF(code.result)),
        [x87] "i"(GS_OF(code.x87)), [x87_ip] "i"(GS_OF(code.x87_ip)), [x87_page] "i"(GS_OF(code.x87_page)),
        [host_fcw] "i"(GS_OF(code.host_fcw)), [fx] "i"(GS_OF(fpu.fx)), [header] "i"(GS_OF(fpu.header)), [cr0] "i"(GS_OF(cr0)),
        [em_ts] "i"(CR0_EM | CR0_TS), [no_return] "i"(GS_OF(code.no_return)), [host_rsp] "i"(GS_OF(code.host_rsp)),
        [host_rsp_min] "i"(GS_OF(code.host_rsp_min)), [link] "i"(GS_OF(code.link)), [generation] "i"(GS_OF(code.generation)), [frames] "i"(FRAMES_MAX));
}
