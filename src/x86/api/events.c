/* Pending events, debug registers, run state and injections of a vCPU. */
#include <errno.h>
#include <string.h>
#include "x86/api/api.h"
#include "x86/irqchip/chips.h"
#include "x86/mmu/access.h"
#include "x86/pv/pv.h"
#include "x86/x86.h"

#define APIC_EVENT_INIT 1ull
#define APIC_EVENT_SIPI 2ull
#define APIC_SIPI_SHIFT 8

/* ---- KVM_GET/SET_VCPU_EVENTS (api.rst 4.31, 4.32) ---- */

/* INT3 and INTO happen again when their instruction runs again. */
static bool soft_exception(unsigned vector) {
  return vector == VEC_BP || vector == VEC_OF;
}

static void get_exception(struct x86_vcpu *c, struct kvm_vcpu_events *e, bool payloads) {
  const struct x86_fault *ex = &c->exception.ex;
  if (!soft_exception(ex->vector)) {
    e->exception.injected = c->exception.injected || (!payloads && c->exception.pending);
    e->exception.pending = c->exception.pending;
  }
  e->exception.nr = ex->vector;
  e->exception.has_error_code = ex->has_error;
  e->exception.error_code = ex->error;
  e->exception_has_payload = c->exception.pending && c->exception.has_payload;
  e->exception_payload = e->exception_has_payload ? ex->payload : 0;
}

void x86_get_vcpu_events(struct x86_vcpu *c, struct kvm_vcpu_events *e) {
  const struct x86_vm *vm = x86_vm_of(c);
  memset(e, 0, sizeof(*e));
  get_exception(c, e, vm->exception_payload);
  e->interrupt.injected = c->interrupt.injected && !c->interrupt.soft;
  e->interrupt.nr = c->interrupt.nr;
  e->interrupt.shadow = c->int_shadow & (X86_SHADOW_STI | X86_SHADOW_MOV_SS);
  e->nmi.injected = c->nmi_injected;
  e->nmi.pending = atomic_load(&c->nmi_pending) != 0;
  e->nmi.masked = c->nmi_blocked;
  e->smi.smm = c->smm;
  e->smi.pending = atomic_load(&c->smi_pending);
  e->smi.smm_inside_nmi = c->smm_nmi_mask;
  e->smi.latched_init = c->lapic && (atomic_load(&c->apic_events) & APIC_EVENT_INIT);
  e->flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM;
  if (vm->exception_payload) e->flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
  if (vm->triple_fault_event) {
    e->triple_fault.pending = c->triple_fault;
    e->flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
  }
}

#define EVENT_FLAGS                                                                                                              \
  (KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM |    \
   KVM_VCPUEVENT_VALID_PAYLOAD | KVM_VCPUEVENT_VALID_TRIPLE_FAULT)

/* Fields that the flags do not make valid are cleared. */
static int check_events(const struct x86_vcpu *c, struct kvm_vcpu_events *e) {
  const struct x86_vm *vm = x86_vm((struct vm *)c->core.vm);
  if (e->flags & ~(u32)EVENT_FLAGS) return -EINVAL;
  if (e->flags & KVM_VCPUEVENT_VALID_PAYLOAD) {
    if (!vm->exception_payload) return -EINVAL;
    if (e->exception.pending)
      e->exception.injected = 0;
    else
      e->exception_has_payload = 0;
  } else {
    e->exception.pending = 0;
    e->exception_has_payload = 0;
  }
  if ((e->exception.injected || e->exception.pending) && (e->exception.nr > 31 || e->exception.nr == VEC_NMI)) return -EINVAL;
  if ((e->flags & KVM_VCPUEVENT_VALID_SMM) && (e->smi.smm || e->smi.pending) && c->mp_state == KVM_MP_STATE_INIT_RECEIVED)
    return -EINVAL;
  if ((e->flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) && !vm->triple_fault_event) return -EINVAL;
  return 0;
}

static void set_exception(struct x86_vcpu *c, const struct kvm_vcpu_events *e) {
  c->exception.injected = e->exception.injected;
  c->exception.pending = e->exception.pending;
  c->exception.ex =
      (struct x86_fault){.vector = e->exception.nr, .has_error = e->exception.has_error_code, .error = e->exception.error_code};
  c->exception.has_payload = e->exception_has_payload; /* without: CR2 and DR6 are already what they should be */
  if (e->exception_has_payload) c->exception.ex.payload = e->exception_payload;
}

/* One kind of shadow at most (SDM Vol. 3C 24.4.2). */
static u8 shadow_of(unsigned kvm) {
  return kvm & KVM_X86_SHADOW_INT_MOV_SS ? X86_SHADOW_MOV_SS : kvm & KVM_X86_SHADOW_INT_STI ? X86_SHADOW_STI : 0;
}
_Static_assert(X86_SHADOW_MOV_SS == KVM_X86_SHADOW_INT_MOV_SS && X86_SHADOW_STI == KVM_X86_SHADOW_INT_STI, "as in the ABI");

static void set_smm(struct x86_vcpu *c, const struct kvm_vcpu_events *e) {
  if (c->smm != (bool)e->smi.smm) {
    c->smm = e->smi.smm;
    x86_mode_changed(c);
    x86_mmu_mode_changed(c);
  }
  atomic_store(&c->smi_pending, e->smi.pending);
  if (e->smi.smm) c->smm_nmi_mask = e->smi.smm_inside_nmi;
  if (!c->lapic) return;
  if (e->smi.latched_init)
    atomic_fetch_or(&c->apic_events, APIC_EVENT_INIT);
  else
    atomic_fetch_and(&c->apic_events, ~APIC_EVENT_INIT);
}

int x86_set_vcpu_events(struct x86_vcpu *c, struct kvm_vcpu_events *e) {
  int r = check_events(c, e);
  if (r) return r;
  set_exception(c, e);
  c->interrupt.injected = e->interrupt.injected;
  c->interrupt.nr = e->interrupt.nr;
  c->interrupt.soft = e->interrupt.soft;
  if (e->flags & KVM_VCPUEVENT_VALID_SHADOW) c->int_shadow = shadow_of(e->interrupt.shadow);
  c->nmi_injected = e->nmi.injected;
  if (e->flags & KVM_VCPUEVENT_VALID_NMI_PENDING) atomic_store(&c->nmi_pending, e->nmi.pending);
  c->nmi_blocked = e->nmi.masked;
  if ((e->flags & KVM_VCPUEVENT_VALID_SIPI_VECTOR) && c->lapic)
    atomic_store(&c->apic_events, (atomic_load(&c->apic_events) & 3) | (u64)(e->sipi_vector & 0xff) << APIC_SIPI_SHIFT);
  if (e->flags & KVM_VCPUEVENT_VALID_SMM) set_smm(c, e);
  if (e->flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) {
    c->triple_fault = e->triple_fault.pending;
    if (c->triple_fault) vcpu_request(&c->core, REQ_TRIPLE_FAULT);
  }
  x86_request_event(c);
  return 0;
}

long x86_ioctl_get_events(struct ioctl_ctx *ctx, void *data) {
  x86_get_vcpu_events(x86_vcpu(ctx->vcpu), data);
  return 0;
}

long x86_ioctl_set_events(struct ioctl_ctx *ctx, void *data) {
  return x86_set_vcpu_events(x86_vcpu(ctx->vcpu), data);
}

/* ---- debug ---- */

static void debug_changed(struct x86_vcpu *c) {
  x86_mode_changed(c);
  x86_mmu_rights_changed(c);
}

long x86_ioctl_get_debugregs(struct ioctl_ctx *ctx, void *data) {
  const struct x86_vcpu *c = x86_vcpu(ctx->vcpu);
  struct kvm_debugregs *d = data;
  memcpy(d->db, c->dr, sizeof(d->db));
  d->dr6 = c->dr[6];
  d->dr7 = c->dr[7];
  return 0;
}

long x86_ioctl_set_debugregs(struct ioctl_ctx *ctx, void *data) {
  struct x86_vcpu *c = x86_vcpu(ctx->vcpu);
  const struct kvm_debugregs *d = data;
  if (d->flags || d->dr6 >> 32 || d->dr7 >> 32) return -EINVAL;
  memcpy(c->dr, d->db, sizeof(d->db));
  c->dr[6] = d->dr6;
  c->dr[7] = d->dr7;
  debug_changed(c);
  return 0;
}

/* KVM_SET_GUEST_DEBUG (api.rst 4.87).  Injected exceptions have no payload: they leave DR6 alone. */
long x86_ioctl_set_guest_debug(struct ioctl_ctx *ctx, void *data) {
  struct x86_vcpu *c = x86_vcpu(ctx->vcpu);
  const struct kvm_guest_debug *d = data;
  if (d->control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP)) {
    if (c->exception.pending || c->exception.injected) return -EBUSY;
    c->exception.injected = true;
    c->exception.ex = (struct x86_fault){.vector = d->control & KVM_GUESTDBG_INJECT_DB ? VEC_DB : VEC_BP};
    x86_request_event(c);
  }
  c->guest_debug = d->control & KVM_GUESTDBG_ENABLE ? d->control : 0;
  memset(c->guest_debug_dr, 0, sizeof(c->guest_debug_dr));
  if (c->guest_debug & KVM_GUESTDBG_USE_HW_BP) memcpy(c->guest_debug_dr, d->arch.debugreg, sizeof(c->guest_debug_dr));
  debug_changed(c);
  return 0;
}

/* ---- run state ---- */

/* INIT, SIPI and kicks that came but were not looked at show in no other state: they are taken now (and may change registers). */
long x86_ioctl_get_mp_state(struct ioctl_ctx *ctx, void *data) {
  struct x86_vcpu *c = x86_vcpu(ctx->vcpu);
  struct kvm_mp_state *m = data;
  x86_accept_apic_events(c);
  m->mp_state = c->mp_state;
  if (c->mp_state == KVM_MP_STATE_HALTED && atomic_load(&c->pv->kicked)) m->mp_state = KVM_MP_STATE_RUNNABLE;
  return 0;
}

static bool mp_state_valid(const struct x86_vcpu *c, u32 state) {
  switch (state) {
  case KVM_MP_STATE_UNINITIALIZED:
  case KVM_MP_STATE_HALTED:
  case KVM_MP_STATE_AP_RESET_HOLD:
    return c->lapic;
  case KVM_MP_STATE_INIT_RECEIVED:
  case KVM_MP_STATE_SIPI_RECEIVED: /* SMM blocks INIT, and a pending SMI comes first */
    return c->lapic && !c->smm && !atomic_load((_Atomic bool *)&c->smi_pending);
  case KVM_MP_STATE_RUNNABLE:
    return true;
  default:
    return false;
  }
}

long x86_ioctl_set_mp_state(struct ioctl_ctx *ctx, void *data) {
  struct x86_vcpu *c = x86_vcpu(ctx->vcpu);
  u32 state = ((const struct kvm_mp_state *)data)->mp_state;
  if (!mp_state_valid(c, state)) return -EINVAL;
  if (state == KVM_MP_STATE_SIPI_RECEIVED) {
    c->mp_state = KVM_MP_STATE_INIT_RECEIVED;
    atomic_fetch_or(&c->apic_events, APIC_EVENT_SIPI);
  } else {
    c->mp_state = state;
  }
  x86_request_event(c);
  return 0;
}

/* ---- injections ---- */

/* Without in-library chips: any interrupt.  With a local APIC alone: what its client's PIC says.  Not with both. */
long x86_ioctl_interrupt(struct ioctl_ctx *ctx, void *data) {
  struct x86_vcpu *c = x86_vcpu(ctx->vcpu);
  u32 vector = ((const struct kvm_interrupt *)data)->irq;
  if (vector >= KVM_NR_INTERRUPTS) return -EINVAL;
  if (x86_vm_of(c)->irqchip) return x86_lapic_external(c, (u8)vector);
  c->interrupt.injected = true;
  c->interrupt.soft = false;
  c->interrupt.nr = (u8)vector;
  x86_request_event(c);
  return 0;
}

long x86_ioctl_nmi(struct ioctl_ctx *ctx, void *data) {
  struct x86_vcpu *c = x86_vcpu(ctx->vcpu);
  atomic_fetch_add(&c->nmi_pending, 1);
  x86_request_event(c);
  return 0;
}

long x86_ioctl_smi(struct ioctl_ctx *ctx, void *data) {
  struct x86_vcpu *c = x86_vcpu(ctx->vcpu);
  atomic_store(&c->smi_pending, true);
  x86_request_event(c);
  return 0;
}
