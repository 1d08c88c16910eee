/* KVM_RUN of an x86 vCPU: requests, events, halts, exits. */
#include <errno.h>
#include <string.h>
#include "base/fault.h"
#include "core/dirty_ring.h"
#include "core/memslot.h"
#include "core/stats.h"
#include "x86/block.h"
#include "x86/mmu/access.h"
#include "x86/mmu/io.h"
#include "x86/pv/pv.h"
#include "x86/run.h"
#include "x86/translate/code.h"
#include "x86/x86.h"

/* Others (the client, its devices) may have written guest memory: decoded blocks compare themselves before they run again. */
static void guest_memory_may_have_changed(struct x86_vcpu *c) {
  vm_memory_changed(c->core.vm);
}

/* An event was delivered.  Timers and other vCPUs have written nothing, but devices may have: the guest can learn of that now. */
static void event_may_tell(struct x86_vcpu *c) {
  u64 n = atomic_load_explicit(&c->core.vm->outside_irqs, memory_order_acquire);
  if (n == c->outside_irqs) return;
  c->outside_irqs = n;
  guest_memory_may_have_changed(c);
}

/* What the client reads after every exit (Documentation/virt/kvm/api.rst, 5. The kvm_run structure). */
static void save_run(struct x86_vcpu *c) {
  struct kvm_run *run = c->core.run;
  run->if_flag = (c->rflags & FL_IF) != 0;
  run->cr8 = x86_get_cr8(c);
  run->apic_base = c->apic_base;
  run->ready_for_interrupt_injection = c->lapic || (x86_interrupt_allowed(c) && !c->interrupt.injected);
  run->flags = (c->smm ? KVM_RUN_X86_SMM : 0) | (c->bus_lock ? KVM_RUN_X86_BUS_LOCK : 0);
  c->bus_lock = false;
}

/* A client with its own interrupt controller asked to be told when an interrupt could be taken. */
static bool window_open(struct x86_vcpu *c) {
  return c->core.run->request_interrupt_window && !c->lapic && !c->interrupt.injected && x86_interrupt_allowed(c);
}

static int exit_with(struct x86_vcpu *c, u32 reason) {
  c->core.run->exit_reason = reason;
  return X86_EXIT;
}

/* An exit comes before some of the taken requests were acted on: they wait for the next entry. */
static int exit_keeping(struct x86_vcpu *c, u64 rest) {
  vcpu_request_self(&c->core, rest);
  return X86_EXIT;
}

/* REQ_SYNC, too: whoever waits for it may be whom this vCPU is waiting for. */
void x86_drop_stale(struct x86_vcpu *c) {
  u64 stale = BIT(REQ_TLB_FLUSH) | BIT(REQ_PROTECT) | BIT(REQ_SYNC);
  if (likely(!(atomic_load_explicit(&c->core.requests, memory_order_relaxed) & stale))) return;
  u64 req = atomic_fetch_and_explicit(&c->core.requests, ~stale, memory_order_acq_rel);
  if (req & BIT(REQ_TLB_FLUSH)) x86_mmu_flush_all(c, true);
  x86_blocks_protected(c);
  vcpu_requests_done(&c->core);
}

/* Requests that mean an exit or an event, and outlive the exit for another one. */
#define ARCH_REQUESTS (BIT(REQ_TPR_EXIT) | BIT(REQ_TRIPLE_FAULT) | BIT(REQ_EVENT) | BIT(REQ_EOI_EXIT))

/* Takes the pending requests and acts on them.  X86_OK, X86_EXIT, or -EINTR. */
static int handle_requests(struct x86_vcpu *c) {
  u64 req = atomic_exchange_explicit(&c->core.requests, 0, memory_order_acq_rel);
  if (req & BIT(REQ_TLB_FLUSH)) x86_mmu_flush_all(c, true);
  if (req & BIT(REQ_PROTECT)) x86_blocks_protected(c);
  vcpu_requests_done(&c->core);
  if (unlikely(req & BIT(REQ_FORGET))) x86_idle_forget(c);
  if (req & BIT(REQ_CLOCK)) x86_pv_clock_update(c);
  if (unlikely(req & BIT(REQ_PMU))) x86_pmu_request(c);
  if (req & BIT(REQ_APIC)) x86_lapic_sync(c);
  if (unlikely(req & BIT(REQ_RING_FULL)) && vcpu_ring_soft_full(&c->core)) {
    exit_with(c, KVM_EXIT_DIRTY_RING_FULL);
    return exit_keeping(c, req & ARCH_REQUESTS);
  }
  if (unlikely(req & BIT(REQ_TPR_EXIT))) {
    x86_tpr_exit(c);
    return exit_keeping(c, req & ARCH_REQUESTS & ~BIT(REQ_TPR_EXIT));
  }
  if (req & BIT(REQ_TRIPLE_FAULT) && c->triple_fault) {
    c->triple_fault = false;
    exit_with(c, KVM_EXIT_SHUTDOWN);
    return exit_keeping(c, req & (BIT(REQ_EVENT) | BIT(REQ_EOI_EXIT)));
  }
  if (req & BIT(REQ_EOI_EXIT) && x86_lapic_eoi_exit(c)) return exit_keeping(c, req & BIT(REQ_EVENT));
  if (req & BIT(REQ_EVENT)) {
    vcpu_stat_inc(&c->core, req_event);
    x86_pv_steal_tick(c); /* before a timer's interrupt, whose handler looks at it */
    u64 ip = c->rip;
    int r = x86_take_events(c);
    if (c->rip != ip) event_may_tell(c);
    if (r) return r;
  }
  if (window_open(c)) {
    vcpu_stat_exit(&c->core, irq_window_exits);
    return exit_with(c, KVM_EXIT_IRQ_WINDOW_OPEN);
  }
  return req & BIT(REQ_EXIT) ? -EINTR : X86_OK;
}

/* No guest code runs in between: time that is not the guest's. */
static void absent_begin(struct x86_vcpu *c) {
  if (unlikely(c->counts_cycles)) x86_pmu_leave(c);
  x86_pv_leave(c);
}
static void absent_end(struct x86_vcpu *c) {
  x86_pv_enter(c);
  if (unlikely(c->counts_cycles)) x86_pmu_enter(c);
}

/* Not running: waits.  X86_OK when there is something to do, X86_EXIT, or -EINTR. */
static int wait_runnable(struct x86_vcpu *c) {
  bool exits = !c->lapic && !c->core.vm->halt_in_guest;
  if (c->mp_state == KVM_MP_STATE_HALTED && exits && !x86_runnable(c)) { /* the client halts for itself */
    c->mp_state = KVM_MP_STATE_RUNNABLE;
    return exit_with(c, KVM_EXIT_HLT);
  }
  if (!x86_runnable(c)) {
    vcpu_leave(&c->core);
    absent_begin(c);
    int r = vcpu_halt(&c->core);
    absent_end(c);
    vcpu_enter(&c->core);
    if (r) return r;
  }
  if (x86_runnable(c)) {
    if (c->mp_state == KVM_MP_STATE_HALTED) c->mp_state = KVM_MP_STATE_RUNNABLE;
    vcpu_request_self(&c->core, BIT(REQ_EVENT));
  }
  return handle_requests(c);
}

/* One result of instruction execution, turned into what the loop does next: X86_OK goes on. */
static int after_run(struct x86_vcpu *c, int r) {
  while (r == X86_FAULT) r = x86_deliver_fault(c);
  if (r == X86_OK && unlikely(c->io.n_writes)) r = x86_io_writes_exit(c);
  if (r == X86_OK && unlikely(c->bus_lock)) r = exit_with(c, KVM_EXIT_X86_BUS_LOCK); /* another exit carries the flag */
  if (r == X86_EXIT) c->io.lin_ip = x86_linear_ip(c); /* whose answer is awaited */
  return r;
}

static int loop(struct x86_vcpu *c) {
  struct kvm_run *run = c->core.run;
  for (;;) {
    int r = X86_OK;
    if (atomic_load_explicit(&c->core.requests, memory_order_relaxed)) {
      r = after_run(c, handle_requests(c));
      if (r) return r;
    }
    if (unlikely(READ_ONCE(run->immediate_exit))) return -EINTR;
    if (unlikely(c->mp_state != KVM_MP_STATE_RUNNABLE)) {
      r = after_run(c, wait_runnable(c));
      if (r) return r;
      continue;
    }
    r = after_run(c, x86_run_blocks(c));
    if (r) return r;
  }
}

int x86_leave_insn(struct x86_vcpu *c, int (*complete)(struct x86_vcpu *c)) {
  c->left_len = c->cur ? c->cur->len : 0;
  c->complete_io = complete;
  return X86_EXIT;
}

int x86_finish_insn(struct x86_vcpu *c) {
  c->rip = (c->rip + c->left_len) & x86_ip_mask(c);
  if (unlikely(c->counting)) x86_pmu_insn_done(c);
  return c->mode & X86_MODE_SINGLE ? x86_after_single_step(c) : X86_OK;
}

/* Finishes what the last exit left open. */
static int complete_io(struct x86_vcpu *c) {
  int (*fn)(struct x86_vcpu *) = c->complete_io;
  x86_drop_stale(c);
  if (!fn) return X86_OK;
  c->complete_io = NULL;
  return after_run(c, fn(c));
}

static int guarded(struct x86_vcpu *c, int (*fn)(struct x86_vcpu *c)) {
  struct fault_guard guard;
  int r;
  vcpu_enter(&c->core);
  if (unlikely(c->torn.len) && !x86_mmu_untear(c)) {
    r = -EFAULT;
  } else if (!fault_try(&guard)) {
    guard.arg = c;
    guard.recover = x86_code_recover;
    r = fn(c);
    fault_end(&guard);
    x86_mxcsr_sync(c);
  } else { /* guest memory is gone: as KVM, which cannot map it */
    x86_mxcsr_lost(c, guard.fault_mxcsr);
    x86_blocks_abandon(c);
    if (c->torn.len) x86_mmu_untear(c);
    r = -EFAULT;
  }
  x86_code_end(c);
  vcpu_leave(&c->core);
  return r;
}

static int run_all(struct x86_vcpu *c) {
  int r = complete_io(c);
  return r ? r : loop(c);
}

/* mp_state UNINITIALIZED: an application processor before its first SIPI.  KVM returns -EAGAIN when it came. */
static int wait_sipi(struct x86_vcpu *c) {
  int r = vcpu_halt(&c->core);
  if (r) return r;
  vcpu_enter(&c->core);
  vcpu_request_self(&c->core, BIT(REQ_EVENT));
  handle_requests(c);
  if (unlikely(c->counts_cycles)) x86_pmu_leave(c); /* it has not entered guest code */
  vcpu_leave(&c->core);
  return -EAGAIN;
}

int x86_vcpu_run(struct vcpu *v) {
  struct x86_vcpu *c = x86_vcpu(v);
  struct kvm_run *run = v->run;
  int r = x86_sync_regs_in(c);
  if (r) return r;
  if (unlikely(c->mp_state == KVM_MP_STATE_UNINITIALIZED)) {
    r = wait_sipi(c);
  } else {
    if (!c->lapic) x86_set_cr8(c, run->cr8);
    guest_memory_may_have_changed(c);
    absent_end(c);
    /* Injected and pending events of KVM_SET_VCPU_EVENTS and KVM_INTERRUPT are looked at before the first instruction. */
    vcpu_request_self(v, BIT(REQ_EVENT));
    r = guarded(c, run_all);
    x86_lapic_leave(c);
    absent_begin(c);
  }
  if (r == -EINTR) run->exit_reason = KVM_EXIT_INTR;
  if (r == X86_EXIT) r = 0;
  save_run(c);
  x86_sync_regs_out(c);
  return r;
}

int x86_vcpu_complete_io(struct vcpu *v) {
  struct x86_vcpu *c = x86_vcpu(v);
  int r = x86_sync_regs_in(c);
  if (r) return r;
  if (c->complete_io) r = guarded(c, complete_io);
  save_run(c);
  x86_sync_regs_out(c);
  return r == X86_EXIT ? 1 : r;
}
