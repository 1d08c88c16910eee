/* Translated code: what the block loop asks of it.
 *
 *   code.c       the cache: when a block is translated, linked, forgotten; entering and leaving
 *   entry.c      the few hand-written sequences every translation shares
 *   block.c      one block: order of parts, entries, exits
 *   rewrite.c    instructions that run as themselves, with other registers and a host address
 *   special.c    instructions with fixed registers; the stack
 *   string.c     MOVS, STOS, LODS, CMPS, SCAS
 *   branch.c     control flow
 *   highbyte.c   instructions with AH to BH
 *   system.c     what kernels do all the time: interrupt flag, SMAP, SWAPGS, time
 *   syscall.c    SYSCALL and SYSRET
 *   memory.c     guest addresses to host addresses
 *   emit.h       host instruction encoding
 *
 * Code of all modes is translated: for 64-bit code and 32-bit code with flat segments nothing has to be known of segments, other code looks at them at each
 * access.  What the translator does not know runs in the interpreter, instruction by instruction.
 */
#ifndef X86_TRANSLATE_CODE_H
#define X86_TRANSLATE_CODE_H

#include "x86/block.h"

int x86_code_create(struct x86_vm *vm);
void x86_code_destroy(struct x86_vm *vm);
/* The vCPU's part: addresses that translated code jumps to. */
void x86_code_vcpu_init(struct x86_vcpu *c);

/* The translation of a block for the access rights in force, made when it has run often; NULL: there is none (yet). */
struct x86_code *x86_code_for(struct x86_vcpu *c, struct x86_block *b);
/* Runs from this block on until something has to be looked at.  Flow as x86_run_blocks(), and X86_RESTART. */
int x86_code_run(struct x86_vcpu *c, struct x86_code *code);
/* The block was compared with memory under this epoch; it is dead; it is freed.  blocks->lock held by the last two. */
void x86_code_validated(struct x86_block *b, u64 epoch);
void x86_code_killed(struct x86_block *b);
/* Too much code: everything must be flushed, and then, with no vCPU in translated code, forgotten.  Suspended, nothing is translated; false: another vCPU
 * has done that, and will forget everything: a second time it would be what runs by then. */
bool x86_code_is_full(struct x86_vm *vm);
bool x86_code_suspend(struct x86_vm *vm);
void x86_code_reset(struct x86_vm *vm);

/* Translates a block of nobody's and runs it once, for differential tests: *flow as x86_code_run().  false: it cannot be translated now. */
bool x86_code_run_once(struct x86_vcpu *c, struct x86_block *b, int *flow);

/* Before KVM_RUN returns: the client gets its GS base back. */
void x86_code_end(struct x86_vcpu *c);

/* A host fault (fault_guard.recover): what translated code had in registers goes back to the vCPU, and c->cur is the instruction.
 * Signal handler. */
void x86_code_recover(void *vcpu, void *ucontext);

#endif
