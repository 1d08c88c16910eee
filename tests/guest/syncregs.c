/* State that goes in and out with KVM_RUN: registers in the kvm_run page (KVM_CAP_SYNC_REGS, api.rst 5), and a triple fault as an
 * event (KVM_CAP_X86_TRIPLE_FAULT_EVENT, api.rst 4.31). */
#include <errno.h>
#include <string.h>
#include "harness.h"

#define ALL (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS)

/* Adds RBX to RAX, and tells. */
static const u8 add[] = {0x48, 0x01, 0xd8, 0xe6, GUEST_PORT, 0xeb, 0xf9};

static struct guest *start(void) {
  struct guest *g = guest_new();
  guest_long(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, add, sizeof(add));
  return g;
}

static void out(void) {
  struct guest *g = start();
  CHECK_EQ(guest_ioctl(g->sys, KVM_CHECK_EXTENSION, (void *)KVM_CAP_SYNC_REGS), ALL);
  struct kvm_regs r = guest_regs(g);
  r.rax = 5, r.rbx = 7;
  guest_set_regs(g, &r);
  memset(&g->run->s.regs, 0x5a, sizeof(g->run->s.regs));
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->s.regs.regs.rax, 0x5a5a5a5a5a5a5a5a); /* not asked for */
  struct kvm_vcpu_events e;
  for (unsigned bit = 1; bit <= ALL; bit <<= 1) {
    memset(&g->run->s.regs, 0x5a, sizeof(g->run->s.regs));
    g->run->kvm_valid_regs = bit;
    CHECK_EQ(guest_run(g), 0);
    struct kvm_regs regs = guest_regs(g);
    struct kvm_sregs sregs = guest_sregs(g);
    CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_VCPU_EVENTS, &e), 0);
    CHECK_EQ(!memcmp(&regs, &g->run->s.regs.regs, sizeof(regs)), bit == KVM_SYNC_X86_REGS);
    CHECK_EQ(!memcmp(&sregs, &g->run->s.regs.sregs, sizeof(sregs)), bit == KVM_SYNC_X86_SREGS);
    CHECK_EQ(!memcmp(&e, &g->run->s.regs.events, sizeof(e)), bit == KVM_SYNC_X86_EVENTS);
  }
  guest_free(g);
}

static void in(void) {
  struct guest *g = start();
  g->run->kvm_valid_regs = ALL;
  CHECK_EQ(guest_run(g), 0);
  g->run->s.regs.regs.rax = 100, g->run->s.regs.regs.rbx = 11;
  CHECK_EQ(guest_run(g), 0); /* not marked: what the vCPU has counts */
  CHECK(g->run->s.regs.regs.rax != 111);
  g->run->s.regs.regs.rax = 100, g->run->s.regs.regs.rbx = 11;
  g->run->kvm_dirty_regs = KVM_SYNC_X86_REGS;
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->s.regs.regs.rax, 111);
  CHECK_EQ(guest_regs(g).rax, 111);
  CHECK_EQ(g->run->kvm_dirty_regs, 0);
  /* An NMI by the events, a base by the special registers. */
  g->run->s.regs.events.nmi.pending = 1;
  g->run->s.regs.events.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
  g->run->s.regs.sregs.gs.base = 0x123456789a;
  g->run->kvm_dirty_regs = KVM_SYNC_X86_EVENTS | KVM_SYNC_X86_SREGS;
  CHECK_EQ(guest_next(g), TRAP(2));
  CHECK_EQ(g->run->s.regs.sregs.gs.base, 0x123456789a);
  CHECK_EQ(g->run->s.regs.events.nmi.masked, 1);
  guest_free(g);
}

static int run_with(struct guest *g, u64 valid, u64 dirty) {
  g->run->kvm_valid_regs = valid;
  g->run->kvm_dirty_regs = dirty;
  return guest_run(g) < 0 ? -errno : 0;
}

static void refused(void) {
  struct guest *g = start();
  CHECK_EQ(run_with(g, ALL, 0), 0);
  CHECK_EQ(run_with(g, ALL + 1, 0), -EINVAL);
  CHECK_EQ(run_with(g, 1ull << 63, 0), -EINVAL);
  CHECK_EQ(run_with(g, ALL, ALL + 1), -EINVAL);
  g->run->s.regs.sregs.cr4 |= 1ull << 31;
  CHECK_EQ(run_with(g, ALL, KVM_SYNC_X86_SREGS), -EINVAL);
  CHECK_EQ(run_with(g, ALL, 0), 0); /* nothing of it stayed */
  g->run->s.regs.events.flags = 1u << 31;
  CHECK_EQ(run_with(g, ALL, KVM_SYNC_X86_EVENTS), -EINVAL);
  CHECK_EQ(run_with(g, 0, 0), 0);
  guest_free(g);
}

/* ---- exceptions with a payload (KVM_CAP_EXCEPTION_PAYLOAD, api.rst 7.17) ---- */

static struct kvm_debugregs debugregs(struct guest *g) {
  struct kvm_debugregs d;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_DEBUGREGS, &d), 0);
  return d;
}

static void pend(struct guest *g, unsigned vector, bool has_payload, u64 payload) {
  struct kvm_vcpu_events e = {.flags = KVM_VCPUEVENT_VALID_PAYLOAD,
                              .exception = {.pending = 1, .nr = (u8)vector, .has_error_code = vector == 14, .error_code = 2},
                              .exception_has_payload = has_payload,
                              .exception_payload = payload};
  struct kvm_regs r = guest_regs(g);
  r.rip = GUEST_CODE;
  guest_set_regs(g, &r); /* takes back what is pending */
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_VCPU_EVENTS, &e), 0);
}

static void check_pending(struct guest *g, unsigned vector, bool has_payload, u64 payload) {
  struct kvm_vcpu_events e;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_VCPU_EVENTS, &e), 0);
  CHECK(e.flags & KVM_VCPUEVENT_VALID_PAYLOAD);
  CHECK_EQ(e.exception.pending, 1);
  CHECK_EQ(e.exception.injected, 0);
  CHECK_EQ(e.exception.nr, vector);
  CHECK_EQ(e.exception_has_payload, has_payload);
  CHECK_EQ(e.exception_payload, payload);
}

static void payload(void) {
  struct guest *g = start();
  struct kvm_vcpu_events e = {.flags = KVM_VCPUEVENT_VALID_PAYLOAD};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_VCPU_EVENTS, &e), -1);
  CHECK_EQ(errno, EINVAL);
  CHECK_EQ(guest_enable(g, KVM_CAP_EXCEPTION_PAYLOAD, 1), 0);
  struct kvm_sregs s = guest_sregs(g);
  s.cr2 = 0x1111;
  guest_set_sregs(g, &s);
  pend(g, 14, true, 0x123456);
  check_pending(g, 14, true, 0x123456);
  CHECK_EQ(guest_sregs(g).cr2, 0x1111); /* not yet */
  CHECK_EQ(guest_next(g), TRAP(14));
  CHECK_EQ(guest_sregs(g).cr2, 0x123456);
  CHECK_EQ(guest_stack(g, 0, 8), 2);
  pend(g, 14, false, 0x777);
  check_pending(g, 14, false, 0);
  CHECK_EQ(guest_next(g), TRAP(14));
  CHECK_EQ(guest_sregs(g).cr2, 0x123456);
  struct kvm_debugregs d = debugregs(g);
  d.dr6 = 0xffff0ff2;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_DEBUGREGS, &d), 0);
  pend(g, 1, false, 0);
  CHECK_EQ(guest_next(g), TRAP(1));
  CHECK_EQ(debugregs(g).dr6, 0xffff0ff2); /* as the client had put it */
  pend(g, 1, true, 0x4000);
  check_pending(g, 1, true, 0x4000);
  CHECK_EQ(debugregs(g).dr6, 0xffff0ff2);
  CHECK_EQ(guest_next(g), TRAP(1));
  CHECK_EQ(debugregs(g).dr6, 0xffff4ff0);
  guest_free(g);
}

/* ---- triple faults ---- */

static struct kvm_vcpu_events events(struct guest *g) {
  struct kvm_vcpu_events e;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_VCPU_EVENTS, &e), 0);
  return e;
}
static int set_triple_fault(struct guest *g, bool on) {
  struct kvm_vcpu_events e = events(g);
  e.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
  e.triple_fault.pending = on;
  return guest_ioctl(g->vcpu, KVM_SET_VCPU_EVENTS, &e) < 0 ? -errno : 0;
}

static void triple_fault(void) {
  struct guest *g = start();
  CHECK_EQ(events(g).flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT, 0);
  CHECK_EQ(set_triple_fault(g, true), -EINVAL); /* not asked for */
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_IO);
  CHECK_EQ(guest_enable(g, KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1), 0);
  CHECK(events(g).flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT);
  CHECK_EQ(events(g).triple_fault.pending, 0);
  guest_run(g);
  struct kvm_regs before = guest_regs(g);
  CHECK_EQ(set_triple_fault(g, true), 0);
  CHECK_EQ(events(g).triple_fault.pending, 1);
  g->run->immediate_exit = 1;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_RUN, NULL), -1);
  CHECK_EQ(errno, EINTR);
  g->run->immediate_exit = 0;
  CHECK_EQ(events(g).triple_fault.pending, 1); /* it waits */
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_SHUTDOWN);
  CHECK_EQ(events(g).triple_fault.pending, 0);
  CHECK_EQ(guest_regs(g).rax, before.rax); /* no instruction has run */
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_IO);
  CHECK_EQ(set_triple_fault(g, true), 0);
  CHECK_EQ(set_triple_fault(g, false), 0);
  CHECK_EQ(guest_run(g), 0);
  CHECK_EQ(g->run->exit_reason, KVM_EXIT_IO);
  guest_free(g);
}

/* The guest's own. */
static void shutdown(void) {
  struct guest *g = start();
  static const u8 ud[] = {0x0f, 0x0b};
  guest_load(g, GUEST_CODE, ud, sizeof(ud));
  struct kvm_sregs s = guest_sregs(g);
  s.idt.limit = 0;
  guest_set_sregs(g, &s);
  CHECK_EQ(guest_enable(g, KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1), 0);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_SHUTDOWN));
  CHECK_EQ(events(g).triple_fault.pending, 0);
  guest_free(g);
}

GUEST_MAIN({"out", out}, {"in", in}, {"refused", refused}, {"payload", payload}, {"triple-fault", triple_fault},
           {"shutdown", shutdown})
