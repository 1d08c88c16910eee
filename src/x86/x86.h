/* The door of the x86 engine: what its folders offer one another, by owner. */
#ifndef X86_X86_H
#define X86_X86_H

#include "x86/vcpu.h"

/* ---- cpu/mode.c ---- */
/* Recomputes c->mode, c->cpl, c->code64 and the TLB table from CR0, EFER, CS, SS, EFLAGS (VM, AC, TF). Call after any of them changed. */
void x86_mode_changed(struct x86_vcpu *c);
/* Power-on / INIT state (SDM Vol. 3A 9.1.1, table 9-1). */
void x86_reset(struct x86_vcpu *c, bool init);
static inline bool x86_protected(const struct x86_vcpu *c) { return c->cr0 & CR0_PE; }
static inline bool x86_v86(const struct x86_vcpu *c) { return c->rflags & FL_VM; }
static inline bool x86_long(const struct x86_vcpu *c) { return c->efer & EFER_LMA; }
static inline unsigned x86_iopl(const struct x86_vcpu *c) { return (c->rflags >> 12) & 3; }
/* Writes RFLAGS through a mask and reacts to what changed (TF, AC, VM, IF: may request event evaluation). */
void x86_set_rflags(struct x86_vcpu *c, u64 value, u64 mask);
bool x86_canonical(const struct x86_vcpu *c, u64 addr);

/* ---- cpu/seg.c ---- */
void x86_seg_update(struct x86_seg *s); /* derives `flat` */
int x86_load_seg(struct x86_vcpu *c, unsigned seg, u16 sel); /* MOV/POP Sreg, LDS...: all checks; flow */
int x86_load_ldt(struct x86_vcpu *c, u16 sel);
int x86_load_tr(struct x86_vcpu *c, u16 sel);
void x86_seg_real(struct x86_vcpu *c, unsigned seg, u16 sel); /* real and v86 mode */
/* I/O permission: X86_OK or #GP(0) (SDM Vol. 1 19.5). */
int x86_io_check(struct x86_vcpu *c, u16 port, unsigned size);

/* ---- cpu/event.c ---- */
enum x86_event_kind { EV_HW_INT, EV_NMI, EV_SOFT_INT, EV_EXCEPTION, EV_SOFT_EXCEPTION /* INT3, INTO */, EV_PRIV_SOFT_EXCEPTION /* INT1 */ };
/* Delivers through the IDT (or IVT), with the double- and triple-fault rules (SDM Vol. 3A 6.15 table 6-5).  RIP is the return address to push.
 * X86_OK: state changed, RIP at the handler; X86_EXIT: left for the client half way (device access), c->exception/interrupt say what to inject again.  Triple
 * fault: sets c->triple_fault and REQ_TRIPLE_FAULT, returns X86_OK. */
int x86_deliver(struct x86_vcpu *c, enum x86_event_kind kind, unsigned vector, bool has_error, u32 error);
/* Delivers c->fault (sets CR2, DR6 first; KVM_GUESTDBG exits instead where asked for). */
int x86_deliver_fault(struct x86_vcpu *c);
/* Looks for the highest-priority event that may be taken now (INIT, SIPI, SMI, NMI, injected ones, interrupts, traps) and takes it.  Called by the run loop
 * when REQ_EVENT is set or something is injected.  X86_OK or X86_EXIT (KVM_EXIT_IRQ_WINDOW_OPEN etc. are the run loop's). */
int x86_take_events(struct x86_vcpu *c);
/* INIT and SIPI alone, without running: for those who look at the vCPU. */
void x86_accept_apic_events(struct x86_vcpu *c);
/* Whether an interrupt could be taken now: IF, no shadow. */
bool x86_interrupt_allowed(const struct x86_vcpu *c);
/* Whether a halted vCPU must wake up. */
bool x86_runnable(struct x86_vcpu *c);

/* ---- idle.c ---- */
int x86_idle_create(struct x86_vm *vm);
void x86_idle_destroy(struct x86_vm *vm);
/* There is something to give back: from now on the VM is looked at.  Any lock of the architecture may be held. */
void x86_idle_watch(struct x86_vcpu *c);
void x86_idle_forget(struct x86_vcpu *c); /* REQ_FORGET */

/* ---- cpu/failure.c ---- */
/* Leaves with KVM_EXIT_INTERNAL_ERROR for the instruction at work: X86_EXIT. */
int x86_emulation_failure(struct x86_vcpu *c);

/* ---- cpu/debug.c ---- */
bool x86_code_breakpoint(struct x86_vcpu *c, u64 lin);      /* instruction breakpoint at lin (RF honoured): fills c->fault (#DB) */
void x86_data_breakpoint(struct x86_vcpu *c, u64 lin, unsigned size, bool write); /* adds to c->pending_dbg and makes the block end */
void x86_io_breakpoint(struct x86_vcpu *c, u16 port, unsigned size);
bool x86_debug_active(const struct x86_vcpu *c);            /* any enabled breakpoint, TF, or guest debug: blocks run singly */
int x86_after_single_step(struct x86_vcpu *c);              /* after each instruction in single mode: delivers/report #DB traps; flow */

/* ---- cpu/cr.c, cpu/tsc.c ---- */
int x86_set_cr0(struct x86_vcpu *c, u64 v);  /* all checks; flow */
int x86_set_cr3(struct x86_vcpu *c, u64 v);
int x86_set_cr4(struct x86_vcpu *c, u64 v);
int x86_set_cr8(struct x86_vcpu *c, u64 v);
u64 x86_get_cr8(struct x86_vcpu *c);
int x86_set_efer(struct x86_vcpu *c, u64 v, bool host);
int x86_set_xcr0(struct x86_vcpu *c, u64 v);
u64 x86_guest_tsc(struct x86_vcpu *c);
u64 x86_host_to_guest_tsc(struct x86_vcpu *c, u64 host_tsc);
/* Time in CLOCK_MONOTONIC ns at which the guest TSC will read `tsc` (0 if passed). */
u64 x86_tsc_deadline_to_ns(struct x86_vcpu *c, u64 tsc);

/* ---- cpuid/ ---- */
int x86_cpuid_create(struct x86_vcpu *c);
void x86_cpuid_destroy(struct x86_vcpu *c);
void x86_cpuid_get(struct x86_vcpu *c, u32 leaf, u32 subleaf, u32 out[4]);
/* Bits of a guest-physical address. */
unsigned x86_maxphyaddr(const struct x86_vcpu *c);
#include "x86/cpuid/feature_bits.h"
bool x86_has(const struct x86_vcpu *c, enum x86_feature f);            /* shown to the guest */
bool x86_cpuid_has(const struct x86_cpuid *id, enum x86_feature f);
bool x86_is_amd(const struct x86_vcpu *c);
/* Bits that follow run-time state: all of them; the one of the APIC. */
void x86_cpuid_runtime_changed(struct x86_vcpu *c);
void x86_cpuid_apic_changed(struct x86_vcpu *c);

/* ---- msr/ ---- */
int x86_msr_create(struct x86_vcpu *c);
void x86_msr_destroy(struct x86_vcpu *c);
void x86_msr_reset(struct x86_vcpu *c, bool init);
/* Guest RDMSR/WRMSR: flow (#GP(0) for refused ones; X86_EXIT for user-space MSRs). */
int x86_rdmsr(struct x86_vcpu *c, u32 index, u64 *value);
int x86_wrmsr(struct x86_vcpu *c, u32 index, u64 value);
/* Host access (KVM_GET/SET_MSRS): 0 or -EINVAL. */
int x86_msr_get_host(struct x86_vcpu *c, u32 index, u64 *value);
int x86_msr_set_host(struct x86_vcpu *c, u32 index, u64 value);

/* ---- irqchip/ ---- */
#include "x86/irqchip/irqchip.h"

/* ---- pmu/ ---- */
struct x86_block;
int x86_pmu_create(struct x86_vcpu *c);
void x86_pmu_destroy(struct x86_vcpu *c);
void x86_pmu_reset(struct x86_vcpu *c);
void x86_pmu_cpuid_changed(struct x86_vcpu *c);
void x86_pmu_request(struct x86_vcpu *c); /* REQ_PMU */
int x86_rdpmc(struct x86_vcpu *c, u32 number, u64 *value); /* flow */
/* Around guest code, where c->counts_cycles. */
void x86_pmu_enter(struct x86_vcpu *c);
void x86_pmu_leave(struct x86_vcpu *c);
/* Around a block, where c->counting: `ring` is 1 for code of CPL 3; `last` the last instruction begun, done if it has completed, jumped if it set RIP. */
void x86_pmu_block_begin(struct x86_vcpu *c, const struct x86_block *b);
void x86_pmu_block_end(struct x86_vcpu *c, const struct x86_block *b, unsigned ring, const struct x86_insn *last, bool done, bool jumped);
/* One instruction that left in the middle has completed after all; a host fault has ended the block. */
void x86_pmu_insn_done(struct x86_vcpu *c);
void x86_pmu_block_abandoned(struct x86_vcpu *c);
/* KVM_SET_PMU_EVENT_FILTER: the user's structure; vm->lock held. */
int x86_pmu_filter_set(struct x86_vm *vm, const void *user);
void x86_pmu_filter_destroy(struct x86_vm *vm);

/* ---- pv/ ---- */
int x86_pv_create(struct x86_vcpu *c);
void x86_pv_destroy(struct x86_vcpu *c);
void x86_pv_reset(struct x86_vcpu *c);
int x86_hypercall(struct x86_vcpu *c);      /* VMCALL/VMMCALL: flow */
void x86_pv_clock_update(struct x86_vcpu *c); /* REQ_CLOCK */
void x86_pv_enter(struct x86_vcpu *c);      /* steal time: about to run guest code after being away */
void x86_pv_leave(struct x86_vcpu *c);

/* ---- exec/vector_fp.c ---- */
/* Brings fpu.mxcsr up to date and gives the host's register back to the client: before KVM_RUN returns and before anyone looks. */
void x86_mxcsr_sync(struct x86_vcpu *c);
/* Puts the guest's MXCSR into the host's register, where it masks all exceptions; false: it does not. */
bool x86_mxcsr_live(struct x86_vcpu *c);
/* The same when a host fault took the register; mxcsr: its value then. */
void x86_mxcsr_lost(struct x86_vcpu *c, u32 mxcsr);

/* ---- exec/xstate.c ---- */
void x86_fpu_reset(struct x86_vcpu *c, bool init);
/* Whole state in the standard (non-compacted) XSAVE layout; size as CPUID.0DH says. */
void x86_fpu_to_xsave(struct x86_vcpu *c, void *area, size_t size, u64 mask);
int x86_fpu_from_xsave(struct x86_vcpu *c, const void *area, size_t size); /* -EINVAL: reserved bits */
u64 x86_xcr0_supported(void);               /* components this host and engine can run */
/* Those of them that clients find where they look: KVM_GET_XSAVE follows CPUID.0DH of the host (api.rst 4.42), and QEMU asks the host's
 * CPUID for offsets.  PKRU is missing on hosts without protection keys. */
u64 x86_xcr0_announced(void);
size_t x86_xsave_size(u64 xcr0);            /* standard layout */

/* ---- api/sync_regs.c: KVM_CAP_SYNC_REGS ---- */
int x86_sync_regs_in(struct x86_vcpu *c);   /* kvm_run->kvm_dirty_regs; -EINVAL for unknown bits */
void x86_sync_regs_out(struct x86_vcpu *c); /* kvm_run->kvm_valid_regs */

/* ---- run.c ---- */
/* Translations may be older than a slot change that waits for this vCPU: they go before anything uses them.  Between instructions. */
void x86_drop_stale(struct x86_vcpu *c);
/* The instruction at work leaves for the client in the middle: X86_EXIT (the caller fills kvm_run).  `complete` runs on the next KVM_RUN; it ends the instruction
 * with x86_finish_insn(), or raises a fault for it. */
int x86_leave_insn(struct x86_vcpu *c, int (*complete)(struct x86_vcpu *c));
int x86_finish_insn(struct x86_vcpu *c);
/* Makes the loop look for events: any thread. */
static inline void x86_request_event(struct x86_vcpu *c) { vcpu_request(&c->core, REQ_EVENT); }

#endif
