/* Exits that the client has to ask for: hypercalls (KVM_CAP_EXIT_HYPERCALL), code that only an emulator could run
 * (KVM_CAP_EXIT_ON_EMULATION_FAILURE).  api.rst 7.27, 8.32; hypercalls.rst, KVM_HC_MAP_GPA_RANGE. */
#include <errno.h>
#include <linux/kvm_para.h>
#include <string.h>
#include <unistd.h>
#include "harness.h"

static const u8 vmcall[] = {0x0f, 0x01, 0xc1, 0x90};

/* A guest at a VMCALL with registers for MAP_GPA_RANGE. */
static struct guest *at_call(bool long_mode, u64 gpa, u64 pages, u64 attributes) {
  struct guest *g = guest_new();
  if (long_mode)
    guest_long(g, GUEST_CODE);
  else
    guest_protected(g, GUEST_CODE);
  guest_load(g, GUEST_CODE, vmcall, sizeof(vmcall));
  guest_load(g, GUEST_CODE + sizeof(vmcall), (const u8[]){0xb0, 1, 0xe6, GUEST_PORT}, 4);
  struct kvm_regs r = guest_regs(g);
  r.rax = KVM_HC_MAP_GPA_RANGE;
  r.rbx = gpa, r.rcx = pages, r.rdx = attributes;
  guest_set_regs(g, &r);
  return g;
}

/* AL is the report's. */
static u64 result(struct guest *g) {
  CHECK_EQ(guest_next(g), 1);
  return guest_regs(g).rax & ~0xffull;
}

static void without_exit(u64 want, bool enabled, u64 gpa, u64 pages) {
  struct guest *g = at_call(true, gpa, pages, 0);
  if (enabled) CHECK_EQ(guest_enable(g, KVM_CAP_EXIT_HYPERCALL, 1ull << KVM_HC_MAP_GPA_RANGE), 0);
  CHECK_EQ(result(g), want & ~0xffull);
  guest_free(g);
}

static void refused(void) {
  without_exit((u64)-KVM_ENOSYS, false, 0x1000, 1);
  without_exit((u64)-KVM_EINVAL, true, 0x1001, 1);
  without_exit((u64)-KVM_EINVAL, true, 0x1000, 0);
  without_exit((u64)-KVM_EINVAL, true, 0x1000, ~0ull);
  struct guest *g = guest_new();
  CHECK_EQ(guest_ioctl(g->sys, KVM_CHECK_EXTENSION, (void *)KVM_CAP_EXIT_HYPERCALL), 0x1000);
  CHECK_EQ(guest_enable(g, KVM_CAP_EXIT_HYPERCALL, 0x1001), -1);
  CHECK_EQ(errno, EINVAL);
  guest_free(g);
}

static void call(bool long_mode, u64 ret, u64 want) {
  struct guest *g = at_call(long_mode, 0x123000, 7, 0x11);
  CHECK_EQ(guest_enable(g, KVM_CAP_EXIT_HYPERCALL, 1ull << KVM_HC_MAP_GPA_RANGE), 0);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_HYPERCALL));
  CHECK_EQ(g->run->hypercall.nr, KVM_HC_MAP_GPA_RANGE);
  CHECK_EQ(g->run->hypercall.args[0], 0x123000);
  CHECK_EQ(g->run->hypercall.args[1], 7);
  CHECK_EQ(g->run->hypercall.args[2], 0x11);
  CHECK_EQ(g->run->hypercall.longmode, long_mode);
  CHECK_EQ(guest_regs(g).rip, GUEST_CODE);
  g->run->hypercall.ret = ret;
  g->run->immediate_exit = 1; /* completes, runs nothing */
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_RUN, NULL), -1);
  CHECK_EQ(errno, EINTR);
  g->run->immediate_exit = 0;
  CHECK_EQ(guest_regs(g).rip, GUEST_CODE + 3);
  CHECK_EQ(guest_regs(g).rax, want);
  CHECK_EQ(guest_next(g), 1);
  guest_free(g);
}

static void completed(void) {
  call(true, 0, 0);
  call(true, (u64)-KVM_EINVAL, (u64)-KVM_EINVAL);
  call(false, (u64)-KVM_EINVAL, (u32)-KVM_EINVAL);
}

/* ---- emulation failures ---- */

#define PAGE 0x50000000ul

/* The guest's page at PAGE has a bit of its physical address above the guest's MAXPHYADDR, below the host's. */
static struct guest *beyond_maxphyaddr(const u8 *code, size_t size) {
  struct guest *g = guest_new();
  guest_cpuid(g, 0x80000008, 0, 0xff, 36);
  guest_long(g, GUEST_CODE);
  guest_map(g, PAGE, 0x1000000000, 0x1000, P_W);
  guest_load(g, GUEST_CODE, code, size);
  struct kvm_regs r = guest_regs(g);
  r.rbx = PAGE;
  guest_set_regs(g, &r);
  return g;
}

static const u8 flds[] = {0xd9, 0x03, 0xb0, 1, 0xe6, GUEST_PORT};            /* flds (%rbx) */
static const u8 mov[] = {0x48, 0x8b, 0x03, 0x90, 0xb0, 1, 0xe6, GUEST_PORT}; /* mov (%rbx), %rax */

static void illegal_address(void) {
  struct guest *g = beyond_maxphyaddr(flds, sizeof(flds));
  CHECK_EQ(guest_next(g), TRAP(14)); /* as a processor with that MAXPHYADDR */
  CHECK_EQ(guest_stack(g, 0, 8), 9);
  guest_free(g);
  g = beyond_maxphyaddr(flds, sizeof(flds));
  CHECK_EQ(guest_enable(g, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 2), -1);
  CHECK_EQ(errno, EINVAL);
  CHECK_EQ(guest_enable(g, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1), 0);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_INTERNAL_ERROR));
  CHECK_EQ(g->run->emulation_failure.suberror, KVM_INTERNAL_ERROR_EMULATION);
  CHECK_EQ(g->run->emulation_failure.ndata, 3);
  CHECK_EQ(g->run->emulation_failure.flags, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
  CHECK_EQ(g->run->emulation_failure.insn_size, 15);
  CHECK(!memcmp(g->run->emulation_failure.insn_bytes, flds, sizeof(flds)));
  struct kvm_regs r = guest_regs(g);
  CHECK_EQ(r.rip, GUEST_CODE);
  r.rip += 2;
  guest_set_regs(g, &r);
  CHECK_EQ(guest_next(g), 1);
  guest_free(g);
  /* What an emulator knows takes the fault. */
  g = beyond_maxphyaddr(mov, sizeof(mov));
  CHECK_EQ(guest_enable(g, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1), 0);
  CHECK_EQ(guest_next(g), TRAP(14));
  guest_free(g);
}

/* Code that is not in memory cannot be shown. */
static void code_on_a_device(void) {
  struct guest *g = guest_new();
  guest_long(g, PAGE);
  guest_map(g, PAGE, 0xd0000000, 0x1000, P_W);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_INTERNAL_ERROR));
  CHECK_EQ(g->run->emulation_failure.suberror, KVM_INTERNAL_ERROR_EMULATION);
  CHECK_EQ(g->run->emulation_failure.ndata, 1);
  CHECK_EQ(g->run->emulation_failure.flags, 0);
  guest_free(g);
}

/* ---- events that cannot be delivered: the IDT is a device ---- */

#define IDT_GPA 0xd0000000ul

static struct guest *with_idt_device(const u8 *code, size_t size) {
  struct guest *g = guest_new();
  guest_long(g, GUEST_CODE);
  guest_map(g, PAGE, IDT_GPA, 0x1000, P_W);
  guest_load(g, GUEST_CODE, code, size);
  struct kvm_sregs s = guest_sregs(g);
  s.idt.base = PAGE;
  guest_set_sregs(g, &s);
  return g;
}

static void expect_undelivered(struct guest *g, u64 info) {
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_INTERNAL_ERROR));
  CHECK_EQ(g->run->internal.suberror, KVM_INTERNAL_ERROR_DELIVERY_EV);
  CHECK_EQ(g->run->internal.ndata, 5);
  CHECK_EQ(g->run->internal.data[0], info);
  CHECK_EQ(g->run->internal.data[1], 49);
  CHECK_EQ(g->run->internal.data[3], IDT_GPA + 16 * (info & 0xff));
  CHECK(g->run->internal.data[4] < (u64)sysconf(_SC_NPROCESSORS_CONF)); /* KVM_CAP_LAST_CPU */
}

/* It waits, and comes when there is a table. */
static void expect_later(struct guest *g, unsigned vector) {
  struct kvm_sregs s = guest_sregs(g);
  s.idt.base = GUEST_IDT;
  guest_set_sregs(g, &s);
  CHECK_EQ(guest_next(g), TRAP(vector));
  guest_free(g);
}

static void undelivered(void) {
  static const u8 ud[] = {0x0f, 0x0b}, load[] = {0x8a, 0x04, 0x25, 0, 0, 0, 0x70}, int3[] = {0xcc}, int40[] = {0xcd, 0x40},
                  nop[] = {0x90, 0xeb, 0xfd};
  struct guest *g = guest_new();
  CHECK_EQ(guest_ioctl(g->sys, KVM_CHECK_EXTENSION, (void *)KVM_CAP_LAST_CPU), 1);
  guest_free(g);
  g = with_idt_device(ud, sizeof(ud));
  expect_undelivered(g, 0x80000306);
  struct kvm_vcpu_events e;
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_VCPU_EVENTS, &e), 0);
  CHECK_EQ(e.exception.injected, 1);
  CHECK_EQ(e.exception.nr, 6);
  expect_later(g, 6);
  g = with_idt_device(load, sizeof(load)); /* not mapped */
  expect_undelivered(g, 0x80000b0e);
  CHECK_EQ(guest_sregs(g).cr2, 0x70000000);
  expect_later(g, 14);
  g = with_idt_device(int3, sizeof(int3));
  expect_undelivered(g, 0x80000603);
  expect_later(g, 3);
  g = with_idt_device(int40, sizeof(int40));
  expect_undelivered(g, 0x80000440);
  expect_later(g, 0x40);
  g = with_idt_device(nop, sizeof(nop));
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_NMI, NULL), 0);
  expect_undelivered(g, 0x80000202);
  expect_later(g, 2);
  g = with_idt_device(nop, sizeof(nop));
  struct kvm_regs r = guest_regs(g);
  r.rflags |= 0x200;
  guest_set_regs(g, &r);
  struct kvm_interrupt irq = {.irq = 0x41};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_INTERRUPT, &irq), 0);
  expect_undelivered(g, 0x80000041);
  expect_later(g, 0x41);
}

GUEST_MAIN({"hypercall-refused", refused}, {"hypercall", completed}, {"illegal-address", illegal_address},
           {"code-on-a-device", code_on_a_device}, {"undelivered", undelivered})
