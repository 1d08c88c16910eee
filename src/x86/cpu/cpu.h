/* What exec/ needs of the privileged machine besides x86.h: far transfers, system calls, descriptor queries, debug registers,
 * RSM.
 *
 * The transfers return X86_BRANCH when done, X86_FAULT with nothing changed, or X86_EXIT; `next` is the address of the following
 * instruction.
 */
#ifndef X86_CPU_CPU_H
#define X86_CPU_CPU_H

#include "x86/vcpu.h"

/* ---- far.c, iret.c: opsize is 2, 4 or 8; off is truncated to it by the caller ---- */
int x86_far_jump(struct x86_vcpu *c, u16 sel, u64 off, unsigned opsize, u64 next);
int x86_far_call(struct x86_vcpu *c, u16 sel, u64 off, unsigned opsize, u64 next);
int x86_far_ret(struct x86_vcpu *c, unsigned opsize, unsigned release);
int x86_iret(struct x86_vcpu *c, unsigned opsize, u64 next);

/* ---- syscall.c ---- */
int x86_syscall(struct x86_vcpu *c, u64 next);
int x86_sysret(struct x86_vcpu *c, unsigned opsize);
int x86_sysenter(struct x86_vcpu *c);
int x86_sysexit(struct x86_vcpu *c, unsigned opsize);

/* ---- smm.c ---- */
int x86_rsm(struct x86_vcpu *c);

/* ---- seg.c: LAR, LSL, VERR, VERW.  *ok says whether ZF is to be set; X86_FAULT only for the descriptor table's page ---- */
enum x86_query { QUERY_LAR, QUERY_LSL, QUERY_VERR, QUERY_VERW };
int x86_seg_query(struct x86_vcpu *c, u16 sel, enum x86_query what, bool *ok, u32 *value);

/* ---- debug.c ---- */
/* MOV SS or POP SS is about to complete: no debug trap and no breakpoint until after the next instruction. */
void x86_debug_mov_ss(struct x86_vcpu *c);
/* The DR7 in force: the guest's, or the debugger's outside (KVM_SET_GUEST_DEBUG). */
u64 x86_debug_dr7(const struct x86_vcpu *c);
/* x86_after_single_step() for an iteration of a repeated string instruction that is not its last. */
int x86_after_iteration(struct x86_vcpu *c);

#endif
