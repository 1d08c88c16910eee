/* Events: delivery with the double- and triple-fault rules, what is taken next, INIT and SIPI, waking.
 *
 * Intel SDM Vol. 3A chapter 6 (table 6-2 priorities, table 6-5 double faults), 9.1 (INIT), 8.4 (SIPI).
 */
#include <sched.h>
#include "core/stats.h"
#include "x86/cpu/desc.h"
#include "x86/cpu/tsc.h"
#include "x86/insn.h"
#include "x86/mmu/access.h"
#include "x86/mmu/io.h"
#include "x86/x86.h"

/* ---- delivery ---- */

/* 20.1.4: real mode, through the interrupt vector table. */
static int ivt_deliver(struct x86_vcpu *c, const struct x86_event *e) {
  u32 entry, at = e->vector * 4u;
  struct x86_stack st = x86_stack_current(c, e->ext);
  struct x86_frame f = {.size = 2};
  if (at + 3 > c->idtr.limit) return x86_fault_code(c, VEC_GP, e->vector * 8u + 2 + e->ext);
  int r = x86_sys_read(c, c->idtr.base + at, &entry, 4);
  if (r) return r;
  frame_push(&f, e->flags);
  frame_push(&f, c->seg[SEG_CS].sel);
  frame_push(&f, e->ret);
  r = x86_frame_store(c, &st, &f);
  if (r) return r;
  x86_stack_commit(c, &st);
  x86_seg_real(c, SEG_CS, (u16)(entry >> 16));
  c->rip = entry & 0xffff;
  x86_commit_flags(c, c->rflags & ~(u64)(FL_IF | FL_TF | FL_RF | FL_AC));
  return X86_OK;
}

/* Table 6-4. */
enum fault_class { CLASS_BENIGN, CLASS_CONTRIBUTORY, CLASS_PAGE, CLASS_DOUBLE };

static enum fault_class class_of(const struct x86_event *e) {
  if (e->kind != EV_EXCEPTION) return CLASS_BENIGN;
  switch (e->vector) {
  case VEC_DE:
  case VEC_TS:
  case VEC_NP:
  case VEC_SS:
  case VEC_GP:
  case VEC_CP: return CLASS_CONTRIBUTORY;
  case VEC_PF:
  case VEC_VE: return CLASS_PAGE;
  case VEC_DF: return CLASS_DOUBLE;
  default: return CLASS_BENIGN;
  }
}

static void shutdown(struct x86_vcpu *c) {
  if (c->cur) c->rip = x86_insn_ip(c, c->cur);
  c->triple_fault = true;
  vcpu_request(&c->core, REQ_TRIPLE_FAULT);
}

/* c->fault came up while `e` was being delivered: what is delivered instead (table 6-5).  false: shutdown. */
static bool combine(struct x86_vcpu *c, struct x86_event *e) {
  enum fault_class first = class_of(e);
  struct x86_event second = {
      .kind = EV_EXCEPTION, .vector = c->fault.vector, .has_error = c->fault.has_error, .error = c->fault.error, .ext = 1};
  enum fault_class then = class_of(&second);
  if (second.vector == VEC_PF) c->cr2 = c->fault.payload;
  if (first == CLASS_DOUBLE) return false;
  bool twice = (first == CLASS_CONTRIBUTORY && then == CLASS_CONTRIBUTORY) || (first == CLASS_PAGE && then >= CLASS_CONTRIBUTORY);
  if (twice) second = (struct x86_event){.kind = EV_EXCEPTION, .vector = VEC_DF, .has_error = true, .ext = 1};
  second.ret = c->cur ? x86_insn_ip(c, c->cur) : c->rip;
  second.flags = c->rflags | FL_RF;
  *e = second;
  return true;
}

/* The event as a VM exit's IDT-vectoring information tells of it (SDM Vol. 3C 25.9.3). */
static u64 vectoring_information(const struct x86_event *e) {
  static const u8 type[] = {[EV_HW_INT] = 0,   [EV_NMI] = 2,         [EV_EXCEPTION] = 3,
                            [EV_SOFT_INT] = 4, [EV_PRIV_SOFT_EXCEPTION] = 5, [EV_SOFT_EXCEPTION] = 6};
  return 1ull << 31 | (u64)e->has_error << 11 | (u64)type[e->kind] << 8 | e->vector;
}

#define EXIT_REASON_EPT_MISCONFIG 49 /* how KVM comes to know of a device where memory should be */

/* KVM on Intel processors: vectoring information, exit reason, qualification, guest-physical address, and at the end the CPU. */
static void tell_delivery(struct x86_vcpu *c, const struct x86_event *e) {
  struct kvm_run *run = c->core.run;
  u64 gpa = run->mmio.phys_addr;
  run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
  run->internal.suberror = KVM_INTERNAL_ERROR_DELIVERY_EV;
  run->internal.ndata = 5;
  run->internal.data[0] = vectoring_information(e);
  run->internal.data[1] = EXIT_REASON_EPT_MISCONFIG;
  run->internal.data[2] = 0;
  run->internal.data[3] = gpa;
  run->internal.data[4] = (u64)sched_getcpu();
}

/* A device answers only after an exit, and half a delivery cannot be repeated: what KVM says when it finds tables in devices.  Where the
 * dirty ring has no room it begins anew after the exit. */
static int cannot_deliver(struct x86_vcpu *c, const struct x86_event *e, u64 len) {
  x86_io_forget(c);
  c->complete_io = NULL;
  if (e->kind == EV_NMI)
    c->nmi_injected = true;
  else if (e->kind == EV_HW_INT || e->kind == EV_SOFT_INT) {
    c->interrupt.injected = true;
    c->interrupt.soft = e->kind == EV_SOFT_INT;
    c->interrupt.nr = e->vector;
    c->interrupt.len = (u8)len;
  } else {
    c->exception.injected = true;
    c->exception.ex = (struct x86_fault){.vector = e->vector, .has_error = e->has_error, .error = e->error};
  }
  if (c->core.run->exit_reason == KVM_EXIT_MMIO) tell_delivery(c, e);
  return X86_EXIT;
}

/* As many events in a row as a processor that is not kept from running takes at the very most. */
#define EVENTS_MAX 16

/* Exceptions that lead to one another without end — a handler of #AC in ring 3 whose stack is misaligned, for instance — on a processor keep
 * everything else out.  Here the rest waits until requests have been looked at. */
static int put_off(struct x86_vcpu *c, const struct x86_event *e) {
  if (c->cur) c->rip = x86_insn_ip(c, c->cur);
  c->exception.injected = true;
  c->exception.ex = (struct x86_fault){.vector = e->vector, .has_error = e->has_error, .error = e->error};
  x86_request_event(c);
  return X86_OK;
}

/* Delivers, and what comes of delivering.  e->ret is the address to push; c->rip still stands at the instruction a fault would
 * return to. */
static int deliver(struct x86_vcpu *c, struct x86_event *e) {
  u64 len = e->ret - (c->cur ? x86_insn_ip(c, c->cur) : c->rip);
  c->pending_dbg &= ~(DBG_ARMED_TF | DBG_KEEP_RF);
  for (unsigned n = 0; n < EVENTS_MAX; n++) {
    int r = x86_protected(c) ? x86_gate_deliver(c, e) : ivt_deliver(c, e);
    if (r == X86_OK) {
      if (unlikely(c->int_shadow)) x86_request_event(c); /* what waited for the end of the shadow */
      c->int_shadow = 0;
      return X86_OK;
    }
    if (r == X86_EXIT) return cannot_deliver(c, e, len);
    if (!combine(c, e)) {
      shutdown(c);
      return X86_OK;
    }
  }
  return put_off(c, e);
}

/* EXT: the event is not the program's own doing (SDM Vol. 3A 6.13). */
static u8 ext_of(enum x86_event_kind kind) { return kind != EV_SOFT_INT && kind != EV_SOFT_EXCEPTION; }

static bool debugger_wants_int3(const struct x86_vcpu *c) {
  u64 want = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
  return (c->guest_debug & want) == want;
}

int x86_deliver(struct x86_vcpu *c, enum x86_event_kind kind, unsigned vector, bool has_error, u32 error) {
  struct x86_event e = {.kind = (u8)kind,
                        .vector = (u8)vector,
                        .has_error = has_error,
                        .error = error,
                        .ext = ext_of(kind),
                        .ret = c->rip,
                        .flags = c->rflags};
  /* An instruction's handler has moved RIP behind it; faults of the delivery, and a host fault, need it as it was. */
  if (c->cur) c->rip -= (u64)c->cur->len + c->cur->off;
  if (kind == EV_SOFT_EXCEPTION && vector == VEC_BP && debugger_wants_int3(c))
    return x86_debug_exit(c, VEC_BP, c->cur ? x86_insn_ip(c, c->cur) : c->rip, 0);
  return deliver(c, &e);
}

/* 17.3.1.1: the RF image of a fault is 1, except for instruction breakpoints. */
static u64 fault_flags(const struct x86_vcpu *c, const struct x86_fault *f) {
  bool breakpoint = f->vector == VEC_DB && !(f->payload & DR6_BD);
  bool abort = f->vector == VEC_DF || f->vector == VEC_MC;
  return f->trap || breakpoint || abort ? c->rflags : c->rflags | FL_RF;
}

static int deliver_exception(struct x86_vcpu *c, const struct x86_fault *f) {
  struct x86_event e = {.kind = EV_EXCEPTION,
                        .vector = f->vector,
                        .has_error = f->has_error && x86_protected(c),
                        .error = f->error,
                        .ext = 1,
                        .ret = c->rip,
                        .flags = fault_flags(c, f)};
  return deliver(c, &e);
}

/* CR2 and DR6 change when the exception is delivered, not before. */
static void apply_payload(struct x86_vcpu *c, const struct x86_fault *f) {
  if (f->vector == VEC_PF) c->cr2 = f->payload;
  if (f->vector == VEC_DB)
    c->dr[6] = (c->dr[6] & ~0xfull) | (f->payload & DR6_TRAPS); /* 17.2.3: B0-B3 tell of this one, BD BS BT stay until cleared */
}

/* 17.2.4: the handler of a debug exception may look at the debug registers. */
static void clear_general_detect(struct x86_vcpu *c, const struct x86_fault *f) {
  if (f->vector == VEC_DB) c->dr[7] &= ~(1ull << 13);
}

static bool debugger_wants_db(const struct x86_vcpu *c) {
  return (c->guest_debug & KVM_GUESTDBG_ENABLE) && (c->guest_debug & (KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP));
}

int x86_deliver_fault(struct x86_vcpu *c) {
  struct x86_fault f = c->fault;
  /* A fault takes the place of the traps its instruction had collected; those a MOV SS left behind stay. */
  if (!f.trap && !(c->pending_dbg & DBG_MOV_SS)) c->pending_dbg &= ~(u64)DR6_TRAPS;
  if (f.vector == VEC_PF) vcpu_stat_inc(&c->core, pf_guest);
  if (f.vector == VEC_DB && debugger_wants_db(c)) return x86_debug_exit(c, VEC_DB, c->rip, f.payload);
  apply_payload(c, &f);
  clear_general_detect(c, &f);
  return deliver_exception(c, &f);
}

/* ---- what is taken next ---- */

static bool guest_debug_blocks(const struct x86_vcpu *c) {
  u64 want = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_BLOCKIRQ;
  return (c->guest_debug & want) == want;
}

bool x86_interrupt_allowed(const struct x86_vcpu *c) { return (c->rflags & FL_IF) && !c->int_shadow && !guest_debug_blocks(c); }

static bool nmi_allowed(const struct x86_vcpu *c) { return !c->nmi_blocked && !c->int_shadow && !guest_debug_blocks(c); }
static bool nmi_waits(struct x86_vcpu *c) { return atomic_load_explicit(&c->nmi_pending, memory_order_acquire) != 0; }
static bool smi_waits(struct x86_vcpu *c) { return atomic_load_explicit(&c->smi_pending, memory_order_acquire); }
static bool interrupt_waits(struct x86_vcpu *c) { return c->interrupt.injected || (c->lapic && x86_irq_pending(c)); }

#define APIC_INIT 1ull
#define APIC_SIPI 2ull

/* 8.4.3: real mode at vector << 12. */
static void start_up(struct x86_vcpu *c, unsigned vector) {
  struct x86_seg *cs = &c->seg[SEG_CS];
  cs->sel = (u16)(vector << 8);
  cs->base = (u64)vector << 12;
  x86_seg_update(cs);
  c->rip = 0;
  c->mp_state = KVM_MP_STATE_RUNNABLE;
  x86_mode_changed(c);
}

static bool is_bsp(const struct x86_vcpu *c) { return c->apic_base & (1u << 8); }

/* INIT and SIPI.  INIT waits while in SMM, a SIPI then is lost: it counts only after INIT (table 8-1). */
static bool take_apic_events(struct x86_vcpu *c) {
  if (likely(!atomic_load_explicit(&c->apic_events, memory_order_acquire))) return false;
  if (c->smm) {
    atomic_fetch_and(&c->apic_events, APIC_INIT);
    return false;
  }
  if (atomic_fetch_and(&c->apic_events, ~APIC_INIT) & APIC_INIT) {
    x86_reset(c, true);
    c->mp_state = is_bsp(c) ? KVM_MP_STATE_RUNNABLE : KVM_MP_STATE_INIT_RECEIVED;
    return true;
  }
  u64 sipi = atomic_fetch_and(&c->apic_events, APIC_INIT);
  if (!(sipi & APIC_SIPI) || c->mp_state != KVM_MP_STATE_INIT_RECEIVED) return false;
  start_up(c, (sipi >> 8) & 0xff);
  return true;
}

void x86_accept_apic_events(struct x86_vcpu *c) {
  while (take_apic_events(c)) {
  }
}

/* What KVM_SET_VCPU_EVENTS put back, or an exit interrupted. */
static bool take_injected(struct x86_vcpu *c, int *r) {
  if (c->exception.injected || c->exception.pending) {
    struct x86_fault ex = c->exception.ex;
    if (!c->exception.injected) {
      if (c->exception.has_payload) apply_payload(c, &ex);
      clear_general_detect(c, &ex);
    }
    c->exception.injected = c->exception.pending = false;
    ex.trap = ex.trap || ex.vector == VEC_BP || ex.vector == VEC_OF;
    *r = deliver_exception(c, &ex);
    return true;
  }
  if (c->nmi_injected) {
    c->nmi_injected = false;
    c->nmi_blocked = true;
    *r = x86_deliver(c, EV_NMI, VEC_NMI, false, 0);
    return true;
  }
  if (c->interrupt.injected && (c->interrupt.soft || x86_interrupt_allowed(c))) {
    c->interrupt.injected = false;
    struct x86_event e = {.kind = c->interrupt.soft ? EV_SOFT_INT : EV_HW_INT,
                          .vector = c->interrupt.nr,
                          .ext = !c->interrupt.soft,
                          .ret = c->rip + (c->interrupt.soft ? c->interrupt.len : 0),
                          .flags = c->rflags};
    *r = deliver(c, &e);
    return true;
  }
  return false;
}

/* Traps of the last instruction that had no place to be delivered (task switch, SYSRET). */
static bool take_debug_trap(struct x86_vcpu *c, int *r) {
  if (likely(!(c->pending_dbg & DR6_TRAPS)) || (c->pending_dbg & DBG_MOV_SS)) return false;
  c->fault = (struct x86_fault){.vector = VEC_DB, .trap = true, .payload = c->pending_dbg & DR6_TRAPS};
  c->pending_dbg &= ~(u64)DR6_TRAPS;
  *r = x86_deliver_fault(c);
  return true;
}

/* KVM holds at most one NMI beside the one being handled: what came above that is lost when it is looked at. */
static bool take_nmi(struct x86_vcpu *c, int *r) {
  if (!nmi_waits(c)) return false;
  bool allowed = nmi_allowed(c);
  unsigned pending = atomic_load(&c->nmi_pending), limit = c->nmi_blocked ? 1 : 2;
  while (!atomic_compare_exchange_weak(&c->nmi_pending, &pending, MIN(pending, limit) - allowed)) {
  }
  if (!allowed) return false;
  c->nmi_blocked = true;
  vcpu_stat_inc(&c->core, nmi_injections);
  *r = x86_deliver(c, EV_NMI, VEC_NMI, false, 0);
  return true;
}

static bool take_interrupt(struct x86_vcpu *c, int *r) {
  if (!c->lapic || !x86_interrupt_allowed(c) || !x86_irq_pending(c)) return false;
  int vector = x86_irq_ack(c);
  if (vector < 0) return false;
  vcpu_stat_inc(&c->core, irq_injections);
  *r = x86_deliver(c, EV_HW_INT, (unsigned)vector, false, 0);
  return true;
}

static bool take_smi(struct x86_vcpu *c) {
  if (!smi_waits(c) || c->smm || c->int_shadow || guest_debug_blocks(c)) return false;
  atomic_store(&c->smi_pending, false);
  x86_smi_enter(c);
  return true;
}

/* Table 6-2, from the top; one event. */
static bool take_one(struct x86_vcpu *c, int *r) {
  if (c->triple_fault) return false;
  if (take_apic_events(c)) return true;
  if (c->mp_state != KVM_MP_STATE_RUNNABLE) return false;
  if (take_injected(c, r)) return true;
  if (take_smi(c)) return true;
  if (take_debug_trap(c, r)) return true;
  return take_nmi(c, r) || take_interrupt(c, r);
}

/* No instruction ends between events.  For how long that may go on the client says (api.rst 7.33, KVM_CAP_X86_NOTIFY_VMEXIT). */
static int events_go_on(struct x86_vcpu *c) {
  const struct x86_vm *vm = x86_vm_of(c);
  u64 now = x86_host_tsc();
  x86_request_event(c);
  if (!c->shut_since) c->shut_since = now;
  if (!(vm->notify_flags & KVM_X86_NOTIFY_VMEXIT_ENABLED) || now - c->shut_since < vm->notify_window) return X86_OK;
  c->shut_since = 0;
  vcpu_stat_exit(&c->core, notify_window_exits);
  if (!(vm->notify_flags & KVM_X86_NOTIFY_VMEXIT_USER)) return X86_OK;
  c->core.run->exit_reason = KVM_EXIT_NOTIFY;
  c->core.run->notify.flags = 0;
  return X86_EXIT;
}

int x86_take_events(struct x86_vcpu *c) {
  int r = X86_OK;
  unsigned n = 0;
  while (n < EVENTS_MAX && take_one(c, &r) && r == X86_OK && !c->exception.injected) n++;
  if (likely(r != X86_OK || (n < EVENTS_MAX && !c->exception.injected))) c->shut_since = 0;
  else if (c->mp_state == KVM_MP_STATE_RUNNABLE) r = events_go_on(c);
  c->irq_waits = x86_irq_unannounced(c) || (!x86_interrupt_allowed(c) && interrupt_waits(c));
  return r;
}

bool x86_runnable(struct x86_vcpu *c) {
  u64 apic = atomic_load_explicit(&c->apic_events, memory_order_acquire);
  if (apic & APIC_INIT && !c->smm) return true;
  switch (c->mp_state) {
  case KVM_MP_STATE_RUNNABLE: return true;
  case KVM_MP_STATE_INIT_RECEIVED: return apic & APIC_SIPI && !c->smm;
  case KVM_MP_STATE_HALTED:
  case KVM_MP_STATE_AP_RESET_HOLD: break;
  default: return false;
  }
  if (c->exception.pending || c->exception.injected || c->nmi_injected || c->triple_fault) return true;
  if (nmi_waits(c) && nmi_allowed(c)) return true;
  if (smi_waits(c) && !c->smm) return true;
  return x86_interrupt_allowed(c) && interrupt_waits(c);
}
